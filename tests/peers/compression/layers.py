#!/usr/bin/env python3
"""What encoders and error feedback leave of the outputs of some matrices of the real model, in per cent of their square.

Usage: tests/oracle/run tests/peers/compression/layers.py BUILD [--tokens 8192] [--types Q4_0 ...]. The float model runs in numpy on
prose and code; a matrix's inputs there are the calibration (llama.cpp's encoder gets their mean squares as its imatrix), those on a
novel are held out. Each figure is the geometric mean over layers 0, 15 and 29. Needs tools/setup.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "oracle"))
import llama  # noqa: E402
import test_encode  # noqa: E402

LAYERS = (0, 15, 29)
ROLES = {"q": "attn_q", "o": "attn_output", "gate": "ffn_gate", "down": "ffn_down"}
WINDOW = 512


class Float:
    """SmolLM2 in numpy, fp32. RoPE rotates neighbouring elements, as the GGUF's rows of Q and K are permuted for."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.w = {t.name: np.array(t.data) for t in reader.tensors}
        value = {k: f.parts[f.data[0]][0] for k, f in reader.fields.items() if k.startswith("llama.")}
        self.layers, self.heads = int(value["llama.block_count"]), int(value["llama.attention.head_count"])
        self.kv_heads, self.eps = int(value["llama.attention.head_count_kv"]), value["llama.attention.layer_norm_rms_epsilon"]
        self.dim = int(value["llama.rope.dimension_count"])
        angles = np.outer(np.arange(WINDOW), float(value["llama.rope.freq_base"])**(-np.arange(0, self.dim, 2) / self.dim))
        self.cos, self.sin = np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * self.w[name]

    def rotate(self, x):
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], axis=-1).reshape(x.shape)

    def attend(self, q, k, v):
        scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, self.heads // self.kv_heads, axis=1)) / np.float32(np.sqrt(self.dim))
        scores += np.triu(np.full(scores.shape[1:], -np.inf, np.float32), 1)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", p, np.repeat(v, self.heads // self.kv_heads, axis=1)).reshape(len(q), -1)

    def run(self, tokens, inputs):
        """One window; appends each wanted matrix's inputs. Returns the residual stream."""
        x = self.w["token_embd.weight"][tokens]
        for i in range(self.layers):
            def linear(y, role, i=i):
                if i in LAYERS and role in ROLES.values():
                    inputs.setdefault((i, role), []).append(y)
                return y @ self.w[f"blk.{i}.{role}.weight"].T
            n = self.norm(x, f"blk.{i}.attn_norm.weight")
            q, k, v = (linear(n, f"attn_{r}").reshape(WINDOW, -1, self.dim) for r in "qkv")
            x = x + linear(self.attend(self.rotate(q), self.rotate(k), v), "attn_output")
            n = self.norm(x, f"blk.{i}.ffn_norm.weight")
            gate = linear(n, "ffn_gate")
            x = x + linear(gate / (1 + np.exp(-gate)) * linear(n, "ffn_up"), "ffn_down")
        return self.norm(x, "output_norm.weight")


def windows(model, name, n, skip=0):
    text = (llama.CACHE / "text" / f"{name}.txt").read_bytes()
    ids = model.tokenize(text[: (n + skip) * WINDOW * 8])
    return ids[skip * WINDOW:(skip + n) * WINDOW].reshape(n, WINDOW)


def capture(tokens):
    """The inputs on calibration and on held-out text, by (layer, role)."""
    names = llama.Model(llama.f32_model())
    half = tokens // WINDOW // 2
    calibration = np.concatenate([windows(names, "prose", half), windows(names, "code", half)])
    model, seen, held = Float(llama.f32_model()), {}, {}
    for window in calibration:
        model.run(window, seen)
    for window in windows(names, "novel", 4):
        last = model.run(window, held)
    logits = last @ model.w["token_embd.weight"].T
    hit = np.mean(logits[:-1].argmax(axis=1) == window[1:])
    assert hit > 0.2, f"the numpy model guesses {hit:.2f} of the next tokens: it is not the model"
    return model, *({k: np.concatenate(v) for k, v in d.items()} for d in (seen, held))


def feedback(build, name, w, x, passes, *words):
    args = [f"{build}/tests/oracle/gptq", name, *map(str, (*w.shape, len(x), passes, 0.01, 1)), *words]
    done = subprocess.run(args, input=w.tobytes() + x.tobytes(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(len(w), -1), json.loads(done.stderr)["encode_s"]


def methods(build, name, w, x):
    """Encoded bytes by each method."""
    encode, importance = f"{build}/tests/oracle/encode", (x.astype(np.float64)**2).mean(axis=0).astype(np.float32)
    yield "nearest", test_encode.ours(encode, name, w, "reference", "plain", None)
    yield "llama.cpp, imatrix", test_encode.theirs(name, w, importance)
    yield "search", test_encode.ours(encode, name, w, "search", "plain", importance)
    yield "search, by size", test_encode.ours(encode, name, w, "search", "size", importance)
    for label, passes, *words in (("GPTQ", 0), ("GPTQ, ordered", 0, "order"), ("+ 1 pass", 1, "order"), ("+ 3 passes", 3, "order")):
        yield label, feedback(build, name, w, x, passes, *words)[0]


def relative(name, w, data, x):
    off = test_encode.decode(name, data).astype(np.float32) - w
    return ((x @ off.T)**2).sum(dtype=np.float64) / ((x @ w.T)**2).sum(dtype=np.float64)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--types", nargs="+", default="Q4_0 Q4_1 IQ4_NL Q5_0 Q8_0 Q2_0 Q4_K Q3_K Q2_K".split())
    args = parser.parse_args()
    model, seen, held = capture(args.tokens)
    rows, labels = [], []
    for name in args.types:
        for role, tensor in ROLES.items():
            w0 = model.w[f"blk.0.{tensor}.weight"]
            if w0.shape[1] % test_encode.SIZES[name][1]:
                continue
            logs = {}
            for layer in LAYERS:
                w = np.ascontiguousarray(model.w[f"blk.{layer}.{tensor}.weight"])
                x = np.ascontiguousarray(seen[layer, tensor])
                for label, data in methods(args.build, name, w, x):
                    logs.setdefault(label, []).append([np.log(relative(name, w, data, x)),
                                                       np.log(relative(name, w, data, held[layer, tensor]))])
            labels = list(logs)
            rows.append((name, role, [100 * np.exp(np.mean(v, axis=0)) for v in logs.values()]))
    print("| type | matrix |", " | ".join(labels), "|")
    print("| --- | --- |", " | ".join("---" for _ in labels), "|")
    for name, role, cells in rows:
        print(f"| {name} | {role} |", " | ".join(f"{a:.3g}, {b:.3g}" for a, b in cells), "|")


if __name__ == "__main__":
    main()
