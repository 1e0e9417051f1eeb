"""Training beside jax: tokens a second and peak memory of one model, batch and precision, on this machine's processors.

usage: tests/oracle/run tests/peers/distillation/training.py [--build build] [--batch 4096] [--length 256] [--steps 4] [--runs 5]
                                                             [--precision fp32] [--moments fp32]

The packaged model learns text by its labels alone (`nibble distill --hard 1`), all weights, AdamW, clipped. jax has the same:
one jitted step that gives its buffers away, layers by lax.scan, each computed again in the backward pass (jax.checkpoint), as
ours are; loss in slices of rows, so that not all logits are there at once. Our seconds are the difference of a job of --steps
steps more, so that reading, judging and writing are left out; jax's leave its compiler out. Memory is the process's peak. Runs
alternate, and medians count. --moments is of ours alone: jax's are fp32. It wants a machine that does nothing else.
"""
import argparse
import json
import multiprocessing
import pathlib
import resource
import statistics
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "compression"))

import compare
import gguf
import numpy as np
from compare import TEXT, llama

FIRST, SECOND, FLOOR, DECAY, RATE, CLIP = 0.9, 0.95, 1e-8, 0.01, 1e-5, 1.0
SLICE = 512  # rows of logits at once


def windows_of(length, n):
    model = llama.Model(llama.f32_model())
    tokens = np.array(model.tokenize((TEXT / "handbook.txt").read_text()[:400_000]))
    model.close()
    return tokens[:n * length].reshape(n, length)


class Jax:
    """The packaged model, a llama with an embedding that is the head too."""

    def __init__(self, precision):
        import jax
        import jax.numpy as jnp
        self.jax, self.jnp = jax, jnp
        self.narrow = jnp.bfloat16 if precision == "bf16" else jnp.float32
        reader = gguf.GGUFReader(llama.f32_model())
        field = lambda name: reader.fields[f"llama.{name}"].contents()  # noqa: E731
        self.heads, self.kv, self.layers = (field(n) for n in ("attention.head_count", "attention.head_count_kv", "block_count"))
        self.eps, self.base = field("attention.layer_norm_rms_epsilon"), field("rope.freq_base")
        arrays = {t.name: np.array(t.data).reshape(t.shape[::-1]) for t in reader.tensors}
        outside = {n: jnp.array(x) for n, x in arrays.items() if not n.startswith("blk.")}
        names = [n[6:] for n in arrays if n.startswith("blk.0.")]
        stacked = {n: jnp.stack([arrays[f"blk.{i}.{n}"] for i in range(self.layers)]) for n in names}
        del arrays
        self.weights = outside, stacked
        zeros = jax.tree.map(jnp.zeros_like, self.weights)
        self.moments = zeros, jax.tree.map(jnp.zeros_like, self.weights)
        self.step = jax.jit(self.one_step, donate_argnums=(0, 1))

    def product(self, x, w):
        return self.jnp.matmul(x.astype(self.narrow), w.T.astype(self.narrow), preferred_element_type=self.jnp.float32)

    def norm(self, x, w):
        return x * self.jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.eps) * w

    def rope(self, x):
        """Neighbours are pairs, as in a llama's GGUF."""
        jnp, half = self.jnp, x.shape[-1] // 2
        angle = jnp.arange(x.shape[1])[:, None] * self.base ** (-jnp.arange(half) / half)
        c, s = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
        a, b = x[..., 0::2], x[..., 1::2]
        return jnp.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)

    def layer(self, x, w):
        jnp, (b, n, width) = self.jnp, x.shape
        h = self.norm(x, w["attn_norm.weight"])
        q, k, v = (self.product(h, w[f"attn_{r}.weight"]).reshape(b, n, heads, -1)
                   for r, heads in (("q", self.heads), ("k", self.kv), ("v", self.kv)))
        q, k = self.rope(q), self.rope(k)
        k, v = (jnp.repeat(z, self.heads // self.kv, axis=2) for z in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
        y = jnp.einsum("bhqk,bkhd->bqhd", self.jax.nn.softmax(scores), v).reshape(b, n, -1)
        x = x + self.product(y, w["attn_output.weight"])
        h = self.norm(x, w["ffn_norm.weight"])
        gate, up = self.product(h, w["ffn_gate.weight"]), self.product(h, w["ffn_up.weight"])
        return x + self.product(self.jax.nn.silu(gate) * up, w["ffn_down.weight"])

    def loss(self, weights, tokens):
        jax, jnp, (outside, stacked) = self.jax, self.jnp, weights
        layer = jax.checkpoint(self.layer)
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), outside["token_embd.weight"][tokens], stacked)
        x = self.norm(x, outside["output_norm.weight"])[:, :-1].reshape(-1, x.shape[-1])
        labels, pad = tokens[:, 1:].ravel(), -(len(x)) % SLICE
        x, labels = jnp.pad(x, ((0, pad), (0, 0))), jnp.pad(labels, (0, pad), constant_values=-1)

        @jax.checkpoint
        def some(total, rows):
            h, label = rows
            logits = self.product(h, outside["token_embd.weight"])
            each = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, label[:, None], 1)[:, 0]
            return total + jnp.where(label >= 0, each, 0).sum(), None

        total, _ = jax.lax.scan(some, 0.0, (x.reshape(-1, SLICE, x.shape[-1]), labels.reshape(-1, SLICE)))
        return total / (len(x) - pad)

    def one_step(self, weights, moments, tokens, at):
        jax, jnp = self.jax, self.jnp
        loss, found = jax.value_and_grad(self.loss)(weights, tokens)
        norm = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(found)))
        scale = jnp.minimum(1, CLIP / norm)
        first = jax.tree.map(lambda m, g: FIRST * m + (1 - FIRST) * scale * g, moments[0], found)
        second = jax.tree.map(lambda m, g: SECOND * m + (1 - SECOND) * (scale * g) ** 2, moments[1], found)
        move = lambda w, m, v: w - RATE * (m / (1 - FIRST ** at) / (jnp.sqrt(v / (1 - SECOND ** at)) + FLOOR) + DECAY * w)  # noqa: E731
        return jax.tree.map(move, weights, first, second), (first, second), loss


def run_jax(options, answer):
    """In a process of its own, whose peak memory is jax's."""
    model = Jax(options.precision)
    tokens = windows_of(options.length, options.batch // options.length)
    times, losses = [], []
    for at in range(1, options.steps + 2):
        began = time.monotonic()
        model.weights, model.moments, loss = model.step(model.weights, model.moments, tokens, float(at))
        losses.append(float(loss))
        times.append(time.monotonic() - began)
    answer.send((statistics.median(times[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, losses[0]))


def in_process(options):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(False)
    process = context.Process(target=run_jax, args=(options, theirs))
    process.start()
    found = ours.recv()
    process.join()
    return found


def run_nibble(options, service, folder):
    """(seconds of a step, MB, the first step's loss)"""
    taken = []
    for steps in (1, 1 + options.steps):
        began, watch = time.monotonic(), compare.Watch(service.daemon)
        watch.start()
        report = json.loads(service.run(
            "distill", llama.f32_model(), "-o", folder / "trained.gguf", "--force", "--text", TEXT / "handbook.txt", "--hard", 1,
            "--rate", RATE, "--tokens", steps * options.batch, "--batch", options.batch, "--length", options.length, "--held-out",
            1, "--precision", options.precision, "--moments", options.moments, "--json"))
        taken.append(time.monotonic() - began)
        most = watch.stop()[0]
    return (taken[1] - taken[0]) / options.steps, most, report["curve"][0]["loss"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"))
    for name, usual in (("batch", 4096), ("length", 256), ("steps", 4), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--moments", choices=["fp32", "int8"], default="fp32")
    options = parser.parse_args()
    service = compare.Service(options.build.resolve())
    rows = {"jax": [], "nibble": []}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(options.runs):
                rows["jax"].append(in_process(options))
                rows["nibble"].append(run_nibble(options, service, pathlib.Path(folder)))
                for name, (seconds, most, loss) in ((n, r[-1]) for n, r in rows.items()):
                    print(f"{name:8} {options.batch / seconds:6.1f} tokens/s  {most:6.0f} MB  first loss {loss:.3f}", flush=True)
    finally:
        service.daemon.finish()
    median = {name: [statistics.median(x) for x in zip(*found)] for name, found in rows.items()}
    print(f"tokens a second: {median['jax'][0] / median['nibble'][0]:.2f} x of jax's; memory: "
          f"{median['nibble'][1] / median['jax'][1]:.2f} x", flush=True)


if __name__ == "__main__":
    main()
