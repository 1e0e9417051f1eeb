"""Searches of a fold's scales and orders against numpy in float64: the same exponent or order is chosen, with the same errors on
the rows that are held out. Weights are rounded by our encoder, which test_encode.py checks, and decoded by python gguf.

usage: test_trial.py TRIAL ENCODE    (the test executables of trial.c and encode.c)
"""
import json
import subprocess
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

import test_encode

ROWS, TOKENS = 48, 160


def data(rng, cols):
    """Weights, and inputs of which some channels are large."""
    w = 0.05 * rng.standard_normal((ROWS, cols)) * np.exp(0.4 * rng.standard_normal(cols))
    x = rng.standard_normal((TOKENS, cols)) * np.exp(1.2 * rng.standard_normal(cols))
    return w.astype(np.float32), x.astype(np.float32)


def channels(cols, head, repeats):
    """The channel of each column."""
    c = np.arange(cols)
    return c // head // repeats * head + c % head


def by_channel(values, of, how):
    return np.array([how(values[of == i]) for i in range(of.max() + 1)], np.float32)


def int8(x):
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    return np.round(x / step) * step


class Search:
    def __init__(self, programs, method, name, rng, cols, head, repeats):
        self.programs, self.method, self.name = programs, method, name
        self.shape = cols, head, repeats
        self.w, self.x = data(rng, cols)
        self.of = channels(cols, head, repeats)
        self.mean = (self.x.astype(np.float64) ** 2).mean(axis=0).astype(np.float32)
        largest = method == "smooth"
        self.size_x = by_channel(np.abs(self.x).max(axis=0) if largest else np.abs(self.x).mean(axis=0), self.of,
                                 np.max if largest else np.mean)
        self.size_w = by_channel(np.abs(self.w).max(axis=0), self.of, np.max)

    def ours(self, threads=1, isa=None):
        cols, head, repeats = self.shape
        args = [self.programs[0], self.method, self.name, *map(str, (ROWS, cols, TOKENS, head, repeats, threads))]
        sent = b"".join(a.tobytes() for a in (self.w, self.x, self.mean, self.size_x, self.size_w))
        done = subprocess.run(args, input=sent, capture_output=True, check=True, env={"NIBBLE_ISA": isa} if isa else None)
        return np.frombuffer(done.stdout, "<f4"), json.loads(done.stderr)

    def rounded(self, w, mean):
        if self.method == "smooth":
            return int8(w)
        blocks = test_encode.ours(self.programs[1], self.name, w.astype(np.float32), "search", "size", mean.astype(np.float32))
        return quants.dequantize(blocks, Type[self.name]).astype(np.float64)

    def errors(self, scale=None, order=None):
        """(searched, held out)."""
        s = np.ones(len(self.of)) if scale is None else scale.astype(np.float64)[self.of]
        order = np.arange(len(self.of)) if order is None else order
        w, x = (self.w.astype(np.float64) * s)[:, order], (self.x.astype(np.float64) / s)[:, order]
        exact = self.x.astype(np.float64) @ self.w.astype(np.float64).T
        found = (int8(x) if self.method == "smooth" else x) @ self.rounded(w, (self.mean / s ** 2)[order]).T
        half = TOKENS // 2
        return [((found - exact)[part] ** 2).sum() / (exact[part] ** 2).sum() for part in (slice(half), slice(half, None))]

    def scales(self, exponent):
        size = np.maximum(self.size_x, self.size_x.astype(np.float64).mean() * 0.01)
        s = size ** exponent
        if self.method == "smooth":
            s /= np.maximum(self.size_w, self.size_w.astype(np.float64).mean() * 0.01) ** (1 - exponent)
        return s / np.sqrt(s.min() * s.max())

    def best_exponent(self):
        tenths = {e: self.errors(self.scales(e / 20)) for e in range(0, 21, 2)}
        first = min(tenths, key=lambda e: tenths[e][0])
        tried = tenths | {e: self.errors(self.scales(e / 20)) for e in (first - 1, first + 1) if 0 < e < 20}
        best = min(tried, key=lambda e: tried[e][0])
        return tried[best][0]

    def best_order(self):
        keys = self.size_w, self.size_x, self.size_w * self.size_x
        orders = [np.argsort(-key, kind="stable") for key in keys]
        tried = [self.errors(order=order) for order in orders]
        best = min(range(3), key=lambda i: tried[i][0])
        return orders[best], tried[best][1]


def close(a, b, tolerance=2e-3):
    return abs(a - b) <= tolerance * abs(b)


def check(search):
    found, told = search.ours()
    again, _ = search.ours(threads=3)
    assert found.tobytes() == again.tobytes(), "threads make a difference"
    before = search.errors()[1]
    assert close(told["before"], before), (told, before)
    if search.method == "permute":
        order, after = search.best_order()
        assert np.array_equal(found, order), "another order"
    else:
        # Scales that differ in their last bit may lead the encoder to other codes, and neighbours may be equally good.
        scales = search.scales(told["exponent"])
        searched, after = search.errors(scales)
        assert searched <= 1.02 * search.best_exponent(), (told, searched)
        assert np.allclose(found, scales, rtol=1e-4), "other scales"
    assert told["taken"] and close(told["after"], after, 0.02), (told, after)
    print(f"{search.method:8} {search.name:6} {search.shape}  exponent {told['exponent']:.2f}  "
          f"{told['before']:.3e} -> {told['after']:.3e}", flush=True)


def main():
    programs = sys.argv[1:3]
    rng = np.random.default_rng(7)
    for name in "Q4_0", "IQ4_NL", "Q4_K":
        check(Search(programs, "awq", name, rng, 256, 256, 1))
        check(Search(programs, "awq", name, rng, 256, 32, 2))
    check(Search(programs, "smooth", "Q8_0", rng, 96, 96, 1))
    check(Search(programs, "smooth", "Q8_0", rng, 128, 16, 4))
    check(Search(programs, "permute", "Q4_0", rng, 256, 256, 1))


if __name__ == "__main__":
    main()
