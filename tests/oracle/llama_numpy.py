"""A llama in plain numpy, in float64: what a model computes, whatever its weights are stored as."""
import gguf
import numpy as np

import folders_numpy as ops


def floats(path):
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in gguf.GGUFReader(path).tensors}


def rope(x, base):
    """[heads][tokens][length], pairs side by side."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)
    a, b, c, s = x[..., 0::2], x[..., 1::2], np.cos(angle), np.sin(angle)
    return np.stack([a * c - b * s, a * s + b * c], axis=-1).reshape(x.shape)


class Llama:
    """A llama in float64, of a GGUF's weights as they are. It keeps, of each matrix, the sums of its inputs' squares.
    `see` is shown the input of each matrix, and may change it; `kv` is how keys and values are kept."""

    def __init__(self, path, weights=None, see=lambda x, name: x, kv=lambda x: x):
        reader = gguf.GGUFReader(path)
        self.get = lambda key, other=None: (reader.fields["llama." + key].contents() if "llama." + key in reader.fields else other)
        self.w = weights or floats(path)
        self.heads, self.kv = self.get("attention.head_count"), self.get("attention.head_count_kv")
        self.eps, self.base = self.get("attention.layer_norm_rms_epsilon"), self.get("rope.freq_base", 10000.0)
        self.sums, self.rows, self.see, self.keep = {}, 0, see, kv

    def times(self, x, name):
        self.sums[name] = self.sums.get(name, 0) + (x * x).sum(axis=0)
        return self.see(x, name) @ self.w[name].T

    def layer(self, x, at):
        h = ops.rms_norm(x, self.w[at + "attn_norm.weight"], self.eps)
        split = lambda y, n: y.reshape(len(x), n, -1).swapaxes(0, 1)
        q = rope(split(self.times(h, at + "attn_q.weight"), self.heads), self.base)
        k = rope(split(self.times(h, at + "attn_k.weight"), self.kv), self.base)
        v = split(self.times(h, at + "attn_v.weight"), self.kv)
        k, v = (np.repeat(self.keep(y), self.heads // self.kv, axis=0) for y in (k, v))
        score = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + np.triu(np.full((len(x), len(x)), -np.inf), 1)
        a = (ops.softmax(score) @ v).swapaxes(0, 1).reshape(len(x), -1)
        x = x + self.times(a, at + "attn_output.weight")
        h = ops.rms_norm(x, self.w[at + "ffn_norm.weight"], self.eps)
        inner = ops.silu(self.times(h, at + "ffn_gate.weight")) * self.times(h, at + "ffn_up.weight")
        return x + self.times(inner, at + "ffn_down.weight")

    def run(self, tokens):
        """What the head reads, of one window."""
        x = self.w["token_embd.weight"][tokens]
        for i in range(self.get("block_count")):
            x = self.layer(x, f"blk.{i}.")
        x = ops.rms_norm(x, self.w["output_norm.weight"], self.eps)
        self.times(x, self.head())
        self.rows += len(tokens)
        return x

    def logits(self, tokens):
        x = self.run(tokens)
        return self.see(x, self.head()) @ self.w[self.head()].T

    def head(self):
        return "output.weight" if "output.weight" in self.w else "token_embd.weight"
