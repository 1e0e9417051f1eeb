"""What `nibble distill` makes: each step's losses, the gradient's norm and the weights that come of it are those of jax in
float64, by AdamW as its authors write it, of decoders and of encoders; llama.cpp loads the student and has the held-out loss that is told; a job that is
killed at any instant gives the same bytes.

usage: test_distill.py NIBBLE MAKE-GGUF    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import dataclasses
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest

from training import (LEARNT, LENGTH, STEPS, TEXT, WINDOWS, Adapted, Encoder, Student, Trainings, apart, case_of)

import families
import gguf
import harness
import jaxpr_numpy
import jinja2
import llama
import numpy as np
from measures import counted, log_softmax


def random_bits(seed, counter):
    """Philox 4x32, ten rounds (Salmon and others, 2011): its first 64 bits."""
    c, k, low = [counter & 0xffffffff, counter >> 32, 0, 0], [seed & 0xffffffff, seed >> 32], 0xffffffff
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & low, a >> 32 ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c[0] | c[1] << 32


def order_of(seed, epoch, n):
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = random_bits(seed, (epoch << 32) + i) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


class Distill(Trainings):
    def encoder_beside_jax(self, case, layers, how):
        """A text a line: with the model's special tokens, of unequal lengths, one of them cut."""
        arrays, most = families.weights(case), 16
        families.write(self.path / "family.gguf", case, arrays)
        random = np.random.default_rng(5)
        lines = [random.integers(0, 256 if case.family == "bert" else 26, n).tolist() for n in (5, 14, 1, 9, 30, 7, 11, 3, 9)]
        if case.family == "bert":
            texts = [" ".join(map(str, line)) for line in lines]
            ids = [[2, *(5 + x for x in line[:most - 2]), 3] for line in lines]
        else:
            texts = ["".join(chr(ord("A") + x) for x in line) for line in lines]
            ids = [[ord("A") + x for x in line[:most]] for line in lines]
        text, recipe = self.path / "lines.txt", self.path / "recipe.json"
        text.write_text("\n  \n".join(texts) + "\n\n")
        held = ids.pop(len(ids) // 2)  # one is held out
        lengths = [len(line) for line in ids]
        recipe.write_text(json.dumps({"to": "F32", **how, "layers": layers, "length": most, "held_out": 1, "batch": sum(lengths),
                                      "tokens": STEPS * sum(lengths)}))
        report = self.distill(self.path / "family.gguf", "--text", text, "--recipe", recipe)
        self.assertEqual((report["layers"], report["windows"], report["held_out"]["tokens"]), (layers, len(ids), len(held)))
        self.assertEqual(report["tokens"], STEPS * sum(lengths))
        tokens = np.concatenate(ids).astype(np.int32)
        kept = {n: x for n, x in arrays.items() if not n.startswith("blk.")}
        kept |= {f"blk.{i}{n[n.index('.', 4):]}": x for i, of in enumerate(layers) for n, x in arrays.items()
                 if n.startswith(f"blk.{of}.")}
        of_student = dataclasses.replace(case, size={**case.size, "L": len(layers)})
        attends = "attention" in how
        self.compare(case, report, tokens, Encoder(case, arrays, lengths, attends), Encoder(of_student, kept, lengths, attends), how)
        # What is told of the held-out text is what the file makes of it.
        after = {t.name: np.array(t.data) for t in gguf.GGUFReader(self.path / "student.gguf").tensors}
        for told, now in (("before", kept), ("after", after)):
            both = [Encoder(c, a, [len(held)]) for c, a in ((of_student, now), (case, arrays))]
            x, y = (jaxpr_numpy.evaluate(lambda a, b, m=m: m.both(a, b, np.array(held, np.int32)), m.outside, m.stacked)
                    for m in both)
            self.assertAlmostEqual(report["held_out"][told]["cosine"], float(apart(x[0], y[0])), delta=3e-5)
            self.assertEqual(report["held_out"][told]["relation"], 0)  # there is no other text

    def test_encoders_beside_jax(self):
        how = {"cosine": 1.0, "relation": 3.0, "hidden": 0.4, "rate": 1e-3, "warm": 0.5, "decay": 0.1, "clip": 1.0}
        cases = {c.name: c for c in families.CASES if c.embeds}
        for name, layers, more in (("mean", [1], {"clip": 1e9, "attention": 0.6}), ("first token, no biases", [0, 2], {}),
                                   ("an embedding of the last token", [0], {"relation": 0.0})):
            with self.subTest(name):
                self.encoder_beside_jax(cases[name], layers, {**how, **more})

    def test_cut_encoders(self):
        """What does nothing is what goes: inner rows that are 0 before their GELU, heads that nobody reads."""
        case = dataclasses.replace(case_of("bert"), size={"E": 64, "F": 96, "H": 4, "G": 4, "D": 16, "L": 2})
        arrays, encoder, text = families.weights(case), self.path / "encoder.gguf", self.path / "lines.txt"
        for i, (rows, head) in enumerate(((slice(5, 69), 1), (slice(32, 96), 2))):
            arrays[f"blk.{i}.ffn_up.weight"][rows] = arrays[f"blk.{i}.ffn_up.bias"][rows] = 0
            arrays[f"blk.{i}.attn_output.weight"][:, 16 * head:16 * head + 16] = 0
        families.write(encoder, case, arrays)
        text.write_text("\n".join(" ".join(str(x % 250) for x in range(i, i + i % 17 + 1)) for i in range(100)))
        words = ("--text", text, "--to", "F32", "--cut-by", "activation", "--tokens", "0")
        report = self.distill(encoder, *words, "--feed-forward", "32", "--heads", "3")
        self.assertEqual((report["feed_forward"], report["heads"], report["layers"]), (32, 3, [0, 1]))
        self.assertLess(report["held_out"]["before"]["cosine"], 1e-7)
        self.assertLess(report["held_out"]["before"]["relation"], 1e-10)
        report = self.distill(encoder, *words, "--feed-forward", "16")
        self.assertGreater(report["held_out"]["before"]["cosine"], 1e-4)
        self.refused("vectors of 64 and 48 numbers have no cosine", encoder, *words, "--width", "48")
        words = (*words[:-2], "--width", "48", "--cosine", "0", "--relation", "30", "--hidden", "1", "--tokens", "20000")
        held = self.distill(encoder, *words)["held_out"]
        self.assertNotIn("cosine", held["after"])
        self.assertLess(held["after"]["relation"], held["before"]["relation"])
        self.assertLess(held["after"]["hidden"], held["before"]["hidden"])

    def test_projected_beside_jax(self):
        """Hidden states of a student that is less wide: through a projection that begins as the channels' places. And
        relations of one that has fewer heads."""
        case = case_of("llama", E=40, D=8, H=4, G=2)
        how = {"temperature": 2.0, "hard": 0.3, "hidden": 0.7, "attention": 0.4, "rate": 1e-3, "warm": 0.5, "decay": 0.1, "clip": 1.0}
        arrays, recipe = families.weights(case), self.path / "recipe.json"
        families.write(self.path / "family.gguf", case, arrays)
        words = {"to": "F32", **how, "width": 24, "heads": 1, "cut_by": "activation", "length": LENGTH, "held_out": 1,
                 "batch": LENGTH * len(LEARNT), "tokens": 0}
        recipe.write_text(json.dumps(words))
        self.distill(self.path / "family.gguf", "--text", self.text, "--recipe", recipe)
        kept = {t.name: np.array(t.data).reshape(t.shape[::-1]) for t in gguf.GGUFReader(self.path / "student.gguf").tensors}
        place = np.array([[np.array_equal(x, y) for y in kept["token_embd.weight"].T] for x in arrays["token_embd.weight"].T])
        self.assertEqual(place.sum(axis=0).tolist(), [1] * 24)
        recipe.write_text(json.dumps({**words, "tokens": STEPS * LENGTH * len(LEARNT)}))
        report = self.distill(self.path / "family.gguf", "--text", self.text, "--recipe", recipe)
        self.assertEqual(report["weights"], sum(x.size for x in kept.values()))
        tokens = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32).reshape(WINDOWS, LENGTH)[LEARNT].ravel()
        lengths = [LENGTH] * len(LEARNT)
        student = Student(dataclasses.replace(case, size={**case.size, "E": 24, "H": 2, "G": 1}), kept, lengths, attends=True)
        student.outside["projection"] = place.astype(np.float64)
        self.compare(case, report, tokens, Student(case, arrays, lengths, attends=True), student, how)

    def test_steps_beside_jax(self):
        how = {"temperature": 2.0, "hard": 0.3, "hidden": 0.4, "rate": 1e-3, "warm": 0.5, "decay": 0.1, "clip": 1.0}
        for family, more in (("llama", {"clip": 1e9}), ("gemma3", {"clip": 0.5, "mix": 0.4, "attention": 0.2}),
                             ("llama", {"mix": 1.0}), ("llama", {"attention": 0.8})):
            with self.subTest(family, **more):
                self.beside_jax(case_of(family, L=3), [0, 2], {**how, **more})

    def write(self, student, windows, seed, number):
        """What the student writes behind the first quarter of windows, by its probabilities in float64."""
        tokens, n = np.array(windows), len(windows)
        for at in range(LENGTH // 4, LENGTH):
            logits, _ = jaxpr_numpy.evaluate(lambda a, b: student.both(a, b, tokens.ravel()), *student.moved())
            p = np.exp(log_softmax(np.asarray(logits).reshape(n, LENGTH, -1)[:, at - 1]))
            for i in range(n):
                u = (random_bits(random_bits(seed, (number << 32) + i), at) >> 11) / 2 ** 53
                tokens[i, at] = np.searchsorted(np.cumsum(p[i]), u, side="right")
        return tokens

    def test_own_text_beside_jax(self):
        """Half of each step's windows are the student's: drawn from its probabilities, followed without labels."""
        case, seed = case_of("llama", L=2), 5
        how = {"temperature": 1.5, "mix": 0.5, "hard": 0.3, "hidden": 0.4, "own": 0.5, "rate": 1e-3, "warm": 0.5, "decay": 0.1,
               "clip": 1.0}
        arrays, recipe, n = families.weights(case), self.path / "recipe.json", len(LEARNT)
        families.write(self.path / "family.gguf", case, arrays)
        recipe.write_text(json.dumps({"to": "F32", **how, "layers": [1], "length": LENGTH, "held_out": 1, "batch": LENGTH * n,
                                      "tokens": STEPS * LENGTH * n, "seed": seed}))
        report = self.distill(self.path / "family.gguf", "--text", self.text, "--recipe", recipe)
        windows = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32).reshape(WINDOWS, LENGTH)[LEARNT]
        kept = {x.replace("blk.1.", "blk.0."): w for x, w in arrays.items() if "blk.0." not in x}
        small = dataclasses.replace(case, size={**case.size, "L": 1})
        teacher, student = Student(case, arrays, [LENGTH] * n), Student(small, kept, [LENGTH] * n)
        writer = Student(small, kept, [LENGTH] * (n // 2))
        student.labelled = np.repeat(np.arange(n) >= n // 2, LENGTH)
        worst = 0
        for at, point in enumerate(report["curve"]):
            tokens = windows[order_of(seed, at, n)]
            writer.outside, writer.stacked = student.outside, student.stacked
            tokens[:n // 2] = self.write(writer, tokens[:n // 2], seed, at)
            self.assertTrue((tokens[:n // 2] != windows[order_of(seed, at, n)][:n // 2]).any())
            taught = jaxpr_numpy.evaluate(lambda a, b, x=tokens.ravel(): teacher.both(a, b, x), teacher.outside, teacher.stacked)
            for name, x in zip(student.figures, student.step(tokens.ravel(), taught, how, at)):
                worst = max(worst, abs(point[name] - x) / x)
        self.assertLess(worst, 3e-4, report["curve"])

    def adapter(self, model, *words):
        """The report and the factors of an adapter, which lies in self.path / "student.gguf"."""
        report = self.distill(model, *words)
        return report, {t.name: np.array(t.data) for t in gguf.GGUFReader(self.path / "student.gguf").tensors}

    def adapted_beside_jax(self, case, roles, scale):
        """Of a base in whatever types, whose values jax has as gguf dequantizes them."""
        arrays = families.weights(case)
        written, types, arrays = families.typed(case, arrays) if case.first_type is not None else (arrays, {}, arrays)
        families.write(self.path / "family.gguf", case, written, types=types)
        how = {"temperature": 2.0, "hard": 0.3, "hidden": 0.4, "rate": 1e-2, "warm": 0.5, "decay": 0.1, "clip": 0.5}
        recipe = {**how, "length": LENGTH, "held_out": 1, "batch": LENGTH * len(LEARNT),
                  "tokens": STEPS * LENGTH * len(LEARNT), "adapter": {"rank": 3, "alpha": 3 * scale}}
        if roles:
            recipe["adapter"]["matrices"] = roles
        path = self.path / "recipe.json"
        path.write_text(json.dumps({**recipe, "rate": 0}))
        _, first = self.adapter(self.path / "family.gguf", "--text", self.text, "--recipe", path)
        for name, x in first.items():
            self.assertTrue(not x.any() if name.endswith("b") else np.abs(x).max() <= x.shape[1] ** -0.5 and x.std() > 0, name)
        path.write_text(json.dumps(recipe))
        report, found = self.adapter(self.path / "family.gguf", "--text", self.text, "--recipe", path)
        self.assertEqual(report["weights"], sum(x.size for x in found.values()))

        tokens = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32).reshape(WINDOWS, LENGTH)[LEARNT].ravel()
        lengths = [LENGTH] * len(LEARNT)
        model = Adapted(case, arrays, lengths, first, scale)
        taught = jaxpr_numpy.evaluate(lambda a, b: model.both(a, b, tokens), model.outside, model.stacked)
        worst = 0
        for at, point in enumerate(report["curve"]):
            expected = model.step(tokens, taught, how, at)
            for name, x in zip(("loss", "divergence", "hidden", "norm"), expected):
                worst = max(worst, abs(point[name] - x) / max(x, 1e-4))  # it begins at its teacher
        self.assertLess(worst, 3e-4, report["curve"])
        moved = {n: np.abs(found.pop(n) - x).sum() / np.abs(first[n] - x).sum() for n, x in model.tensors(how).items()}
        self.assertEqual(found, {})
        self.assertLess(max(moved.values()), 2e-3, moved)
        print(f"an adapter of {case}: worst relative difference of a step's figures {worst:.1e}, of where a factor has moved "
              f"to {max(moved.values()):.1e}", file=sys.stderr)

    def test_adapters_beside_jax(self):
        mixed = next(c for c in families.CASES if c.family == "llama" and c.first_type == 0 and "X" not in c.size)
        for case, roles in ((case_of("llama"), None), (case_of("gemma3", L=3), ["attn_q", "ffn_down"]), (mixed, None)):
            with self.subTest(str(case)):
                self.adapted_beside_jax(case, roles, 2.5)

    def test_adapter_for_llama_cpp(self):
        """llama.cpp takes the adapter beside the base, and has the held-out loss that was told, as Nibble has it."""
        report, found = self.adapter(self.model, "--text", self.long, "--tokens", "20000", "--length", "64", "--batch", "512",
                                     "--held-out", "1", "--rate", "0.01", "--adapter-rank", "4", "--adapter-alpha", "6")
        self.assertLess(report["held_out"]["after"]["loss"], report["held_out"]["before"]["loss"] - 0.1)
        self.assertNotIn("divergence", report["held_out"]["after"])
        self.assertEqual(report["adapter"]["matrices"], 2 * 7)
        window = self.held_out_window()
        for scale, expected in ((0, "before"), (1, "after")):
            logits = log_softmax(llama.logits_of(self.model, window, adapter=(self.path / "student.gguf", scale)))
            loss = -logits[np.arange(63), window[1:]].mean()
            self.assertAlmostEqual(report["held_out"][expected]["loss"], loss, delta=2e-3)

    def held_out_window(self):
        model = llama.Model(self.model)
        tokens = model.tokenize(self.long.read_text())
        model.close()
        n = len(tokens) // 64
        return tokens[n // 2 * (len(tokens) - 64) // (n - 1):][:64]

    def test_for_llama_cpp(self):
        """The student is an ordinary file; its held-out loss by llama.cpp is the one that was told."""
        report = self.distill(self.model, "--text", self.long, "--layers", "1", "--tokens", "20000", "--length", "64",
                              "--batch", "512", "--held-out", "1", "--to", "F32", "--rate", "0.003")
        self.assertLess(report["held_out"]["after"]["loss"], report["held_out"]["before"]["loss"])
        window = self.held_out_window()
        logits = log_softmax(llama.logits_of(self.path / "student.gguf", window))
        loss = -logits[np.arange(63), window[1:]].mean()
        self.assertAlmostEqual(report["held_out"]["after"]["loss"], loss, delta=2e-3)
        quantized = self.distill(self.model, "--text", self.long, "--layers", "1", "--tokens", "2000", "--length", "64", "--batch",
                                 "512", "--to", "Q8_0", "--hard", "1", "--start", "random")
        self.assertEqual((quantized["type"], "divergence" in quantized["held_out"]["after"]), ("Q8_0", False))
        llama.Model(self.path / "student.gguf").close()

    def test_conversations(self):
        """Answers alone are labels, and the teacher is followed there alone: the first step's losses are those of llama.cpp's
        logits at the places that jinja2's renderings give."""
        template = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
                    "{% if add_generation_prompt %}<assistant>{% endif %}")
        chats = [[("system", "short"), ("user", f"{i} and {j}?"), ("assistant", f"it is {i + j}"), ("user", "so?"),
                  ("assistant", "yes" * j)] for i in range(3) for j in range(3)] + [[("user", "no answer")]]
        chats = [[{"role": role, "content": said} for role, said in chat] for chat in chats]
        lines, model, case = self.path / "chats.jsonl", self.path / "chat.gguf", case_of("llama", L=2)
        lines.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
        families.write(model, case, families.weights(case), template=template)
        how = ("--text", lines, "--layers", "1", "--length", "128", "--batch", "4096", "--held-out", "1", "--to", "F32")
        cut = self.path / "cut.gguf"
        self.distill(model, *how, "--tokens", "0")
        (self.path / "student.gguf").rename(cut)
        report = self.distill(model, *how, "--tokens", "1", "--hard", "0.5", "--temperature", "2")
        self.assertEqual(report["windows"], 8)  # of nine with an answer one is held out
        environment, hard, soft = jinja2.Environment(), [], []
        for chat in [c for i, c in enumerate(chats[:9]) if i != 9 // 2]:
            render = lambda n, more: environment.from_string(template).render(  # noqa: E731
                messages=chat[:n], add_generation_prompt=more)
            whole = render(len(chat), False)
            answers = [i for n, m in enumerate(chat) if m["role"] == "assistant"
                       for i in range(len(render(n, True)), len(render(n + 1, False)))]
            window = np.frombuffer(whole.encode(), np.uint8).astype(np.int32)
            p, q = (llama.logits_of(path, window) for path in (model, cut))
            at = np.array(answers) - 1  # the rows that say them
            hard += list(-log_softmax(q)[at, window[answers]])
            p, q = log_softmax(p / 2), log_softmax(q / 2)
            soft += list(4 * (np.exp(p) * (p - q)).sum(axis=1)[at])
        point, = report["curve"]
        self.assertAlmostEqual(point["loss"], np.mean(hard), delta=1e-4 * np.mean(hard))
        self.assertAlmostEqual(point["divergence"], np.mean(soft), delta=1e-3 * np.mean(soft))
        self.refused("has no chat template", self.model, "--text", lines, "--length", "64")
        lines.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
        self.refused("no conversation has an answer", model, "--text", lines, "--length", "64")
        lines.write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"text": "b"}\n')
        self.refused('line 2 is no JSON object with a list "messages"', model, "--text", lines, "--length", "64")

    def test_another_teacher(self):
        """One student heals from what a first one is: the teacher is the whole model still."""
        how = ("--text", self.long, "--tokens", "2000", "--length", "64", "--batch", "512", "--to", "F32", "--hard", "0.2")
        first = self.path / "first.gguf"
        self.distill(self.model, "--layers", "1", *how)
        (self.path / "student.gguf").rename(first)
        apart = self.distill(first, *how, "--teacher", self.model)
        self.assertEqual(apart["layers"], [0])
        itself = self.distill(first, *how)
        self.assertAlmostEqual(itself["held_out"]["before"]["divergence"], 0, delta=1e-7)
        self.assertGreater(apart["held_out"]["before"]["divergence"], 1e-3)
        self.assertEqual(apart["held_out"]["before"]["loss"], itself["held_out"]["before"]["loss"])
        self.assertLess(apart["held_out"]["after"]["divergence"], apart["held_out"]["before"]["divergence"])
        other = self.path / "other.gguf"
        case = case_of("llama")
        families.write(other, case, families.weights(case))
        self.refused("another tokenizer", self.model, *how, "--teacher", other)
        self.refused("No such file", self.model, *how, "--teacher", self.path / "nobody.gguf")

    def test_folders_of_text(self):
        """A folder is its files of text by their names, also those in folders within; two may have one name."""
        folder, half = self.path / "texts", len(counted(400)) // 2
        (folder / "b" / "deep").mkdir(parents=True)
        (folder / "a.txt").write_text(counted(400)[:half])
        (folder / "b" / "deep" / "a.txt").write_text(counted(400)[half:])
        (folder / "c.png").write_bytes(b"\x89PNG")
        (folder / ".hidden.txt").write_text("unseen " * 1000)
        how = ("--layers", "1", "--tokens", "2000", "--length", "64", "--batch", "512")
        whole, students = self.distill(self.model, "--text", self.long, *how), []
        for texts in ((folder,), (folder / "a.txt", folder / "b" / "deep" / "a.txt"), (self.long,)):
            report = self.distill(self.model, *(word for path in texts for word in ("--text", path)), *how)
            students.append((self.path / "student.gguf").read_bytes())
            self.assertEqual(report["windows"], whole["windows"])
        self.assertEqual(students[0], students[1])
        (folder / "empty").mkdir()
        self.refused("no text is in it", self.model, "--text", folder / "empty")

    def test_more_text_than_windows(self):
        """What is left of a text out of which 65536 windows are taken is told."""
        case, text = case_of("starcoder2"), self.path / "more.txt"
        model = self.path / "any.gguf"
        families.write(model, case, families.weights(case))
        for chars, left in ((8 * 65536 + 7, None), (8 * 65540, 65540)):
            text.write_text(counted(chars)[:chars])
            report = self.distill(model, "--text", text, "--length", 8, "--held-out", 1, "--tokens", 0, "--hard", 1)
            self.assertEqual(report["windows"], 65535)
            told = [f"the text has {left} windows, of which 65536 are taken, evenly over it: with more tokens each they are fewer "
                    "(--length)"] if left else []
            self.assertEqual(report["warnings"], told)

    def test_killed(self):
        client = self.daemon.client()
        self.addCleanup(client.close)
        whole = {"layers": 1, "length": 64, "batch": 512, "tokens": 40000, "rate": 0.002, "hidden": 0.5, "to": "Q8_0", "qat": True, "activations": "dynamic",
                 "vocabulary": 1, "states": 5, "own": 0.2, "mix": 0.5, "width": 192, "cut_by": "activation"}
        adapter = {"adapter": {"rank": 4}, "length": 64, "batch": 512, "tokens": 40000, "rate": 0.002, "to": "F16"}
        encoder, lines = self.path / "encoder.gguf", self.path / "lines.txt"
        case = dataclasses.replace(case_of("bert"), size={"E": 64, "F": 96, "H": 4, "G": 4, "D": 16, "L": 2})
        families.write(encoder, case, families.weights(case))
        lines.write_text("\n".join(" ".join(str(x % 250) for x in range(i, i + i % 17 + 1)) for i in range(400)))
        vectors = {"layers": [0], "batch": 1024, "tokens": 24000, "rate": 0.002, "hidden": 0.5, "to": "Q8_0", "qat": True}
        for recipe, *files in ((whole, self.model, self.long), (adapter, self.model, self.long), (vectors, encoder, lines)):
            with self.subTest(recipe):
                self.kill(client, recipe, *files)

    def kill(self, client, recipe, model, text):
        def start():
            return client.start_job(recipe, model, text, kind="distill", names=["model.gguf", "calibration/text.txt"])

        def results(job):
            client.wait_job(job)
            return [client.job_result(job, i) for i in range(2)]

        def timed():
            began = time.monotonic()
            return results(start()), time.monotonic() - began

        alone, seconds = timed()
        if seconds < 3:  # states are written five times a second at most: a fast machine is given more to do
            recipe["tokens"] *= math.ceil(3 / seconds)
            alone, _ = timed()
        job = start()
        kills = self.daemon.kill_job(client, job, 6, 0.1)
        self.assertEqual(results(job), alone)
        self.assertGreater(len(kills), 2)
        curve = [x for x in client.job(job).curve if not math.isnan(x)]  # of all its workers
        self.assertGreater(len(curve), 3)
        self.assertLess(curve[-1], curve[0])

    def states(self, job):
        """Of a job under way: (steps, scratch file, where in it) of each trainer's state."""
        found = []
        for path in sorted((self.daemon.state / "jobs" / str(job)).glob("scratch.*")):
            data, at = path.read_bytes(), -1
            while (at := data.find(b"nbtrain\0", at + 1)) >= 0:
                found.append((int.from_bytes(data[at + 16:at + 20], "little"), path, at))
        return sorted(found)

    def test_damaged_state(self):
        """One that is damaged is passed over for the one before it; and the bytes are the same."""
        client = self.daemon.client()
        self.addCleanup(client.close)
        recipe = {"layers": 1, "length": 64, "batch": 512, "tokens": 60000, "rate": 0.002, "states": 4}

        def start():
            return client.start_job(recipe, self.model, self.long, kind="distill", names=["model.gguf", "calibration/text.txt"])

        def results(job):
            client.wait_job(job)
            return [client.job_result(job, i) for i in range(2)]

        alone, job = results(start()), start()
        harness.until(lambda: len(self.states(job)) >= 3, "three states")
        worker, = [pid for pid, mode in self.daemon.children() if mode == "job"]
        os.kill(worker, signal.SIGSTOP)
        before = client.job(job)
        *_, (older, *_), (newest, path, at) = self.states(job)
        self.assertGreater(newest, older)
        with open(path, "r+b") as file:
            file.seek(at + 5000)
            byte = file.read(1)
            file.seek(at + 5000)
            file.write(bytes([byte[0] ^ 1]))
        os.kill(worker, signal.SIGKILL)

        def goes_on():
            """The first step that the next worker tells."""
            row = client.job(job)
            step = re.match(rb"training (\d+)/", row.text)
            return row.restarts > before.restarts and row.text != before.text and step and int(step[1])
        first = harness.until(goes_on, "the next worker's steps")
        self.assertGreater(first, older)
        self.assertEqual(results(job), alone)

    def test_not_finite(self):
        """The student of the steps before, as if there had been no more; of none nothing is written."""
        case, text = dataclasses.replace(case_of("starcoder2"), tensors="output V E; "), self.path / "rare.txt"
        arrays, model = families.weights(case), self.path / "large.gguf"
        arrays["token_embd.weight"][ord("~")] = 3e38  # whose mean is none
        families.write(model, case, arrays)
        text.write_text(counted(3000)[:24000] + "~" * 24)
        recipe = self.path / "constant.json"
        recipe.write_text('{"to": "F32", "warm": 0, "schedule": "constant", "hard": 1, "length": 24, "held_out": 1, "batch": 24}')
        how = ("--text", text, "--recipe", recipe)
        report = self.distill(model, *how, "--tokens", "24000")
        stopped = (self.path / "student.gguf").read_bytes()
        why, = report["warnings"]
        steps = report["steps"]
        self.assertRegex(why, rf"^the loss of step {steps + 1} of the training, or its gradient, is not finite: its rate is too high; "
                              rf"the student is that of the {steps} steps before, of 1000$")
        self.assertEqual((report["tokens"], report["curve"][-1]["step"]), (24 * steps, steps))
        short = self.distill(model, *how, "--tokens", 24 * steps)
        self.assertEqual(short["held_out"], report["held_out"])
        self.assertEqual((self.path / "student.gguf").read_bytes(), stopped)
        done = self.nibble("distill", model, "-o", self.path / "student.gguf", "--force", *how, "--tokens", "24000")
        self.assertEqual((done.returncode, done.stderr.strip().splitlines()[-1]), (0, "warning: " + why))
        text.write_text("~" * 240)
        self.refused("the loss of step 1 of the training.*; no state was saved before$", model, *how, "--tokens", "24000")

    def test_refusals(self):
        empty, recipe, encoder = self.path / "empty.txt", self.path / "bad.json", self.path / "encoder.gguf"
        empty.write_text("")
        case = case_of("bert")
        families.write(encoder, case, families.weights(case))
        self.refused("needs --text", self.model)
        self.refused("No such file", self.model, "--text", self.path / "nothing")
        self.refused("text has", self.model, "--text", empty)
        self.refused("are held out", self.model, "--text", self.text, "--held-out", "8", "--length", "32")
        self.refused("the teacher has 2 layers", self.model, "--text", self.long, "--layers", "3")
        self.refused("the teacher has 2 layers", self.model, "--text", self.long, "--layers", "0,2")
        self.refused("ascending", self.model, "--text", self.long, "--layers", "1,0")
        self.refused("--layers six", self.model, "--text", self.long, "--layers", "six")
        lines = ("--text", self.text, "--held-out", "1")
        for words, complaint in ((("--hard", "0"), '"hard" is of logits, and this bert model learns vectors, by "cosine"'),
                                 (("--mix", "0.5"), '"mix" is of logits'), (("--temperature", "2"), '"temperature" is of logits'),
                                 (("--cosine", "0", "--relation", "0"), "nothing is learnt"),
                                 (("--adapter-rank", "4"), 'leave out "adapter"'),
                                 (("--feed-forward", "32"), "cut by activation")):
            self.refused(complaint, encoder, *lines, *words)
        self.refused('"cosine" is of vectors, and this llama model learns logits', self.model, "--text", self.long, "--cosine", "1")
        self.refused("has 4 lines of up to 17 tokens", encoder, "--text", self.text)
        blank = self.path / "blank.txt"
        blank.write_text(" \n\t\n")
        self.refused("no line to learn from", encoder, "--text", blank)
        self.refused("\"Q9_9\"|Q9_9", self.model, "--text", self.long, "--to", "Q9_9")
        self.refused("is no type", self.model, "--text", self.long, "--to", 'F16", "output": "Q8_0')
        for words, complaint in ((("--adapter-rank", "200"), "rank is 200, and tensor blk.0.attn_[kv].weight has 128 rows of 256: it is 128"),
                                 (("--adapter-matrices", "attn_z"), 'no layer has a matrix "attn_z".*the first has attn_q, attn_k, '),
                                 (("--adapter-rank", "4", "--layers", "1"), 'leave out "layers"'),
                                 (("--adapter-rank", "4", "--start", "random"), 'leave out "layers"'),
                                 (("--adapter-rank", "4", "--to", "Q8_0"), "as F32 or F16, not as Q8_0")):
            self.refused(complaint, self.model, "--text", self.long, "--length", "32", *words)
        experts = next(c for c in families.CASES if c.family == "llama" and c.first_type is None and "X" in c.size)
        families.write(self.path / "experts.gguf", experts, families.weights(experts))
        self.refused("_exps.weight has 4 experts", self.path / "experts.gguf", "--text", self.long, "--length", "16", "--adapter-rank", "2")
        for text, complaint in (('{"layer": 6}', "does not know"), ('{"rate": 2}', '"rate" is a number from 0 to 1'),
                                ('{"adapter": {"ranks": 2}}', 'key "ranks" that no adapter'),
                                ('{"adapter": 8}', '"adapter" is an object'), ("[]", "no JSON object")):
            recipe.write_text(text)
            self.refused(complaint, self.model, "--text", self.long, "--recipe", recipe)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
