"""What `nibble teach` writes and a student learns from it: the losses of a step are those of llama.cpp's logits of both models,
with the tokens that are not kept as one; where nearly all are kept, the teacher itself gives the same; a worker that is killed
while it teaches changes no byte; a command that is interrupted goes on; files that are not what they say are refused.

usage: test_lessons.py NIBBLE MAKE-GGUF    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import json
import os
import signal
import struct
import subprocess
import sys
import time
import unittest

from training import NIBBLE, Trainings, case_of

import families
import gguf
import llama
import numpy as np
from measures import counted, log_softmax

LENGTH, HEADER = 64, 64


class Lessons(Trainings):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lessons = cls.path / "all.lessons"
        load = cls.nibble(cls, "load", cls.model, "--name", "teacher", "--precision", "exact", "--kv-type", "f32")
        assert load.returncode == 0, load.stderr
        cls.how = ("--layers", "1", "--to", "F32", "--batch", 32 * LENGTH, "--held-out", "2", "--temperature", "2")

    def teach(self, out, *words):
        done = self.nibble("teach", "teacher", "--text", self.long, "-o", out, "--length", LENGTH, "--temperature", "2", "--force", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out

    def vocab(self):
        return next(int(t.shape[1]) for t in gguf.GGUFReader(self.model).tensors if t.name == "token_embd.weight")

    def windows(self, lessons):
        """[n][LENGTH], as docs/rooms/distill.md has the file."""
        data = lessons.read_bytes()
        _, version, vocab, length, n, _, _, text, tokens = struct.unpack_from("<8s5If2I", data)
        self.assertEqual((version, vocab, length), (1, self.vocab(), LENGTH))
        return np.frombuffer(data, np.int32, n * LENGTH, HEADER + (text + 3) // 4 * 4 + 4 * tokens).reshape(n, LENGTH)

    def test_beside_llama_cpp(self):
        """A step at temperature 2, and what is held out at 1."""
        lessons = self.teach(self.path / "few.lessons", "--keep", "5", "--windows", "34")
        report = self.distill(self.model, "--text", lessons, *self.how, "--tokens", "0")
        os.rename(self.path / "student.gguf", self.path / "cut.gguf")
        self.assertEqual(report["held_out"]["before"], report["held_out"]["after"])
        step, = self.distill(self.model, "--text", lessons, *self.how, "--tokens", "1", "--hard", "0.5")["curve"]
        windows = self.windows(lessons)
        n = len(windows)
        self.assertEqual(n, report["windows"] + 2)
        held = [(2 * i + 1) * n // 4 for i in range(2)]
        found = {1: [], 2: []}
        for i, window in enumerate(windows):
            t = 1 if i in held else 2
            p, q = (log_softmax(llama.logits_of(path, window) / t) for path in (self.model, self.path / "cut.gguf"))
            for a, b in zip(p, q):
                kept = np.argsort(-a, kind="stable")[:5]
                rest = [np.log1p(-np.exp(x[kept]).sum()) for x in (a, b)]
                found[t].append(t * t * ((np.exp(a[kept]) * (a - b)[kept]).sum() + np.exp(rest[0]) * (rest[0] - rest[1])))
        self.assertAlmostEqual(report["held_out"]["before"]["divergence"] / np.mean(found[1]), 1, delta=1e-3)
        self.assertAlmostEqual(step["divergence"] / np.mean(found[2]), 1, delta=1e-3)

    def test_beside_the_teacher(self):
        """All tokens but the least likely of each are kept."""
        lessons = self.teach(self.path / "most.lessons", "--keep", self.vocab() - 1)
        how = (*self.how, "--tokens", "8192", "--hard", "0.3", "--rate", "1e-3")
        taught = self.distill(self.model, "--text", lessons, *how)
        there = {t.name: np.array(t.data) for t in gguf.GGUFReader(self.path / "student.gguf").tensors}
        itself = self.distill(self.model, "--text", self.long, "--length", LENGTH, *how)
        here = {t.name: np.array(t.data) for t in gguf.GGUFReader(self.path / "student.gguf").tensors}
        self.assertEqual(taught["windows"], itself["windows"])
        for x, y in zip(taught["curve"], itself["curve"]):
            for figure in ("loss", "divergence", "norm"):
                self.assertAlmostEqual(x[figure] / y[figure], 1, delta=1e-3, msg=figure)
        for name, x in there.items():
            self.assertLess(np.abs(x - here[name]).max(), 1e-4)

    def test_killed_while_it_teaches(self):
        how = ("--keep", "3", "--length", LENGTH, "--temperature", "2")
        alone, again, kills = self.teach(self.path / "alone.lessons", "--keep", "3").read_bytes(), self.path / "again.lessons", 0
        process = subprocess.Popen([NIBBLE, "teach", "teacher", "--text", self.long, "-o", again, *map(str, how), "--socket",
                                    self.daemon.runtime / "nibble.sock"], stdout=subprocess.DEVNULL)
        while process.poll() is None and kills < 3:
            time.sleep(0.1)
            for pid, mode in self.daemon.children():
                if mode == "serve":
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
        self.assertEqual(process.wait(), 0)
        self.assertGreater(kills, 0)
        self.assertEqual(again.read_bytes(), alone)

    def test_interrupted(self):
        """The same command goes on where it was: to the same bytes, and of the same teacher alone."""
        how = ("--keep", "3", "--length", LENGTH, "--temperature", "2")
        whole, again = self.teach(self.path / "whole.lessons", "--keep", "3").read_bytes(), self.path / "cut.lessons"
        part = again.with_name(again.name + ".part")
        process = subprocess.Popen([NIBBLE, "teach", "teacher", "--text", self.long, "-o", again, *map(str, how), "--socket",
                                    self.daemon.runtime / "nibble.sock"], stdout=subprocess.DEVNULL)
        row = LENGTH * (8 + 3 * 8)
        while process.poll() is None and (not part.exists() or part.stat().st_size < len(whole) // 2):
            time.sleep(0.01)
        done = self.nibble("teach", "teacher", "--text", self.long, "-o", again, *how)
        self.assertIn("another process writes", done.stderr)
        process.send_signal(signal.SIGINT)
        self.assertNotEqual(process.wait(), 0)
        self.assertFalse(again.exists())
        left = part.read_bytes()
        self.assertEqual(left, whole[:len(left)])
        for there in (left, whole[:-row * 3 // 2], whole, whole + bytes(row), whole[:100]):
            with self.subTest(bytes=len(there)):
                part.write_bytes(there)
                done = self.nibble("teach", "teacher", "--text", self.long, "-o", again, *how, "--force")
                self.assertEqual((done.returncode, again.read_bytes() == whole), (0, True), done.stderr)
                self.assertEqual("windows already" in done.stderr, len(there) > 100)
                self.assertFalse(part.exists())
        again.unlink()
        for why, there, t in (("of other lessons", whole, "3"), ("by another teacher", whole[:-1] + b"?", "2")):
            part.write_bytes(there)
            with self.subTest(why):
                done = self.nibble("teach", "teacher", "--text", self.long, "-o", again, *how[:-1], t)
                self.assertEqual((done.returncode, again.exists()), (1, False))
                self.assertIn(why, done.stderr)

    def test_refusals(self):
        lessons = self.teach(self.lessons, "--keep", "4", "--windows", "34")
        whole, other = lessons.read_bytes(), self.path / "other.lessons"
        row = 8 + 4 * 8
        for why, change in (("its length is not what its header says", lambda x: x[:-1]),
                            ("its header is not that of lessons", lambda x: x[:8] + b"\2" + x[9:]),
                            ("its header is not that of lessons", lambda x: x[:24] + struct.pack("<I", 0) + x[28:]),
                            ("another tokenizer", lambda x: x[:64] + b"?" + x[65:]),
                            ("they have changed, or were damaged", lambda x: x[:-row] + x[-row + 16:-row + 24] * 5),
                            ("they have changed, or were damaged", lambda x: x[:-row] + struct.pack("<f", np.nan) + x[4 - row:])):
            other.write_bytes(change(whole))
            with self.subTest(why):
                self.refused(why, self.model, "--text", other, *self.how, "--tokens", "1")
        self.refused("another tokenizer", self.of_another_family(), "--text", lessons, *self.how)
        for words in (("--mix", "0.5"), ("--own", "0.5"), ("--hidden", "1"), ("--attention", "1")):
            self.refused("need the teacher itself", self.model, "--text", lessons, *self.how, *words)
        self.refused("of a temperature of 2, and the training's is 1", self.model, "--text", lessons, *self.how[:-1], "1")
        for words in (("--text", self.long), ("--teacher", self.model), ("--vocabulary", "1/1")):
            self.refused("they go with no other text", self.model, "--text", lessons, *self.how, *words)
        self.refused("they go with no other text", self.model, "--text", self.long, "--text", lessons, *self.how)
        for words in (("--length", "9000"), ("--keep", "2000"), ("--length", "1024")):
            self.assertEqual(self.nibble("teach", "teacher", "--text", self.long, "-o", other, "--force", *words).returncode, 2)
        self.assertIn("no model", self.nibble("teach", "nobody", "--text", self.long, "-o", other, "--force").stderr)
        (self.path / "chat.jsonl").write_text('{"messages": []}\n')
        done = self.nibble("teach", "teacher", "--text", self.path / "chat.jsonl", "-o", other, "--force")
        self.assertIn("conversations are learnt with the teacher itself", done.stderr)

    def test_lines(self):
        """JSON lines are such by their first line too: the text that is learnt is the same."""
        lines = [counted(3000)[at:at + 300] for at in range(0, 3000, 300)]
        for name in ("lines.txt", "lines.jsonl"):
            (self.path / name).write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        (self.path / "plain.txt").write_text("".join(lines))
        taught = []
        for name in ("lines.txt", "lines.jsonl", "plain.txt"):
            out = self.path / "lines.lessons"
            done = self.nibble("teach", "teacher", "--text", self.path / name, "-o", out, "--length", LENGTH, "--force", "--keep", "2")
            self.assertEqual(done.returncode, 0, done.stderr)
            taught.append(out.read_bytes())
        self.assertEqual(taught[0], taught[1])
        self.assertEqual(taught[0][-1000:], taught[2][-1000:])

    def of_another_family(self):
        path, case = self.path / "family.gguf", case_of("llama")
        families.write(path, case, families.weights(case))
        return path


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
