"""`nibble distill --qat` beside jax in float64: losses and gradients are of matrices and of their inputs as the file will have them
computed, straight through the rounding, and the file has the codes that were trained.

usage: test_qat.py NIBBLE MAKE-GGUF    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import sys
import unittest

from training import LENGTH, Student, Trainings, case_of

import families_jax
import gguf
import jax
import jax.numpy as jnp
import numpy as np

HOW = {"temperature": 2.0, "hard": 0.3, "hidden": 0.4, "rate": 3e-3, "warm": 0.5, "decay": 0.1, "clip": 1.0, "qat": True}
SPANNED = {**HOW, "scales": "spanned"}
CASE = case_of("llama", L=3, E=64, F=96, D=32)
# A number at the middle between two codes may get the other one in fp32, so steps are small, and figures less close. Of inputs that
# are not rounded at all a tensor would move to 5e-2 of its way elsewhere.
CODED, CLOSE = {**SPANNED, "to": "int8-channel", "rate": 3e-4}, (2e-3, 2e-2)


class Coded(families_jax.Model):
    """Inputs of matrices as int8 codes: of a range, or, where that is 0, of the largest magnitude of the row."""

    def layer(self, x, of_layer):
        *of_layer, self.ranges = of_layer
        return super().layer(x, of_layer)

    def linear(self, w, name, x):
        fixed = self.of_head if name in ("output", "token_embd") else self.ranges.get(name, 0)
        most = jnp.abs(x).max(-1, keepdims=True)
        scale = jnp.where(fixed > 0, fixed, most) / 127
        coded = jnp.clip(jnp.round(x / scale), -127, 127) * scale
        return super().linear(w, name, x + jax.lax.stop_gradient(coded - x))


class Dynamic(Student):
    ranges = {}

    def __init__(self, case, arrays, lengths):
        super().__init__(case, arrays, lengths)
        self.model.__class__ = Coded
        roles = {name.split(".")[2] for name in self.ranges if name.startswith("blk.")}
        self.model.of_head = self.ranges.get("output.weight", self.ranges.get("token_embd.weight", 0.0))
        self.model.layers = (*self.model.layers, {role: jnp.array([self.ranges[f"blk.{i}.{role}.weight"]
                                                                   for i in range(case.size["L"])]) for role in roles})


def split(kind, data):
    """Codes, scales and minima of blocks of 32, and the least code and the greatest."""
    numbers = data[:, :4].copy().view(np.float16).astype(np.float64)
    if kind == "Q8_0":
        return data[:, 2:].view(np.int8).astype(np.float64), numbers[:, :1], 0 * numbers[:, :1], (-127, 127)
    minimum = kind == "Q4_1"
    nibbles = data[:, 4 if minimum else 2:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float64)
    return (codes, numbers[:, :1], numbers[:, 1:], (0, 15)) if minimum else (codes - 8, numbers[:, :1], 0 * numbers[:, :1], (-8, 7))


class Codes:
    """A matrix whose codes, scales and minima learn. They move by Adam, all of them as far as the rate says in weights, on
    the average at first."""

    def __init__(self, kind, data, weights):
        self.shape = weights.shape
        codes, scale, minimum, (self.least, self.most) = split(kind, data.reshape(-1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]))
        self.has_min = kind == "Q4_1"
        u = (weights.reshape(codes.shape) - minimum) / np.where(scale == 0, 1, scale)
        self.u = np.where(scale == 0, codes, np.clip(u, codes - 0.499, codes + 0.499))  # each lies in its code's cell
        self.parts = {"scale": scale, "min": minimum}
        self.units = {"scale": np.abs(scale), "min": np.abs(scale) * (self.most - self.least) / 2}
        self.gap, self.size = np.abs(scale).mean(), np.abs(weights).mean()

    def nearest(self):
        return np.clip(np.rint(self.u), self.least, self.most)

    def now(self):
        scale, minimum = (x.astype(np.float16).astype(np.float64) for x in self.parts.values())
        return (scale * self.nearest() + minimum).reshape(self.shape)

    def move(self, adam, g, rate):
        g = g.reshape(self.u.shape)
        stored = self.parts["scale"].astype(np.float16)
        pulls = {"scale": (g * self.nearest()).sum(1, keepdims=True), "min": g.sum(1, keepdims=True)}
        self.u = np.clip(self.u - rate / self.gap * adam("code", g * np.sign(stored)), self.least - 0.5, self.most + 0.5)
        for part in ("scale", "min") if self.has_min else ("scale",):
            self.parts[part] = self.parts[part] - rate / self.size * self.units[part] * adam(part, pulls[part] * self.units[part])


class Learned(Student):
    """What moves are codes and scales, from those of a file on."""

    kind, start = None, None

    def __init__(self, case, arrays, lengths):
        super().__init__(case, arrays, lengths)
        self.codes = {t.name: Codes(self.kind, t.data, arrays[t.name].astype(np.float64))
                      for t in gguf.GGUFReader(self.start).tensors if t.tensor_type.name == self.kind}

    def layers_of(self, name):
        """Of a name of what is moved: the tensors that it stands for."""
        return [name] if name in self.outside else [f"blk.{i}.{name}" for i in range(self.case.size["L"])]

    def computed(self, how):
        return [{n: np.stack([self.codes[one].now() for one in self.layers_of(n)]).reshape(x.shape) if self.layers_of(n)[0] in self.codes
                 else x for n, x in part.items()} for part in self.moved()]

    def move(self, values, name, g, rate, how, at):
        names = self.layers_of(name)
        if names[0] not in self.codes:
            return super().move(values, name, g, rate, how, at)
        for one, of_one in zip(names, g.reshape(len(names), -1)):
            self.codes[one].move(lambda part, pull: self.adam((one, part), pull, at), of_one, rate)


class Qat(Trainings):
    def test_learned_scales(self):
        """Codes and scales are what moves, from those that the file has without a step."""
        for kind in ("Q4_0", "Q4_1", "Q8_0"):
            class Of(Learned):
                start = self.path / "start.gguf"

            def begin(model):
                self.distill(model, "--text", self.text, "--layers", "0,2", "--to", Of.kind, "--qat", "--tokens", "0", "--length", LENGTH,
                             "--held-out", "1")
                (self.path / "student.gguf").rename(Of.start)

            Of.kind = kind
            with self.subTest(kind):
                self.beside_jax(CASE, [0, 2], {**HOW, "to": kind}, Of, begin)

    def test_rounded_steps(self):
        """Quantization-aware: losses and gradients are of what the file will have, and it has what was trained."""
        for kind in ("Q4_0", "Q8_0", "int8-channel", "int8-tensor"):
            with self.subTest(kind):
                self.beside_jax(CASE, [0, 2], {**SPANNED, "to": kind})

    def test_dynamic_inputs(self):
        self.beside_jax(CASE, [0, 2], {**CODED, "activations": "dynamic"}, Dynamic, close=CLOSE)
        self.assertEqual(self.scheme(self.path / "student.gguf"), "dynamic")

    def scheme(self, path):
        return gguf.GGUFReader(path).fields["nibble.activations.scheme"].contents()

    def ranges_of(self, path):
        fields = gguf.GGUFReader(path).fields
        return dict(zip(fields["nibble.activations.matrices"].contents(), fields["nibble.activations.ranges"].contents()))

    def test_static_inputs(self):
        """The ranges are those of the model's file, also of layers that have other numbers in the student."""
        class Static(Dynamic):
            ranges = {}

        def calibrate(model):
            done = self.nibble("compress", model, "-o", self.path / "static.gguf", "--force", "--to", "F32", "--activations", "static",
                               "--calibration", self.text, "--samples", "3", "--length", "48")
            self.assertEqual(done.returncode, 0, done.stderr)
            (self.path / "static.gguf").rename(model)
            found = self.ranges_of(model)
            Static.ranges = {name.replace("blk.2.", "blk.1."): x for name, x in found.items() if "blk.1." not in name}

        self.beside_jax(CASE, [0, 2], CODED, Static, calibrate, CLOSE)
        student = self.path / "student.gguf"
        self.assertEqual((self.scheme(student), self.ranges_of(student)), ("static", Static.ranges))
        self.assertIn("blk.1.ffn_down.weight", Static.ranges)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
