"""Every way of `nibble compress` on small random models of the shapes of Qwen3, of Gemma 3 and of a mixture of experts: the
job ends, the file keeps to its source as its bits allow, llama.cpp loads it, and has our perplexity of its floats.

usage: test_methods.py NIBBLE ENGINE-LOGITS    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import json
import os
import pathlib
import subprocess
import sys
import unittest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import families
import harness
import llama
from measures import counted, divergence, perplexity

NIBBLE, ENGINE_LOGITS = sys.argv[1:3]
TEXT = counted(60)
N = 96  # tokens that are measured, the last of the text that is learnt from
SIZE = {"E": 64, "F": 96, "H": 4, "G": 2, "D": 32, "L": 2}  # rows are whole blocks of 32
CASES = [families.Case("qwen3", "methods", SIZE),
         families.Case("gemma3", "methods", {**SIZE, "L": 3},
                       keys={"attention.sliding_window": 30, "attention.sliding_window_pattern": 2}),
         families.Case("qwen3moe", "methods", {**SIZE, "X": 4, "C": 2, "Y": 32}, keys={"expert_feed_forward_length": 32})]
TUNE = {"tokens": 512, "batch": 128, "layer_steps": 1}
STATIC = {"scheme": "static", "range": "mse", "spread": 6}
# Recipes, and the divergence that their bits may cost.
EIGHT, FOUR, ZEROS = 3e-3, 0.3, 1.5
PLAIN = {"nearest": (FOUR, {"to": "Q4_0"}), "INT8 by channel": (EIGHT, {"to": "int8-channel"}),
         "INT8 with a zero point": (EIGHT, {"to": "int8-channel-zero"}), "INT4 with a minimum": (FOUR, {"to": "int4-g32-min"}),
         "zeros by magnitude": (ZEROS, {"to": "Q8_0", "sparse": {"share": 0.5}}),
         "W8A8 dynamic": (EIGHT, {"to": "int8-channel", "activations": {"scheme": "dynamic"}})}
CALIBRATED = {"search": (FOUR, {"to": "IQ4_NL"}), "error feedback": (FOUR, {"to": "Q4_0", "method": "gptq"}),
              "tuning": (FOUR, {"to": "Q4_0", "method": "tune", "tune": TUNE}),
              "auto": (FOUR, {"to": "Q4_0", "method": "auto", "effort": "normal", "tune": TUNE}),
              "AWQ": (FOUR, {"to": "Q4_0", "fold": "awq"}),
              "permutation and error feedback": (FOUR, {"to": "Q4_0", "fold": "permute", "method": "gptq"}),
              "values rotated": (FOUR, {"to": "Q4_0", "fold": "rotate-values"}),
              "SmoothQuant, W8A8 static": (EIGHT, {"to": "int8-channel", "fold": "smooth", "activations": STATIC}),
              "zeros by Wanda": (ZEROS, {"to": "Q8_0", "sparse": {"pattern": "2:4", "by": "wanda"}}),
              "SparseGPT": (ZEROS, {"to": "Q4_0", "method": "gptq", "sparse": {"pattern": "2:4", "by": "sparsegpt"}}),
              "a target": (FOUR, {"target": {"bits": 5.5}, "effort": "fast"}),
              "a target, error feedback": (FOUR, {"target": {"bits": 5.5}, "effort": "fast", "method": "gptq"})}


class Methods(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon("[jobs]\nidle = 0\n")
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        for name in ("model.gguf", "out.gguf", "floats.gguf", "text", "recipe"):
            setattr(cls, name.removesuffix(".gguf"), cls.path / name)
        cls.text.write_text(TEXT)

    def nibble(self, *words):
        done = subprocess.run([NIBBLE, *words, "--socket", self.daemon.runtime / "nibble.sock"], capture_output=True, text=True,
                              timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)

    def ours(self):
        given, out = self.path / "tokens", self.path / "logits"
        self.tokens.astype("<i4").tofile(given)
        subprocess.run([ENGINE_LOGITS, self.out, given, "--precision", "exact", "--ctx", "128", "--threads", "1", "--device", "cpu",
                        "-o", out], check=True)
        return np.fromfile(out, "<f4").reshape(N, -1)

    def check(self, exact, name, bound, recipe, *words):
        self.recipe.write_text(json.dumps(recipe))
        self.nibble("compress", self.model, "-o", self.out, "--force", "--recipe", self.recipe, *words)
        rounded = llama.logits_of(self.out, self.tokens)  # with llama.cpp's inputs of eight bits
        self.nibble("convert", self.out, "-o", self.floats, "--to", "F32", "--force")
        found, other = self.ours(), llama.logits_of(self.floats, self.tokens)
        lost = divergence(exact, found)
        print(f"{name}: {lost:.2e}, llama.cpp's logits {divergence(found, rounded):.1e} from ours, its floats' "
              f"{divergence(found, other):.1e}", flush=True)
        self.assertLess(lost, bound)
        self.assertLess(abs(perplexity(other, self.tokens) / perplexity(found, self.tokens) - 1), 0.005)
        self.assertLess(divergence(found, rounded), 0.02)

    def test_all(self):
        for case in CASES:
            families.write(self.model, case, families.weights(case))
            self.tokens = llama.tokens_of(self.model, TEXT)[-N:]
            exact = llama.logits_of(self.model, self.tokens)
            for name, (bound, recipe) in PLAIN.items():
                with self.subTest(f"{case.family}, {name}"):
                    self.check(exact, f"{case.family}, {name}", bound, recipe)
            for name, (bound, recipe) in CALIBRATED.items():
                with self.subTest(f"{case.family}, {name}"):
                    self.check(exact, f"{case.family}, {name}", bound, recipe, "--calibration", self.text, "--samples", "9",
                               "--length", "40")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
