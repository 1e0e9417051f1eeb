"""What `nibble compress` writes, beside python gguf and llama.cpp: the bytes of each tensor are those of python gguf's
encoders, llama.cpp loads the file and computes what it computes of the same numbers, and `nibble convert` writes the same.

usage: test_compress.py NIBBLE MAKE-GGUF    (NIBBLE_TEST_* name the service's programs, as in tests/service)
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

import folders
import harness
import llama

NIBBLE, MAKE_GGUF = sys.argv[1:]
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
TOKENS = np.random.default_rng(3).integers(0, 256, 32)


def tensors(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def floats(t):
    return gguf.quants.dequantize(t.data, t.tensor_type)


def log_probabilities(path):
    model = llama.Model(path)
    c = llama.Context(model, 64, float_kv=True)
    c.decode(TOKENS, range(len(TOKENS)), [0] * len(TOKENS), [1] * len(TOKENS))
    x = c.logits(len(TOKENS)).astype(np.float64)
    c.close()
    model.close()
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


class Compress(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon("[jobs]\nidle = 0\n")
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        cls.model = cls.path / "model.gguf"
        subprocess.run([MAKE_GGUF, "random", cls.model, "F32", "5"], check=True)

    def nibble(self, *words):
        done = subprocess.run([NIBBLE, *words, "--socket", self.daemon.runtime / "nibble.sock"], capture_output=True,
                              text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def compress(self, source, *words):
        out = self.path / "out.gguf"
        return out, json.loads(self.nibble("compress", source, "-o", out, "--force", "--json", *words))

    def check_tensors(self, out, report, source):
        """Each tensor's bytes are python gguf's for the type that the report tells."""
        theirs, ours = tensors(source), tensors(out)
        self.assertEqual(list(ours), [t["name"] for t in report["tensors"]])
        for said in report["tensors"]:
            t = ours[said["name"]]
            kind = gguf.GGMLQuantizationType[said["type"]]
            self.assertEqual(t.tensor_type, kind)
            self.assertEqual(said["bytes"], t.n_bytes)
            self.assertAlmostEqual(said["bits"], 8 * t.n_bytes / t.n_elements, 3)
            wanted = gguf.quants.quantize(floats(theirs[t.name]).astype(np.float32), kind)
            self.assertEqual(t.data.tobytes(), wanted.tobytes(), (t.name, kind))

    def test_types(self):
        reference = log_probabilities(self.model)
        for kind in TYPES:
            with self.subTest(kind):
                out, report = self.compress(self.model, "--to", kind)
                self.check_tensors(out, report, self.model)
                found = log_probabilities(out)
                kl = (np.exp(reference) * (reference - found)).sum(axis=1).mean()
                self.assertLess(kl, {"F32": 1e-9, "F16": 1e-4, "BF16": 1e-3}.get(kind, 0.2))
                field = gguf.GGUFReader(out).fields["general.file_type"].contents()
                self.assertEqual(gguf.LlamaFileType(field).name.removeprefix("MOSTLY_").removeprefix("ALL_"), kind)

    def test_like_convert(self):
        folder = folders.write(self.path / "folder", *folders.FAMILIES["llama"](11, "BF16"), "BF16", 2)
        for source in (self.model, folder):
            for kind in ("F32", "F16", "BF16", "Q8_0"):
                with self.subTest(f"{source.name} to {kind}"):
                    out, _ = self.compress(source, "--to", kind, "--else", "F16")
                    self.nibble("convert", source, "-o", self.path / "converted.gguf", "--to", kind, "--force")
                    ours, theirs = tensors(out), tensors(self.path / "converted.gguf")
                    self.assertEqual({n: t.data.tobytes() for n, t in ours.items()},
                                     {n: t.data.tobytes() for n, t in theirs.items()})
                    if kind != "F32" or source is folder:
                        self.assertEqual(out.read_bytes(), (self.path / "converted.gguf").read_bytes())

    def test_recipe(self):
        recipe = self.path / "recipe.json"
        recipe.write_text(json.dumps({"to": "Q4_0", "embedding": "Q8_0", "tensors": [
            {"match": r"^blk\.0\.", "to": "F16"}, {"match": "ffn_down", "to": "Q5_1"}]}))
        out, report = self.compress(self.model, "--recipe", recipe)
        self.check_tensors(out, report, self.model)
        log_probabilities(out)
        types = {t["name"]: t["type"] for t in report["tensors"]}
        self.assertEqual((types["token_embd.weight"], types["blk.0.ffn_down.weight"], types["blk.1.ffn_down.weight"],
                          types["blk.1.attn_q.weight"], types["blk.0.attn_norm.weight"]),
                         ("Q8_0", "F16", "Q5_1", "Q4_0", "F32"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
