"""Nibble's compression beside llama-quantize's: one source, one calibration text, the same type for each tensor.

usage: tests/oracle/run tests/peers/compression/compare.py [--build build] [--to Q4_0] [--recipe FILE...] [--samples 128]
                                                           [--windows 40] [--theirs 4] [--keep DIR] [--text FILE...]

The source is the packaged model as float32. llama.cpp gets an importance matrix of the calibration text that Nibble measured,
and chooses its types; Nibble is told these. Each recipe (a JSON object: {"method": "gptq"}) is a row, without one: search and
gptq. KL divergence from the float model, in nats, by `nibble eval` at `exact` over windows of 512 tokens of three texts that
are no part of the calibration; then llama.cpp's own logits on both files over --theirs windows of each.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gguf
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent / "oracle"), str(HERE.parent.parent / "service")]

import harness  # noqa: E402
import llama  # noqa: E402
from measures import log_softmax  # noqa: E402

TEXT = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "nibble" / "text"
LEARNT = [TEXT / "novels" / "emma.txt", TEXT / "handbook.txt", TEXT / "modules.txt"]
HELD_OUT = [TEXT / "novel.txt", TEXT / "prose.txt", TEXT / "code.txt"]
FTYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q4_K_S": 14,
          "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_XXS": 23, "IQ2_S": 28, "IQ4_XS": 30}
LENGTH = 512


def types(path):
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


def importance(path):
    kept = {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
    return {n.removesuffix(".in_sum2"): (x / kept[n.replace("in_sum2", "counts")]).ravel()
            for n, x in kept.items() if n.endswith("in_sum2")}


class Theirs:
    """llama.cpp's logits of windows of the held-out texts, with F32 KV."""

    def __init__(self, source, windows):
        model = llama.Model(source)
        self.windows = [[model.tokenize(path.read_text()[:200_000])[i * LENGTH:(i + 1) * LENGTH] for i in range(windows)]
                        for path in HELD_OUT]
        model.close()

    def logits(self, path):
        model = llama.Model(path)
        context = llama.Context(model, LENGTH, float_kv=True)
        for windows in self.windows:
            for tokens in windows:
                context.clear()
                context.decode(tokens, range(LENGTH), [0] * LENGTH, [1] * LENGTH)
                yield log_softmax(context.logits(LENGTH))
        context.close()
        model.close()

    def kl(self, source, path):
        """The mean of each text."""
        each = [float((np.exp(p) * (p - q)).sum(axis=1).mean()) for p, q in zip(self.logits(source), self.logits(path))]
        n = len(self.windows[0])
        return [float(np.mean(each[i:i + n])) for i in range(0, len(each), n)]


class Watch(threading.Thread):
    """What the workers of jobs take until it is stopped: the most memory of one, in MB, and the processor time of all, in s."""

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.of, self.peak, self.times, self.over = daemon, 0, {}, threading.Event()

    def run(self):
        while not self.over.wait(0.5):
            for pid in (pid for pid, mode in self.of.children() if mode == "job"):
                try:
                    found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
                    ticks = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                except OSError:  # it has ended
                    continue
                self.peak = max(self.peak, int(found[1]) / 1e3 if found else 0)
                self.times[pid] = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.over.set()
        self.join()
        return self.peak, sum(self.times.values())


class Service:
    def __init__(self, build):
        os.environ.setdefault("NIBBLE_TEST_NIBBLED", str(build / "daemon" / "nibbled"))
        os.environ.setdefault("NIBBLE_TEST_WORKER", str(build / "daemon" / "worker" / "nibble-worker"))
        self.cli = build / "tools" / "nibble"
        self.daemon = harness.Daemon(config="[jobs]\nidle = 0\n")

    def run(self, *words):
        return subprocess.run([self.cli, *map(str, words), "--socket", self.daemon.runtime / "nibble.sock"], check=True,
                              stdout=subprocess.PIPE, text=True).stdout


def run_tables(parser, tables, maker):
    """The `main` of scripts that measure several tables: each is a function of a maker, which is made of options and service."""
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"))
    parser.add_argument("--keep", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    service = Service(options.build.resolve())
    try:
        for name in options.only:
            tables[name](maker(options, service))
    finally:
        service.daemon.finish()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"))
    parser.add_argument("--to", choices=FTYPES, default="Q4_0")
    parser.add_argument("--recipe", type=pathlib.Path, action="append")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--theirs", type=int, default=4)
    parser.add_argument("--text", type=pathlib.Path, action="append", help="calibration, in place of the usual")
    parser.add_argument("--keep", type=pathlib.Path)
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    folder = options.keep or pathlib.Path(scratch.name)
    source, learnt = llama.f32_model(), options.text or LEARNT
    service = Service(options.build.resolve())
    try:
        measure(options, folder, source, learnt, service)
    finally:
        service.daemon.finish()


def compress(service, source, learnt, samples, recipe, folder, name):
    """(seconds, MB of memory, seconds of processor time)"""
    (folder / f"{name}.json").write_text(json.dumps(recipe))
    began, watch = time.monotonic(), Watch(service.daemon)
    watch.start()
    texts = [word for path in learnt for word in ("--calibration", path)]
    service.run("compress", source, "-o", folder / f"{name}.gguf", "--force", "--recipe", folder / f"{name}.json", *texts,
                "--samples", samples, "--save-imatrix", folder / "imatrix.gguf", "--json")
    return time.monotonic() - began, *watch.stop()


def measure(options, folder, source, learnt, service):
    recipes = {path.stem: json.loads(path.read_text()) for path in options.recipe or []} or \
        {"search": {"method": "search"}, "gptq": {"method": "gptq"}}
    compress(service, source, learnt, options.samples, {"to": "Q4_0"}, folder, "first")
    llama.quantize(source, folder / "theirs.gguf", FTYPES[options.to], importance(folder / "imatrix.gguf"))
    found = types(folder / "theirs.gguf")
    rules = {kind: "|".join(f"^{name}$".replace(".", "[.]") for name, t in found.items() if t == kind)
             for kind in set(found.values())}
    took = {}
    for name, recipe in recipes.items():
        recipe = {"to": "Q8_0", **recipe, "tensors": [{"match": part, "to": kind} for kind, rule in rules.items()
                                                      for part in chunks(rule)]}
        took[name] = compress(service, source, learnt, options.samples, recipe, folder, name)
        assert types(folder / f"{name}.gguf") == found, "the same types"
    files = {"llama.cpp": folder / "theirs.gguf", **{name: folder / f"{name}.gguf" for name in recipes}}
    texts = [word for path in HELD_OUT for word in ("--text", path)]
    report = json.loads(service.run("eval", *files.values(), "--reference", source, *texts, "--windows", options.windows,
                                    "--precision", "exact", "--json"))
    (folder / "eval.json").write_text(json.dumps(report, indent=1))
    theirs = Theirs(source, options.theirs) if options.theirs else None
    for name, path in files.items():
        seconds, most, processor = took.get(name, (0, 0, 0))
        print(f"{name:12} {path.stat().st_size / 1e6:7.1f} MB  {seconds:5.0f} s ({processor:.0f} of processors) {most:5.0f} MB  "
              f"{row(report, path)}", end="")
        print("   by llama.cpp: " + " / ".join(f"{x:.4f}" for x in theirs.kl(source, path)) if theirs else "", flush=True)


def chunks(rule):
    """A recipe's expression has 256 bytes at most."""
    part = ""
    for name in rule.split("|"):
        if part and len(part) + len(name) > 250:
            yield part
            part = ""
        part += ("|" if part else "") + name
    yield part


def row(report, path):
    """Of each text: KL, its interval's half, and how often the same token comes first."""
    model = next(m for m in report.get("models", [report]) if pathlib.Path(m["model"]).name == path.name)
    return "  ".join(f"{t['kld_mean']:.4f} ±{(t['kld_mean_ci'][1] - t['kld_mean_ci'][0]) / 2:.4f} {100 * t['top1']:.1f} %"
                     for t in model["texts"])


if __name__ == "__main__":
    main()
