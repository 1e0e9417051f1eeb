"""The float engine beside the CPU device and beside jax in float64: the results and the gradients in every tensor of small
models of every family (families.py). The executable itself compares threads, kept layers and slices of the head, on the bits.

usage: test_gradients.py GRADIENTS ENGINE-LOGITS [--only WORD]
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import families
import families_jax

LENGTHS = [70, 35]  # more positions than a window or a tile of attention has
CONTEXT = 128
RESULT_BOUND = 1e-4  # of the largest result; the device's own bound beside llama.cpp
BOUND = 1e-4  # of a tensor's largest gradient, or of SMALL times the model's largest where that is zero but for rounding
SMALL, ZERO = 1e-3, 1e-12
DEEP = 8  # models of more layers are there for what follows from their number; here, for tensors that only they have


def engine(executable, path, case, scratch, shape):
    """Results, the loss, {tensor: its gradient}."""
    out = scratch / "gradients"
    done = subprocess.run([executable, path, scratch / "tokens", "vectors" if case.embeds else "logits", out,
                           *map(str, LENGTHS)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"gradients ended with {done.returncode}")
    numbers, found = np.fromfile(out, "<f4"), {}
    at = np.prod(shape) + 1
    for line in done.stdout.splitlines():
        name, *sizes = line.split()
        size = np.prod([int(n) for n in sizes])
        found[name] = numbers[at:at + size]
        at += size
    assert at == len(numbers)
    return numbers[:np.prod(shape)].reshape(shape), numbers[np.prod(shape)], found


def device(executable, path, case, scratch):
    """The CPU device's logits, or each sequence's vector, one sequence after the other."""
    out = scratch / "results"
    done = subprocess.run([executable, path, scratch / "tokens", "--precision", "exact", "--ctx", str(CONTEXT),
                           "--window", str(LENGTHS[0]), "--threads", "1", "-o", out, *(["--embed"] if case.embeds else [])],
                          capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return np.fromfile(out, "<f4").reshape(len(LENGTHS) if case.embeds else sum(LENGTHS), -1)


def pooled(case, results):
    """Of vectors of all rows what the device has: one for each sequence."""
    of = {families.MEAN: lambda rows: rows.mean(axis=0), families.CLS: lambda rows: rows[0], families.LAST: lambda rows: rows[-1]}
    return np.stack([of[case.keys["pooling_type"]](rows) for rows in np.split(results, np.cumsum(LENGTHS)[:-1])])


def off(found, expected, floor=0):
    return np.abs(found - expected).max() / max(np.abs(expected).max(), floor)


def compare(options, case, scratch):
    """Prints a line; returns whether all is well, and the worst error."""
    arrays, path = families.weights(case), scratch / "model.gguf"
    families.write(path, case, arrays)
    tokens = families.tokens()[0][:sum(LENGTHS)]
    tokens.tofile(scratch / "tokens")
    shape = (len(tokens), case.size["E"] if case.embeds else families.VOCAB)
    found, loss, gradients = engine(options.gradients, path, case, scratch, shape)
    theirs, their_loss, expected = families_jax.gradients(case, families.FAMILIES[case.family],
                                                            {**families.keys(case), "context_length": CONTEXT}, arrays, tokens,
                                                            LENGTHS)
    wrong = [f"no gradient in {name}" for name in expected if name not in gradients and not name.startswith("rope_f")]
    on_device = device(options.engine_logits, path, case, scratch)
    figures = [off(found, theirs), abs(loss / their_loss - 1),
               off(pooled(case, found) if case.embeds else found, on_device)]
    most = max(np.abs(x).max() for x in expected.values())
    errors = {name: off(x, expected[name].reshape(-1), SMALL * most if np.abs(expected[name]).max() < ZERO * most else 0)
              for name, x in gradients.items()}
    worst = max(errors, key=errors.get)
    wrong += [f"{what} is off" for what, figure in zip(("the result", "the loss", "the device"), figures)
              if not figure <= RESULT_BOUND]
    wrong += [] if errors[worst] <= BOUND else ["a gradient is off"]
    print(f"{str(case):58} results {figures[0]:.1e}, loss {figures[1]:.1e}, device {figures[2]:.1e}, {len(errors)} gradients "
          f"{errors[worst]:.1e} ({worst}){''.join('  ' + w for w in wrong)}", flush=True)
    return not wrong, errors[worst]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("gradients")
    parser.add_argument("engine_logits")
    parser.add_argument("--only", default="", help="cases with this in their name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = [compare(options, case, pathlib.Path(folder)) for case in families.CASES
                if case.first_type is None and options.only in str(case) and (case.size["L"] <= DEEP or case.tensors)]
    print(f"worst relative error of a gradient: {max(error for _, error in done):.1e}")
    sys.exit(0 if done and all(well for well, _ in done) else 1)


if __name__ == "__main__":
    main()
