"""What the models of families.py compute, in float64 by jax, so that their gradients come from somebody else's hands: from
a case's sizes, keys and weights to logits or to an encoder's vectors. Written from the descriptions of the models; it knows no
list of ops."""
import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxpr_numpy

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")

NEOX = {"qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "starcoder2", "olmo2"}
WINDOWS = {"gemma2": (2, 4096), "gemma3": (6, 0), "olmo2": (4, 0)}  # the period, and the window where no key has one
LARGE = {"gemma2": 46, "gemma3": 62}  # of 27 billion weights: heads are scaled by another width than their own
EPS = 0.01


# ---- Positions

def yarn(freq, base, keys, dims):
    """A ramp between the pairs that turn 32 times in the original context and those that turn once."""
    factor, original = keys["rope.scaling.factor"], keys["rope.scaling.original_context_length"]

    def at(turns):
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))
    low, high = max(math.floor(at(32)), 0), min(math.ceil(at(1)), dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0, 1)
    return freq / factor * ramp + freq * (1 - ramp), keys["rope.scaling.attn_factor"] * (1 + 0.1 * math.log(factor))


def frequencies(keys, weights, dims):
    """Of each pair, and the factor of cosine and sine."""
    base, kind = keys.get("rope.freq_base", 10000.0), keys.get("rope.scaling.type", "linear")
    freq = base ** (-np.arange(0, dims, 2) / dims)
    if kind == "yarn":
        return yarn(freq, base, keys, dims)
    if kind == "longrope":
        long = keys["context_length"] > keys["rope.scaling.original_context_length"]
        return freq / weights[f"rope_factors_{'long' if long else 'short'}.weight"], keys["rope.scaling.attn_factor"]
    return freq / weights.get("rope_freqs.weight", 1) / keys.get("rope.scaling.factor", 1), 1


def layers_of(case, keys, weights, dims):
    """Of each layer: its window, 0 where it has none, and its frequencies with their factor."""
    period, window = WINDOWS.get(case.family, (0, 0))
    window = keys.get("attention.sliding_window", window)
    pattern = keys.get("attention.sliding_window_pattern", period)
    everywhere = frequencies(keys, weights, dims)
    local = {"gemma3": keys.get("rope.freq_base_swa", 10000.0), "olmo2": keys.get("rope.freq_base", 10000.0)}.get(case.family)
    for i in range(case.size["L"]):
        windowed = pattern[i] if isinstance(pattern, list) else bool(pattern) and i % pattern != pattern - 1
        here = window if windowed else 0
        if case.family == "smollm3" and i % 4 == 3:
            yield here, (np.zeros(dims // 2), 1)
        else:
            yield here, (local ** (-np.arange(0, dims, 2) / dims), 1) if local and here else everywhere


def rotate(x, cos, sin, neox):
    """x: [rows][heads][D]; cos, sin: [rows][pairs]."""
    n = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    turned, rest = x[..., :2 * n], x[..., 2 * n:]
    a, b = (turned[..., :n], turned[..., n:]) if neox else (turned[..., ::2], turned[..., 1::2])
    parts = a * cos - b * sin, b * cos + a * sin
    turned = jnp.concatenate(parts, -1) if neox else jnp.stack(parts, -1).reshape(turned.shape)
    return jnp.concatenate([turned, rest], -1)


# ---- Layers

def rows_of(w, rows):
    return (rows[:, None] == np.arange(len(w))).astype(np.float64) @ w


def erf_gelu(x):
    return 0.5 * x * (1 + jax.lax.erf(x / math.sqrt(2)))


ACTIVATIONS = {None: jax.nn.silu, "tanh": jax.nn.gelu, "erf": erf_gelu}


class Model:
    def __init__(self, case, family, keys, weights, lengths):
        self.case, self.family, self.keys = case, family, keys
        self.act = ACTIVATIONS[family.gelu]
        self.D, self.H, self.G = (case.size[letter] for letter in "DHG")
        width = case.size["E"] // self.H if case.size["L"] == LARGE.get(case.family) else self.D
        self.scale = keys.get("attention.scale", width ** -0.5)
        self.residual = keys.get("residual_scale", 1)
        self.softcap, self.cap = (keys.get(name, usual if case.family == "gemma2" else 0) for name, usual in [
            ("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)])
        self.sequence = np.repeat(np.arange(len(lengths)), lengths)
        self.position = np.concatenate([np.arange(n) for n in lengths])
        self.layers = self.tables(weights)

    def tables(self, weights):
        """What layers differ in beside their weights, for scan: windows, cosines and sines."""
        dims = self.keys.get("rope.dimension_count", self.D if self.family.ropes else 0)
        windows, cos, sin = [], [], []
        for window, (freq, factor) in layers_of(self.case, self.keys, weights, dims):
            angle = self.position[:, None] * freq
            windows.append(window or len(self.position))
            cos.append(np.cos(angle) * (factor if freq.any() else 1))
            sin.append(np.sin(angle) * factor)
        return jnp.array(windows), jnp.array(cos), jnp.array(sin)

    def norm(self, w, name, x):
        if self.family.layer_norm:
            x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + EPS) * w[f"{name}.weight"]
        return x + w.get(f"{name}.bias", 0)

    def linear(self, w, name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def heads(self, w, x):
        sizes = np.cumsum([self.H * self.D, self.G * self.D])
        if "attn_qkv.weight" in w:
            parts = jnp.split(self.linear(w, "attn_qkv", x), sizes, -1)
        else:
            parts = [self.linear(w, f"attn_{name}", x) for name in "qkv"]
        for i, name in enumerate(["attn_q_norm", "attn_k_norm"] if "attn_q_norm.weight" in w else []):
            whole = w[f"{name}.weight"].size == parts[i].shape[-1] and w[f"{name}.weight"].ndim == 1
            rows = parts[i] if whole else parts[i].reshape(len(x), -1, self.D)
            parts[i] = self.norm(w, name, rows)
        return (part.reshape(len(x), -1, self.D) for part in parts)

    def attended(self, w, x, cos, sin):
        """Queries, keys and values as they are multiplied, [rows][heads][D]."""
        q, k, v = self.heads(w, x)
        if self.family.ropes:
            q, k = (rotate(part, cos, sin, self.case.family in NEOX) for part in (q, k))
        return q, k, v

    def attention(self, w, x, window, cos, sin):
        q, k, v = self.attended(w, x, cos, sin)
        q = q.reshape(len(x), self.G, -1, self.D)
        scores = jnp.einsum("qghd,kgd->ghqk", q, k) * self.scale
        if self.softcap:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        distance = self.position[:, None] - self.position
        sees = self.sequence[:, None] == self.sequence
        if self.case.family != "bert":
            sees = sees & (distance >= 0) & (distance < window)
        p = jax.nn.softmax(jnp.where(sees, scores, -jnp.inf), -1)
        return self.linear(w, "attn_output", jnp.einsum("ghqk,kgd->qghd", p, v).reshape(len(x), -1))

    def experts(self, w, x):
        p = jax.nn.softmax(self.linear(w, "ffn_gate_inp", x), -1)
        least = jax.lax.stop_gradient(jax.lax.top_k(p, self.case.size["C"])[0][:, -1:])
        p = jnp.where(p >= least, p, 0)
        p = p / p.sum(-1, keepdims=True)
        gate, up = (jnp.einsum("te,xye->txy", x, w[f"ffn_{name}_exps.weight"]) for name in ("gate", "up"))
        return jnp.einsum("tx,txy,xey->te", p, self.act(gate) * up, w["ffn_down_exps.weight"])

    def feed_forward(self, w, x):
        if "ffn_gate_inp.weight" in w:
            return self.experts(w, x)
        up = self.linear(w, "ffn_up", x)
        if "ffn_gate.weight" in w:
            up = self.act(self.linear(w, "ffn_gate", x)) * up
        elif self.case.family == "phi3":
            gate, up = jnp.split(up, 2, -1)
            up = self.act(gate) * up
        else:
            up = self.act(up)
        return self.linear(w, "ffn_down", up)

    def first(self, w, x):
        return self.norm(w, "attn_norm", x) if "attn_norm.weight" in w else x

    def layer(self, x, of_layer):
        w, *tables = of_layer
        first = self.first(w, x)
        y = self.attention(w, first, *tables)
        if "post_attention_norm.weight" in w:
            y = self.norm(w, "post_attention_norm", y)
        x = x + self.residual * y
        if "attn_output_norm.weight" in w:
            x = self.norm(w, "attn_output_norm", x)
        # Attention and feed-forward of command-r read the same norm.
        second = self.norm(w, "ffn_norm", x) if "ffn_norm.weight" in w else first if self.case.family == "command-r" else x
        y = self.feed_forward(w, second)
        if "post_ffw_norm.weight" in w:
            y = self.norm(w, "post_ffw_norm", y)
        x = x + self.residual * y
        return self.norm(w, "layer_output_norm", x) if "layer_output_norm.weight" in w else x, None

    def embed(self, w, tokens):
        scale = math.sqrt(self.case.size["E"]) if self.case.family.startswith("gemma") else self.keys.get("embedding_scale", 1)
        x = rows_of(w["token_embd.weight"], tokens) * scale
        if "token_types.weight" in w:
            x = x + rows_of(w["token_types.weight"], np.zeros_like(tokens))
        if "position_embd.weight" in w:
            x = x + rows_of(w["position_embd.weight"], self.position)
        return self.norm(w, "token_embd_norm", x) if "token_embd_norm.weight" in w else x

    def vectors(self, outside, stacked, tokens):
        """[rows][E]: what vectors are made of, and logits. `stacked`: a layer's tensors without "blk.N.", each with one more
        dimension for the layers."""
        x, _ = jax.lax.scan(self.layer, self.embed(outside, tokens), (stacked, *self.layers))
        return self.norm(outside, "output_norm", x) if "output_norm.weight" in outside else x

    def last_attended(self, outside, stacked, tokens):
        """Of the last layer."""
        def layer(x, of_layer):
            w, _, *tables = of_layer
            return self.layer(x, of_layer)[0], self.attended(w, self.first(w, x), *tables)

        _, parts = jax.lax.scan(layer, self.embed(outside, tokens), (stacked, *self.layers))
        return [part[-1] for part in parts]

    def logits(self, outside, stacked, tokens):
        head = "output" if "output.weight" in outside else "token_embd"
        y = self.linear(outside, head, self.vectors(outside, stacked, tokens))
        scale = self.keys.get("logit_scale", 1)
        y = y / scale if self.case.family == "granite" else y * scale
        return self.cap * jnp.tanh(y / self.cap) if self.cap else y


def loss_of_logits(logits, tokens, lengths):
    """The mean cross-entropy of the next tokens."""
    counts = np.ones(len(tokens), bool)
    counts[np.cumsum(lengths) - 1] = False
    target = np.roll(tokens, -1)[:, None] == np.arange(logits.shape[1])
    return -(jax.nn.log_softmax(logits) * (target & counts[:, None])).sum() / counts.sum()


def loss_of_vectors(vectors):
    return (vectors.reshape(-1) * np.sin(np.arange(vectors.size))).sum()


def gradients(case, family, keys, arrays, tokens, lengths):
    """Results, the loss, {tensor: its gradient}."""
    weights = {name: array.astype(np.float64) for name, array in arrays.items()}
    model = Model(case, family, keys, weights, lengths)
    outside = {name: x for name, x in weights.items() if not name.startswith("blk.")}
    stacked = {name[6:]: np.stack([weights[f"blk.{i}.{name[6:]}"] for i in range(case.size["L"])])
               for name in weights if name.startswith("blk.0.")}

    def loss(outside, stacked):
        if case.embeds:
            y = model.vectors(outside, stacked, tokens)
            return loss_of_vectors(y), y
        y = model.logits(outside, stacked, tokens)
        return loss_of_logits(y, tokens, lengths), y

    (value, y), (out, inside) = jaxpr_numpy.evaluate(jax.value_and_grad(loss, (0, 1), has_aux=True), outside, stacked)
    found = {name: np.array(x) for name, x in out.items()}
    found |= {f"blk.{i}.{name}": x for name, xs in inside.items() for i, x in enumerate(np.array(xs))}
    return np.array(y), float(value), found
