"""LoRA adapters that numpy makes. As part of a model: merged by `nibble compress`, the tensors are numpy's W + scale alpha / rank
B A; merged or loaded with the model, logits are llama.cpp's of base and adapter. Of sessions: several with different adapters
at once give llama.cpp's logits, and the bytes of each alone, also after the worker's death, on each kind of device. What does not
fit is refused in one line.

usage: test_adapters.py NIBBLE MAKE-GGUF LIBNIBBLE    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import unittest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import harness
import libnibble as nb
import llama
from measures import log_softmax

NIBBLE, MAKE_GGUF, LIBNIBBLE = sys.argv[1:4]
MATRICES = {"attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256), "attn_output": (256, 256), "ffn_gate": (512, 256),
            "ffn_up": (512, 256), "ffn_down": (256, 512)}
# The CPU, Mesa's Vulkan driver on it, and a layer on each.
DEVICES = {"cpu": (), "vulkan0": ("--device", "vulkan0"), "cpu+vulkan0:1": ("--device", "vulkan0", "--gpu-layers", "1")}
TOKENS = np.random.default_rng(9).integers(0, 256, 40).astype(np.int32)
ROW = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t)


def factors_of(seed, rank=5, names=MATRICES, size=0.1):
    """{tensor: (A, B)} of some matrices of two layers."""
    random = np.random.default_rng(seed)
    return {f"blk.{i}.{n}.weight": (random.normal(0, size, (rank, MATRICES[n][1])).astype(np.float32),
                                    random.normal(0, size, (MATRICES[n][0], rank)).astype(np.float32))
            for i in range(2) for n in names}


def write(path, factors, alpha=10.0, arch="llama", kind="adapter", way="lora", dtype=np.float32, tensors=None):
    """An adapter as llama.cpp's convert_lora_to_gguf.py writes it."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(kind)
    writer.add_string("adapter.type", way)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in factors.items():
        writer.add_tensor(f"{name}.lora_a", a.astype(dtype))
        writer.add_tensor(f"{name}.lora_b", b.astype(dtype))
    for name, x in (tensors or {}).items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(path):
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


class Adapters(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon(config="[jobs]\nidle = 0\n")
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        for kind in ("F32", "Q8_0"):
            subprocess.run([MAKE_GGUF, "random", cls.path / f"{kind}.gguf", kind, "5"], check=True)
        cls.base, cls.adapter = cls.path / "F32.gguf", write(cls.path / "a.gguf", factors_of(1))
        cls.half = write(cls.path / "b.gguf", factors_of(2, 3, ["attn_q", "ffn_down"]), 4.0, dtype=np.float16)

    def nibble(self, verb, *words):
        return subprocess.run([NIBBLE, verb, *map(str, words), "--socket", self.daemon.runtime / "nibble.sock"],
                              capture_output=True, text=True, timeout=120)

    def run_nibble(self, *words):
        done = self.nibble(*words)
        self.assertEqual(done.returncode, 0, done.stderr)

    def merge(self, base, to, *adapters):
        merged = self.path / "merged.gguf"
        self.run_nibble("compress", base, "-o", merged, "--force", "--to", to,
                        *(word for a in adapters for word in ("--adapter", a)))
        return merged

    def assert_close(self, logits, expected, most=1e-4):
        off = np.abs(logits - expected).max() / np.abs(expected).max()
        self.assertLess(off, most)
        return off

    def test_merged(self):
        for kind in ("F32", "Q8_0"):
            base = self.path / f"{kind}.gguf"
            found, expected = tensors_of(self.merge(base, "F32", f"{self.adapter}:0.7", self.half)), tensors_of(base)
            for factors, by in ((factors_of(1), 0.7 * 10 / 5), (factors_of(2, 3, ["attn_q", "ffn_down"]), 4 / 3)):
                for name, (a, b) in factors.items():
                    if by == 4 / 3:
                        a, b = a.astype(np.float16), b.astype(np.float16)
                    expected[name] = expected[name] + by * b.astype(np.float64) @ a.astype(np.float64)
            self.assertEqual(found.keys(), expected.keys())
            for name, x in expected.items():
                self.assertLess(np.abs(found[name] - x).max(), 2e-6, name)
        merged = self.merge(self.base, "Q8_0", self.adapter)  # any other type is merged and rounded
        q, f = tensors_of(merged)["blk.1.ffn_up.weight"], tensors_of(self.merge(self.base, "F32", self.adapter))
        exact = f["blk.1.ffn_up.weight"]
        self.assertTrue(0 < np.abs(q - exact).max() < np.abs(exact).max() / 127)

    def test_logits_of_merged(self):
        expected = llama.logits_of(self.base, TOKENS, adapter=(self.adapter, 0.7))
        self.assertGreater(np.abs(expected - llama.logits_of(self.base, TOKENS)).max(), 0.1 * np.abs(expected).max())
        off = self.assert_close(llama.logits_of(self.merge(self.base, "F32", f"{self.adapter}:0.7"), TOKENS), expected)
        print(f"merged beside base and adapter: {off:.1e} of the largest logit", file=sys.stderr)

    def logits(self, adapter=None):
        """Of a session on the loaded model m."""
        session = nb.Session(LIBNIBBLE, self.daemon.runtime / "nibble.sock", "m", adapter)
        rows = []
        take = ROW(lambda _user, _at, logits, n: rows.append(np.ctypeslib.as_array(logits, (n,)).copy()) or 0)
        session.check(session.lib.nibble_logits(session.session, TOKENS.ctypes.data_as(ctypes.c_void_p),
                                                ctypes.c_size_t(len(TOKENS)), ctypes.c_size_t(0), take, None))
        session.close()
        return np.array(rows)

    def loaded(self, *words):
        """Logits of the model that is loaded so."""
        self.run_nibble("load", *words, "--name", "m", "--precision", "exact")
        rows = self.logits()
        self.run_nibble("unload", "m")
        return rows

    def test_loaded(self):
        values = {n: [x.astype(np.float16).astype(np.float32) for x in pair]
                  for n, pair in factors_of(2, 3, ["attn_q", "ffn_down"]).items()}
        single = write(self.path / "single.gguf", values, 4.0)  # llama.cpp rounds the inputs of F16 factors
        for words, adapter in (((), None), (("--adapter", self.adapter), (self.adapter, 1)),
                               (("--adapter", f"{self.adapter}:-0.4"), (self.adapter, -0.4)),
                               (("--adapter", self.half), (single, 1))):
            off = self.assert_close(self.loaded(self.base, *words), llama.logits_of(self.base, TOKENS, adapter=adapter))
            print(f"loaded with {words}: {off:.1e} of the largest logit", file=sys.stderr)
        merged = self.merge(self.base, "F32", self.adapter, f"{self.half}:2")
        self.assert_close(self.loaded(self.base, "--adapter", self.adapter, "--adapter", f"{self.half}:2"),
                          llama.logits_of(merged, TOKENS))

    def load_base(self, kind, device="cpu", *words):
        """The model m on a device, with adapters of several ranks and types; by name what llama.cpp is given, and its scale."""
        adapters = {None: None, "a": (self.adapter, 0.7), "b": (self.half, 1), "c": (self.adapter, -0.4)}
        values = {n: [x.astype(np.float16).astype(np.float32) for x in pair]
                  for n, pair in factors_of(2, 3, ["attn_q", "ffn_down"]).items()}
        self.run_nibble("load", self.path / f"{kind}.gguf", "--name", "m", *DEVICES[device], *words)
        self.addCleanup(self.nibble, "unload", "m")
        with self.daemon.client() as client:
            self.assertEqual(client.model("m").device.decode(), device)
        for name, adapter in list(adapters.items())[1:]:
            self.run_nibble("load", f"{adapter[0]}:{adapter[1]}", "--base", "m", "--name", name)
        adapters["b"] = write(self.path / "single.gguf", values, 4.0), 1
        return adapters

    def at_once(self, calls):
        """What the calls return, each from a thread of its own."""
        results = [None] * len(calls)

        def run(i):
            results[i] = calls[i]()

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def test_logits_of_sessions(self):
        for device in DEVICES:
            adapters = self.load_base("F32", device, "--precision", "exact")
            together = self.at_once([lambda name=name: self.logits(name) for name in list(adapters) * 2])
            for i, (name, adapter) in enumerate(list(adapters.items()) * 2):
                off = self.assert_close(together[i], llama.logits_of(self.base, TOKENS, adapter=adapter))
                np.testing.assert_array_equal(together[i], self.logits(name))
                print(f"session on {device} with adapter {name}: {off:.1e} of the largest logit", file=sys.stderr)
            self.run_nibble("unload", "a")  # the others stay as they are
            for i, name in enumerate(adapters):
                if name != "a":
                    np.testing.assert_array_equal(together[i], self.logits(name))
            self.run_nibble("unload", "m")

    def answer(self, adapter, seed, n=40):
        """The command of a sampled answer."""
        words = [NIBBLE, "run", "m", "one two one two one two", "--raw", "--ignore-eos", "-n", str(n), "--temp", "0.9",
                 "--seed", str(seed), "--json", "--socket", self.daemon.runtime / "nibble.sock"]
        return words + (["--adapter", adapter] if adapter else [])

    def tokens_of(self, process):
        out, error = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, error)
        return json.loads(out)["tokens"]

    def start(self, *words):
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_bytes_of_sessions(self):
        """On a quantized base, at each precision: alone, together, with and without drafts."""
        for precision, device in (("exact", "cpu"), ("balanced", "cpu"), ("fast", "cpu"), ("balanced", "vulkan0"),
                                  ("fast", "cpu+vulkan0:1")):
            adapters = self.load_base("Q8_0", device, "--precision", precision)
            asked = [(name, seed) for seed, name in enumerate([*adapters, "a"])]
            alone = [self.tokens_of(self.start(*self.answer(*a), "--drafts", "off")) for a in asked]
            self.assertEqual(len({tuple(tokens) for tokens in alone}), len(asked))
            self.assertEqual([self.tokens_of(self.start(*self.answer(*a), "--drafts", "always")) for a in asked], alone)
            together = [self.start(*self.answer(*a)) for a in asked]
            self.assertEqual([self.tokens_of(process) for process in together], alone)
            self.run_nibble("unload", "m")

    def server_of(self, device):
        """The serving worker of a device: its last argument names that."""
        def words(pid):
            return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")

        return next(pid for pid, mode in self.daemon.children() if mode == "serve" and device in words(pid))

    def test_a_death(self):
        for device in DEVICES:
            adapters = self.load_base("Q8_0", device)
            alone = [self.tokens_of(self.start(*self.answer(name, 3, 450))) for name in adapters]
            with self.daemon.client() as client:
                before = client.status()
                together = [self.start(*self.answer(name, 3, 450)) for name in adapters]
                harness.until(lambda: client.status().decode_tokens > before.decode_tokens + 200, "tokens")
                os.kill(self.server_of(device), signal.SIGKILL)
                self.assertEqual([self.tokens_of(process) for process in together], alone)
                self.assertEqual(client.status().worker_restarts, before.worker_restarts + 1)
            self.run_nibble("unload", "m")

    def test_trained_beside_nf4(self):
        """QLoRA: of an adapter trained beside a folder of NF4, the held-out loss that was told is llama.cpp's of the merged file."""
        text, folder, trained = self.path / "text.txt", self.path / "nf4", self.path / "trained.gguf"
        text.write_text("one two three four five six seven eight nine ten " * 200)
        self.run_nibble("compress", self.base, "-o", folder, "--to", "NF4")
        done = self.nibble("distill", folder, "-o", trained, "--json", "--text", text, "--adapter-rank", "4", "--tokens", "8000",
                           "--length", "64", "--batch", "512", "--held-out", "1", "--rate", "0.01")
        self.assertEqual(done.returncode, 0, done.stderr)
        told = json.loads(done.stdout)["held_out"]
        self.assertLess(told["after"]["loss"], told["before"]["loss"] - 0.1)
        self.beside("Q8_0.gguf", self.adapter, 5e-4)  # inputs of two int8 terms
        self.beside("nf4", trained)
        model = llama.Model(self.base)
        tokens = model.tokenize(text.read_text())
        model.close()
        n = len(tokens) // 64
        window = tokens[n // 2 * (len(tokens) - 64) // (n - 1):][:64]
        for by, which in ((0, "before"), (1, "after")):
            logits = log_softmax(llama.logits_of(self.merge(folder, "F32", f"{trained}:{by}"), window))
            self.assertAlmostEqual(told[which]["loss"], -logits[np.arange(63), window[1:]].mean(), delta=2e-3)

    def beside(self, base, adapter, most=1e-4):
        """A session's logits beside a quantized base, which stays as it is, are those of its weights in floats with B A merged."""
        self.run_nibble("load", self.path / base, "--name", "m", "--precision", "exact")
        with self.daemon.client() as client:
            before = client.model("m").type, client.model("m").packed_bytes
            self.run_nibble("load", adapter, "--base", "m", "--name", "s")
            expected = llama.logits_of(self.merge(self.path / base, "F32", adapter), TOKENS)
            off = self.assert_close(self.logits("s"), expected, most)
            self.assertEqual((client.model("m").type, client.model("m").packed_bytes), before)
        self.run_nibble("unload", "m")
        print(f"session beside {base}: {off:.1e} of the largest logit", file=sys.stderr)

    def refused(self, complaint, adapter):
        for words in (("compress", self.base, "-o", self.path / "never.gguf", "--to", "F32", "--adapter", adapter),
                      ("load", self.base, "--name", "never", "--adapter", adapter),
                      ("load", adapter, "--name", "odd.gguf", "--base", "base")):
            done = self.nibble(*words)
            self.assertNotEqual(done.returncode, 0, adapter)
            self.assertRegex(done.stderr, complaint)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertFalse((self.path / "never.gguf").exists())

    def test_refusals(self):
        self.run_nibble("load", self.base, "--name", "base")
        self.addCleanup(self.nibble, "unload", "base")
        good, odd = factors_of(1, 4, ["attn_q"]), self.path / "odd.gguf"
        name = "blk.1.attn_q.weight"
        a, b = good[name]
        self.refused("No such file", self.path / "nothing.gguf")
        self.refused("odd.gguf: .*(GGUF|magic)", odd if odd.write_bytes(b"no gguf" * 9) else None)
        self.refused("(F32|odd).gguf: its general.type is .* and not adapter", self.base)
        self.refused("scale (is )?from -1000 to 1000", f"{self.adapter}:1e9")
        wide, nan = np.zeros((4, 300), np.float32), a.copy()
        nan[2, 7] = np.nan
        thick = {name: (np.ones((300, 256), np.float32), np.ones((256, 300), np.float32))}
        vector = {"blk.0.attn_norm.weight": (np.ones((1, 256), np.float32), np.ones((1, 1), np.float32))}
        embedding = {"token_embd.weight": (np.ones((2, 256), np.float32), np.ones((259, 2), np.float32))}
        for complaint, factors, others in (
                ("odd.gguf: its general.architecture is qwen2 and not llama", good, {"arch": "qwen2"}),
                ("its general.type is model", good, {"kind": "model"}),
                ("its adapter.type is ia3", good, {"way": "ia3"}),
                ("has no number adapter.lora.alpha", good, {"alpha": None}),
                ("has an alpha of inf", good, {"alpha": float("inf")}),
                ("has factors 256 x 4 and 4 x 300 of blk.1.attn_q.weight, which is 256 x 256 here: it is of another base",
                 {name: (wide, b)}, {}),
                ("has factors 256 x 4 and 3 x 256", {name: (a[:3], b)}, {}),
                ("has factors 256 x 300", thick, {}),
                ("changes blk.7.attn_q.weight, which this model has not", {"blk.7.attn_q.weight": (a, b)}, {}),
                ("has a number that is not finite|NaN", {name: (nan, b)}, {}),
                ("blk.0.attn_norm.weight, which is no plain matrix", vector, {}),
                ("changes the embedding", embedding, {}),
                ("has no tensors", {}, {}),
                ("blk.0.attn_v.weight.lora_b and no blk.0.attn_v.weight.lora_a", good,
                 {"tensors": {"blk.0.attn_v.weight.lora_b": b}}),
                ("blk.0.attn_norm.weight is no factor", good, {"tensors": {"blk.0.attn_norm.weight": b[0]}})):
            with self.subTest(complaint):
                self.refused(complaint, write(odd, factors, **others))

    def test_damaged(self):
        """Whatever is in the file, it is taken or refused in one line, and the service goes on."""
        bytes_of, random, taken = self.half.read_bytes(), np.random.default_rng(3), 0
        damaged = self.path / "damaged.gguf"
        for i in range(40):
            data = bytearray(bytes_of[:random.integers(1, len(bytes_of))] if i % 4 == 0 else bytes_of)
            for at in random.integers(0, min(len(data), 1500), 3):
                data[at] = random.integers(256)
            damaged.write_bytes(data)
            done = self.nibble("compress", self.base, "-o", self.path / "damaged-merged.gguf", "--force", "--to", "F16", "--adapter", damaged)
            taken += done.returncode == 0
            if done.returncode:
                self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
                self.assertRegex(done.stderr, "adapter")
        self.assertLess(taken, 30)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[4:])
