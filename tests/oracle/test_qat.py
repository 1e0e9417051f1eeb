"""`nibble distill --qat` beside jax in float64: losses and gradients are of matrices and of their inputs as the file will have them
computed, straight through the rounding, and the file has the codes that were trained.

usage: test_qat.py NIBBLE MAKE-GGUF    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import sys
import unittest

from training import Student, Trainings, case_of

import families_jax
import gguf
import jax
import jax.numpy as jnp

HOW = {"temperature": 2.0, "hard": 0.3, "hidden": 0.4, "rate": 3e-3, "warm": 0.5, "decay": 0.1, "clip": 1.0, "qat": True}
CASE = case_of("llama", L=3, E=64, F=96, D=32)
# A number at the middle between two codes may get the other one in fp32, so steps are small, and figures less close. Of inputs that
# are not rounded at all a tensor would move to 5e-2 of its way elsewhere.
CODED, CLOSE = {**HOW, "to": "int8-channel", "rate": 3e-4}, (2e-3, 2e-2)


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


class Qat(Trainings):
    def test_rounded_steps(self):
        """Quantization-aware: losses and gradients are of what the file will have, and it has what was trained."""
        for kind in ("Q4_0", "Q8_0", "int8-channel", "int8-tensor"):
            with self.subTest(kind):
                self.beside_jax(CASE, [0, 2], {**HOW, "to": kind})

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
