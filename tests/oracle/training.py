"""What tests of `nibble distill` share: a model that learns in float64 by jax, of decoders, of encoders and beside adapters, by
AdamW as its authors write it; and jobs of the service beside it.

Its users' first arguments are NIBBLE and MAKE-GGUF (NIBBLE_TEST_* name the service's programs, as in tests/service).
"""
import dataclasses
import json
import math
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
import jax.numpy as jnp
import jaxpr_numpy
import llama
from measures import counted

NIBBLE, MAKE_GGUF = sys.argv[1:3]
LENGTH, WINDOWS, STEPS = 24, 7, 4
FIRST, SECOND, FLOOR = 0.9, 0.95, 1e-8
TEXT = counted(200).replace("ab", "a b")[:LENGTH * WINDOWS]
LEARNT = [i for i in range(WINDOWS) if i != WINDOWS // 2]  # one of them is held out


def case_of(family, **changes):
    case = next(c for c in families.CASES if c.family == family and c.first_type is None and "X" not in c.size)
    return dataclasses.replace(case, size={**case.size, **changes})


def rounded(x, kind):
    if kind.startswith("int8"):  # one scale, in halves, for each row or for the whole of a tensor, of a stack for each of its own
        x = x.astype(np.float32)
        most = np.abs(x).max(axis=-1 if kind == "int8-channel" else (-1, -2), keepdims=True)
        d = (most / np.float32(127)).astype(np.float16).astype(np.float32)
        return (np.rint(np.clip(x * (1 / d), -127, 127)) * d).astype(np.float64)
    kind = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(x.astype(np.float32), kind), kind).astype(np.float64)


def apart(x, y):
    """The mean of 1 - cosine."""
    return (1 - (x * y).sum(axis=1) / jnp.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))).mean()


def unlike(x, y, sees):
    """The mean KL divergence of rows' relations among their vectors from the teacher's; x, y: [rows][heads][D]."""
    logs = []
    for part in (x, y):
        part = part.reshape(len(part), math.gcd(x.shape[1], y.shape[1]), -1)
        scores = jnp.einsum("ihd,jhd->hij", part, part) / math.sqrt(part.shape[-1])
        logs.append(jax.nn.log_softmax(jnp.where(sees, scores, -1e30), -1))
    return (jnp.exp(logs[1]) * (logs[1] - logs[0])).sum() / logs[0].shape[0] / len(x)


class Student:
    """A model in float64, its loss against a teacher, and AdamW."""

    figures = "loss", "divergence", "hidden", "norm"  # of a step, as reports name them

    def __init__(self, case, arrays, lengths, attends=False):
        """`attends`: it learns how tokens are related in the last attention, too."""
        self.case, self.lengths, self.attends = case, lengths, attends
        if attends:
            self.figures = *self.figures[:-1], "attention", "norm"
        self.labelled = True  # or of each row, whether its label is learnt
        weights = {name: array.astype(np.float64) for name, array in arrays.items()}
        self.model = families_jax.Model(case, families.FAMILIES[case.family], families.keys(case), weights, lengths)
        self.outside = {n: x for n, x in weights.items() if not n.startswith("blk.")}
        self.stacked = {n[6:]: np.stack([weights[f"blk.{i}.{n[6:]}"] for i in range(case.size["L"])])
                        for n in weights if n.startswith("blk.0.")}
        self.moments = {}

    def moved(self):
        """What training moves: tensors outside of layers, and those of layers, stacked."""
        return self.outside, self.stacked

    def whole(self, outside, stacked):
        """What the model computes with, of what is moved."""
        return outside, stacked

    def computed(self, how):
        """Both parts as the model computes with them: rounded, or as they are."""
        return [{n: rounded(x, how["to"]) if how.get("qat") and x.ndim - (part is self.stacked) > 1 else x for n, x in part.items()}
                for part in self.moved()]

    def both(self, outside, stacked, tokens):
        return (self.model.logits(outside, stacked, tokens),
                self.model.vectors({n: x for n, x in outside.items() if not n.startswith("output_norm")}, stacked, tokens),
                *self.attended(outside, stacked, tokens))

    def attended(self, outside, stacked, tokens):
        return self.model.last_attended(outside, stacked, tokens) if self.attends else []

    def relations(self, x, teacher, how):
        """What the loss has of them, and their figure; of `both`."""
        if not self.attends:
            return 0, ()
        sees = self.model.sequence[:, None] == self.model.sequence
        if self.case.family != "bert":
            sees = sees & (self.model.position[:, None] >= self.model.position)
        away = sum(unlike(a, b, sees) for a, b in zip(x, teacher))
        return how["attention"] * away, (away,)

    def losses(self, moved, tokens, teacher, how):
        """What a step lowers, and its figures; `teacher`: as both() gives it."""
        counts = np.ones(len(tokens), bool)
        counts[np.cumsum(self.lengths) - 1] = False
        counts &= self.labelled
        t, hot = how["temperature"], np.eye(families.VOCAB)[np.roll(tokens, -1)]
        logits, x, *attended = self.both(*self.whole(*moved), tokens)
        related, figure = self.relations(attended, teacher[2:], how)
        hard = -(jax.nn.log_softmax(logits) * hot * counts[:, None]).sum() / counts.sum()
        p, q = jax.nn.log_softmax(teacher[0] / t), jax.nn.log_softmax(logits / t)
        mix = how.get("mix", 0.0)
        m = jnp.log(mix * jnp.exp(p) + (1 - mix) * jnp.exp(q))
        of_p, of_q = (jnp.exp(p) * (p - m)).sum(), (jnp.exp(q) * (q - m)).sum()
        soft = t * t * (mix * of_p + (1 - mix) * of_q if 0 < mix < 1 else of_p + of_q) / len(tokens)
        hidden = apart(x @ moved[0]["projection"].T if "projection" in moved[0] else x, teacher[1])
        return how["hard"] * hard + (1 - how["hard"]) * soft + how["hidden"] * hidden + related, (hard, soft, hidden, *figure)

    def step(self, tokens, teacher, how, at):
        """The losses' figures and the gradient's norm before it."""
        def loss(*moved):
            return self.losses(moved, tokens, teacher, how)

        parts = self.computed(how)
        (_, told), found = jaxpr_numpy.evaluate(jax.value_and_grad(loss, (0, 1), has_aux=True), *parts)
        found = [{n: np.array(x) for n, x in part.items()} for part in found]
        norm = math.sqrt(sum((x * x).sum() for part in found for x in part.values()))
        self.descend(found, min(1, how["clip"] / norm), how, at)
        return *(float(x) for x in told), norm

    def adam(self, name, g, at):
        """Which way to go, by the gradients so far."""
        first, second = self.moments.get(name, (0, 0))
        self.moments[name] = first, second = FIRST * first + (1 - FIRST) * g, SECOND * second + (1 - SECOND) * g * g
        return first / (1 - FIRST ** (at + 1)) / (np.sqrt(second / (1 - SECOND ** (at + 1))) + FLOOR)

    def descend(self, found, scale, how, at):
        warm = int(how["warm"] * STEPS)
        part = max(at - warm, 0) / (STEPS - warm)
        rate = how["rate"] * min(1, (at + 1) / warm) * 0.5 * (1 + math.cos(math.pi * part))
        for values, gradients in zip(self.moved(), found):
            for name, g in gradients.items():
                self.move(values, name, g * scale, rate, how, at)

    def move(self, values, name, g, rate, how, at):
        matrix = values[name].ndim - (values is self.moved()[1]) > 1
        values[name] = values[name] - rate * (self.adam(name, g, at) + how["decay"] * matrix * values[name])

    def tensors(self, how):
        """As the file has them."""
        outside, stacked = self.computed(how)
        return outside | {f"blk.{i}.{n}": x[i] for n, x in stacked.items() for i in range(len(x))}


class Adapted(Student):
    """A model that stays as it is, with W + scale B A in the place of some of its matrices."""

    def __init__(self, case, arrays, lengths, factors, scale):
        super().__init__(case, arrays, lengths)
        self.scale = scale
        self.factors = {n[6:]: np.stack([factors[f"blk.{i}.{n[6:]}"] for i in range(case.size["L"])]).astype(np.float64)
                        for n in factors if n.startswith("blk.0.")}

    def moved(self):
        return {}, self.factors

    def whole(self, _, factors):
        added = {n[:-7]: self.scale * jnp.matmul(factors[n[:-1] + "b"], a) for n, a in factors.items() if n.endswith("a")}
        return self.outside, self.stacked | {n: self.stacked[n] + x for n, x in added.items()}


class Encoder(Student):
    """What a model for vectors learns: both() gives its texts' vectors and its rows' last hidden states."""

    figures = "cosine", "relation", "hidden", "norm"

    def both(self, outside, stacked, tokens):
        end = np.cumsum(self.lengths)
        share = np.zeros((len(end), end[-1]))
        for row, first, last in zip(share, [0, *end[:-1]], end):
            row[{families.MEAN: slice(first, last), families.CLS: first, families.LAST: last - 1}[self.case.keys["pooling_type"]]] = 1
        share /= share.sum(axis=1, keepdims=True)
        x = self.model.vectors({n: w for n, w in outside.items() if not n.startswith("output_norm")}, stacked, tokens)
        return share @ self.model.vectors(outside, stacked, tokens), x, *self.attended(outside, stacked, tokens)

    def losses(self, moved, tokens, teacher, how):
        x, hidden, *attended = self.both(*moved, tokens)
        related, figure = self.relations(attended, teacher[2:], how)
        a, b = (v / jnp.sqrt((v * v).sum(axis=1, keepdims=True)) for v in (x, teacher[0]))
        off = a @ a.T - b @ b.T
        relation = (off * off).sum() / (len(off) * (len(off) - 1))
        cosine, hidden = apart(x, teacher[0]), apart(hidden, teacher[1])
        lowered = how["cosine"] * cosine + how["relation"] * relation + how["hidden"] * hidden + related
        return lowered, (cosine, relation, hidden, *figure)


class Trainings(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon(config="[jobs]\nidle = 0\n")  # other tests would keep it waiting
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        cls.model, cls.text, cls.long = cls.path / "model.gguf", cls.path / "text.txt", cls.path / "long.txt"
        subprocess.run([MAKE_GGUF, "random", cls.model, "F32", "5"], check=True)
        cls.text.write_text(TEXT)
        cls.long.write_text(counted(400))

    def nibble(self, *words):
        return subprocess.run([NIBBLE, *map(str, words), "--socket", self.daemon.runtime / "nibble.sock"], capture_output=True,
                              text=True, timeout=120)

    def distill(self, model, *words):
        """The report; the student lies in self.path / "student.gguf"."""
        done = self.nibble("distill", model, "-o", self.path / "student.gguf", "--force", "--json", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def beside_jax(self, case, layers, how, learner=Student, prepare=lambda model: None, close=(3e-4, 2e-3)):
        """`prepare`: what is done with the model's file before it is given."""
        arrays = families.weights(case)
        families.write(self.path / "family.gguf", case, arrays)
        prepare(self.path / "family.gguf")
        recipe = self.path / "recipe.json"
        recipe.write_text(json.dumps({"to": "F32", **how, "layers": layers, "length": LENGTH, "held_out": 1,
                                      "batch": LENGTH * len(LEARNT), "tokens": STEPS * LENGTH * len(LEARNT)}))
        report = self.distill(self.path / "family.gguf", "--text", self.text, "--recipe", recipe)
        self.assertEqual(report["layers"], layers)

        ids = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32)
        model = llama.Model(self.path / "family.gguf")
        self.assertEqual(model.tokenize(TEXT).tolist(), ids.tolist())  # a token a byte
        model.close()
        tokens = ids.reshape(WINDOWS, LENGTH)[LEARNT].ravel()
        lengths = [LENGTH] * len(LEARNT)
        attends = {"attends": True} if "attention" in how else {}
        teacher = Student(case, arrays, lengths, **attends)
        kept = {n: x for n, x in arrays.items() if not n.startswith("blk.")}
        kept |= {f"blk.{i}{n[n.index('.', 4):]}": x for i, of in enumerate(layers) for n, x in arrays.items()
                 if n.startswith(f"blk.{of}.")}
        student = learner(dataclasses.replace(case, size={**case.size, "L": len(layers)}), kept, lengths, **attends)
        self.compare(case, report, tokens, teacher, student, how, close)

    def compare(self, case, report, tokens, teacher, student, how, close=(3e-4, 2e-3)):
        """The steps that are told, and the weights that came of them, with jax's student's. `close`: how
        far a figure of what is printed with five digits may be, and how far a tensor from where it moves to."""
        taught = jaxpr_numpy.evaluate(lambda a, b: teacher.both(a, b, tokens), teacher.outside, teacher.stacked)
        worst, begun = 0, student.tensors(how)
        self.assertEqual(len(report["curve"]), STEPS)
        for at, point in enumerate(report["curve"]):
            expected = student.step(tokens, taught, how, at)
            for name, x in zip(student.figures, expected):
                worst = max(worst, abs(point[name] - x) / x)
        self.assertLess(worst, close[0], report["curve"])
        found = {t.name: gguf.quants.dequantize(t.data, t.tensor_type)
                 for t in gguf.GGUFReader(self.path / "student.gguf").tensors}
        moved = {}
        for name, x in student.tensors(how).items():
            if name == "projection":
                continue  # serves training alone
            y = found.pop(name).reshape(x.shape)
            if not case.idle or case.idle not in name:
                moved[name] = np.abs(y - x).sum() / np.abs(begun[name] - x).sum()
        self.assertEqual(found, {})
        self.assertLess(max(moved.values()), close[1], moved)
        print(f"{case}: worst relative difference of a step's figures {worst:.1e}, of where a tensor has moved to "
              f"{max(moved.values()):.1e}", file=sys.stderr)

    def refused(self, complaint, model, *words):
        done = self.nibble("distill", model, "-o", self.path / "never.gguf", *words)
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr, complaint)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertFalse((self.path / "never.gguf").exists())
