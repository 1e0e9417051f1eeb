"""Sparse models beside numpy: whose weights become zeros by magnitude and by Wanda, that others keep their bits, which types hold
a zero, and that no later stage brings one back. What SparseGPT chooses is test_gptq.py's; llama.cpp's logits are test_methods.py's.

usage: test_sparse.py NIBBLE ENCODE    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import json
import pathlib
import re
import subprocess
import sys
import unittest

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import families
import harness
import test_encode
from measures import counted

NIBBLE, ENCODE = sys.argv[1:3]
WITH_ZERO = "F32 F16 BF16 Q4_0 Q5_0 Q8_0 Q2_0 Q3_K Q6_K".split()
WITHOUT = "Q4_1 Q5_1 Q4_K Q5_K Q2_K IQ4_NL IQ4_XS".split()
LLAMA = families.Case("llama", "sparse", families.size(64, 96, 4, 2, 16, L=2), "output V E; ")
EXPERTS = families.Case("qwen3moe", "sparse", families.size(64, 96, 4, 2, 16, X=4, C=2, Y=32), keys={"expert_feed_forward_length": 32})
LEARNT = ("--samples", "9", "--length", "40")
DENSE = re.compile(r"token_embd|^output\.|ffn_gate_inp|norm|blk.1.attn_k")  # by themselves, and by a rule


def tensors(path):
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def importance(path):
    """[experts][columns] of each matrix; an expert that was never chosen has columns that are all alike."""
    kept = {t.name: np.array(t.data, np.float64) for t in gguf.GGUFReader(path).tensors}
    out = {}
    for name, sums in kept.items():
        if name.endswith(".in_sum2"):
            counts = kept[name.replace("in_sum2", "counts")].reshape(-1, 1)
            out[name.removesuffix(".in_sum2")] = np.where(counts > 0, sums.reshape(len(counts), -1) / np.maximum(counts, 1), 1)
    return out


def keep(scores, share, pattern, by_row):
    """What stays of [rows][columns] of scores, and how near each is to where they are cut."""
    if pattern:
        scores = scores.reshape(-1, pattern[1])
        cut = np.sort(scores, axis=1)[:, pattern[1] - pattern[0], None]
    elif by_row:
        cut = np.sort(scores, axis=1)[:, int(share * scores.shape[1]), None]
    else:
        cut = np.sort(scores, axis=None)[int(share * scores.size)]
    return scores >= cut, np.abs(scores / cut - 1)


class Sparse(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon("[jobs]\nidle = 0\n")
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        cls.models = {}
        for case in LLAMA, EXPERTS:
            cls.models[case.family] = cls.path / f"{case.family}.gguf"
            families.write(cls.models[case.family], case, families.weights(case))
        cls.model, cls.text, cls.out = cls.models["llama"], cls.path / "text", cls.path / "out.gguf"
        cls.text.write_text(counted(60))

    def nibble(self, *words):
        return subprocess.run([NIBBLE, *map(str, words), "--socket", self.daemon.runtime / "nibble.sock"], capture_output=True,
                              text=True, timeout=120)

    def compress(self, model, recipe, *words):
        """The report."""
        (self.path / "recipe").write_text(json.dumps(recipe))
        done = self.nibble("compress", model, "-o", self.out, "--force", "--json", "--recipe", self.path / "recipe", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def check_report(self, report, found):
        zeros = {t["name"]: t["zeros"] for t in report["tensors"]}
        for name, w in found.items():
            self.assertAlmostEqual(zeros[name], np.mean(w == 0), delta=1e-4)
        everything = sum((w == 0).sum() for w in found.values()) / sum(w.size for w in found.values())
        self.assertAlmostEqual(report["sparse"]["zeros"], everything, delta=1e-4)
        self.assertRegex(" ".join(report["warnings"]), "% of the weights are zeros.*no smaller.*no faster here")

    def check_masks(self, family, to, by, share, pattern):
        sparse = {"pattern": "%u:%u" % pattern} if pattern else {"share": share}
        kept = self.path / "kept.gguf"
        rules = [{"match": "blk.1.attn_k", "sparse": 0}, {"match": "attn_v", "sparse": 0.25, "to": "F32"}]
        recipe = {"to": to, "method": "search", "sparse": {**sparse, "by": by}, "tensors": rules}
        report = self.compress(self.models[family], recipe, "--calibration", self.text, *LEARNT, "--save-imatrix", kept, "--force")
        exact, found, by_column = tensors(self.models[family]), tensors(self.out), importance(kept)
        other = 0
        for name, w in exact.items():
            x = found[name]
            ruled = "attn_v" in name
            kind = np.float16 if to == "F16" and w.ndim > 1 and not ruled and "inp" not in name else np.float32
            if DENSE.search(name):
                self.assertTrue((x == w.astype(kind)).all(), name)
                continue
            rate, groups = (0.25, None) if ruled else (share, pattern)
            for e, (a, b) in enumerate(zip(w.reshape(-1, *w.shape[-2:]), x.reshape(-1, *w.shape[-2:]))):
                scores = np.abs(a.astype(np.float64)) * (np.sqrt(by_column[name][e]) if by == "wanda" else 1)
                stays, distance = (k.reshape(a.shape) for k in keep(scores, rate, groups, by == "wanda"))
                wrong = stays != (b != 0)
                other += wrong.sum()
                self.assertTrue((distance[wrong] < 1e-6).all(), name)
                self.assertEqual(b[b != 0].tolist(), a.astype(kind)[b != 0].tolist(), name)
                self.assertEqual((b == 0).sum(), (~stays).sum(), name)
                self.assertFalse((np.signbit(b) & (b == 0)).any(), name)
        self.check_report(report, found)
        if by == "wanda":  # an importance matrix serves as well
            before = self.out.read_bytes()
            self.compress(self.models[family], {**recipe, "method": "search"}, "--imatrix", kept)
            self.assertEqual(self.out.read_bytes(), before)
        print(f"{family} {to}, {sparse} by {by}: {other} zeros are not numpy's", flush=True)

    def test_masks(self):
        for share, pattern in (0.5, None), (0.3, None), (0, (2, 4)), (0, (5, 8)):
            for by in "magnitude", "wanda":
                self.check_masks("llama", "F32", by, share, pattern)
        for by, pattern in ("magnitude", None), ("wanda", None), ("wanda", (2, 4)):
            self.check_masks("qwen3moe", "F16", by, 0.4, pattern)

    def test_ties(self):
        """Of numbers that are often alike as many go as were asked for."""
        case = families.Case("llama", "ties", families.size(64, 96, 4, 2, 16, L=2), "output V E; ")
        arrays = {n: (np.round(w * 20) / 20).astype(np.float32) if w.ndim > 1 else w for n, w in families.weights(case).items()}
        model = self.path / "ties.gguf"
        families.write(model, case, arrays)
        for by, words in ("magnitude", ()), ("wanda", ("--calibration", self.text, *LEARNT)):
            self.compress(model, {"to": "F32", "sparse": {"share": 0.9, "by": by}}, *words)
            for name, x in tensors(self.out).items():
                before = (arrays[name] == 0).sum()
                if name.startswith("blk.") and x.ndim > 1:
                    self.assertEqual(max((x == 0).sum(), before),
                                     max(x.shape[0] * int(0.9 * x.shape[1]) if words else int(0.9 * x.size), before), name)

    def test_types(self):
        """A zero is exactly a zero in types with a code for it, however their scales are found; and in no others."""
        rng = np.random.default_rng(5)
        rows = (0.1 * rng.standard_normal((24, 512)) + 0.02).astype(np.float32)
        rows[rng.random(rows.shape) < 0.5] = 0
        for name in WITH_ZERO + WITHOUT:
            for effort in "reference", "search":
                out = test_encode.decode(name, test_encode.ours(ENCODE, name, rows, effort, "plain", None))
                left = (out[rows == 0] != 0).sum()
                self.assertEqual(left > 0, name in WITHOUT, f"{name} by {effort}: {left} zeros are none")
        for to in WITHOUT:
            done = self.nibble("compress", self.model, "-o", self.path / "never", "--to", to, "--else", to if "K" not in to and to != "IQ4_XS" else "Q5_1",
                               "--sparse", "0.5")
            self.assertRegex(done.stderr, r"tensor blk.0.attn_q.weight is to be sparse, and no code of \w+ is exactly zero: name another "
                                          r"type \(F32, F16, BF16, Q8_0, Q6_K, Q5_0, Q4_0, Q3_K, Q2_0\)")
        for to in "Q8_0", "int8-channel", "int8-channel-zero", "int4-g64", "int3-g32", "int2-g64":
            report = self.compress(self.model, {"to": to, "sparse": {"share": 0.5}, "else": "Q8_0"})
            self.assertGreaterEqual(report["sparse"]["in_matrices"], 0.5, to)
            if to != "int2-g64":  # which python gguf cannot read
                self.check_report(report, tensors(self.out))

    def test_stages(self):
        """Error feedback, refinement, tuning and folds leave as many zeros as there are to be."""
        for to, how in (("Q4_0", {"method": "gptq", "gptq": {"passes": 4}}), ("F16", {"method": "gptq"}),
                        ("Q8_0", {"method": "tune", "tune": {"tokens": 512, "batch": 128, "layer_steps": 1}}),
                        ("Q4_0", {"fold": ["awq", "permute"]}), ("Q4_0", {"fold": "rotate-values", "method": "gptq"})):
            by = "sparsegpt" if "method" in how else "wanda"
            for sparse in {"share": 0.5}, {"pattern": "2:4"}:
                for family in ("llama", "qwen3moe") if how == {"method": "gptq"} else ("llama",):
                    report = self.compress(self.models[family], {"to": to, "sparse": {**sparse, "by": by}, **how},
                                           "--calibration", self.text, *LEARNT)
                    found = tensors(self.out)
                    self.check_report(report, found)
                    for name, w in found.items():
                        if name.startswith("blk.") and w.ndim > 1 and "inp" not in name:
                            self.assertGreaterEqual((w == 0).sum(), int(0.5 * w.size), f"{to} {how} {name}")
                            if "pattern" in sparse:
                                self.assertLessEqual((w.reshape(-1, 4) != 0).sum(axis=1).max(), 2, f"{to} {how} {name}")

    def test_refusals(self):
        text = ("--calibration", self.text, *LEARNT)
        half = {"share": 0.5}
        for recipe, complaint, words in (
                ({"sparse": 0.5}, '"share" or a "pattern"', ()), ({"sparse": {"share": 0.5, "pattern": "2:4"}}, '"share" or a "pattern"', ()),
                ({"sparse": {"share": 1}}, "from 0 to 0.99", ()), ({"sparse": {"pattern": "4:4"}}, "N:4 or N:8", ()),
                ({"sparse": {"pattern": "0:4"}}, "N:4 or N:8", ()), ({"sparse": {"pattern": "2:16"}}, "N:4 or N:8", ()),
                ({"sparse": {**half, "by": "luck"}}, "magnitude, wanda or sparsegpt", ()),
                ({"tensors": [{"match": "q", "sparse": 0.5}]}, "goes with the recipe's own", ()),
                ({"tensors": [{"match": "q"}]}, '"to" or a "sparse"', ()),
                ({"sparse": half, "tensors": [{"match": "q", "sparse": -1}]}, "from 0 to 0.99", ()),
                ({"sparse": {**half, "by": "sparsegpt"}}, "with method gptq or tune", text),
                ({"sparse": half, "method": "gptq"}, "by sparsegpt, or with method search", text),
                ({"sparse": half, "method": "auto"}, "auto judges methods of rounding alone", text),
                ({"sparse": {**half, "by": "sparsegpt"}, "method": "tune", "tune": {"code": 1e-4}}, '"code": 0', text),
                ({"to": None, "target": {"bits": 5}, "sparse": half}, "a target knows no zeros", text)):
            (self.path / "recipe").write_text(json.dumps({k: v for k, v in {"to": "Q8_0", **recipe}.items() if v}))
            done = self.nibble("compress", self.model, "-o", self.path / "never.gguf", "--recipe", self.path / "recipe", *words)
            self.assertEqual((done.returncode, len(done.stderr.splitlines())), (1, 1), done.stderr)
            self.assertTrue(re.search(complaint, done.stderr), done.stderr)
            self.assertFalse((self.path / "never.gguf").exists())
        done = self.nibble("compress", self.model, "-o", self.path / "never", "--to", "INT8", "--sparse", "0.5", "--format", "safetensors")
        self.assertIn("a folder is of --to", done.stderr)
        report = self.compress(self.model, {"to": "F32", "sparse": {"share": 0.5}, "tensors": [{"match": "token_embd", "sparse": 0.5}]})
        self.assertIn('"token_embd" matches no matrix', " ".join(report["warnings"]))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
