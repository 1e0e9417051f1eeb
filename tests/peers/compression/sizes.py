"""Mean KL divergence at equal sizes: our files for given sizes beside every preset of llama-quantize, from one calibration text.

usage: tests/oracle/run tests/peers/compression/sizes.py --keep DIR [--build build] [--size 60M ...] [--type T ...]
           [--recipe FILE] [--samples 128] [--windows 6] [--presets Q4_K_M ...]

Each size is a job with a target; --type (all but Q4_1 and Q5_1, whose grids hold the packaged model's weights exactly, in
presets too) and --recipe (a JSON object, as {"method": "gptq"}) go to it. Presets get the importance matrix that Nibble
measured of the same text. All are judged by one `nibble eval` at `exact`, on texts that are no part of the calibration; of
types that Nibble does not load, the floats that llama.cpp makes of the file are. The report with charts, and all files, lie in
DIR, and a file that is there already is not made again. A row of ours has beside it the best preset that is no larger than
1.005 of it.
"""
import argparse
import json
import pathlib
import sys

import compare
import llama_cpp

EXACT = {"Q4_1", "Q5_1", "F16", "BF16", "F32"}
TYPES = ["Q2_0", "Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"]
LOADED = {*TYPES, *EXACT}
SIZES = ["60M", "70M", "84.5M", "92M", "106M", "113M", "125M", "145M"]


def presets():
    prefix = "LLAMA_FTYPE_MOSTLY_"
    return {name.removeprefix(prefix): value for name, value in vars(llama_cpp.llama_cpp).items()
            if name.startswith(prefix) and isinstance(value, int) and name.removeprefix(prefix) not in EXACT}


def make_presets(options, found):
    for name, value in presets().items():
        path = options.keep / f"{name}.gguf"
        if options.presets and name not in options.presets or path.exists():
            continue
        try:
            compare.llama.quantize(compare.llama.f32_model(), path, value, found)
        except RuntimeError:
            print(f"llama-quantize refuses {name}", flush=True)
            path.unlink(missing_ok=True)


def make_ours(options, service):
    recipe = {**json.loads(options.recipe.read_text() if options.recipe else "{}"), "types": options.type}
    for size in options.size:
        name = f"nibble-{size}"
        if (options.keep / f"{name}.gguf").exists():
            continue
        target = {"size": round(float(size.removesuffix("M")) * 1e6)}
        seconds, most, processor = compare.compress(service, compare.llama.f32_model(), compare.LEARNT, options.samples,
                                         {**recipe, "target": target}, options.keep, name)
        print(f"{name}: {seconds:.0f} s, {processor:.0f} s of processor time, {most:.0f} MB of memory", flush=True)


def is_loaded(path):
    try:
        return set(compare.types(path).values()) <= LOADED
    except ValueError:  # gguf's reader does not know Q2_0
        return True


def judged(path):
    if is_loaded(path):
        return path
    floats = path.parent / "floats" / path.name
    if not floats.exists():
        floats.parent.mkdir(exist_ok=True)
        compare.llama.quantize(path, floats, 0)
    return floats


def sizes_and_divergences(options, service):
    """{name: (bytes, mean KL, [of each text])}, and the report in the folder."""
    files = sorted(options.keep.glob("*.gguf"), key=lambda path: path.stat().st_size)
    files = [path for path in files if path.name not in ("imatrix.gguf", "first.gguf")]
    texts = [word for path in compare.HELD_OUT for word in ("--text", path)]
    report = json.loads(service.run("eval", *map(judged, files), "--reference", compare.llama.f32_model(), *texts, "--windows",
                                    options.windows, "--precision", "exact", "--report", options.keep / "report", "--json"))
    of = {pathlib.Path(model["model"]).stem: model for model in report.get("models", [report])}
    return {path.stem: (path.stat().st_size, of[path.stem]["kld_mean"], [t["kld_mean"] for t in of[path.stem]["texts"]])
            for path in files}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"))
    parser.add_argument("--keep", type=pathlib.Path, required=True)
    parser.add_argument("--size", nargs="+", default=SIZES)
    parser.add_argument("--type", nargs="+", default=TYPES)
    parser.add_argument("--recipe", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--presets", nargs="+")
    options = parser.parse_args()
    service = compare.Service(options.build.resolve())
    try:
        if not (options.keep / "imatrix.gguf").exists():
            compare.compress(service, compare.llama.f32_model(), compare.LEARNT, options.samples, {"to": "Q4_0"}, options.keep,
                             "first")
        make_presets(options, compare.importance(options.keep / "imatrix.gguf"))
        make_ours(options, service)
        found = sizes_and_divergences(options, service)
    finally:
        service.daemon.finish()
    for name, (size, kl, each) in found.items():
        theirs = [(k, n) for n, (s, k, _) in found.items() if not n.startswith("nibble-") and s <= 1.005 * size]
        beside = f"   {kl / min(theirs)[0]:.2f} x of {min(theirs)[1]}" if theirs and name.startswith("nibble-") else ""
        print(f"{name:12} {size / 1e6:7.2f} MB  {kl:.4f}  " + " ".join(f"{k:.4f}" for k in each) + beside, flush=True)


if __name__ == "__main__":
    sys.exit(main())
