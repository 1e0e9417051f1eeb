"""What distillation is worth on the packaged model, as tables: students beside their controls of equal tokens, and what pruning
loses and healing gives back, down to a quantized file.

usage: tests/oracle/run tests/peers/distillation/claims.py --keep DIR [--build build] [--only six healing] [--tokens 1000000]
                                                           [--windows 20] [--layers 6] [--weights 80M] [--seed 1]

Students learn novels, a handbook and modules, and are judged by one `nibble eval` for each table, whose report with charts is
in DIR/TABLE, on windows of 512 tokens of three texts that are no part of these. A file that is there is not made again; beside
each student lies its own report, with the loss by tokens. With 1,000,000 tokens a student takes one to two hours on two cores.
"""
import argparse
import json
import math
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "compression"))

import compare
from compare import TEXT, llama

LEARNT = [TEXT / "novels", TEXT / "handbook.txt", TEXT / "modules.txt"]


class Maker:
    def __init__(self, options, service):
        self.options, self.service = options, service

    def student(self, name, *words):
        path = self.options.keep / f"{name}.gguf"
        if path.exists():
            return path
        began = time.monotonic()
        texts = [word for text in LEARNT for word in ("--text", text)]
        tokens = [] if "--tokens" in words else ["--tokens", self.options.tokens]
        report = self.service.run("distill", llama.f32_model(), "-o", path, *texts, *tokens, *words, "--seed", self.options.seed,
                                  "--json")
        path.with_suffix(".json").write_text(report)
        held = json.loads(report)["held_out"]
        print(f"{name}: {time.monotonic() - began:.0f} s, held-out loss {held['before']['loss']:.3f} -> "
              f"{held['after']['loss']:.3f}", file=sys.stderr, flush=True)
        return path

    def quantized(self, name, source):
        path = self.options.keep / f"{name}.gguf"
        if not path.exists():
            texts = [word for text in compare.LEARNT for word in ("--calibration", text)]
            self.service.run("compress", source, "-o", path, "--to", "Q4_0", "--method", "gptq", *texts, "--samples", 64)
        return path

    def judge(self, table, files):
        """{file: [of each text]}"""
        texts = [word for path in compare.HELD_OUT for word in ("--text", path)]
        report = json.loads(self.service.run(
            "eval", *files, "--reference", llama.f32_model(), *texts, "--windows", self.options.windows, "--precision", "exact",
            "--report", self.options.keep / table, "--json"))
        print(f"## {table}\n", (self.options.keep / table / "report.md").read_text(), flush=True)
        return {path: model["texts"] for path, model in zip(files, report["models"])}


def closed(found, before, after):
    """The share that was closed, of each text: of the loss's gap to the teacher, and of the divergence."""
    teacher = [math.log(t["reference_perplexity"]) for t in found[before]]
    for what, of, floor in (("loss", lambda t: math.log(t["perplexity"]), teacher),
                            ("divergence", lambda t: t["kld_mean"], [0] * len(teacher))):
        shares = [(of(b) - of(a)) / (of(b) - f) for b, a, f in zip(found[before], found[after], floor)]
        print(f"{after.stem}: of the gap in {what} closed: " + " / ".join(f"{100 * x:.0f} %" for x in shares), flush=True)


def six(maker):
    """A student of six layers beside what it is without a teacher, and without its teacher's layers."""
    layers = ["--layers", maker.options.layers]
    cut = maker.student("six-cut", *layers, "--tokens", 0)
    files = [maker.student("six-distilled", *layers), maker.student("six-labels", *layers, "--hard", 1),
             maker.student("six-random", *layers, "--start", "random")]
    found = maker.judge("six", [cut, *files])
    for path in files:
        closed(found, cut, path)


def healing(maker):
    """Pruned, healed, and quantized."""
    weights = ["--weights", maker.options.weights]
    cut = maker.student("pruned", *weights, "--tokens", 0)
    files = [maker.student("healed", *weights), maker.student("healed-labels", *weights, "--hard", 1)]
    files.append(maker.quantized("healed-q4_0", files[0]))
    found = maker.judge("healing", [cut, *files])
    for path in files:
        closed(found, cut, path)
    f16 = llama.f32_model().stat().st_size / 2
    print(f"{files[-1].stem}: {100 * (1 - files[-1].stat().st_size / f16):.1f} % smaller than F16", flush=True)


TABLES = {"six": six, "healing": healing}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--layers", default="6")
    parser.add_argument("--weights", default="80M")
    parser.add_argument("--seed", type=int, default=1)
    compare.run_tables(parser, TABLES, Maker)


if __name__ == "__main__":
    main()
