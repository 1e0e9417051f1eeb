"""adapter_times.py [--rank 16] [--runs 5] [--clients 8] [--tokens 150] [--device cpu] [MODEL]: tokens a second of clients that decode
together with adapters of one loaded model: each without, all with one, and each with one of four in turn. The adapters change all matrices
of all layers, in F16. Each run asks all three, in turns. Medians; the ratios are the medians of the runs' own, of wall time and of
the worker's processor time, which a busy machine changes less, least under `taskset -c 0`: one thread waits for no other.
tests/oracle/run runs it; NIBBLE_TEST_NIBBLED, _WORKER and _CLI name the programs, as for the tests in tests/service."""
import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

from harness import Daemon
from start_times import MODEL, processor_time

ADAPTERS = ["a", "b", "c", "d"]
ASKED = {"none": [], "one": ADAPTERS[:1], "four": ADAPTERS}


def write_adapter(base, path, rank, seed):
    reader, random = gguf.GGUFReader(base), np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", rank)
    for t in reader.tensors:
        if t.name.startswith("blk.") and len(t.shape) == 2:
            cols, rows = map(int, t.shape)
            writer.add_tensor(f"{t.name}.lora_a", random.normal(0, 0.02, (rank, cols)).astype(np.float16))
            writer.add_tensor(f"{t.name}.lora_b", random.normal(0, 0.02, (rows, rank)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("model", nargs="?", default=os.environ.get("NIBBLE_MODEL", MODEL))
    args = parser.parse_args()
    processor = next((line.split(": ")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    daemon = Daemon()
    socket = daemon.runtime / "nibble.sock"

    def start(*words):
        return subprocess.Popen([os.environ["NIBBLE_TEST_CLI"], *map(str, words), "--socket", socket], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def nibble(*words):
        if start(*words).wait():
            sys.exit(f"nibble {words[0]} failed")

    def times(adapters):
        """Seconds by the clock and by the worker's processor."""
        began, before = time.monotonic(), processor_time(daemon)
        clients = [start("run", "m", "The sea", "--raw", "--ignore-eos", "--drafts", "off", "-n", args.tokens,
                         *(("--adapter", adapters[i % len(adapters)]) if adapters else ())) for i in range(args.clients)]
        if any(client.wait() for client in clients):
            sys.exit("a client failed")
        return time.monotonic() - began, processor_time(daemon) - before

    nibble("load", args.model, "--name", "m", "--device", args.device)
    for seed, name in enumerate(ADAPTERS):
        path = pathlib.Path(daemon.dir.name) / f"{name}.gguf"
        write_adapter(args.model, path, args.rank, seed)
        nibble("load", path, "--base", "m")
    taken = {what: [] for what in ASKED}
    for run in range(args.runs + 1):
        for what in sorted(ASKED, reverse=run % 2):
            taken[what].append(times(ASKED[what]))
    print(f"{processor}, {len(os.sched_getaffinity(0))} CPUs, load {os.getloadavg()[0]:.1f}; {args.clients} clients on "
          f"{args.device}, rank {args.rank}")
    print(f"{'adapters':8} {'tokens/s':>9} {'time':>6} {'processor':>10}   (of one adapter's)")
    for what, runs in taken.items():
        pairs = list(zip(taken["one"], runs))[1:]  # the first run pays for what is done once
        clock, by_processor = (statistics.median(x[i] / one[i] for one, x in pairs) for i in range(2))
        speed = args.clients * args.tokens / statistics.median(x[0] for _, x in pairs)
        print(f"{what:8} {speed:9.1f} {clock:6.2f} {by_processor:10.2f}")
    daemon.stop()
    daemon.finish()


if __name__ == "__main__":
    main()
