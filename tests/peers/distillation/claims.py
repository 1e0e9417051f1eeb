"""What distillation is worth on the packaged model, as tables: students beside their controls of equal tokens, and what pruning
loses and healing gives back, down to a quantized file.

usage: tests/oracle/run tests/peers/distillation/claims.py --keep DIR [--build build] [--only six healing qat encoder] [--tokens 1000000]
                                                           [--windows 20] [--layers 6] [--weights 80M] [--seed 1] [--precision bf16]
                                                           [--encoder-tokens 1000000] [--passages 2000]

Students learn novels, a handbook and modules, and are judged by one `nibble eval` for each table, whose report with charts is
in DIR/TABLE, on windows of 512 tokens of three texts that are no part of these. A file that is there is not made again; beside
each student lies its own report, with the loss by tokens. With 1,000,000 tokens a student takes one to two hours on two cores.

The encoder's students (all-MiniLM-L6-v2 to three layers) learn lines: WordNet's glosses and the sentences of Persuasion and of
the Debian reference. They are judged on passages of five other novels and of the Debian handbook: of tools/tasks' 10,000 so
many, evenly. A student of 160,000 tokens takes two minutes of processor time, and judging all files six.
"""
import argparse
import importlib.machinery
import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "compression"))

import compare
from compare import TEXT, llama

LEARNT = [TEXT / "novels", TEXT / "handbook.txt", TEXT / "modules.txt"]
MINILM = TEXT.parent / "models" / "all-MiniLM-L6-v2"
PASSAGES = TEXT.parent / "tasks" / "passages.txt"
TASKS = [word for path in sorted(PASSAGES.parent.glob("*.jsonl")) for word in ("--tasks", path)]


class Maker:
    def __init__(self, options, service):
        self.options, self.service = options, service

    def student(self, name, *words, of=None):
        """`of`: what it begins as, where that is not the teacher."""
        texts = [word for text in LEARNT for word in ("--text", text)]
        teacher = ["--teacher", llama.f32_model()] if of else []
        words = (*teacher, *words, "--precision", self.options.precision)
        return self.distilled(name, of or llama.f32_model(), *texts, *words, tokens=self.options.tokens)

    def encoder(self, name, *words):
        words = ("--text", lines(self.options.keep), "--layers", 3, "--length", 128, "--held-out", 256, *words)
        return self.distilled(name, MINILM, *words, tokens=self.options.encoder_tokens)

    def distilled(self, name, model, *words, tokens):
        path = self.options.keep / f"{name}.gguf"
        if path.exists():
            return path
        began = time.monotonic()
        said = [] if "--tokens" in words else ["--tokens", tokens]
        report = self.service.run("distill", model, "-o", path, *said, *words, "--seed", self.options.seed, "--json")
        path.with_suffix(".json").write_text(report)
        held = json.loads(report)["held_out"]
        print(f"{name}: {time.monotonic() - began:.0f} s, held out: {held['before']} -> {held['after']}", file=sys.stderr,
              flush=True)
        return path

    def as_type(self, source, kind):
        path = source.with_name(f"{source.stem}-{kind}.gguf")
        if not path.exists():
            self.service.run("compress", source, "-o", path, "--to", kind)
        return path

    def quantized(self, name, source, *words):
        path = self.options.keep / f"{name}.gguf"
        if not path.exists():
            texts = [word for text in compare.LEARNT for word in ("--calibration", text)]
            self.service.run("compress", source, "-o", path, *words, "--method", "gptq", *texts, "--samples", 64)
        return path

    def judge(self, table, files, *words):
        """{file: [of each text]}"""
        texts = [word for path in compare.HELD_OUT for word in ("--text", path)]
        report = json.loads(self.service.run(
            "eval", *files, "--reference", llama.f32_model(), *texts, *words, "--windows", self.options.windows, "--precision", "exact",
            "--report", self.options.keep / table, "--json"))
        print(f"## {table}\n", (self.options.keep / table / "report.md").read_text(), flush=True)
        return {path: model["texts"] for path, model in zip(files, report["models"])}


def lines(folder):
    """What an encoder learns, a text a line; none of it is among the passages."""
    path = folder / "lines.txt"
    if path.exists():
        return path
    loader = importlib.machinery.SourceFileLoader("tasks", str(HERE.parents[2] / "tools" / "tasks"))
    tasks = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(tasks)
    found = {sentence: None for name in ("novel.txt", "prose.txt") for p in tasks.paragraphs(TEXT / name, 40)
             for sentence in re.findall(r"[\"A-Z][^.!?]{20,400}[.!?]", p)}
    with tempfile.TemporaryDirectory() as scratch:
        package = tasks.sibling("fetch-text").fetch("wordnet-base", TEXT.parent / "debs")
        subprocess.run(["dpkg", "-x", package, scratch], check=True)
        for data in sorted((pathlib.Path(scratch) / "usr/share/wordnet").glob("data.*")):
            found |= {s.gloss: None for s in tasks.read_synsets(data).values()}
    judged = set(PASSAGES.read_text().splitlines())
    path.write_text("".join(f"{line}\n" for line in found if line and line not in judged))
    return path


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
    healed = maker.student("healed", *weights)
    f16 = llama.f32_model().stat().st_size / 2
    small = [maker.quantized("healed-q4_0", healed, "--to", "Q4_0"),
             maker.quantized("healed-15", healed, "--target-size", int(0.15 * f16))]
    found = maker.judge("healing", [cut, healed, *small], *TASKS)
    for path in [healed, *small]:
        closed(found, cut, path)
    for path in small:
        print(f"{path.stem}: {100 * (1 - path.stat().st_size / f16):.1f} % smaller than F16", flush=True)


def qat(maker):
    """Codes that error feedback found, and what training makes of them, at the same bytes."""
    files = []
    how = ("--qat", "--hard", 0)  # the teacher alone
    for kind, rate in ("Q2_0", 3e-4), ("Q4_0", 3e-5):
        start = maker.quantized(f"gptq-{kind}", llama.f32_model(), "--to", kind)
        files += [start, maker.student(f"qat-{kind}", "--to", kind, "--rate", rate, *how, of=start)]
    found = maker.judge("qat", files)
    for start, path in zip(files[::2], files[1::2]):
        closed(found, start, path)


def encoder(maker):
    """MiniLM to three layers, beside one that is only cut, and one that learns each text's cosine alone; then in eight bits."""
    keep, how = maker.options.keep, ("--precision", "bf16", "--rate", maker.options.encoder_rate)
    passages = keep / "passages.txt"
    every = PASSAGES.read_text().splitlines()
    passages.write_text("".join(f"{p}\n" for p in every[::max(1, len(every) // maker.options.passages)]))
    distilled = maker.encoder("encoder-distilled", *how, "--relation", 10)
    whole = keep / "encoder-whole.gguf"
    if not whole.exists():
        maker.service.run("convert", MINILM, "-o", whole, "--to", "F16")
    files = [whole, maker.as_type(whole, "Q8_0"), maker.encoder("encoder-cut", "--tokens", 0),
             maker.encoder("encoder-cosine", *how, "--relation", 0), distilled, maker.as_type(distilled, "int8-channel"),
             maker.as_type(distilled, "Q8_0")]
    maker.service.run("eval", *files, "--reference", MINILM, "--passages", passages, "--cost", "--report", keep / "encoder")
    print("## encoder\n", (keep / "encoder" / "report.md").read_text(), flush=True)


TABLES = {"six": six, "healing": healing, "qat": qat, "encoder": encoder}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--layers", default="6")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--weights", default="80M")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encoder-tokens", type=int, default=1_000_000)
    parser.add_argument("--encoder-rate", type=float, default=3e-4)
    parser.add_argument("--passages", type=int, default=2000)
    compare.run_tables(parser, TABLES, Maker)


if __name__ == "__main__":
    main()
