#!/usr/bin/env python3
"""job_times.py [--device cpu] [--runs 5] [--tokens 200] [MODEL FLOATS]: what a stream loses beside a job of the service. One
client's prefill and decode (`nibble bench`) without a job and beside a compression by error feedback of FLOATS, in turns; the
job is paused meanwhile. Medians, and the median of each turn's ratio.
NIBBLE_TEST_NIBBLED, _WORKER and _CLI name the programs, as for the tests beside it."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess

from harness import Daemon, until
from start_times import MODEL

CACHE = pathlib.Path.home() / ".cache/nibble"
PARTS = ("prefill_tps", "decode_tps")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("model", nargs="?", default=MODEL)
    parser.add_argument("floats", nargs="?", default=CACHE / "models/SmolLM2-135M-Instruct.F32.gguf")
    args = parser.parse_args()
    daemon = Daemon()
    env = dict(os.environ, NIBBLE_SOCKET=str(daemon.runtime / "nibble.sock"))

    def nibble(*words):
        return subprocess.run([os.environ["NIBBLE_TEST_CLI"], *map(str, words)], env=env, check=True, capture_output=True,
                              text=True).stdout

    def bench():
        return json.loads(nibble("bench", "m", "--prompt", 512, "--gen", args.tokens, "--clients", 1, "--runs", 1, "--json"))

    def begin():
        """The job computes: it has come further than it was."""
        at = row().done
        nibble("resume", job)
        until(lambda: row().state == b"running" and row().done > at, "progress", patience=300)

    def row():
        return client.job(job)

    nibble("load", args.model, "--name", "m", "--device", args.device)
    client = daemon.client()
    job = json.loads(nibble("compress", args.floats, "--to", "Q4_0", "--method", "gptq", "--detach", "--json",
                            "--calibration", CACHE / "text/handbook.txt"))["id"]
    until(lambda: row().state == b"running" and row().done, "the job", patience=300)
    nibble("pause", job)
    bench()  # what a first run pays for
    found = {False: [], True: []}
    for run in range(args.runs):
        for beside in sorted(found, reverse=run % 2):
            if beside:
                begin()
            result = bench()
            found[beside].append([result[part] for part in PARTS])
            if beside:
                if row().state != b"running":
                    raise SystemExit("the job was over too early: more windows, or fewer runs")
                nibble("pause", job)
    nibble("cancel", job)
    for i, part in enumerate(PARTS):
        alone, beside = ([r[i] for r in found[when]] for when in (False, True))
        ratio = statistics.median(b / a for a, b in zip(alone, beside))
        print(f"{part:12} {statistics.median(alone):8.1f} alone {statistics.median(beside):8.1f} beside a job: {ratio:.3f}")
    client.close()
    daemon.stop()
    daemon.finish()


if __name__ == "__main__":
    main()
