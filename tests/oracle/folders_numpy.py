"""What transformers computes of the families of folders.py, in float64 by numpy: from the configuration and the weights of
a folder to logits, or to an encoder's vectors. Written from the descriptions of the models; it knows no GGUF."""
import math

import numpy as np


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def rms_norm(x, w, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * w


def layer_norm(x, w, b, eps):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * w + b


# ---- Positions

def llama3(freq, s):
    """Slow pairs are interpolated, with a ramp to those that are not."""
    original = s["original_max_position_embeddings"]
    wavelength = 2 * math.pi / freq
    smooth = (original / wavelength - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
    between = (1 - smooth) * freq / s["factor"] + smooth * freq
    slow = wavelength > original / s["low_freq_factor"]
    fast = wavelength < original / s["high_freq_factor"]
    return np.where(slow, freq / s["factor"], np.where(fast, freq, between))


def yarn(freq, s, base, dims):
    """NTK by parts: a ramp between the pairs that turn 32 times in the original context and those that turn once."""
    def at(turns):
        return dims * math.log(s["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(base))
    low, high = max(math.floor(at(32)), 0), min(math.ceil(at(1)), dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0, 1)
    return freq / s["factor"] * ramp + freq * (1 - ramp)


def frequencies(c, dims, base, long):
    """Of each pair, and the factor of cosine and sine."""
    s = c.get("rope_scaling") or {}
    kind = s.get("rope_type", s.get("type"))
    freq = base ** (-np.arange(0, dims, 2) / dims)
    if kind == "llama3":
        return llama3(freq, s), 1
    if kind == "yarn":
        return yarn(freq, s, base, dims), 1 + 0.1 * math.log(s["factor"])
    if kind == "linear":
        return freq / s["factor"], 1
    if kind == "longrope":
        original = c["original_max_position_embeddings"]
        scale = math.sqrt(1 + math.log(c["max_position_embeddings"] / original) / math.log(original))
        return freq / np.array(s["long_factor" if long else "short_factor"]), scale
    return freq, 1


def rotate(x, freq, scale):
    """x: [tokens][heads][head_dim]; an element's pair is half of the rotated ones away."""
    half = len(freq)
    angle = np.arange(len(x))[:, None] * freq
    cos, sin = np.cos(angle)[:, None] * scale, np.sin(angle)[:, None] * scale
    a, b = x[..., :half], x[..., half:2 * half]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half:]], axis=-1)


# ---- Decoders

def attention(q, k, v, scale, window):
    """[tokens][heads][head_dim], causal; a token sees itself and window - 1 before it."""
    n, groups = len(q), q.shape[1] // k.shape[1]
    k, v = k.repeat(groups, axis=1), v.repeat(groups, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    distance = np.arange(n)[:, None] - np.arange(n)
    hidden = (distance < 0) | (distance >= (window or n))
    weights = softmax(np.where(hidden, -np.inf, scores))
    return np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1)


class Decoder:
    def __init__(self, c, weights):
        self.c, self.w = c, {name: x.astype(np.float64) for name, x in weights.items()}
        self.gemma = c["architectures"] == ["Gemma3ForCausalLM"]
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.activation = gelu_tanh if self.gemma else silu

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)

    def norm(self, name, x):
        return rms_norm(x, self.w[f"{name}.weight"] + self.gemma, self.c["rms_norm_eps"])

    def window(self, layer):
        return self.c["sliding_window"] if self.gemma and (layer + 1) % 6 else None

    def rope(self, layer, x, long):
        dims = int(self.head_dim * self.c.get("partial_rotary_factor", 1))
        if self.window(layer):
            return rotate(x, *frequencies({}, dims, self.c["rope_local_base_freq"], False))
        return rotate(x, *frequencies(self.c, dims, self.c["rope_theta"], long))

    def heads_of(self, at, x):
        sizes = [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)]
        if f"{at}qkv_proj.weight" in self.w:
            parts = np.split(self.linear(f"{at}qkv_proj", x), np.cumsum(sizes)[:2], axis=-1)
        else:
            parts = [self.linear(f"{at}{name}_proj", x) for name in "qkv"]
        q, k, v = (part.reshape(len(x), -1, self.head_dim) for part in parts)
        if f"{at}q_norm.weight" in self.w:
            q, k = self.norm(f"{at}q_norm", q), self.norm(f"{at}k_norm", k)
        return q, k, v

    def attend(self, layer, x, long):
        at = f"model.layers.{layer}.self_attn."
        q, k, v = self.heads_of(at, x)
        q, k = self.rope(layer, q, long), self.rope(layer, k, long)
        scale = self.c.get("query_pre_attn_scalar", self.head_dim) ** -0.5
        return self.linear(f"{at}o_proj", attention(q, k, v, scale, self.window(layer)))

    def experts(self, at, x):
        p = softmax(self.linear(f"{at}gate", x))
        out = np.zeros_like(x)
        for t, row in enumerate(x):
            best = np.argsort(-p[t], kind="stable")[:self.c["num_experts_per_tok"]]
            for e in best:
                name = f"{at}experts.{e}."
                hidden = silu(self.linear(f"{name}w1", row)) * self.linear(f"{name}w3", row)
                out[t] += p[t, e] / p[t, best].sum() * self.linear(f"{name}w2", hidden)
        return out

    def ffn(self, layer, x):
        at = f"model.layers.{layer}."
        if f"{at}block_sparse_moe.gate.weight" in self.w:
            return self.experts(f"{at}block_sparse_moe.", x)
        if f"{at}mlp.gate_up_proj.weight" in self.w:
            gate, up = np.split(self.linear(f"{at}mlp.gate_up_proj", x), 2, axis=-1)
        else:
            gate, up = self.linear(f"{at}mlp.gate_proj", x), self.linear(f"{at}mlp.up_proj", x)
        return self.linear(f"{at}mlp.down_proj", self.activation(gate) * up)

    def layer(self, i, x, long=False):
        at = f"model.layers.{i}."
        y = self.attend(i, self.norm(f"{at}input_layernorm", x), long)
        if self.gemma:
            x = x + self.norm(f"{at}post_attention_layernorm", y)
            y = self.ffn(i, self.norm(f"{at}pre_feedforward_layernorm", x))
            return x + self.norm(f"{at}post_feedforward_layernorm", y)
        x = x + y
        return x + self.ffn(i, self.norm(f"{at}post_attention_layernorm", x))

    def logits(self, tokens, long=False):
        x = self.w["model.embed_tokens.weight"][tokens]
        if self.gemma:
            x = x * math.sqrt(self.c["hidden_size"])
        for i in range(self.c["num_hidden_layers"]):
            x = self.layer(i, x, long)
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        return self.norm("model.norm", x) @ head.T


# ---- The encoder

def bert_vectors(c, weights, tokens):
    """A vector a token, before any pooling."""
    w = {name: x.astype(np.float64, copy=False) for name, x in weights.items()}

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], c["layer_norm_eps"])

    n, heads = len(tokens), c["num_attention_heads"]
    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][:n]
    x = norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
    for i in range(c["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        q, k, v = (linear(f"{at}attention.self.{name}", x).reshape(n, heads, -1) for name in ("query", "key", "value"))
        p = softmax(np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1]))
        y = np.einsum("hqk,khd->qhd", p, v).reshape(n, -1)
        x = norm(f"{at}attention.output.LayerNorm", x + linear(f"{at}attention.output.dense", y))
        y = linear(f"{at}output.dense", gelu(linear(f"{at}intermediate.dense", x)))
        x = norm(f"{at}output.LayerNorm", x + y)
    return x
