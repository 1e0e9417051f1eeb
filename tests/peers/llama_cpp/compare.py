"""Nibble beside llama.cpp: the same files, the same two threads, in turns, medians of one run.

usage: tests/oracle/run tests/peers/llama_cpp/compare.py [--build build] [--runs 5] [--alone]
                                                          [--json] [--only NAME] [--vulkan]

NAME is Q4_1 or Q4_0 (SmolLM2-135M), or a shape of shapes.py; without it the first two are measured.

Nibble is measured as a client sees it, through daemon and channel (`nibble bench`), at the tiers
fast and balanced; llama.cpp in this process through its own API, without sampling. Prefill of 512,
decode of 64 after 16, the same by eight clients at once. --alone leaves Nibble out. Last stands
which share of the memory's bandwidth, measured in turns with the rest, reading the weights of each
decoded token takes: of experts those that a token chooses.

--vulkan: both on Mesa's CPU driver; prefill of 128, decode of 16 after 1, one
client. llama.cpp's own variables (GGML_VK_DISABLE_F16=1 ...) reach it.

Run it on an idle machine: llama.cpp's threads spin while they wait and lose far more than ours when
other programs want the processors, so that ratios of a busy machine flatter Nibble. Under each table
stands how much of the processors' time the machine's host gave to others meanwhile.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "oracle")]

if "--vulkan" in sys.argv:
    import vulkan
    vulkan.enter()

import gguf  # noqa: E402

import llama  # noqa: E402
import shapes  # noqa: E402
from peer import Peer  # noqa: E402

FILES = {"Q4_1": lambda: llama.PACKAGED, "Q4_0": llama.q4_0_model,
         **{name: lambda name=name: shapes.model(name) for name in shapes.SHAPES}}
USUAL = ["Q4_1", "Q4_0"]
TIERS = ["fast", "balanced"]
METRICS = ["prefill_tps", "decode_tps", "aggregate_tps"]
# By device: what both measure.
SIZES = {"cpu": {"prompt": 512, "gen": 64, "depth": 16, "clients": 8},
         "vulkan0": {"prompt": 128, "gen": 16, "depth": 1, "clients": 1}}


class Nibble:
    """A private daemon of this build, for as long as the measurement lasts."""

    def __init__(self, build, device):
        self.device = device
        self.folder = tempfile.TemporaryDirectory()
        root = pathlib.Path(self.folder.name)
        self.command = [build / "tools" / "nibble"]
        self.environment = {**os.environ, "NIBBLE_SOCKET": str(root / "nibble.sock")}
        self.daemon = subprocess.Popen([build / "daemon" / "nibbled", "--runtime-dir", root,
                                        "--state-dir", root / "state"])
        while not (root / "admin.sock").exists():
            if self.daemon.poll() is not None:
                sys.exit("nibbled did not start")
            time.sleep(0.05)

    def run(self, *arguments):
        return subprocess.run([*self.command, *arguments], env=self.environment, check=True,
                              stdout=subprocess.PIPE, text=True).stdout

    def load(self, path, tier):
        self.run("load", path, "--name", tier, "--precision", tier, "--device", self.device)

    def unload(self, tier):
        self.run("unload", tier)

    def measure(self, tier):
        sizes = [word for name, n in SIZES[self.device].items() for word in (f"--{name}", str(n))]
        return json.loads(self.run("bench", tier, "--runs", "1", "--json", *sizes))

    def close(self):
        self.daemon.terminate()
        self.daemon.wait()
        self.folder.cleanup()


def bytes_of_a_token(path):
    """That a decode reads of the file's weights."""
    reader = gguf.GGUFReader(path)
    sizes = {t.name: int(t.n_bytes) for t in reader.tensors}
    field = lambda key: next((f.contents() for name, f in reader.fields.items() if name.endswith(key)), 1)
    chosen = field(".expert_used_count") / field(".expert_count")
    if "output.weight" in sizes:  # else the embedding is the head
        del sizes["token_embd.weight"]
    return sum(n * (chosen if "_exps." in name else 1) for name, n in sizes.items())


def bandwidth(build):
    return float(subprocess.run([build / "tests" / "support" / "bandwidth", "2"], check=True, stdout=subprocess.PIPE).stdout)


def processor_time():
    """(what the host gave to others, all) of every processor since the start, in ticks."""
    ticks = [int(word) for word in open("/proc/stat").readline().split()[1:9]]
    return ticks[7], sum(ticks)


def rounds(path, nibble, device, runs, build):
    """{who: [a result for each round]}: one of each in turn, so that noise falls on all alike."""
    peer = Peer(path, **SIZES[device])
    found = {"llama.cpp": [], **({tier: [] for tier in TIERS} if nibble else {})}
    speeds = []
    for tier in TIERS if nibble else []:
        nibble.load(path, tier)
    peer.measure(0)  # its first run pays for page faults
    for seed in range(runs):
        found["llama.cpp"].append(peer.measure(seed))
        for tier in TIERS if nibble else []:
            found[tier].append(nibble.measure(tier))
        speeds.append(bandwidth(build))
    for tier in TIERS if nibble else []:
        nibble.unload(tier)
    peer.close()
    return found, statistics.median(speeds)


def medians(results, metrics):
    return {metric: statistics.median(r[metric] for r in results) for metric in metrics}


def table(name, found):
    metrics = [metric for metric in METRICS if metric in found["llama.cpp"][0]]
    base = medians(found["llama.cpp"], metrics)
    print(f"\n{name:22}" + "".join(f"{metric:>24}" for metric in metrics))
    for who, results in found.items():
        cells = []
        for metric, median in medians(results, metrics).items():
            ratio = "" if who == "llama.cpp" else f" ({median / base[metric]:.2f} x)"
            cells.append(f"{median:.{1 if median < 100 else 0}f} t/s{ratio}")
        print(f"{who:22}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=FILES)
    parser.add_argument("--vulkan", action="store_true")
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"load average {busy:.1f}: the machine is not idle, these ratios flatter Nibble",
              file=sys.stderr)
    device = "vulkan0" if options.vulkan else "cpu"
    nibble = None if options.alone else Nibble(options.build.resolve(), device)
    try:
        everything = {}
        for name in [options.only] if options.only else USUAL:
            stolen, ticks = processor_time()
            path = FILES[name]()
            everything[name], speed = rounds(path, nibble, device, options.runs, options.build.resolve())
            if not options.json:
                table(name, everything[name])
                read = bytes_of_a_token(path)
                print(f"a token reads {read / 1e6:.1f} MB of weights; memory gives {speed:.1f} GB/s: " + ", ".join(
                    f"{who} {100 * read * medians(r, ['decode_tps'])['decode_tps'] / speed / 1e9:.0f} %"
                    for who, r in everything[name].items()))
                stolen, ticks = (now - then for now, then in zip(processor_time(), (stolen, ticks)))
                print(f"the host took {100 * stolen / ticks:.1f} % of the processors' time", flush=True)
        if options.json:
            print(json.dumps(everything))
    finally:
        if nibble:
            nibble.close()


if __name__ == "__main__":
    main()
