"""Folds beside no fold: random models of every family (families.py) with random scales, orders and rotations folded into their
weights have the logits and vectors that they had, and the joints that a family has are those of the table below.

usage: test_fold.py FOLD ENGINE-LOGITS [--only WORD]    (the test executables of fold.c and engine_logits.c)
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import families

CONTEXT = 128
BOUND = 1e-4  # of the largest logit
DEEP = 8  # a model of more layers is there for what follows from their number
# What is folded: words of the tool, and whether the output matrix must be the model's own.
FOLDS = [("scale order", False), ("scale order", True), ("stream values order", True), ("stream scale", True)]


def joints(case, untied):
    """{kind: how many}, as the family's ops have them."""
    layers, name = case.size["L"], case.family
    norms = {"olmo2": 0, "bert": 0, "command-r": 1}.get(name, 2) * layers
    norms += untied and not case.embeds
    gated = name not in ("gpt2", "starcoder2", "bert")
    stream = untied and not case.embeds and name in ("llama", "smollm3", "qwen2", "qwen3", "qwen3moe", "phi3", "granite")
    return {"norm": norms, "values": layers, "inner": layers, "stream": int(stream),
            "scales": norms + layers + (layers if gated else 0)}


def fold(executable, path, arrays, words, seed):
    done = subprocess.run([executable, path, str(seed), *words.split()], capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    numbers, at, folded = np.frombuffer(done.stdout, "<f4"), 0, {}
    for name, array in arrays.items():
        folded[name] = numbers[at:at + array.size].reshape(array.shape)
        at += array.size
    assert at == numbers.size
    return folded, json.loads(done.stderr)


def results(executable, path, case, scratch):
    out = scratch / "results"
    np.concatenate(families.tokens()).tofile(scratch / "tokens")
    subprocess.run([executable, path, scratch / "tokens", "--precision", "exact", "--ctx", str(CONTEXT), "--window",
                    str(len(families.tokens()[0])), "--threads", "1", *(["--embed"] if case.embeds else []), "-o", out], check=True)
    return np.fromfile(out, "<f4").reshape(-1, case.size["E"] if case.embeds else families.VOCAB)


def off(found, expected):
    return (np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)).max()


def check(options, case, scratch):
    path, well, arrays = scratch / "model.gguf", True, families.weights(case)
    tied = "output.weight" not in arrays
    families.write(path, case, arrays)
    expected = results(options.logits, path, case, scratch)
    for words, own_head in FOLDS:
        if case.embeds and own_head or not (tied or own_head):
            continue
        given = {**arrays, "output.weight": arrays["token_embd.weight"]} if tied and own_head else arrays
        families.write(path, case, given)
        folded, told = fold(options.fold, path, given, words, seed=len(str(case)))
        families.write(path, case, folded)
        far = off(results(options.logits, path, case, scratch), expected)
        changed = sum(not np.array_equal(folded[name], given[name]) for name in given)
        wanted = joints(case, own_head)
        wrong = {kind: told[kind] for kind in wanted if told[kind] != wanted[kind]}
        fine = far <= BOUND and not wrong and changed
        well = well and fine
        print(f"{str(case):58} {words:20} {changed:3} of {len(given)} tensors  {far:.1e}{'' if fine else f'  WRONG {wrong}'}",
              flush=True)
        if options.notes or not fine:
            print("   ", *told["notes"], sep="\n    ")
    return well


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fold")
    parser.add_argument("logits")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--notes", action="store_true")
    options = parser.parse_args()
    cases = [c for c in families.CASES if options.only in str(c) and c.first_type is None and c.size["L"] <= DEEP]
    with tempfile.TemporaryDirectory() as folder:
        well = [check(options, case, pathlib.Path(folder)) for case in cases]
    sys.exit(0 if well and all(well) else 1)


if __name__ == "__main__":
    main()
