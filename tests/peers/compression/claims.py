"""The classic claims of compression as tables, on the packaged model: what types and methods lose and cost, what tasks lose
beside llama-quantize, what W8A8 loses with and without SmoothQuant, what the model's own text is worth as calibration, what
zeros lose by each method, what time buys; and on MiniLM what the DistilBERT recipe's steps lose and gain.

usage: tests/oracle/run tests/peers/compression/claims.py --keep DIR [--build build] [--only weights ...] [--samples 64]
                                                          [--windows 6] [--runs 5] [--efforts fast ...] [--tasks DIR]

Each table is one `nibble eval` against the F32 file, with its report (Markdown, JSON, charts) in DIR/TABLE. Files lie in DIR,
and one that is there already is not made again. Calibration as in compare.py, none of which is judged on. Speeds (`speed`:
prompts of 512 tokens; `encoder`) and times (`effort`: two to three hours, --efforts for a part) want a machine that does
nothing else.
"""
import argparse
import json
import pathlib
import sys
import time

import compare
from compare import llama

GPTQ = ["--method", "gptq"]
# Of each file what nibble compress is told beside calibration, which PLAIN has none of.
PLAIN = {name: ["--to", to] for name, to in {
    "f16": "F16", "int8-group": "int8-g32", "int8-channel": "int8-channel", "int8-channel-zero": "int8-channel-zero",
    "int4": "int4-g32", "int4-min": "int4-g32-min", "int4-g64": "int4-g64", "int4-g64-min": "int4-g64-min",
    "int3": "int3-g32", "int3-min": "int3-g32-min", "int2": "int2-g64"}.items()}
# Error feedback rounds to types' own groups alone: 3 and 2 bits that are kept in a type of 4 have their scales searched.
LEARNT = {f"{name}-search": [*PLAIN[name], "--method", "search"] for name in ("int4", "int3", "int3-min", "int2")}
LEARNT |= {f"{name}-gptq": [*PLAIN[name], *GPTQ] for name in ("int4", "int4-min")}
W8A8 = {"w8-dynamic": ["--activations", "dynamic"]}
for range_, spread in (("mse", 0), ("mse", 6)):
    W8A8[f"w8-static-{range_}-spread-{spread}"] = ["--activations", "static", "--range", range_, "--spread", str(spread)]
W8A8 |= {f"{name}-smooth": [*how, "--fold", "smooth"] for name, how in W8A8.items()}
W8A8 = {name: ["--to", "int8-channel", *how] for name, how in W8A8.items()}
MINILM = llama.CACHE / "models" / "all-MiniLM-L6-v2"
ENCODER = {"f32": ["--to", "F32"], "f16": ["--to", "F16"]}
ENCODER |= {f"int8-{how}": ["--to", "int8-channel", "--activations", how] for how in ("dynamic", "static")}
ENCODER |= {"int8-blocks": ["--to", "int8-g32"], "int4": ["--to", "int4-g32"], "int4-gptq": ["--to", "int4-g32", *GPTQ]}
TIMED = {"nearest": ["--effort", "fast"], "search": ["--effort", "fast", "--method", "search"], "gptq": ["--effort", "fast", *GPTQ]}
TIMED |= {effort: ["--effort", effort, "--method", "auto"] for effort in ("fast", "normal", "best")}
BY = {"magnitude": [], "wanda": [], "sparsegpt": GPTQ}
ZEROS = {"half": "0.5", "2-of-4": "2:4"}
SPARSE = {f"{name}-{by}": ["--to", "F16", "--sparse", zeros, "--sparse-by", by, *how]
          for name, zeros in ZEROS.items() for by, how in BY.items()}
OWN = {"int4-own-text": [*PLAIN["int4"], *GPTQ]}


class Maker:
    def __init__(self, options, service):
        self.options, self.service, self.seconds = options, service, {}

    def make(self, name, arguments, texts=(), source=None):
        path = self.options.keep / f"{name}.gguf"
        if not path.exists():
            began, watch = time.monotonic(), compare.Watch(self.service.daemon)
            watch.start()
            learnt = [word for text in texts for word in ("--calibration", text)]
            chosen = (texts or name in OWN) and "--effort" not in arguments
            samples = ["--samples", self.options.samples] if chosen else []
            self.service.run("compress", source or llama.f32_model(), "-o", path, *arguments, *learnt, *samples, "--json")
            most, processor = watch.stop()
            print(f"{name}: {time.monotonic() - began:.1f} s, {processor:.1f} s of processor time, {most:.0f} MB", file=sys.stderr,
                  flush=True)
        return path

    def theirs(self):
        """llama-quantize's Q4_0 with the importance matrix of the same text; its embedding is Q8_0."""
        imatrix, path = self.options.keep / "imatrix.gguf", self.options.keep / "llama-q4_0.gguf"
        if not path.exists():
            compare.compress(self.service, llama.f32_model(), compare.LEARNT, self.options.samples, {"to": "Q4_0"},
                             self.options.keep, "first")
            llama.quantize(llama.f32_model(), path, compare.FTYPES["Q4_0"], compare.importance(imatrix))
        return path

    def evaluate(self, table, files, *words, reference=None):
        self.service.run("eval", *files, "--reference", reference or llama.f32_model(), "--report", self.options.keep / table,
                         "--json", *words)
        print(f"## {table}\n", (self.options.keep / table / "report.md").read_text(), flush=True)

    def texts(self):
        return [word for path in compare.HELD_OUT for word in ("--text", path)] + ["--windows", self.options.windows]


def weights(maker):
    files = [maker.make(*row) for row in PLAIN.items()]
    files += [maker.make(*row, compare.LEARNT) for row in LEARNT.items()]
    maker.evaluate("weights", files, *maker.texts(), "--precision", "exact")


def speed(maker):
    files = [maker.make(*row) for row in PLAIN.items()]
    maker.evaluate("speed", files, "--cost", "--runs", maker.options.runs)


def tasks(maker):
    """Ours of one type throughout, and of llama-quantize's types, of the same bytes."""
    alike = maker.options.keep / "alike.json"
    alike.write_text('{"embedding": "Q8_0"}')
    files = [maker.make("int8-group", PLAIN["int8-group"]), maker.theirs()]
    files += [maker.make("q4_0-gptq", ["--to", "Q4_0", *GPTQ], compare.LEARNT),
              maker.make("q4_0-gptq-alike", ["--to", "Q4_0", *GPTQ, "--recipe", alike], compare.LEARNT)]
    maker.evaluate("tasks", files, *maker.texts(), "--precision", "exact",
                   *(word for path in sorted(maker.options.tasks.glob("*.jsonl")) for word in ("--tasks", path)))


def activations(maker):
    files = [maker.make(*row, compare.LEARNT) for row in W8A8.items()]
    maker.evaluate("activations", [maker.make("int8-channel", PLAIN["int8-channel"]), *files], *maker.texts(), "--precision",
                   "fast")


def own_text(maker):
    files = [maker.make("int4-gptq", LEARNT["int4-gptq"], compare.LEARNT), maker.make(*next(iter(OWN.items())))]
    maker.evaluate("own-text", files, *maker.texts(), "--precision", "exact")


def effort(maker):
    """Q4_0 throughout, with as much text as an effort takes by itself."""
    files = [maker.make(f"effort-{name}", ["--to", "Q4_0", *how], [] if name == "nearest" else compare.LEARNT)
             for name, how in TIMED.items() if name not in ("fast", "normal", "best") or name in maker.options.efforts]
    maker.evaluate("effort", files, *maker.texts(), "--precision", "exact")


def sparse(maker):
    files = [maker.make(*row, () if "magnitude" in row[0] else compare.LEARNT) for row in SPARSE.items()]
    maker.evaluate("sparse", files, *maker.texts(), "--precision", "exact")


def encoder(maker):
    """The DistilBERT recipe's, on MiniLM: requests of 32 tokens. Of the usual texts the passages have all but the modules."""
    files = []
    for name, how in ENCODER.items():
        learns = "static" in how or "gptq" in how
        files.append(maker.make(f"minilm-{name}", how, compare.LEARNT[2:] if learns else [], MINILM))
    passages = ["--passages", llama.CACHE / "tasks" / "passages.txt"]
    maker.evaluate("encoder", files, *passages, "--cost", "--request", "32,2", "--runs", maker.options.runs, "--precision",
                   "fast", reference=MINILM)


TABLES = {"weights": weights, "speed": speed, "tasks": tasks, "activations": activations, "own-text": own_text, "sparse": sparse,
          "effort": effort, "encoder": encoder}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--efforts", nargs="+", default=["fast", "normal", "best"])
    parser.add_argument("--tasks", type=pathlib.Path, default=llama.CACHE / "tasks")
    compare.run_tables(parser, TABLES, Maker)


if __name__ == "__main__":
    main()
