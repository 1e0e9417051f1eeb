#!/usr/bin/env python3
"""start_times.py [--device vulkan0] [--runs 5] [MODEL]: how long a service's start takes to the first token of the real
model, from the daemon's start on: cold (an empty state directory) and warm (the daemon started again once its device
had prepared the model and kept what it learned). Medians of wall time, and of the processor time of the daemon and its
workers, which a busy machine changes less. NIBBLE_TEST_NIBBLED, _WORKER and _CLI name the programs, as for the tests
beside it."""
import argparse
import os
import pathlib
import re
import statistics
import subprocess
import time

from harness import Daemon, until

MODEL = pathlib.Path.home() / ".cache/nibble/models/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "Begin at the beginning, the King said gravely,"


def processor_time(daemon):
    """Seconds that the daemon, its living workers and those it has waited for have used."""
    ticks = 0
    for pid in [daemon.pid] + [pid for pid, _ in daemon.children()]:
        fields = re.sub(r".*\) ", "", pathlib.Path(f"/proc/{pid}/stat").read_text()).split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def first_token(daemon, device, model):
    """One answer of one token, from the daemon's start on: seconds on the clock and of the processor."""
    begin = time.monotonic()
    daemon.start()
    env = dict(os.environ, NIBBLE_SOCKET=str(daemon.runtime / "nibble.sock"))
    for words in (["load", model, "--name", "m", "--device", device], ["run", "m", PROMPT, "--raw", "-n", "1"]):
        subprocess.run([os.environ["NIBBLE_TEST_CLI"], *map(str, words)], env=env, check=True, capture_output=True)
    return time.monotonic() - begin, processor_time(daemon)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="vulkan0")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("model", nargs="?", default=os.environ.get("NIBBLE_MODEL", MODEL))
    args = parser.parse_args()
    os.environ.pop("MESA_SHADER_CACHE_DIR", None)  # each daemon's own
    taken = {"cold": [], "warm": []}
    for _ in range(args.runs):
        daemon = Daemon(start=False)
        for name in taken:
            taken[name].append(first_token(daemon, args.device, args.model))
            until(daemon.kept, "what the device keeps", patience=120)
            daemon.stop()
        daemon.finish()
    for name, runs in taken.items():
        wall, processor = (statistics.median(r[i] for r in runs) for i in range(2))
        print(f"{name}: {wall:.2f} s to the first token, {processor:.2f} s of processor time "
              f"(medians of {args.runs} runs on {args.device})")


if __name__ == "__main__":
    main()
