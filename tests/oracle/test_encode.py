#!/usr/bin/env python3
"""Our encoders beside llama.cpp's with the same importance: no kind of rows has a larger weighted error, and of the rows at most one
in five hundred. (Both search; on sparse rows and such either may be lucky. Those that are worse are printed.)

Usage: test_encode.py ENCODE, the filter built from encode.c. What we write is decoded by python gguf (Q2_0, which it lacks, here);
errors are summed in float64. `test_encode.py ENCODE --table` prints how much smaller our errors are.
"""
import ctypes
import pathlib
import subprocess
import sys

import gguf
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

GGML = ctypes.CDLL(str(next(pathlib.Path(llama_cpp.__file__).parent.rglob("libggml-base.so"))))
GGML.ggml_quantize_chunk.restype = ctypes.c_size_t
GGML.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                     ctypes.c_int64, ctypes.c_void_p]
SIZES = {name: (kind.value, *gguf.GGML_QUANT_SIZES[kind]) for name, kind in Type.__members__.items()} | {"Q2_0": (42, 64, 18)}
FLOATS = "F32 F16 BF16".split()
QUANTIZED = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
PLAIN = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0".split()  # `reference` gives llama.cpp's bytes
ROWS, COLS = 12, 1024  # of a kind


def rows_of(rng):
    normal = rng.standard_normal((ROWS, COLS)) * np.exp2(rng.integers(-12, 4, (ROWS, 1)))
    heavy = rng.standard_t(2.5, (ROWS, COLS)) * 0.02
    outlier = rng.standard_normal((ROWS, COLS)) * 0.02
    outlier[np.arange(ROWS), rng.integers(0, COLS, ROWS)] = rng.choice([-3, 3], ROWS)
    shifted = rng.standard_normal((ROWS, COLS)) * 0.02 + rng.choice([-0.1, 0.1], (ROWS, 1))
    constant = np.repeat(rng.standard_normal((ROWS, 1)), COLS, axis=1)
    ties = rng.integers(-16, 17, (ROWS, COLS)) / 32
    few = np.where(rng.random((ROWS, COLS)) < 0.05, normal, 0)
    tiny = rng.standard_normal((ROWS, COLS)) * np.exp2(rng.integers(-40, -14, (ROWS, 1)))
    subnormal = rng.standard_normal((ROWS, COLS)) * 1e-40
    zero = np.zeros((4, COLS))
    named = {"normal": normal, "heavy-tailed": heavy, "one outlier": outlier, "shifted": shifted, "constant": constant,
             "ties": ties, "few": few, "tiny": tiny, "subnormal": subnormal, "zero": zero}
    return {name: rows.astype(np.float32) for name, rows in named.items()}


def importances_of(rng):
    smooth = np.exp(rng.standard_normal(COLS))
    spread = np.exp(3 * rng.standard_normal(COLS))
    sparse = np.where(rng.random(COLS) < 0.3, 0, smooth)
    return {"none": None, **{name: w.astype(np.float32) for name, w in
                             {"smooth": smooth, "spread": spread, "with zeros": sparse}.items()}}


def ours(encode, name, rows, effort, measure, importance, threads=1, isa=None):
    data = rows if importance is None else np.concatenate([importance[None], rows])
    args = [encode, name, effort, measure, str(rows.shape[1]), str(threads)] + ["importance"] * (importance is not None)
    env = {"NIBBLE_ISA": isa} if isa else None
    out = subprocess.run(args, input=data.tobytes(), stdout=subprocess.PIPE, check=True, env=env).stdout
    return np.frombuffer(out, np.uint8).reshape(len(rows), -1)


def theirs(name, rows, importance):
    number, block, size = SIZES[name]
    out = np.zeros((len(rows), rows.shape[1] // block * size), np.uint8)
    GGML.ggml_quantize_chunk(number, rows.ctypes.data, out.ctypes.data, 0, len(rows), rows.shape[1],
                             None if importance is None else importance.ctypes.data)
    return out


def decode(name, data):
    if name != "Q2_0":
        return quants.dequantize(data, Type[name])
    blocks = data.reshape(-1, 18)
    codes = (blocks[:, 2:, None] >> np.arange(0, 8, 2) & 3).reshape(-1, 64).astype(np.float32) - 1
    return (codes * blocks[:, :2].copy().view(np.float16).astype(np.float32)).reshape(len(data), -1)


def errors(name, rows, data, measure, importance):
    """The weighted squared error of each row."""
    x = rows.astype(np.float64)
    w = np.ones_like(x) if importance is None else np.broadcast_to(importance.astype(np.float64), x.shape)
    if measure == "size":
        w = w * np.sqrt((x**2).mean(axis=1, keepdims=True) + x**2)
    return (w * (x - decode(name, data).astype(np.float64))**2).sum(axis=1), (w * x**2).sum(axis=1)


def check_never_worse(encode, name, rng, ratios, worse_rows):
    importances, kinds = importances_of(rng), rows_of(rng)
    rows = np.concatenate(list(kinds.values()))
    kind_of = np.repeat(list(kinds), [len(r) for r in kinds.values()])
    for weights, importance in importances.items():
        their_bytes = theirs(name, rows, importance)
        for measure in ("plain", "size"):
            our_bytes = ours(encode, name, rows, "search", measure, importance)
            us, energy = errors(name, rows, our_bytes, measure, importance)
            them, _ = errors(name, rows, their_bytes, measure, importance)
            slack = energy * 2.0**-22  # an fp16 scale is rounded by 2^-11
            for what in kinds:
                own, case = kind_of == what, f"{name}, {what}, importance {weights}, measure {measure}"
                ratios[name, what, weights, measure] = us[own].sum() / them[own].sum() if them[own].sum() > 0 else 1
                if us[own].sum() > them[own].sum() + slack[own].sum():
                    yield f"{case}: {us[own].sum() / them[own].sum():.4f} x of llama.cpp's error"
                worse_rows += [f"{case}: a row has {u / t:.4f} x" for u, t, s in zip(us[own], them[own], slack[own])
                               if u > t * (1 + 1e-5) + s]


def check_reference(encode, name, rng):
    for what, rows in rows_of(rng).items():
        if what in ("tiny", "subnormal"):
            continue  # where a scale's inverse is not a number each does as it likes
        a, b = ours(encode, name, rows, "reference", "plain", None), theirs(name, rows, None)
        if name in PLAIN + FLOATS and (a != b).any():
            yield f"{name}, {what}: reference differs in {(a != b).any(axis=1).sum()} rows"


def check_same_bytes(encode, name, rng):
    """Whatever the number of threads and the ISA level."""
    rows, importance = rows_of(rng)["heavy-tailed"], importances_of(rng)["smooth"]
    for effort in ("reference", "search"):
        one = ours(encode, name, rows, effort, "size", importance)
        for threads, isa in (3, None), (1, "scalar"), (2, "avx2"):
            if (one != ours(encode, name, rows, effort, "size", importance, threads, isa)).any():
                yield f"{name}, {effort}: other bytes with {threads} threads on {isa or 'the best level'}"


def main():
    encode, failures, ratios, worse_rows = sys.argv[1], [], {}, []
    for name in QUANTIZED:
        failures += check_never_worse(encode, name, np.random.default_rng(1), ratios, worse_rows)
        failures += check_same_bytes(encode, name, np.random.default_rng(2))
    for name in PLAIN + FLOATS:
        failures += check_reference(encode, name, np.random.default_rng(3))
    for line in failures + worse_rows:
        print(line)
    rows = len(ratios) * ROWS
    if len(worse_rows) > rows / 500:
        failures.append("too many rows are worse")
    if "--table" in sys.argv:
        for name in QUANTIZED:
            print(name, *(f"{what}/{weights}/{measure} {ratio:.3f}" for (n, what, weights, measure), ratio in ratios.items()
                          if n == name and what in ("normal", "heavy-tailed", "one outlier") and weights in ("none", "smooth")))
    print(f"{len(ratios)} cases of {len(QUANTIZED)} types: {len(failures)} failures; {len(worse_rows)} of some {rows} rows are worse "
          f"than llama.cpp's")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
