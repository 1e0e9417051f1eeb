"""Every family beside llama.cpp: small models of random weights and odd sizes (families.py) have the same logits, greedy tokens
and vectors, and Nibble's are the same bits however a text is cut, whatever it is computed with, and by however many threads.

usage: test_families.py ENGINE-LOGITS DEVICE... [--only WORD]    (the test executable of engine_logits.c)
       test_families.py [--only WORD]    the oracle alone: that its logits depend on every tensor and key of every file
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import exact_gelu  # noqa: E402
import families  # noqa: E402
import llama  # noqa: E402

CONTEXT, GENERATED = 128, 8
BOUND = 1e-4  # of the largest logit
# Where matrices are blocks, whose inputs are quantized. A router that is undecided of a token sends it elsewhere then, and a row
# is far off: such a case takes other sizes.
TYPED_BOUND = 6e-4
RUNS = ["whole", "together", "1", "7", "64"]
DEEP, DEEP_RUNS = 8, ["whole", "together"]  # a model of more layers is there for what follows from their number
VECTORS = ["whole", "together", "normalised"]


class Oracle:
    """llama.cpp with a case's file, everything in float32."""

    def __init__(self, path, case):
        gelu = families.FAMILIES[case.family].gelu
        self.case, self.gelu = case, exact_gelu.ExactGelu(gelu) if gelu else None
        others = {"cb_eval": self.gelu.callback} if gelu else {}
        self.model = llama.Model(path)
        self.context = llama.Context(self.model, CONTEXT, threads=1, float_kv=True, embeddings=case.embeds, **others)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()
        self.model.close()

    def read(self, tokens, first=0):
        n = len(tokens)
        self.context.decode(tokens, range(first, first + n), [0] * n, [True] * n)
        if self.gelu:
            assert self.gelu.replaced, "no GELU has been replaced"

    def results(self, tokens):
        """Logits [tokens][vocabulary], or one vector [1][embedding]."""
        self.context.clear()
        self.read(tokens)
        return self.context.vector(self.case.size["E"]) if self.case.embeds else self.context.logits(len(tokens))

    def greedy(self, tokens, n, margin):
        """The n tokens that follow, or fewer: to where the two highest logits are closer, of the highest, than `margin`."""
        self.context.clear()
        chosen = []
        while len(chosen) < n:
            last = chosen[-1:] or tokens
            self.read(last, first=len(tokens) + len(chosen) - 1 if chosen else 0)
            logits = self.context.logits(len(last))[-1]
            second, first = np.sort(logits)[-2:]
            if first - second < margin * np.abs(logits).max():
                break
            chosen.append(int(logits.argmax()))
        return chosen


def off(found, expected):
    """The largest difference, of each row's largest value."""
    return (np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)).max()


class Engine:
    """engine-logits, one process for all calls: most of a call's time would go to its driver's compiler."""

    def __init__(self, executable):
        self.process = subprocess.Popen([executable], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()

    def call(self, *words):
        print(*words, sep="\t", file=self.process.stdin, flush=True)
        said = []
        for line in self.process.stdout:
            if line.startswith("status "):
                break
            said.append(line)
        else:
            line = f"engine-logits ended with {self.process.wait()}"
        if line != "status 0\n":
            raise RuntimeError("".join(said).strip() or line)


def nibble(engine, path, case, device, threads, scratch):
    """{run: results [rows][columns] of all sequences}, and the tokens that follow the first."""
    out, rows = scratch / "results", families.tokens()
    np.concatenate(rows).tofile(scratch / "tokens")
    runs = VECTORS if case.embeds else RUNS if case.size["L"] <= DEEP else DEEP_RUNS
    engine.call(path, scratch / "tokens", "--precision", "exact", "--ctx", CONTEXT, "--window", len(rows[0]), "--threads", threads,
                "--device", device, "--runs", ",".join(runs), *(["--embed"] if case.embeds else ["--generate", GENERATED]), "-o", out)
    shape = (len(runs), len(rows), case.size["E"]) if case.embeds else (len(runs), sum(map(len, rows)), families.VOCAB)
    data = out.read_bytes()
    results = np.frombuffer(data, "<f4", np.prod(shape)).reshape(shape)
    return dict(zip(runs, results)), np.frombuffer(data, "<i4", offset=results.nbytes).tolist()


def bound(case):
    return BOUND if case.first_type is None else TYPED_BOUND


def complaints(case, expected, greedy, found, tokens):
    """What is wrong with one device's results, and how far they are from the oracle's."""
    far = off(found["whole"], expected)
    if not far <= bound(case):
        yield f"{far:.1e} of the largest is more than {bound(case)}"
    if "normalised" in found:
        unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        if not off(found["normalised"], unit) <= bound(case):
            yield "normalised vectors are others"
    for run in set(found) - {"normalised"}:
        if found[run].tobytes() != found["whole"].tobytes():
            yield f"{run} is not whole, bit for bit"
    if tokens[:len(greedy)] != greedy:
        yield f"greedy tokens {tokens} are not {greedy}"


def compare(engine, devices, case, scratch):
    """Prints a line a device; returns whether all is well."""
    path = scratch / "model.gguf"
    weights = families.weights(case)
    if case.first_type is not None:
        packed, types, weights = families.typed(case, weights)
    families.write(path, case, weights)
    with Oracle(path, case) as oracle:
        expected = np.concatenate([oracle.results(row) for row in families.tokens()])
        greedy = [] if case.embeds else oracle.greedy(families.tokens()[0], GENERATED, 2 * bound(case))
    if case.first_type is not None:
        families.write(path, case, packed, types=types)
    well, bits = True, {}
    for device, threads in [(device, n) for device in devices for n in ([1, 2] if device == "cpu" else [2])]:
        if case.first_type and device != "cpu":  # compiling shaders for all types takes long: once a family
            continue
        try:
            found, tokens = nibble(engine, path, case, device, threads, scratch)
            wrong = list(complaints(case, expected, greedy, found, tokens))
            figure = f"{off(found['whole'], expected):.1e}"
            if bits.setdefault(device, found["whole"].tobytes()) != found["whole"].tobytes():
                wrong.append("is not what one thread computes, bit for bit")
        except RuntimeError as e:
            wrong, figure = [str(e)], "failed"
        well = well and not wrong
        print(f"{str(case):58} {device}, {threads} threads  {figure}{''.join('  ' + w for w in wrong)}", flush=True)
    return well


def changed(case):
    """Files that differ from a case's in one thing: (what, keys, weights)."""
    weights, keys = families.weights(case), families.keys(case)
    random = np.random.default_rng(2)
    for name, array in weights.items():
        layer = re.match(r"blk\.(\d+)\.", name)
        if (case.idle and case.idle in name) or layer and DEEP < case.size["L"] != int(layer[1]) + 1:
            continue
        noise = random.standard_normal(array.shape) * 0.1 * np.sqrt((array ** 2).mean())
        yield name, keys, {**weights, name: (array + noise).astype(np.float32)}
    for name, value in keys.items():
        if isinstance(value, float):
            yield name, {**keys, name: value * 1.25}, weights
        elif name == "attention.sliding_window" or name == "rope.dimension_count" and name in case.keys:
            yield name, {**keys, name: value - 2}, weights
        elif isinstance(value, list):
            yield name, {**keys, name: [not value[0], *value[1:]]}, weights


def matters(case, scratch):
    """Prints a line; returns whether every tensor and key of a case's file moves the oracle's logits."""
    tokens, path = families.tokens()[0][:64], scratch / "model.gguf"

    def results(keys, weights):
        families.write(path, case, weights, keys)
        with Oracle(path, case) as oracle:
            return oracle.results(tokens)

    base = results(families.keys(case), families.weights(case))
    probability = np.exp(base - base.max(axis=1, keepdims=True))
    probability = (probability.max(axis=1) / probability.sum(axis=1)).mean()
    moved = {what: off(results(keys, weights), base) for what, keys, weights in changed(case)}
    least = min(moved, key=moved.get)
    alike = not case.embeds and np.abs(np.diff(base, axis=0)).max(axis=1).min() < 0.1 * np.abs(base).max()
    well = np.isfinite(base).all() and probability < 0.7 and not alike and moved[least] > 5 * BOUND
    print(f"{str(case):58} {len(moved)} changes, the least by {moved[least]:.1e} ({least}), mean of the highest probability "
          f"{probability:.2f}{'' if well else '  NOT KEPT'}", flush=True)
    return well


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("executable", nargs="?")
    parser.add_argument("devices", nargs="*")
    parser.add_argument("--only", default="", help="cases with this in their name")
    options = parser.parse_args()
    cases = [case for case in families.CASES if options.only in str(case)]
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        if options.executable:
            with Engine(options.executable) as engine:
                well = [compare(engine, options.devices, case, scratch) for case in cases]
        else:
            well = [matters(case, scratch) for case in cases if case.first_type is None]
    sys.exit(0 if well and all(well) else 1)


if __name__ == "__main__":
    main()
