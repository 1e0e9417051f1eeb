#!/bin/bash
# Fuzzes under ASan and UBSan: `tests/fuzz/run.sh [SECONDS]` for each target (20), as many at once as there are
# processors, in the build folder build-fuzz, which is kept with its corpus, so that a later run goes on from there. A
# target that finds something ends the run with status 1 and leaves its input in build-fuzz/found/.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-20}
build=build-fuzz
corpus=$build/corpus

if ! [ -f $build/build.ninja ]; then
    CC=clang meson setup $build --buildtype=debugoptimized -Db_sanitize=address,undefined \
        -Db_lundef=false -Dc_args='-fsanitize=fuzzer-no-link -fno-sanitize-recover=undefined' \
        >/dev/null || { echo "fuzz: meson setup failed" >&2; exit 1; }
fi
targets=$(cd tests/fuzz && basename -s .c fuzz_*.c)
# shellcheck disable=SC2086 # the words of $targets are targets
(cd $build && ninja $(printf 'tests/fuzz/%s ' seeds $targets)) >$build/fuzz-build.log ||
    { tail -n 20 $build/fuzz-build.log >&2; exit 1; }

mkdir -p $build/found $corpus
$build/tests/fuzz/seeds $corpus

# One target, on one processor.
fuzz() {
    local target=$1
    mkdir -p $corpus/"$target"
    echo "$target: $seconds s"
    UBSAN_OPTIONS=print_stacktrace=1 $build/tests/fuzz/"$target" -max_total_time="$seconds" \
        -max_len=16384 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix=$build/found/ $corpus/"$target" >$build/"$target".log 2>&1 ||
        { tail -n 60 $build/"$target".log >&2; echo "$target found something: see $build/found/" >&2; return 255; }
    echo "$target: $(grep -E 'number_of_executed_units|new_units_added' $build/"$target".log | tr '\n' ' ')"
}
export -f fuzz
export build corpus seconds
xargs -P "$(nproc)" -I '{}' bash -euo pipefail -c 'fuzz {}' <<<"$targets"
