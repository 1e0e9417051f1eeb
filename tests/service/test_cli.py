"""The real thing from the command line: nibbled, its workers, the nibble command and the real model."""
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import time
import unicodedata

from harness import *

NIBBLE = os.environ["NIBBLE_TEST_CLI"]
MODEL = pathlib.Path(os.environ.get("NIBBLE_MODEL") or pathlib.Path(
    os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache",
    "nibble/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
JOBS = os.environ["NIBBLE_TEST_JOBS"]  # of the clients that arrive at random


class CliTest(ServiceTest):
    def start(self, *words, stdin=subprocess.DEVNULL, **options):
        return subprocess.Popen([NIBBLE, *words, "--socket", self.daemon.runtime / "nibble.sock"],
                                stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                errors="replace", **options)

    def finish(self, process, text=None, status=0):
        try:
            out, err = process.communicate(text, timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        self.assertEqual(process.returncode, status, out + err)
        return out, err

    def nibble(self, *words, text=None, status=0, **options):
        if text is not None:
            options["stdin"] = subprocess.PIPE
        return self.finish(self.start(*words, **options), text, status)

    def json(self, *words):
        return json.loads(self.nibble(*words, "--json")[0])

    def fails(self, *words, status=1, **options):
        """One clear line on stderr, nothing on stdout; the line is returned."""
        out, err = self.nibble(*words, status=status, **options)
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

    def test_standard_input(self):
        """It is one prompt, joined to PROMPT; the newline at its end is the editor's."""
        def answer(*words, text=None, **options):
            out, _ = self.nibble("run", "smol", *words, "-n", "6", "--json", text=text, **options)
            got = json.loads(out)
            return got["timings"]["prompt_tokens"], got["tokens"]
        both = answer("Count these:\n\none\ntwo\n")
        self.assertEqual(answer(text="Count these:\n\none\ntwo\n\n"), both)
        self.assertEqual(answer("Count these:", text="one\ntwo\n\n"), both)
        self.assertEqual(answer("-", text="Count these:\n\none\ntwo\n\n"), both)
        messages = [{"role": "user", "content": "Count these:\n\none\ntwo\n"}]
        file = self.daemon.file("messages.json", json.dumps(messages).encode())
        self.assertEqual(answer("--messages", file, text="not read"), both)
        self.assertEqual(answer("--messages", "-", text=json.dumps(messages)), both)
        alone = answer("Hello")
        for nothing in (dict(text=""), {}, dict(preexec_fn=lambda: os.close(0))):
            self.assertEqual(answer("Hello", **nothing), alone)
        self.assertIn("standard input is empty", self.fails("run", "smol"))
        self.assertIn("64 MiB", self.fails("run", "smol", stdin=open("/dev/zero")))
        self.assertIn("offset 3", self.fails("run", "smol", text="one\0two"))
        self.assertIn("offset 3", self.fails("run", "smol", "Hello", text="one\0two"))
        self.assertIn("UTF-8", self.fails("run", "smol", os.fsdecode(b"\xff")))
        folder = os.open("/", os.O_RDONLY)
        self.addCleanup(os.close, folder)
        self.assertIn("standard input: Is a directory", self.fails("run", "smol", stdin=folder))

    def test_waits_for_input(self):
        """A standard input that never ends is waited for, and that is said."""
        process = self.start("run", "smol", "Hello", "-n", "1", stdin=subprocess.PIPE)
        self.assertIn("waiting for the end of standard input", process.stderr.readline())
        self.finish(process)

    def test_output_fails(self):
        """Whatever cannot be written is an error of every verb, and none writes anywhere else."""
        text = self.daemon.file("text", b"The quick brown fox jumps over the lazy dog. " * 20)
        recipe = self.daemon.file("recipe.json", b'{"steps": {"int8": {"compress": {"to": "Q8_0"}}}}')
        verbs = [["--help"], ["--version"], ["run", "--help"], ["models"], ["models", "--json"], ["devices"],
                 ["status"], ["top"], ["doctor"], ["doctor", "--json"], ["tokenize", "smol", "Hello"],
                 ["render", "smol", "Hello"], ["run", "smol", "Hello", "-n", "9"],
                 ["run", "smol", "Hello", "-n", "9", "--json"], ["eval", "smol", "--text", text, "--ctx", "64"],
                 ["bench", "smol", "--prompt", "8", "--gen", "2", "--clients", "1", "--runs", "1"],
                 ["convert", MODEL, "-o", self.daemon.dir.name + "/out.gguf", "--force"],
                 ["embed", "smol", "Hello"], ["load", MODEL, "--name", "other"], ["unload", "other"],
                 ["compress", MODEL, "--to", "Q8_0", "--detach"], ["jobs"], ["pause", "3"], ["resume", "3"],
                 ["cancel", "3"], ["wait", "1"], ["result", "1", "-o", self.daemon.dir.name + "/small.gguf"],
                 ["distill", MODEL, "--text", text, "--detach"],
                 ["teach", "smol", "--text", text, "--length", "16", "--force", "-o", self.daemon.dir.name + "/lessons"],
                 ["pipeline", MODEL, "-o", self.daemon.dir.name + "/work", "--recipe", recipe]]
        once = "load", "unload", "pause", "resume", "cancel", "result"
        known = set(re.findall(r"^  (\w+) ", self.nibble("--help")[0], re.M))
        self.assertEqual(known - {v[0] for v in verbs}, set())
        for words in verbs:
            for stdout, why in (("full", "No space left on device"), ("closed", "Bad file descriptor"),
                                ("pipe", "Broken pipe")):
                with self.subTest(f"{words} {stdout}"):
                    if stdout != "full" and words[0] in once:
                        continue  # done by the first
                    self.assertIn(f"error: standard output cannot be written: {why}\n",
                                  self.into(stdout, *words))
        self.assertEqual(self.json("models")["models"][0]["name"], "smol")

    def into(self, stdout, *words):
        """Runs with a standard output that takes nothing: status 1; what stderr says."""
        socket = [] if words[0].startswith("--") else ["--socket", self.daemon.runtime / "nibble.sock"]
        reader, writer = os.pipe()
        os.close(reader)
        with open("/dev/full", "wb") as full, open(writer, "wb") as pipe:
            done = subprocess.run([NIBBLE, *words, *socket], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                  text=True, stdout=pipe if stdout == "pipe" else full, timeout=120,
                                  preexec_fn=(lambda: os.close(1)) if stdout == "closed" else None)
        self.assertEqual(done.returncode, 1, done.stderr)
        return done.stderr

    def test_bytes_that_are_no_text(self):
        """Each may be three tokens: what a byte is alone, and more ids than there are bytes."""
        one = self.json("tokenize", "smol", "--file", self.daemon.file("one", b"\xff"))["tokens"]
        many = self.json("tokenize", "smol", "--file", self.daemon.file("many", b"\xff " * 5000))["tokens"]
        alone = self.json("tokenize", "smol", "--file", self.daemon.file("two", b"\xff \xff "))["tokens"]
        self.assertEqual(many[:len(one)], one)
        self.assertGreater(len(many), 5000 * len(one))
        self.assertTrue(set(many) <= set(one) | set(alone), set(many) - set(one) - set(alone))

    def test_outputs(self):
        """What no file can be written over, or into, is told before there is a job."""
        folder = pathlib.Path(self.daemon.dir.name)
        text, link = self.daemon.file("text.txt", b"One, two, three. " * 400), folder / "link.gguf"
        link.symlink_to(MODEL)
        for out, why in (("/dev/null", "/dev/null is no regular file, which is not replaced"), (folder, "is a folder, which is not"),
                         (link, "is a symbolic link, which is not"), (folder / "none" / "x.gguf", "none/: No such file")):
            for words in (("compress", MODEL, "--to", "Q8_0"), ("distill", MODEL, "--text", text)):
                with self.subTest(out=str(out), verb=words[0]):
                    self.assertIn(why, self.fails(*words, "-o", out, "--force"))
        (folder / "nf4").mkdir()
        self.assertIn("a folder is never written over", self.fails("compress", MODEL, "--to", "NF4", "-o", folder / "nf4", "-f"))
        same = ("-o", folder / "x", "--save-imatrix", folder / "x", "--calibration", text)
        self.assertIn("name one file", self.fails("compress", MODEL, "--to", "Q4_0", *same, status=2))
        self.assertIn("no size above 0", self.fails("compress", MODEL, "--target-size", "0", "-o", folder / "x", status=2))
        self.assertEqual(self.json("jobs")["jobs"], [])

    def test_closed_streams(self):
        """With all three closed, nothing of ours has their numbers."""
        process = self.start("run", "smol", "Tell me a long story.", "--ignore-eos",
                             preexec_fn=lambda: os.closerange(0, 3))
        def streams():
            return [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in range(3)]
        until(lambda: self.json("status")["sessions"] or process.poll() is not None, "a session or the end")
        if process.poll() is None:
            self.assertEqual(streams(), ["/dev/null"] * 3)
        self.assertEqual(process.wait(PATIENCE), 1)
        process.communicate()
        self.assertEqual(self.json("status")["models"], 1)

    def test_stop(self):
        """All of several hold, whichever comes first; 16 are the most."""
        words = ("run", "smol", "One, two, three,", "--raw", "-n", "30")
        whole = self.nibble(*words)[0]
        for stops in (("four", "ten"), ("ten", "four")):
            got = self.json(*words, *(w for s in stops for w in ("--stop", s)))
            self.assertEqual((got["finish"], got["text"]), ("stop", whole[:whole.index("four")]))
        self.nibble(*words, *["--stop", "four"] * 16)
        self.assertIn("--stop", self.fails(*words, "--stop", "", status=2))
        self.assertIn("16", self.fails(*words, *["--stop", "four"] * 17, status=2))

    def test_cut(self):
        """An answer that did not end by itself says so, on standard error alone."""
        out, err = self.nibble("run", "smol", "Tell me a story.", "-n", "3")
        self.assertEqual(err, "[cut at the limit of 3 tokens]\n")
        self.assertNotIn("[", out)
        self.assertIn("; 1 generated; length]", self.nibble("run", "smol", "Hello", "-n", "1", "-v")[1])
        self.assertRegex(self.nibble("run", "smol", "Hello", "-n", "2", "-v")[1], r"; 2 generated, \d+/s; length\]")
        self.assertEqual(self.nibble("run", "smol", "What is the capital of France?", "--system", "")[1], "")

    def test_names(self):
        """Letters of any script stay, in NFC; the names are the same in lists, logs and errors."""
        self.nibble("unload", "smol")
        for file, name in [("日本語", "日本語"), ("한국어", "한국어"), ("Größe", "Größe"), ("हिन्दी", "हिन्दी"),
                           ("-x", "x"), ("my model (1)", "my-model--1-"), ("語" * 30, "語" * 21)]:
            with self.subTest(file):
                path = pathlib.Path(self.daemon.dir.name, unicodedata.normalize("NFD", file) + ".gguf")
                path.symlink_to(MODEL)
                self.assertIn(f"loaded {name} on cpu", self.nibble("load", path, "--context", "64")[0])
                self.assertEqual([m["name"] for m in self.json("models")["models"]], [name])
                self.assertIn(f"\n{name} ", self.nibble("models")[0])
                self.assertIn(f"model {name} is ready", self.daemon.logged())
                self.nibble("tokenize", unicodedata.normalize("NFD", name), "Hello")
                self.nibble("unload", unicodedata.normalize("NFD", name))
                self.assertIn(f'no model "{name}"', self.fails("run", name, "Hello"))
        for name in ("-x", "a b", "a\u00a0b", "a\u202eb", "a/b", "a+b", "a\nb", "a\x1bb", "", "語" * 22):
            self.fails("load", MODEL, "--name=" + name, status=2 if len(name) > 20 else 1)
        bad = pathlib.Path(os.fsdecode(self.daemon.dir.name.encode() + b"/\xff.gguf"))
        bad.symlink_to(MODEL)
        self.assertIn("--name", self.fails("load", bad, status=2))

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
            self.assertEqual([op["op"] for op in got[part]["ops"]], names)
            for op in got[part]["ops"]:
                self.assertEqual(op["device"], got["device"])
                self.assertGreater(op["us_per_token"], 0)

    def test_refusals(self):
        self.assertIn("nosuch", self.fails("run", "nosuch", "Hello"))
        self.assertIn("8192", self.fails("run", "smol", "word " * 9000))
        self.assertIn("smol", self.fails("load", MODEL, "--name", "smol"))
        for words, limits in [(["--temp", "1e30"], "0 to 100"), (["--temp", "-1"], "0 to 100"),
                              (["--temp", "warm"], "0 to 100"), (["--temp", "nan"], "0 to 100"),
                              (["--top-p", "2"], "to 1"), (["--min-p", "2"], "0 to 1"),
                              (["--repeat-penalty", "0"], "to 100"), (["--repeat-window", "100000"], "0 to 4096"),
                              (["-n", "-1"], "0 to 4294967295"), (["--top-k", "1.5"], "0 to 4294967295"),
                              (["--seed", "18446744073709551616"], "0 to 18446744073709551615")]:
            self.assertIn(limits, self.fails("run", "smol", "Hello", *words, status=2))
        self.assertIn("from 2", self.fails("bench", "smol", "--gen", "1", status=2))
        self.assertIn("from 4", self.fails("eval", "smol", "--ctx", "3", status=2))
        self.assertIn("512Mi", self.fails("load", MODEL, "--kv-bytes", "12Q", status=2))
        self.nibble("run", "smol", "Hello", "-n", "2", "--temp", "100", "--repeat-window", "4096",
                    "--repeat-penalty", "0.01", "--top-p", "0.0001", "--min-p", "1")
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
        text = self.daemon.file("text", b"Hello")
        for missing in ("missing.gguf", "/nonexistent/missing.gguf"):
            self.assertRegex(self.fails("eval", missing, "--text", text), "(?i)no such file")
        pipe = pathlib.Path(self.daemon.dir.name, "pipe")
        os.mkfifo(pipe)
        for what, words in [(pipe, "a FIFO"), (self.daemon.dir.name, "the folder has no config.json"), ("/dev/zero", "a character device")]:
            self.assertIn(words, self.fails("load", what))
            self.assertIn(words, self.fails("eval", what, "--text", text))
        self.assertEqual(self.json("status")["models"], 0)

    def test_no_daemon(self):
        for words in (["models"], ["run", "x", "y"], ["load", str(MODEL)], ["status"]):
            done = subprocess.run([NIBBLE, *words, "--socket", "/nonexistent/nibble.sock"],
                                  capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertRegex(done.stderr, "^error: .*/nonexistent.*nibbled.*\n$")

    def test_usage(self):
        for words in ([], ["nosuch"], ["run"], ["load"], ["run", "a", "b", "c"], ["models", "--nosuch"],
                      ["models", "--socket", "/a", "--socket", "/b"]):
            done = subprocess.run([NIBBLE, *words], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (2, ""), words)
        verbs = re.findall(r"^  (\w+) ", subprocess.run([NIBBLE, "--help"], capture_output=True,
                                                        text=True, check=True).stdout, re.M)
        self.assertGreater(len(verbs), 9)
        for verb in verbs:
            done = subprocess.run([NIBBLE, verb, "--help"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0)
            self.assertIn("--json", done.stdout)
