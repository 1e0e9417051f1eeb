#!/usr/bin/env python3
"""Error feedback against numpy in float64: GPTQ as its paper has it (by the Cholesky factor of the inverse Hessian) with the same
scales gives the same codes, SparseGPT as its paper has it the same zeros; what the report says is so; refinement never raises the
error nor moves a zero; a mismatch and a residual are met.

Usage: test_gptq.py GPTQ ENCODE, the filters built from gptq.c and encode.c.
"""
import json
import subprocess
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

import test_encode

DAMPING = 0.01
# Where a block's codes are, and the byte that gives each of its weights the same code.
CODES = {"Q4_0": (slice(2, 18), 16, 0x11), "IQ4_NL": (slice(2, 18), 16, 0x11), "Q4_1": (slice(4, 20), 16, 0x11),
         "Q4_K": (slice(16, 144), 16, 0x11), "Q2_K": (slice(16, 80), 4, 0x55), "Q3_K": (slice(32, 96), 8, 0x55)}


def narrow(x):
    """To numbers of bf16, which the sums are of."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000).view(np.float32)


def inputs(rng, tokens, cols):
    mix = rng.standard_normal((cols // 4, cols)) * np.exp(0.7 * rng.standard_normal(cols))
    return narrow(rng.standard_normal((tokens, cols // 4)) @ mix / np.sqrt(cols / 4) + 0.3 * rng.standard_normal((tokens, cols)))


def run(gptq, name, w, x, passes, *words, damping=DAMPING, threads=1, more=(), isa=None):
    args = [gptq, name, *map(str, (*w.shape, len(x), passes, damping, threads)), *words]
    data = b"".join(a.tobytes() for a in (w, x, *more))
    env = {"NIBBLE_ISA": isa} if isa else None
    done = subprocess.run(args, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True, env=env)
    return np.frombuffer(done.stdout, np.uint8).reshape(len(w), -1), json.loads(done.stderr)


def levels(name, data):
    """[rows][cols][codes]: what each weight would be with each code, by python gguf on the block's own scales."""
    where, codes, spread = CODES[name]
    block = test_encode.SIZES[name][2]
    out = []
    for code in range(codes):
        blocks = data.reshape(len(data), -1, block).copy()
        blocks[:, :, where] = code % (0x100 // spread + 1) * spread if name != "Q3_K" else code % 4 * spread
        if name == "Q3_K":
            blocks[:, :, :32] = 0xff * (code >= 4)
        out.append(quants.dequantize(blocks.reshape(len(data), -1), Type[name]))
    return np.stack(out, axis=2).astype(np.float64)


def nearest(values, target):
    return np.take_along_axis(values, np.abs(values - target[:, None]).argmin(axis=1)[:, None], axis=1)[:, 0]


def gptq_numpy(w, h, values):
    """Columns in order; the error of each, in units of the factor's diagonal, goes to those after it."""
    w, out = w.astype(np.float64).copy(), np.zeros_like(w, dtype=np.float64)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    for k in range(w.shape[1]):
        out[:, k] = nearest(values[:, k], w[:, k])
        w[:, k:] -= np.outer((w[:, k] - out[:, k]) / upper[k, k], upper[k, k:])
    return out


def error(decoded, target, h):
    e = decoded.astype(np.float64) - target
    return np.einsum("ij,jk,ik->", e, h, e)


def close(a, b, tolerance=1e-3):
    return abs(a - b) <= tolerance * abs(b)


def check_codes(gptq, encode, name, rng):
    w = (0.05 * rng.standard_normal((24, 256))).astype(np.float32)
    x = np.clip(np.round(inputs(rng, 512, 256) * 16) / 16, -8, 8)  # so that fp32 sums of squares are exact, and scales the same
    h = x.astype(np.float64).T @ x.astype(np.float64)
    damped = h + DAMPING * np.diag(h).mean() * np.eye(len(h))
    start = test_encode.ours(encode, name, w, "search", "plain", np.diag(h).astype(np.float32))
    data, report = run(gptq, name, w, x, 0)
    ours, theirs = test_encode.decode(name, data), gptq_numpy(w, damped, levels(name, start))
    same = np.mean(np.abs(ours - theirs) < 1e-6)
    if same < 0.99 or not close(error(ours, w, damped), error(theirs, w, damped)):
        yield f"{name}: {same:.4f} of the codes are numpy's, the error {error(ours, w, damped) / error(theirs, w, damped):.4f} of it"
    if not close(report["columns"], error(ours, w, h)):
        yield f"{name}: reports {report['columns']}, numpy has {error(ours, w, h)}"
    if not close(report["nearest"], error(test_encode.decode(name, start), w, h)):
        yield f"{name}: nearest is reported as {report['nearest']}"
    if not report["columns"] < 0.7 * report["nearest"]:
        yield f"{name}: GPTQ leaves {report['columns'] / report['nearest']:.3f} of the error"


def sparsegpt_numpy(w, h, share, pattern, rounded=lambda k, x: x):
    """The paper's: blocks of 128 columns whose least w^2 / [H^-1]^2 of all rows, or of each pattern of a row, become zeros."""
    w, upper = w.astype(np.float64).copy(), np.linalg.cholesky(np.linalg.inv(h)).T
    out = np.zeros_like(w)
    for first in range(0, w.shape[1], 128):
        block = slice(first, first + 128)
        w1, u1 = w[:, block].copy(), upper[block, block]
        mask, errors = np.zeros(w1.shape, bool), np.zeros_like(w1)
        if share:
            scores = w1**2 / np.diag(u1)**2
            mask = scores < np.sort(scores.ravel())[int(share * scores.size)]
        for k in range(w1.shape[1]):
            if pattern and k % pattern[1] == 0:
                scores = w1[:, k:k + pattern[1]]**2 / np.diag(u1)[k:k + pattern[1]]**2
                np.put_along_axis(mask[:, k:k + pattern[1]], np.argsort(scores, axis=1)[:, :pattern[1] - pattern[0]], True, axis=1)
            q = np.where(mask[:, k], 0, rounded(first + k, w1[:, k]))
            out[:, first + k], errors[:, k] = q, (w1[:, k] - q) / u1[k, k]
            w1[:, k:] -= np.outer(errors[:, k], u1[k, k:])
        w[:, block.stop:] -= errors @ upper[block, block.stop:]
    return out


def check_sparse(gptq, encode, name, rng):
    """Zeros, what stays and the error beside the paper's method: no passes of refinement. Then these, which leave zeros alone."""
    w = (0.05 * rng.standard_normal((40, 384 if test_encode.SIZES.get(name, (0, 32))[1] < 256 else 512))).astype(np.float32)
    x = np.clip(np.round(inputs(rng, 1024, w.shape[1]) * 16) / 16, -8, 8)
    h = x.astype(np.float64).T @ x.astype(np.float64)
    damped = h + DAMPING * np.diag(h).mean() * np.eye(len(h))
    rounded = lambda k, v: v
    if name in CODES:
        values = levels(name, test_encode.ours(encode, name, w, "search", "plain", np.diag(h).astype(np.float32)))
        rounded = lambda k, v: nearest(values[:, k], v)
    for word, share, pattern in ("0.5", 0.5, None), ("0.7", 0.7, None), ("2:4", 0, (2, 4)), ("3:8", 0, (3, 8)):
        data, report = run(gptq, name, w, x, 0, word)
        ours, theirs = quants.dequantize(data, Type[name]).astype(np.float64), sparsegpt_numpy(w, damped, share, pattern, rounded)
        same, zeros = np.mean((ours == 0) == (theirs == 0)), np.mean(ours == 0)
        ratio = error(ours, w, h) / error(theirs, w, h)
        print(f"{name} {word}: {same:.4f} of the zeros are numpy's, {zeros:.4f} zeros, the error {ratio:.4f} of its error")
        if same < 0.995 or abs(ratio - 1) > 0.01 or not close(report["columns"], error(ours, w, h)):
            yield f"{name} {word}: {same:.4f} of the zeros are numpy's, the error {ratio:.4f} of its error, {report}"
        if pattern and ((ours == 0).reshape(len(w), -1, pattern[1]).sum(axis=2) < pattern[1] - pattern[0]).any() or \
                share and zeros < int(share * w.size) / w.size:
            yield f"{name} {word}: too few zeros"
        if name not in CODES and (share and (ours == 0).sum() != int(share * w.size) or (np.signbit(ours) & (ours == 0)).any()):
            yield f"{name} {word}: {(ours == 0).sum()} zeros of {w.size}"
        if name in CODES:
            again, refined = run(gptq, name, w, x, 3, word)
            if not refined["refined"] < 0.98 * report["columns"]:
                yield f"{name} {word}: refinement leaves {refined['refined'] / report['columns']:.3f} of the error"
            kept = np.abs(quants.dequantize(again, Type[name])) > 0
            # A zero that was chosen stays one; that another weight was rounded to zero may change.
            if pattern and (kept.reshape(len(w), -1, pattern[1]).sum(axis=2) > pattern[0]).any() or \
                    share and kept.sum() > w.size - int(share * w.size):
                yield f"{name} {word}: refinement brings zeros back"
        for threads, isa in ((3, None), (1, "avx2"), (2, "scalar")) if name == "Q3_K" else ():
            if (run(gptq, name, w, x, 0, word, threads=threads, isa=isa)[0] != data).any():
                yield f"{name} {word}: other bytes with {threads} threads on {isa or 'the best level'}"


def check_refined(gptq, name, rng):
    w = (0.05 * rng.standard_normal((20, 384 if test_encode.SIZES[name][1] < 256 else 512))).astype(np.float32)
    x = inputs(rng, 1024, w.shape[1])
    h = x.astype(np.float64).T @ x.astype(np.float64)
    last = None
    for passes in (0, 1, 3):
        data, report = run(gptq, name, w, x, passes)
        true = error(test_encode.decode(name, data), w, h)
        if not close(report["refined"], true):
            yield f"{name}, {passes} passes: reports {report['refined']}, numpy has {true}"
        if last and true > last * 1.0005:
            yield f"{name}, {passes} passes: {true / last:.5f} of the error before"
        last = true
    if not last < 0.8 * report["columns"]:
        yield f"{name}: refinement leaves {last / report['columns']:.3f} of the error"
    ordered = run(gptq, name, w, x, 3, "order")[1]
    if not close(ordered["nearest"], report["nearest"]) or not ordered["columns"] < ordered["nearest"]:
        yield f"{name}: by size of column {ordered}"


def check_same_bytes(gptq, name, rng):
    """Whatever the number of threads and the ISA level."""
    w, x = (0.05 * rng.standard_normal((20, 256))).astype(np.float32), inputs(rng, 256, 256)
    one = run(gptq, name, w, x, 1, "order", "float", more=(x,))[0]
    for threads, isa in (3, None), (1, "avx2"), (2, "scalar"):
        if (run(gptq, name, w, x, 1, "order", "float", more=(x,), threads=threads, isa=isa)[0] != one).any():
            yield f"{name}: other bytes with {threads} threads on {isa or 'the best level'}"


def check_mismatch(gptq, name, rng):
    """The outputs W F + R from the inputs X: below what is had without their difference."""
    w = (0.05 * rng.standard_normal((32, 256))).astype(np.float32)
    floats = inputs(rng, 2048, 256)
    x = narrow(floats + 0.1 * floats.std() * rng.standard_normal(floats.shape))
    left = (0.02 * floats @ rng.standard_normal((256, 32))).astype(np.float32)
    h, cross = (x.T.astype(np.float64) @ a.astype(np.float64) for a in (x, floats))
    ridge = DAMPING * np.diag(h).mean()
    residual = left.T.astype(np.float64) @ x
    goal = floats.astype(np.float64) @ w.T + left
    outputs = {}
    for words, more in ((), ()), (("float",), (floats,)), (("residual",), (left,)), (("float", "residual"), (floats, left)):
        data, report = run(gptq, name, w, x, 1, *words, more=more)
        decoded = test_encode.decode(name, data).astype(np.float64)
        pull = (w @ (cross.T - h) if "float" in words else 0) + (residual if "residual" in words else 0)
        target = w + (np.linalg.solve(h + ridge * np.eye(256), np.broadcast_to(pull, w.shape).T).T if words else 0)
        if not close(report["refined"], error(decoded, target, h)):
            yield f"{name} {words}: reports {report['refined']}, numpy has {error(decoded, target, h)}"
        outputs[words] = ((goal - x.astype(np.float64) @ decoded.T)**2).sum()
    if not outputs["float", "residual"] < min(outputs[()], outputs["float",], outputs["residual",]) or \
            not outputs["float", "residual"] < 0.6 * outputs[()]:
        yield f"{name}: output errors {outputs}"


def check_damping(gptq, rng):
    """Fewer tokens than columns: the factor fails until it is damped. Columns that were never active are rounded to nearest."""
    w = (0.05 * rng.standard_normal((16, 256))).astype(np.float32)
    x = inputs(rng, 64, 256)
    x[:, 7] = x[:, 200] = 0
    data, report = run(gptq, "Q8_0", w, x, 1, damping=0)
    if not 0 < report["damping"] <= 1 or report["dead"] != 2:
        yield f"64 tokens: {report}"
    dead = np.abs(test_encode.decode("Q8_0", data) - w)[:, [7, 200]]
    if not dead.max() < 0.03:
        yield f"columns that were never active are off by {dead.max()}"


def main():
    gptq, encode, failures = sys.argv[1], sys.argv[2], []
    rng = np.random.default_rng(4)
    for name in CODES:
        failures += check_codes(gptq, encode, name, rng)
    for name in "Q4_0 Q5_1 Q8_0 Q2_0 IQ4_NL Q2_K Q3_K Q4_K Q6_K IQ4_XS".split():
        failures += check_refined(gptq, name, rng)
    for name in "Q4_0", "Q4_K":
        failures += check_mismatch(gptq, name, rng)
        failures += check_same_bytes(gptq, name, rng)
    for name in "F32", "F16", "Q4_0", "Q3_K":
        failures += check_sparse(gptq, encode, name, rng)
    failures += check_damping(gptq, rng)
    for line in failures:
        print(line)
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
