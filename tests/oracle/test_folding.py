"""What `nibble compress --fold` does: llama.cpp has the same logits of a rotated model in float32, smaller errors of folded ones in
four bits where some channels are large, and a job that is killed while it folds gives the same bytes.

usage: test_folding.py NIBBLE    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import unittest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import families
import harness
import llama
from measures import counted

NIBBLE = sys.argv[1]
BOUND = 1e-4  # of the largest logit
TEXT = counted(60)
HOW = ("--samples", "9", "--length", "40")
WHOLE = families.size(64, 96, 4, 2, 16)  # blocks of 32
EXPERTS = {"expert_feed_forward_length": 32}


def logits(path):
    """On text of the kind that was learnt from."""
    return llama.logits_of(path, llama.tokens_of(path, TEXT)[-105:], threads=1)


class Folding(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon("[jobs]\nidle = 0\n")
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        cls.model, cls.out, cls.text = cls.path / "model.gguf", cls.path / "out.gguf", cls.path / "text.txt"
        cls.text.write_text(TEXT)

    def write(self, family, tensors="", without="", size=WHOLE, keys={}, loud=False):
        """A random model; a loud one has norms some of whose channels are large, and inner channels too."""
        case = families.Case(family, "fold", size, tensors, without, keys)
        arrays = families.weights(case)
        for name, array in arrays.items() if loud else ():
            if name.endswith("_norm.weight"):
                array[::13] *= 6
            elif "ffn_up" in name:
                array[..., ::11, :] *= 4
        families.write(self.model, case, arrays)

    def compress(self, *words):
        """The report."""
        done = subprocess.run([NIBBLE, "compress", self.model, "-o", self.out, "--force", "--json", *words, "--socket",
                               self.daemon.runtime / "nibble.sock"], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout)

    def folded(self, to, fold, *words):
        return self.compress("--to", to, "--fold", fold, "--calibration", self.text, *HOW, *words)

    def test_rotated(self):
        cases = [("llama", {}), ("phi3", {"tensors": families.UNTIED}),
                 ("granite", {"keys": {"logit_scale": 1.7, "residual_scale": 0.4, "embedding_scale": 2.0}}),
                 ("qwen3moe", {"size": {**WHOLE, "X": 6, "C": 2, "Y": 32}, "keys": EXPERTS})]
        for family, how in cases:
            with self.subTest(family):
                self.write(family, **how)
                exact = logits(self.model)
                self.folded("F32", "rotate")
                found = logits(self.out)
                self.assertLess((np.abs(found - exact).max(axis=1) / np.abs(exact).max(axis=1)).max(), BOUND)
                tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(self.out).tensors}
                self.assertTrue((tensors["blk.0.attn_norm.weight"] == 1).all())
                self.assertFalse(np.array_equal(tensors["output.weight"], tensors["token_embd.weight"]))

    def test_refused(self):
        self.write("olmo2")
        with self.assertRaisesRegex(RuntimeError, "cannot be rotated: a norm stands between matrices and the residual stream"):
            self.folded("F32", "rotate")
        exact = logits(self.model)
        self.folded("F32", "rotate-values")
        found = logits(self.out)
        self.assertLess((np.abs(found - exact).max(axis=1) / np.abs(exact).max(axis=1)).max(), BOUND)
        with self.assertRaisesRegex(RuntimeError, '"fold" is a list of'):
            self.folded("F32", "awq,smooth")
        with self.assertRaisesRegex(RuntimeError, '"fold" is a list of'):
            self.folded("F32", "origami")
        kept = self.path / "kept.gguf"
        self.folded("Q4_0", "awq", "--save-imatrix", kept)
        with self.assertRaisesRegex(RuntimeError, "a fold learns from text, not from an importance matrix"):
            self.compress("--to", "F32", "--fold", "rotate-values", "--imatrix", kept)

    def test_own_text(self):
        """Without a text the model writes it, once for the fold and what comes after."""
        self.write("llama", loud=True)
        self.compress("--to", "Q4_0", "--fold", "awq", "--samples", "8", "--length", "40")
        first = self.out.read_bytes()
        self.compress("--to", "Q4_0", "--fold", "awq", "--samples", "8", "--length", "40")
        self.assertEqual(self.out.read_bytes(), first)

    def error(self, exact):
        """The median token's: one that goes to another expert is far off."""
        return np.median(((logits(self.out) - exact) ** 2).sum(axis=1) / (exact ** 2).sum(axis=1))

    def gains(self, to, family, *folds, **how):
        """The error of each fold, of that without; the last report."""
        self.write(family, loud=True, **how)
        exact, report = logits(self.model), None
        self.compress("--to", to, "--calibration", self.text, *HOW)
        plain, found = self.error(exact), []
        for fold, *words in folds:
            report = self.folded(to, fold, *words)
            found.append(self.error(exact) / plain)
            print(f"{family}, {to}, {fold} {' '.join(words)}: {found[-1]:.2f} of the error without", flush=True)
        return found, report["fold"]

    def test_searched(self):
        found, fold = self.gains("Q4_0", "llama", ("awq", "--method", "gptq"), ("awq",), ("awq,permute",))
        self.assertLess(max(found), 0.9)
        self.assertEqual({j["joint"] for j in fold["joints"]}, {"norm", "values", "inner"})
        self.assertTrue(all(j["error"] <= j["error_without"] for j in fold["joints"]))
        self.assertIn("rotation: token_embd is the output matrix too (1)", fold["left_out"])

    def test_experts(self):
        """In eight bits, because four lead tokens to other experts."""
        found, _ = self.gains("Q8_0", "qwen3moe", ("awq,permute",), size={**WHOLE, "X": 6, "C": 2, "Y": 32}, keys=EXPERTS)
        self.assertLess(max(found), 0.95)

    def test_smooth(self):
        """Its scales are for inputs of eight bits too, but harm little without."""
        found, _ = self.gains("Q8_0", "llama", ("smooth",))
        self.assertLess(max(found), 2)

    def test_killed(self):
        self.write("llama", loud=True)
        client = self.daemon.client()
        self.addCleanup(client.close)
        recipe = {"to": "Q4_0", "fold": ["awq", "permute"], "calibration": {"samples": 9, "length": 40}}

        def start():
            return client.start_job(recipe, self.model, self.text, kind="weighted", names=["model.gguf", "calibration/text.txt"])

        def results(job):
            client.wait_job(job)
            return [client.job_result(job, i) for i in range(3)]

        alone, job, kills = results(start()), start(), []
        for _ in range(2):
            workers = lambda: [p for p, mode in self.daemon.children() if mode == "job"]
            harness.until(lambda: workers() or client.job(job).state == b"finished", "a worker")
            time.sleep(random.random() * 0.1)
            row = client.job(job)
            for pid in workers():
                os.kill(pid, signal.SIGKILL)
                kills.append(row.text)
            harness.until(lambda: client.job(job).restarts > row.restarts or client.job(job).state == b"finished", "its next worker")
        self.assertEqual(results(job), alone)
        self.assertTrue(kills)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
