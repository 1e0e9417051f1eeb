"""Graphs that `nibble compress --format onnx` writes, run by onnxruntime: an encoder's vectors and a decoder's layers, in
floats beside numpy's float64, in int8 within what its codes lose.

usage: test_onnx.py NIBBLE    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import os
import pathlib
import subprocess
import sys
import unittest

import gguf
import numpy as np
import onnxruntime

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import folders
import folders_numpy
import harness
from measures import counted

NIBBLE, = sys.argv[1:]
MINILM = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nibble/models/all-MiniLM-L6-v2"
ROWS = 21
TEXT = counted(60)
# Of the largest: floats, int8 weights, int8 weights with inputs of their own range. Random models of a few dozen columns
# have coarse channels.
BOUNDS = {(): 1e-5, ("INT8",): 0.03, ("INT8", "dynamic"): 0.05}


def run(path, **inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def operators(path):
    """How often each op of our graphs stands in a file."""
    data = path.read_bytes()
    return {op: data.count(b"\x22" + bytes([len(op)]) + op.encode()) for op in
            ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMul")}


class Onnx(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon("[jobs]\nidle = 0\n", os.environ["NIBBLE_TEST_WORKER"])
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)

    def nibble(self, *words):
        return subprocess.run([NIBBLE, *map(str, words), "--socket", self.daemon.runtime / "nibble.sock"],
                              capture_output=True, text=True, timeout=120)

    def export(self, source, how, *words):
        out = self.path / "out.onnx"
        done = self.nibble("compress", source, "-o", out, "--force", "--format", "onnx", "--to", *(how[:1] or ["F32"]),
                           *(["--activations", how[1]] if how[1:] else []), *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out

    def near(self, found, wanted, how, what):
        off = np.abs(found - wanted).max() / np.abs(wanted).max()
        print(f"{what} {' '.join(how) or 'floats'}: {off:.1e} of the largest", flush=True)
        self.assertLess(off, BOUNDS[how])

    def test_layers(self):
        for family in ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"):
            config, weights = folders.FAMILIES[family](11, "F32")
            folder = folders.write(self.path / family, config, weights, "F32")
            model, layer = folders_numpy.Decoder(config, weights), 1
            x = np.random.default_rng(7).normal(0, 1, (ROWS, config["hidden_size"])).astype(np.float32)
            wanted = model.layer(layer, x.astype(np.float64), family == "phi3")  # beyond its first context
            for how in BOUNDS:
                with self.subTest(f"{family} {how}"):
                    out = self.export(folder, how, "--layer", layer)
                    self.near(run(out, hidden_states=x) - x, wanted - x, how, family)
                    matrices = 4 if family == "phi3" else 7
                    self.assertEqual(operators(out), {
                        "QuantizeLinear": 0, "DequantizeLinear": matrices * len(how), "MatMul": matrices + 2,
                        "DynamicQuantizeLinear": matrices * (len(how) > 1)})

    def test_encoder(self):
        config, weights = folders.FAMILIES["bert"](11, "F32")
        folder = folders.write(self.path / "bert", config, weights, "F32")
        ids = np.random.default_rng(3).integers(0, 57, ROWS)
        wanted = folders_numpy.bert_vectors(config, weights, ids)
        for how in BOUNDS:
            with self.subTest(str(how)):
                self.near(run(self.export(folder, how), input_ids=ids), wanted, how, "bert")

    def static(self, source):
        """The graph of the file that a compression with fixed ranges made, and how many ranges it has."""
        text, out = self.path / "text", self.path / "static.gguf"
        text.write_text(TEXT)
        done = self.nibble("compress", source, "-o", out, "--force", "--to", "int8-channel", "--else", "F16", "--activations",
                           "static", "--calibration", text, "--samples", "9", "--length", "40")
        self.assertEqual(done.returncode, 0, done.stderr)
        return out, sum(r > 0 for r in gguf.GGUFReader(out).fields["nibble.activations.ranges"].contents())

    def test_static(self):
        config, weights = folders.FAMILIES["llama"](11, "F32")
        folder = folders.write(self.path / "llama-static", config, weights, "F32")
        source, ranges = self.static(folder)
        x = np.random.default_rng(7).normal(0, 1, (ROWS, config["hidden_size"])).astype(np.float32)
        wanted = folders_numpy.Decoder(config, weights).layer(1, x.astype(np.float64), False)
        graph = self.export(source, ("INT8", "static"), "--layer", 1)
        self.near(run(graph, hidden_states=x) - x, wanted - x, ("INT8", "dynamic"), "llama, fixed ranges")
        found = operators(graph)
        self.assertEqual(found["QuantizeLinear"] + found["DynamicQuantizeLinear"], 7)
        self.assertGreater(found["QuantizeLinear"], 0)

    def test_minilm_static(self):
        ids = np.array([101, 1996, 2712, 2001, 5475, 1998, 6343, 3764, 1997, 1996, 4040, 102])
        a = run(self.export(MINILM, ()), input_ids=ids).mean(axis=0)
        source, ranges = self.static(MINILM)
        graph = self.export(source, ("INT8", "static"))
        self.assertEqual(operators(graph)["QuantizeLinear"], ranges)
        b = run(graph, input_ids=ids).mean(axis=0)
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        print(f"MiniLM INT8 static, {ranges} ranges: cosine {cosine:.5f}", flush=True)
        self.assertGreater(cosine, 0.98)

    def test_minilm(self):
        ids = np.array([101, 1996, 2712, 2001, 5475, 1998, 6343, 3764, 1997, 1996, 4040, 102])
        floats = run(self.export(MINILM, ()), input_ids=ids)
        for how, least in ((("INT8",), 0.999), (("INT8", "dynamic"), 0.99)):
            a, b = floats.mean(axis=0), run(self.export(MINILM, how), input_ids=ids).mean(axis=0)
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            print(f"MiniLM {' '.join(how)}: cosine {cosine:.5f}", flush=True)
            self.assertGreater(cosine, least)

    def test_refusals(self):
        llama = folders.write(self.path / "a", *folders.FAMILIES["llama"](11, "F32"), "F32")
        bert = folders.write(self.path / "b", *folders.FAMILIES["bert"](11, "F32"), "F32")
        experts = folders.write(self.path / "c", *folders.FAMILIES["mixtral"](11, "F32"), "F32")
        for source, words, says in (
                (llama, (), "the model is no encoder: --layer N"), (llama, ("--layer", 2), "the layers 0 to 1, not 2"),
                (bert, ("--layer", 0), "an encoder is written whole"), (experts, ("--layer", 0), 'the op "route" in layer 0'),
                (bert, ("--activations", "static"), "no ranges of inputs: compress it first"),
                (bert, ("--activations", "block"), "dynamic, static or float"), (bert, ("--else", "F16"), "alone")):
            with self.subTest(says):
                done = self.nibble("compress", source, "-o", self.path / "x.onnx", "--format", "onnx", "--to", "F32", *words)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(says, done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
