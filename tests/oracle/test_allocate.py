"""What `nibble compress` with a target chooses: the size is met and never exceeded, the divergence that it reports is numpy's in
float64 on the windows that were held out, a divergence that is asked for is not exceeded, and a job that is killed at any
instant gives the same bytes.

usage: test_allocate.py NIBBLE MAKE-GGUF    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import json
import os
import pathlib
import subprocess
import sys
import unittest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import harness
import llama
from llama_numpy import Llama
from measures import counted, divergence

NIBBLE, MAKE_GGUF = sys.argv[1:3]
SAMPLES, LENGTH = 9, 40
HELD_OUT = 1536 // LENGTH  # at effort fast
TEXT = counted(150)
TYPES = ["Q2_K", "IQ4_XS", "Q4_K", "Q6_K", "Q8_0"]
TEXT_HOW = ("--samples", str(SAMPLES), "--length", str(LENGTH))
HOW = (*TEXT_HOW, "--effort", "fast", *(w for name in TYPES for w in ("--type", name)))


def held_out(tokens):
    """As docs/rooms/quant.md has them: windows evenly over the text, and evenly among these the ones that are judged on."""
    n = SAMPLES + HELD_OUT
    room = len(tokens) - LENGTH
    windows = [tokens[i * room // (n - 1):][:LENGTH] for i in range(n)]
    return [windows[(2 * i + 1) * n // (2 * HELD_OUT)] for i in range(HELD_OUT)]


class Allocate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon("[jobs]\nidle = 0\n")
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        cls.model, cls.text = cls.path / "model.gguf", cls.path / "text.txt"
        subprocess.run([MAKE_GGUF, "random", cls.model, "F32", "5"], check=True)
        cls.text.write_text(TEXT)
        theirs = llama.Model(cls.model)
        cls.windows = held_out(theirs.tokenize(TEXT))
        theirs.close()
        float_model = Llama(cls.model)
        cls.reference = [float_model.logits(w) for w in cls.windows]

    def nibble(self, *words):
        return subprocess.run([NIBBLE, *words, "--socket", self.daemon.runtime / "nibble.sock"], capture_output=True,
                              text=True, timeout=120)

    def compress(self, *words, text="text.txt"):
        out = self.path / "out.gguf"
        calibration = ("--calibration", self.path / text) if text else ()
        done = self.nibble("compress", self.model, "-o", out, "--force", "--json", *calibration, *HOW, *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out, json.loads(done.stdout)

    def refused(self, complaint, *words, text="text.txt"):
        done = self.nibble("compress", self.model, "-o", self.path / "never.gguf", "--calibration", self.path / text, *HOW, *words)
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr, complaint)
        self.assertFalse((self.path / "never.gguf").exists())

    def divergence(self, out):
        model = Llama(out)
        each = [divergence(exact, model.logits(w)) for exact, w in zip(self.reference, self.windows)]
        return np.mean(each), np.std(each, ddof=1) / len(each) ** 0.5

    def test_sizes(self):
        found = {}
        for size in (560000, 800000):
            with self.subTest(size):
                out, report = self.compress("--target-size", str(size))
                self.assertLessEqual(out.stat().st_size, size)
                self.assertGreater(out.stat().st_size, 0.995 * size)
                said = report["allocation"]
                mean, error = self.divergence(out)
                self.assertAlmostEqual(said["measured"], mean, delta=5e-6 + 0.01 * mean)
                self.assertAlmostEqual(said["error"], error, delta=5e-6 + 0.05 * error)
                self.assertEqual(said["tokens"], HELD_OUT * LENGTH)
                # A search that encodes as the job does measures what becomes of it.
                self.assertAlmostEqual(said["searched"], said["measured"], delta=1e-9 + 1e-6 * mean)
                self.assertLess(abs(np.log(said["predicted"] / mean)), np.log(3))
                self.assertLessEqual(said["searched"], said["before_search"])
                found[size] = mean
                self.assertEqual([t["name"] for t in report["tensors"]], [t.name for t in gguf.GGUFReader(out).tensors])
        self.assertEqual(list(found.values()), sorted(found.values(), reverse=True))
        # One type for all, at its size: what was chosen is better.
        plain = self.path / "plain.gguf"
        done = self.nibble("compress", self.model, "-o", plain, "--to", "IQ4_NL", "--calibration", self.text, *TEXT_HOW)
        self.assertEqual(done.returncode, 0, done.stderr)
        out, _ = self.compress("--target-size", str(plain.stat().st_size))
        self.assertLess(self.divergence(out)[0], 0.9 * self.divergence(plain)[0])

    def test_bits(self):
        _, report = self.compress("--target-bits", "4.25")
        self.assertLessEqual(report["bits"], 4.25)
        self.assertGreater(report["bits"], 4.2)
        self.assertLessEqual({t["type"] for t in report["tensors"]}, {*TYPES, "F32"})

    def test_divergence(self):
        _, report = self.compress("--max-kld", "0.02")
        self.assertLessEqual(report["allocation"]["measured"], 0.02)
        self.assertGreater(report["allocation"]["measured"], 0.017)
        self.refused("no file of these types has a divergence of 1e-05: with the most bytes it is", "--max-kld", "1e-5")

    def test_fit(self):
        """Weights as they are packed, and a context's KV cache."""
        fit, context = 1200000, 64
        _, report = self.compress("--fit", str(fit), "--context", str(context))
        kv = context * 2 * 128 * 2 * 2
        self.assertLess(report["bytes"] + kv, fit)
        self.assertGreater(report["bytes"] + kv, 0.95 * fit)
        _, less = self.compress("--fit", str(fit), "--context", str(4 * context))
        self.assertLess(less["bytes"], report["bytes"] - 2 * kv)

    def test_own_text(self):
        """Without a text the model writes it, and is judged on what is held out of that."""
        out, report = self.compress("--target-size", "700000", text=None)
        self.assertEqual(report["allocation"]["tokens"], HELD_OUT * LENGTH)
        self.assertLess(report["allocation"]["measured"], 0.05)

    def test_error_feedback(self):
        """The method writes what was chosen, and what it makes of it is measured."""
        out, plain = self.compress("--target-size", "600000")
        out, report = self.compress("--target-size", "600000", "--method", "gptq")
        types = lambda r: [t["type"] for t in r["tensors"]]
        self.assertEqual(types(report), types(plain))
        self.assertAlmostEqual(report["allocation"]["measured"], self.divergence(out)[0], delta=5e-6)
        self.assertNotEqual(report["allocation"]["measured"], plain["allocation"]["measured"])

    def test_rules(self):
        recipe = self.path / "recipe.json"
        recipe.write_text(json.dumps({"target": {"size": 700000}, "embedding": "Q8_0", "effort": "fast",
                                      "tensors": [{"match": "ffn_down", "to": "Q5_1"}]}))
        out, report = self.compress("--recipe", recipe)
        self.assertLessEqual(out.stat().st_size, 700000)
        types = {t["name"]: t["type"] for t in report["tensors"]}
        self.assertEqual({types["token_embd.weight"], types["blk.0.ffn_down.weight"], types["blk.1.ffn_down.weight"]},
                         {"Q8_0", "Q5_1"})
        self.assertAlmostEqual(report["allocation"]["searched"], report["allocation"]["measured"], delta=1e-7)

    def test_refusals(self):
        self.refused("a file of 100000 bytes cannot be had: with these types it has [0-9]+ at least", "--target-size", "100000")
        self.refused("one of --to, --target-size", "--target-size", "700000", "--to", "Q4_0")
        (self.path / "short.txt").write_text(TEXT[:400])
        self.refused("the text has \\d+ tokens", "--target-size", "700000", text="short.txt")
        recipe = self.path / "bad.json"
        for text, why in (({"target": {"size": 1, "bits": 2}}, "one of size, bits, max_kld and fit|one \"bits\""),
                          ({"target": {"bits": 99}}, "from 1 to 32"), ({"target": 7}, "one of size"),
                          ({"target": {"size": 7e5}, "to": "Q4_0"}, "either a \"to\" or a \"target\""),
                          ({"target": {"size": 7e5}, "types": ["Q9"]}, "no type that Nibble writes"),
                          ({"target": {"size": 7e5}, "effort": "much"}, "fast, normal or best"),
                          ({"to": "Q4_0", "types": ["Q4_0"]}, "goes with a \"target\"")):
            with self.subTest(why):
                recipe.write_text(json.dumps(text))
                done = self.nibble("compress", self.model, "-o", self.path / "never.gguf", "--recipe", recipe,
                                   "--calibration", self.text)
                self.assertNotEqual(done.returncode, 0)
                self.assertRegex(done.stderr, why)

    def test_warning(self):
        """Two bits without calibration are known to fail."""
        done = self.nibble("compress", self.model, "-o", self.path / "few.gguf", "--to", "Q2_K", "--force")
        self.assertRegex(done.stderr, "about 2 bits, and without calibration")
        done = self.nibble("compress", self.model, "-o", self.path / "few.gguf", "--to", "Q2_K", "--force",
                           "--calibration", self.text, *TEXT_HOW)
        self.assertNotIn("2 bits", done.stderr)

    def test_killed(self):
        recipe = {"target": {"size": 700000}, "types": TYPES, "effort": "normal",
                  "calibration": {"samples": SAMPLES, "length": LENGTH}}
        client = self.daemon.client()
        self.addCleanup(client.close)

        def start():
            return client.start_job(recipe, self.model, self.text, kind="weighted",
                                    names=["model.gguf", "calibration/text.txt"])

        def results(job):
            client.wait_job(job)
            return [client.job_result(job, i) for i in range(3)]

        alone = results(start())
        job = start()
        kills = {word for text in self.daemon.kill_job(client, job, 12, 0.02) for word in text.split()[:1]}
        self.assertEqual(results(job), alone)
        self.assertTrue(kills & {b"sensitivity", b"trying", b"measuring"}, kills)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
