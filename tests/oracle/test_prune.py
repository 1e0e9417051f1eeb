"""What `nibble distill` cuts away of models of every family: rows and columns are those of the heads, inner rows, channels and
layers that its loss needs least, as jax has it in float64; parts that do nothing go first, and the model computes the same
without them; llama.cpp loads what is left.

usage: test_prune.py NIBBLE    (NIBBLE_TEST_* name the service's programs, as in tests/service)
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

import families
import families_jax
import harness
import jax
import jaxpr_numpy
import llama
from measures import counted, log_softmax

NIBBLE = sys.argv[1]
LENGTH, WINDOWS = 24, 9
TEXT = counted(200).replace("ab", "a b")[:LENGTH * WINDOWS]
LEARNT = [i for i in range(WINDOWS) if i != WINDOWS // 2]  # one of them is held out
# Of each family a case without experts that generates.
CASES = {}
for each in families.CASES:
    if not each.embeds and "X" not in each.size and each.size["L"] < 9 and each.size["G"] > 1:
        CASES.setdefault((each.family, "Q" in each.without), each)
LAYER_READERS = "attn_q attn_k attn_v attn_qkv ffn_gate ffn_up".split()  # of the width


def letters(case, name):
    """The dimensions of a tensor, rows first."""
    entries = (families.FAMILIES[case.family].tensors + case.tensors).split("; ")
    bare = name.split(".", 2)[2] if name.startswith("blk.") else name
    return next(e.split()[1:] for e in reversed(entries) if e and bare in (e.split()[0], e.split()[0] + ".weight"))


class Kept:
    """Which heads, inner rows and channels of each layer a student has, by numbers in the model."""

    def __init__(self, case, heads, inner, width):
        of = families.dimensions(case)
        self.heads, self.inner, self.width = heads, inner, width
        self.shared, self.d, self.f, self.g = of["H"] // of["G"], of["D"], of["F"], of["G"]

    def rows(self, letter, layer):
        """Of a dimension, or None: it is whole."""
        def spread(numbers, unit, at=0):
            return [at + i * unit + j for i in numbers for j in range(unit)]
        q, k = self.shared * self.d, self.d
        heads = self.heads[layer] if layer is not None else []
        inner = self.inner[layer] if layer is not None else []
        return {"E": self.width, "F": inner, "I": spread(inner, 1) + spread(inner, 1, self.f), "Q": spread(heads, q),
                "K": spread(heads, k), "S": spread(heads, q) + spread(heads, k, self.g * q)
                + spread(heads, k, self.g * (q + k))}.get(letter)

    def cut(self, case, name, array):
        layer = int(name.split(".")[1]) if name.startswith("blk.") else None
        for axis, letter in enumerate(letters(case, name)):
            rows = self.rows(letter, layer)
            array = array if rows is None else np.take(array, rows, axis)
        return array


class Prune(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon(config="[jobs]\nidle = 0\n")  # other tests would keep it waiting
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        cls.model, cls.student, cls.text = (cls.path / name for name in ("model.gguf", "student.gguf", "text.txt"))
        cls.text.write_text(TEXT)

    def nibble(self, *words):
        return subprocess.run([NIBBLE, *map(str, words), "--socket", self.daemon.runtime / "nibble.sock"], capture_output=True,
                              text=True, timeout=120)

    def prune(self, **recipe):
        """The report, and the student's tensors."""
        path = self.path / "recipe.json"
        path.write_text(json.dumps({"tokens": 0, "to": "F32", "length": LENGTH, "held_out": 1, "batch": LENGTH, **recipe}))
        done = self.nibble("distill", self.model, "-o", self.student, "--force", "--json", "--text", self.text, "--recipe", path)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout), {t.name: np.array(t.data) for t in gguf.GGUFReader(self.student).tensors}

    def compare(self, case, arrays, kept, found):
        for name, array in arrays.items():
            expected = kept.cut(case, name, array) if kept else array
            self.assertTrue(np.array_equal(found.pop(name).reshape(expected.shape), expected), name)
        self.assertEqual(found, {})

    def loads(self, case, report):
        """llama.cpp has the held-out loss that was told, in families whose heads may be of any length to it."""
        if not families.FAMILIES[case.family].free_heads:
            return
        model = llama.Model(self.student)
        tokens = model.tokenize(TEXT)[WINDOWS // 2 * LENGTH:][:LENGTH]
        model.close()
        logits = log_softmax(llama.logits_of(self.student, tokens))
        loss = -logits[np.arange(LENGTH - 1), tokens[1:]].mean()
        self.assertAlmostEqual(report["held_out"]["before"]["loss"], loss, delta=2e-3)

    def test_parts_that_do_nothing(self):
        """Columns of zeros read them: by either measure they go, and nothing is lost."""
        random = np.random.default_rng(5)
        for cut_by in ("gradient", "activation"):
            for (family, _), case in CASES.items():
                with self.subTest(case=str(case), cut_by=cut_by):
                    self.one_that_does_nothing(random, family, case, cut_by)

    def one_that_does_nothing(self, random, family, case, cut_by):
        of = families.dimensions(case)
        arrays = families.weights(case)
        # A norm over all heads' rows, and one of the stream, see also what nobody reads.
        heads, inner = of["G"] - 1, of["F"] // 3
        kept = Kept(case, [sorted(random.permutation(of["G"])[:heads]) for _ in range(of["L"])],
                    [sorted(random.permutation(of["F"])[:inner]) for _ in range(of["L"])], None)
        for layer in range(of["L"]):
            for name, letter in (("attn_output", "Q"), ("ffn_down", "F")):
                dead = np.setdiff1d(np.arange(of[letter]), kept.rows(letter, layer))
                arrays[f"blk.{layer}.{name}.weight"][:, dead] = 0
        families.write(self.model, case, arrays)
        report, found = self.prune(heads=heads, feed_forward=inner, cut_by=cut_by)
        self.compare(case, arrays, kept, found)
        self.assertEqual((report["heads"], report["feed_forward"], report["width"]), (heads, inner, of["E"]))
        if family != "olmo2":
            self.assertLess(report["held_out"]["before"]["divergence"], 1e-7)
        if cut_by == "gradient":
            self.loads(case, report)

    def test_layers_that_do_nothing(self):
        case = next(c for c in families.CASES if c.name == "untied, biases" and c.family == "smollm3")
        arrays = families.weights(case)
        for layer in (0, 2):
            for name in ("attn_output", "ffn_down"):
                arrays[f"blk.{layer}.{name}.weight"][:] = 0
        families.write(self.model, case, arrays)
        report, found = self.prune(layers=2, hard=1)
        self.assertEqual(report["layers"], [1, 3])
        self.assertTrue(np.array_equal(found["blk.0.ffn_up.weight"], arrays["blk.1.ffn_up.weight"]))
        self.assertEqual(self.prune(layers=2, layers_by="evenly", hard=1)[0]["layers"], [0, 3])

    def scores(self, case, arrays):
        """Of each letter: the squared sums of W dL/dW over what reads it, summed over windows, by jax."""
        ids = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32).reshape(WINDOWS, LENGTH)
        weights = {name: array.astype(np.float64) for name, array in arrays.items()}
        layers = case.size["L"]
        outside = {n: x for n, x in weights.items() if not n.startswith("blk.")}
        stacked = {n[6:]: np.stack([weights[f"blk.{i}.{n[6:]}"] for i in range(layers)]) for n in weights
                   if n.startswith("blk.0.")}
        model = families_jax.Model(case, families.FAMILIES[case.family], families.keys(case), weights, [LENGTH])
        found = {"F": 0, "Q": 0, "E": 0}
        for window in LEARNT:
            def loss(stacked):
                logits = jax.nn.log_softmax(model.logits(outside, stacked, ids[window]))
                hot = np.eye(families.VOCAB)[np.roll(ids[window], -1)]
                return -(logits[:-1] * hot[:-1]).sum() / (LENGTH - 1)
            gradient = jaxpr_numpy.evaluate(jax.grad(loss), stacked)
            columns = {n: (stacked[n] * np.array(gradient[n])).sum(axis=1) for n in stacked if stacked[n].ndim == 3}
            heads = columns["attn_output.weight"].reshape(layers, case.size["G"], -1).sum(axis=2)
            found["Q"] = found["Q"] + heads ** 2
            found["F"] = found["F"] + columns["ffn_down.weight"] ** 2
            found["E"] = found["E"] + sum((columns[f"{n}.weight"] ** 2).sum(axis=0) for n in LAYER_READERS
                                          if f"{n}.weight" in columns)
        return found

    def test_needs_beside_jax(self):
        for family in ("llama", "phi3", "gemma3"):
            case = CASES[family, False]
            with self.subTest(case=str(case)):
                of, arrays = families.dimensions(case), families.weights(case)
                scores = self.scores(case, arrays)
                heads, inner, width = of["G"] - 1, of["F"] // 2, of["E"] - 9

                def most(x, n):
                    return sorted(np.argsort(-x)[:n].tolist())
                kept = Kept(case, [most(x, heads) for x in scores["Q"]], [most(x, inner) for x in scores["F"]],
                            most(scores["E"], width))
                families.write(self.model, case, arrays)
                report, found = self.prune(heads=heads, feed_forward=inner, width=width)
                self.compare(case, arrays, kept, found)
                self.loads(case, report)
                self.assertEqual(report["weights"], sum(kept.cut(case, n, x).size for n, x in arrays.items()))

    def test_weights(self):
        """As many as were asked for, at most, and not many fewer."""
        case = families.Case("llama", "large rows", families.size(64, 640, 4, 2, 16, L=6))
        arrays = families.weights(case)
        families.write(self.model, case, arrays)
        whole = sum(x.size for x in arrays.values())
        for asked, more in (("1/2", {}), (whole * 0.8, {}), ("1/3", {"layers": 3}), ("1/4", {"feed_forward": 320})):
            with self.subTest(asked=asked, **more):
                words = [w for name, x in more.items() for w in (f"--{name.replace('_', '-')}", x)]
                done = self.nibble("distill", self.model, "-o", self.student, "--force", "--json", "--text", self.text, "--tokens",
                                   0, "--to", "F32", "--length", LENGTH, "--held-out", 1, "--weights", asked, *words)
                self.assertEqual(done.returncode, 0, done.stderr)
                report = json.loads(done.stdout)
                most = whole * (eval(asked) if isinstance(asked, str) else 0.8)  # a fraction of ours
                self.assertLessEqual(report["weights"], most)
                step = 32 * 3 * 64 * len(report["layers"]) if "feed_forward" not in more else whole / 6
                self.assertGreater(report["weights"], most - step)
                for name, x in more.items():
                    self.assertEqual(len(report[name]) if name == "layers" else report[name], x)

    def test_size(self):
        """The file is no larger than asked, and one of 32 more inner rows in each layer would be."""
        case = families.Case("llama", "large rows", families.size(64, 640, 4, 2, 16, L=6))
        arrays = families.weights(case)
        families.write(self.model, case, arrays)
        for kind, block in (("F32", 4), ("Q8_0", 34 / 32), ("int8-channel", 34 / 32)):
            self.prune(to=kind)
            whole = self.student.stat().st_size
            for asked, more in ((int(0.7 * whole), {}), (int(0.4 * whole), {"layers": 3}), (whole, {})):
                with self.subTest(to=kind, asked=asked, **more):
                    report, _ = self.prune(to=kind, size=asked, **more)
                    size = self.student.stat().st_size
                    self.assertEqual(report["bytes"], size)
                    self.assertLessEqual(size, asked)
                    if report["feed_forward"] < 640:
                        self.assertGreater(size + 32 * 3 * 64 * block * len(report["layers"]), asked)
                    else:
                        self.assertEqual(size, whole)
        self.assertEqual(self.prune(to="Q8_0")[0]["warnings"], [])
        report, found = self.prune(to="Q8_0", width=48)
        others = sum(t.dtype == np.float16 for t in found.values())
        self.assertGreater(others, 0)
        self.assertEqual(report["warnings"], [f"the rows of {others} matrices are no whole blocks of Q8_0: they are F16"])
        report, _ = self.prune(size=10 ** 9, weights=0.5)  # both hold
        self.assertLessEqual(report["weights"], 0.5 * sum(x.size for x in arrays.values()))

    def test_healed(self):
        """Training goes on from what is left, and a second student of the same is the same."""
        case = CASES["llama", False]
        families.write(self.model, case, families.weights(case))
        how = {"heads": 1, "feed_forward": 50, "tokens": LENGTH * 200, "batch": LENGTH * 4, "rate": 1e-3, "hard": 0.0}
        report, first = self.prune(**how)
        self.assertLess(report["held_out"]["after"]["divergence"], 0.9 * report["held_out"]["before"]["divergence"])
        _, second = self.prune(**how)
        for name, x in first.items():
            self.assertTrue(np.array_equal(x, second[name]), name)

    def test_refusals(self):
        experts = next(c for c in families.CASES if c.family == "qwen3moe")
        case = CASES["llama", False]
        for of, words, complaint in (
                (case, ("--heads", 3), r'"heads" is 2'), (case, ("--width", 10 ** 4), r'"width" is 57'),
                (case, ("--feed-forward", 102), r'"feed_forward" is 101'), (case, ("--weights", "1K"), "not to be had"),
                (case, ("--size", "10k", "--to", "Q8_0"), r"10000 bytes as Q8_0 is not to be had: with 1 layer, and \d+ inner rows "
                 r"of each, it has \d+;"),
                (case, ("--weights", "some"), "--weights some"), (case, ("--weights", "1/0"), "--weights 1/0"),
                (case, ("--cut-by", "luck"), '"cut_by" is gradient or activation'),
                (case, ("--layers-by", "luck"), '"layers_by" is influence or evenly'),
                (experts, ("--feed-forward", 10), "experts")):
            with self.subTest(words=words):
                families.write(self.model, of, families.weights(of))
                done = self.nibble("distill", self.model, "-o", self.path / "never.gguf", "--text", self.text, "--length", LENGTH,
                                   "--held-out", 1, *words)
                self.assertNotEqual(done.returncode, 0)
                self.assertRegex(done.stderr, complaint)
                self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
                self.assertFalse((self.path / "never.gguf").exists())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
