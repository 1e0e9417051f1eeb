"""The real thing from the command line: nibbled, its workers, the nibble command and the real model."""
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import time

from harness import *

NIBBLE = os.environ["NIBBLE_TEST_CLI"]
MODEL = pathlib.Path(os.environ.get("NIBBLE_MODEL") or pathlib.Path(
    os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache",
    "nibble/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
JOBS = os.environ["NIBBLE_TEST_JOBS"]  # of the clients that arrive at random


class CliTest(ServiceTest):
    def start(self, *words, **options):
        return subprocess.Popen([NIBBLE, *words, "--socket", self.daemon.runtime / "nibble.sock"],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, **options)

    def finish(self, process, text=None, status=0):
        try:
            out, err = process.communicate(text, timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        self.assertEqual(process.returncode, status, out + err)
        return out, err

    def nibble(self, *words, text=None, status=0):
        return self.finish(self.start(*words), text, status)

    def json(self, *words):
        return json.loads(self.nibble(*words, "--json")[0])

    def fails(self, *words, status=1):
        """One clear line on stderr, nothing on stdout; the line is returned."""
        out, err = self.nibble(*words, status=status)
        self.assertEqual(out, "")
        self.assertEqual(err.count("\n"), 1, err)
        self.assertTrue(err.startswith("error: "), err)
        return err


class Real(CliTest):
    def setUp(self):
        super().setUp()
        self.nibble("load", MODEL, "--name", "smol", "--kv-bytes", "256Mi")

    def test_listings(self):
        model, = self.json("models")["models"]
        self.assertEqual((model["name"], model["architecture"], model["type"], model["state"]),
                         ("smol", "llama", "Q4_1", "ready"))
        self.assertLess(model["packed_bytes"], 1.03 * MODEL.stat().st_size)
        self.assertEqual(self.json("devices")["devices"][0]["name"], "cpu")
        self.assertEqual(self.json("status")["models"], 1)
        self.assertIn("worker", [h["role"] for h in self.json("top")["holders"]])
        self.assertEqual(self.json("doctor")["problems"], 0)
        self.assertIn("smol", self.nibble("models")[0])

    def test_run(self):
        got = self.json("run", "smol", "What is the capital of France?", "--system", "", "-n", "12")
        self.assertEqual(got["finish"], "eos")
        self.assertEqual(self.nibble("run", "smol", "-", "--raw", "-n", "8", text="One, two, three,")[0],
                         self.nibble("run", "smol", "One, two, three,", "--raw", "-n", "8")[0])
        raw = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        ids = self.json("tokenize", "smol", raw, "--special")["tokens"]
        self.assertEqual(ids[:2], [1, 4093])
        stopped = self.json("run", "smol", "One, two, three,", "--raw", "-n", "30", "--stop", "ten")
        self.assertNotIn("ten", stopped["text"])
        sampled = [self.nibble("run", "smol", "Tell a story.", "-n", "30", "--temp", "0.9",
                               "--seed", seed)[0] for seed in ("7", "7", "8")]
        self.assertEqual(sampled[0], sampled[1])
        self.assertNotEqual(sampled[0], sampled[2])

    def test_chat(self):
        """A second turn goes on from the first, whose tokens are not computed again."""
        out, _ = self.nibble("run", "smol", "-n", "10", "--json", text="Hello.\nWhat did I say?\n")
        first, second = map(json.loads, out.splitlines())
        self.assertEqual(first["timings"]["cached_tokens"], 0)
        self.assertGreater(second["timings"]["cached_tokens"], first["timings"]["prompt_tokens"])

    def test_worker_dies(self):
        """kill -9 in mid-stream, twice: the same bytes as without."""
        words = ("run", "smol", "Tell me a long story about a lighthouse.", "-n", "120", "--temp", "0.8",
                 "--top-p", "0.95", "--repeat-penalty", "1.1", "--repeat-window", "32", "--seed", "5")
        whole = self.nibble(*words)[0].encode()
        process = self.start(*words)
        got = b""
        for part in (40, 200):
            while len(got) < part:
                piece = os.read(process.stdout.fileno(), 4096)
                self.assertTrue(piece, "the answer ended before its worker died")
                got += piece
            os.kill(self.daemon.server(), signal.SIGKILL)
        out, _ = self.finish(process)
        self.assertEqual(got + out.encode(), whole)
        self.assertGreaterEqual(self.json("status")["worker_restarts"], 1)

    def test_eval(self):
        text = self.daemon.file("text", b"The quick brown fox jumps over the lazy dog. " * 20)
        same = self.json("eval", "smol", "--text", text, "--ctx", "64", "--reference", "smol")
        self.assertEqual((same["kld_mean"], same["top1"], same["windows"]), (0, 1, 3))
        # A file is loaded for the command alone, its reference at the tier exact.
        other = self.json("eval", MODEL, "--precision", "fast", "--text", text, "--ctx", "64",
                          "--reference", MODEL)
        self.assertLess(0, other["kld_mean"])
        self.assertLess(other["kld_mean"], 0.02)
        self.assertEqual(len(self.json("models")["models"]), 1)

    def test_eval_dies(self):
        """The file of an eval that is killed does not stay loaded."""
        text = self.daemon.file("text", b"The quick brown fox jumps over the lazy dog. " * 500)
        process = self.start("eval", MODEL, "--text", text)
        until(lambda: self.json("status")["sessions"], "a session")
        process.kill()
        process.communicate()
        until(lambda: len(self.json("models")["models"]) == 1, "the file's model to be gone")

    def test_bench(self):
        got = self.json("bench", "smol", "--prompt", "32", "--gen", "4", "--clients", "2", "--runs", "1")
        for key in ("prefill_tps", "decode_tps", "aggregate_tps"):
            self.assertGreater(got[key], 0)
        names = ["embed", "qkv", "attention", "out", "gate_up", "down", "head"]
        for part, steps in (("prefill", 1), ("decode", 4)):
            self.assertEqual(got[part]["steps"], steps)
            self.assertEqual([op["operator"] for op in got[part]["operators"]], names)
            for op in got[part]["operators"]:
                self.assertEqual(op["device"], got["device"])
                self.assertGreater(op["us_per_token"], 0)

    def test_refusals(self):
        self.assertIn("nosuch", self.fails("run", "nosuch", "Hello"))
        self.assertIn("8192", self.fails("run", "smol", "word " * 9000))
        self.assertIn("smol", self.fails("load", MODEL, "--name", "smol"))
        self.fails("run", "smol", "Hello", "--temp", "-1")
        self.fails("run", "smol", "Hello", "--temp", "warm", status=2)
        self.fails("unload", "nosuch")
        self.nibble("unload", "smol")
        self.fails("run", "smol", "Hello")

    def test_arrivals(self):
        done = subprocess.run([os.environ["NIBBLE_TEST_ARRIVALS"], self.daemon.runtime / "nibble.sock",
                               "smol", JOBS], capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"{JOBS} jobs", done.stdout)


class Files(CliTest):
    """Files that are no model, and a daemon that is not there."""

    def random_model(self):
        path = self.daemon.file("random.gguf", b"")
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", path, "Q4_0"], check=True)
        self.nibble("load", path, "--name", "whole")  # only what a case changes is wrong with it
        self.nibble("unload", "whole")
        return path.read_bytes()

    def test_files(self):
        real, small = MODEL.read_bytes()[:4 << 20], self.random_model()

        def patched(before, after):
            self.assertEqual((small.count(before), len(after)), (1, len(before)), before)
            return small.replace(before, after)

        def string(s):
            return len(s).to_bytes(8, "little") + s

        def tensor(kind):
            return string(b"blk.0.attn_q.weight") + struct.pack("<IQQI", 2, 256, 256, kind)

        # One pair more: 64 bytes, as the tensors' data begins at a multiple of 32.
        pairs = struct.unpack_from("<Q", small, 16)[0] + 1
        scaling = string(b"llama.rope.scaling.type") + struct.pack("<I", 8) + string(
            b"longrope\n\x1b[31m".ljust(21, b"."))
        for name, content, words in [
                ("truncated", real, "truncated|past the end|bytes"),
                ("empty", b"", "empty|GGUF"),
                ("text", b"this is not a model" * 100, "GGUF"),
                ("version", b"GGUF\x09\0\0\0" + real[8:], "version"),
                ("arch", patched(string(b"llama"), string(b"lamma")), r"'lamma'.* choose .*\bllama\b"),
                ("type", patched(tensor(2), tensor(16)), r"blk\.0\.attn_q\.weight.*\bIQ2_XXS\b"),
                ("scaling", small[:16] + struct.pack("<Q", pairs) + scaling + small[24:],
                 r"llama\.rope\.scaling\.type is 'longrope\?\?\[31m\.*'.* linear")]:
            with self.subTest(name):
                self.assertRegex(self.fails("load", self.daemon.file(name + ".gguf", content)), words)
        self.fails("load", "/nonexistent.gguf")
        self.assertEqual(self.json("status")["models"], 0)

    def test_no_daemon(self):
        for words in (["models"], ["run", "x", "y"], ["load", str(MODEL)], ["status"]):
            done = subprocess.run([NIBBLE, *words, "--socket", "/nonexistent/nibble.sock"],
                                  capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertRegex(done.stderr, "^error: .*/nonexistent.*nibbled.*\n$")

    def test_usage(self):
        for words in ([], ["nosuch"], ["run"], ["load"], ["run", "a", "b", "c"], ["models", "--nosuch"]):
            done = subprocess.run([NIBBLE, *words], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (2, ""), words)
        verbs = re.findall(r"^  (\w+) ", subprocess.run([NIBBLE, "--help"], capture_output=True,
                                                        text=True, check=True).stdout, re.M)
        self.assertGreater(len(verbs), 9)
        for verb in verbs:
            done = subprocess.run([NIBBLE, verb, "--help"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0)
            self.assertIn("--json", done.stdout)
