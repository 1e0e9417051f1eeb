"""The schemes of `nibble compress` beside numpy: the codes and scales of weights, and of activations what both devices compute
with them. llama.cpp loads each file, and its perplexity is ours.

usage: test_schemes.py NIBBLE ENGINE-LOGITS DEVICE...    (NIBBLE_TEST_* name the service's programs, as in tests/service)
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
import harness
import llama
import llama_numpy
from measures import counted, divergence, perplexity

NIBBLE, ENGINE_LOGITS, *DEVICES = sys.argv[1:]
F = np.float32
# Rows of 192 are 1.5 groups of 128.
CASE = families.Case("llama", "schemes", families.size(192, 320, 6, 2, 32, L=2), "output V E; ")
TOKENS = np.random.default_rng(3).integers(0, 256, 96).astype("<i4")
TEXT = counted(60)
SAMPLES, LENGTH = 6, 40
# name: group (0: a row, None: a tensor), lowest and highest code; then with a minimum.
SYMMETRIC = {"int8-g64": (64, -127, 127), "int8-g128": (128, -127, 127), "int8-channel": (0, -127, 127),
             "int8-tensor": (None, -127, 127), "int4-g64": (64, -8, 7), "int4-g128": (128, -8, 7), "int4-channel": (0, -8, 7),
             "int3-g32": (32, -4, 3), "int3-g64": (64, -4, 3), "int3-g128": (128, -4, 3), "int2-g32": (32, -2, 1),
             "int2-g128": (128, -1, 2)}
AFFINE = {"int4-g64-min": (64, 15), "int4-g128-min": (128, 15), "int4-channel-min": (0, 15), "int3-g32-min": (32, 7),
          "int3-g64-min": (64, 7), "int3-g128-min": (128, 7), "int2-g32-min": (32, 3), "int2-g64-min": (64, 3),
          "int2-g128-min": (128, 3)}
ZERO = ["int8-channel-zero", "int8-tensor-zero"]
SAME = {"int8-g32": "Q8_0", "int4-g32": "Q4_0", "int4-g32-min": "Q4_1", "int5-g32": "Q5_0", "int2-g64": "Q2_0"}


def half(x):
    return x.astype(np.float16).astype(F)


def inverse(d):
    with np.errstate(divide="ignore"):
        return np.where(np.abs(d) > F(1e-30), F(1) / d, F(0))


def groups(cols, group):
    """[(first column, end)] of a row."""
    return [(k, min(k + (group or cols), cols)) for k in range(0, cols, group or cols)]


def symmetric(w, group, low, high):
    """(what is decoded, the scale of each weight) of a matrix, rounded to nearest."""
    found, scales = np.zeros_like(w), np.zeros_like(w)
    for k, end in groups(w.shape[1], group):
        x = w[:, k:end] if group is not None else w.reshape(1, -1)
        least, most = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        extreme = np.where(-least > most, least, most)
        d = half(np.abs(extreme) / F(high) if high == -low else np.abs(extreme) if low == -1 else extreme / F(low))
        found[:, k:end] = np.rint(np.clip(w[:, k:end] * inverse(d), F(low), F(high))) * d
        scales[:, k:end] = d
    return found, scales


def affine(w, group, high):
    found, scales = np.zeros_like(w), np.zeros_like(w)
    for k, end in groups(w.shape[1], group):
        x = w[:, k:end]
        m, most = half(x.min(axis=1, keepdims=True)), x.max(axis=1, keepdims=True)
        d = half((most - x.min(axis=1, keepdims=True)) / F(high))
        found[:, k:end] = np.rint(np.clip((x - m) * inverse(d), F(0), F(high))) * d + m
        scales[:, k:end] = d
    return found, scales


def with_zero(w, name):
    """s (q - z), as halves."""
    axis = None if "tensor" in name else 1
    least = np.minimum(w.min(axis=axis, keepdims=True), F(0))
    s = (np.maximum(w.max(axis=axis, keepdims=True), F(0)) - least) / F(255)
    safe = np.where(s > 0, s, F(1))
    z = np.rint(-least / safe)
    return (s * (np.clip(np.rint(w / safe) + z, 0, 255) - z)).astype(np.float16)


def scales_of(t):
    """The fp16 scale of each weight as a file's blocks have it."""
    block, size = gguf.GGML_QUANT_SIZES[t.tensor_type]
    blocks = t.data.reshape(len(t.data), -1, size)
    return np.repeat(blocks[..., :2].copy().view(np.float16)[..., 0].astype(F), block, axis=1)


def hard(arrays):
    """Rows that break encoders, in one matrix of a model."""
    w = arrays["blk.0.ffn_gate.weight"]
    w[0], w[1], w[2], w[3] = 0, 0.25, -0.125, 7 + 0.001 * w[3]
    w[4, 5], w[5, 100], w[6] = 3000, -3000, w[6] * F(1e-7)
    w[7] = np.where(np.arange(len(w[7])) % 7, 0, w[7])
    w[8], w[9] = np.abs(w[8]), -np.abs(w[9])
    return arrays


def tensors(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def floats(t):
    return gguf.quants.dequantize(t.data, t.tensor_type)


def codes(x, s):
    return np.clip(np.rint(x / s), -127, 127) * s


def quantizer(scheme, ranges):
    """What becomes of a matrix's input."""
    def blocks(x, name):
        b = x.reshape(len(x), -1, 32)
        return codes(b, np.abs(b).max(axis=2, keepdims=True) / 127).reshape(x.shape)

    return {"block": blocks, "dynamic": lambda x, name: codes(x, np.abs(x).max(axis=1, keepdims=True) / 127),
            "static": lambda x, name: codes(x, ranges[name] / 127)}[scheme]


class Schemes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon("[jobs]\nidle = 0\n")
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        cls.arrays, cls.model = hard(families.weights(CASE)), cls.path / "hard.gguf"
        families.write(cls.model, CASE, cls.arrays)
        cls.plain, cls.text = cls.path / "plain.gguf", cls.path / "text.txt"
        arrays = families.weights(CASE)
        for name, w in arrays.items():  # channels of very different size, as norms of real models leave them; small logits
            if name.endswith("_norm.weight"):
                w *= 0.1 if name.startswith("output") else np.exp(np.random.default_rng(7).normal(0, 1.2, len(w))).astype(F)
        families.write(cls.plain, CASE, arrays)
        cls.text.write_text(TEXT)

    def nibble(self, *words):
        return subprocess.run([NIBBLE, *map(str, words), "--socket", self.daemon.runtime / "nibble.sock"], capture_output=True,
                              text=True, timeout=120)

    def compress(self, source, *words):
        """The compressed file's tensors, and the report."""
        self.out = self.path / "out.gguf"
        done = self.nibble("compress", source, "-o", self.out, "--force", "--json", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout)
        if any(t["type"] == "Q2_0" for t in report["tensors"]):  # which python gguf does not know: its floats
            done = self.nibble("convert", self.out, "-o", self.path / "floats.gguf", "--to", "F32", "--force")
            self.assertEqual(done.returncode, 0, done.stderr)
            return tensors(self.path / "floats.gguf"), report
        return tensors(self.out), report

    def logits(self, device, precision, path=None):
        tokens, out = self.path / "tokens", self.path / "logits"
        TOKENS.tofile(tokens)
        done = subprocess.run([ENGINE_LOGITS, path or self.out, tokens, "--precision", precision, "--ctx", "128", "--threads", "1",
                               "--device", device, "-o", out], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return np.fromfile(out, "<f4").reshape(len(TOKENS), -1)

    def matrices(self):
        return {name: w for name, w in self.arrays.items() if w.ndim == 2}

    # ---- Weights

    def test_symmetric(self):
        for name, (group, low, high) in SYMMETRIC.items():
            found, report = self.compress(self.model, "--to", name)
            for tensor, w in self.matrices().items():
                with self.subTest(f"{name}: {tensor}"):
                    wanted, scales = symmetric(w, group, low, high)
                    if found[tensor].tensor_type != gguf.GGMLQuantizationType.F32:
                        np.testing.assert_array_equal(scales_of(found[tensor]), scales)
                    np.testing.assert_array_equal(floats(found[tensor]), wanted)

    def test_affine(self):
        for name, (group, high) in AFFINE.items():
            found, _ = self.compress(self.model, "--to", name)
            for tensor, w in self.matrices().items():
                with self.subTest(f"{name}: {tensor}"):
                    wanted, scales = affine(w, group, high)
                    if found[tensor].tensor_type != gguf.GGMLQuantizationType.F32:
                        np.testing.assert_array_equal(scales_of(found[tensor]), scales)
                    np.testing.assert_array_equal(floats(found[tensor]), wanted)

    def test_zero_point(self):
        for name in ZERO:
            found, _ = self.compress(self.model, "--to", name)
            for tensor, w in self.matrices().items():
                with self.subTest(f"{name}: {tensor}"):
                    np.testing.assert_array_equal(found[tensor].data, with_zero(w, name))

    def test_types(self):
        for name, kind in SAME.items():
            of_scheme, _ = self.compress(self.model, "--to", name)
            kept = {n: t.data.tobytes() for n, t in of_scheme.items()}
            of_type, report = self.compress(self.model, "--to", kind)
            self.assertEqual(kept, {n: t.data.tobytes() for n, t in of_type.items()})
            self.assertNotIn("scheme", report["tensors"][0])

    def test_report(self):
        recipe = self.path / "recipe.json"
        recipe.write_text(json.dumps({"to": "int4-g128", "output": "int8-tensor", "tensors": [
            {"match": "ffn_down", "to": "int4-channel-min"}, {"match": "attn_q", "to": "Q4_0"}]}))
        _, report = self.compress(self.model, "--recipe", recipe)
        said = {t["name"]: t for t in report["tensors"]}
        bits = lambda name: (said[name]["type"], said[name].get("scheme"), said[name]["bits"], round(said[name].get("scheme_bits", 0), 3))
        self.assertEqual(bits("blk.0.attn_k.weight"), ("Q4_0", "int4-g128", 4.5, round(4 + 2 * 16 / 192, 3)))
        self.assertEqual(bits("blk.1.ffn_down.weight"), ("Q4_1", "int4-channel-min", 5.0, 4 + 32 / 320))
        self.assertEqual(bits("output.weight"), ("Q8_0", "int8-tensor", 8.5, 8.0))
        self.assertEqual(bits("blk.0.attn_q.weight"), ("Q4_0", None, 4.5, 0))

    def test_searched(self):
        """With an importance the error that counts is smaller than plain rounding's, and neighbours share scales still."""
        how = ("--calibration", self.text, "--samples", SAMPLES, "--length", LENGTH, "--save-imatrix", self.path / "im.gguf")
        for name in ("int8-channel", "int4-g128", "int4-g64-min", "int3-g64", "int2-g128"):
            plain = {n: floats(t) for n, t in self.compress(self.plain, "--to", name)[0].items()}
            found, _ = self.compress(self.plain, "--to", name, *how)
            weights = {n: np.array(t.data) for n, t in tensors(self.path / "im.gguf").items()}
            exact = {n: t.data for n, t in tensors(self.plain).items()}
            group = {**SYMMETRIC, **AFFINE}[name][0] or 10 ** 9
            for tensor in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight"):
                error = lambda x: (((x.astype(np.float64) - exact[tensor]) ** 2) @ weights[tensor + ".in_sum2"].ravel()).sum()
                ours = floats(found[tensor])
                self.assertLess(error(ours), (1 if "int8" in name else 0.97) * error(plain[tensor]), (name, tensor))
                if found[tensor].tensor_type == gguf.GGMLQuantizationType.F32:
                    continue
                scales = scales_of(found[tensor])
                for k, end in groups(scales.shape[1], min(group, scales.shape[1])):
                    self.assertTrue((scales[:, k:end] == scales[:, k:k + 1]).all(), (name, tensor))

    def test_llama_cpp(self):
        for name in ("int8-channel", "int8-tensor", "int8-channel-zero", "int4-g64", "int4-g128-min", "int3-g32", "int2-g128"):
            with self.subTest(name):
                self.compress(self.plain, "--to", name, "--activations", "dynamic")
                ours, other = self.logits("cpu", "exact"), llama.logits_of(self.out, TOKENS)
                self.assertLess(abs(perplexity(other, TOKENS) / perplexity(ours, TOKENS) - 1), 0.005)
                self.assertLess(divergence(ours, other), 2e-3)

    # ---- Activations

    def ranges(self):
        fields = gguf.GGUFReader(self.out).fields
        if "nibble.activations.ranges" not in fields:
            return None
        return dict(zip(fields["nibble.activations.matrices"].contents(), fields["nibble.activations.ranges"].contents()))

    def test_devices(self):
        """Logits of both devices beside a float model whose inputs are rounded as the file says, and beside those of the other
        schemes, which must be further away."""
        for scheme in ("block", "dynamic", "static"):
            words = ("--range", "99", "--spread", "0", "--calibration", self.text, "--samples", SAMPLES, "--length", LENGTH) if scheme == "static" else ()
            self.compress(self.plain, "--to", "int8-channel", "--activations", scheme, *words)
            ranges = self.ranges() or dict.fromkeys(tensors(self.out), 4.0)
            simulated = {s: llama_numpy.Llama(self.out, None, quantizer(s, ranges), np.float16).logits(TOKENS)
                         for s in ("block", "dynamic", "static")}
            exact = llama_numpy.Llama(self.out).logits(TOKENS)
            for device in DEVICES:
                for precision in ("fast", "balanced") if scheme != "block" and device == "cpu" else ("fast",):
                    with self.subTest(f"{scheme}, {device}, {precision}"):
                        found = self.logits(device, precision)
                        off = {s: divergence(x, found) for s, x in simulated.items()}
                        self.assertLess(off[scheme], 3e-5)
                        self.assertLess(off[scheme], 0.05 * min(v for s, v in off.items() if s != scheme))
                self.assertLess(divergence(exact, self.logits(device, "exact")), 1e-6)

    def seen(self):
        """The magnitudes of each matrix's inputs in the calibration's windows."""
        model = llama.Model(self.plain)
        tokens = model.tokenize(TEXT)
        model.close()
        room, found = len(tokens) - LENGTH, {}

        def see(x, name):
            found.setdefault(name, []).append(np.abs(x).ravel())
            return x

        oracle = llama_numpy.Llama(self.plain, None, see)
        for i in range(SAMPLES):
            oracle.logits(tokens[i * room // (SAMPLES - 1):][:LENGTH])
        return {name: np.concatenate(x) for name, x in found.items()}

    def test_ranges(self):
        seen = self.seen()
        how = ("--calibration", self.text, "--samples", SAMPLES, "--length", LENGTH)
        static = lambda *words: self.compress(self.plain, "--to", "Q8_0", "--activations", "static", "--spread", 0, *words, *how)
        static("--range", "minmax")
        self.assertEqual(set(self.ranges()), set(seen))
        for name, r in self.ranges().items():
            self.assertAlmostEqual(r / seen[name].max(), 1, delta=1e-5)
        static("--range", "97.5")
        for name, r in self.ranges().items():
            self.assertGreaterEqual((seen[name] <= r * (1 + 1e-6)).mean(), 0.975, name)
            self.assertLess((seen[name] <= r / 1.04).mean(), 0.975, name)
        static("--range", "mse")
        for name, r in self.ranges().items():
            x = seen[name]
            error = lambda a: ((x - codes(x, a / 127)) ** 2).mean()
            self.assertLess(error(r), 1.03 * min(error(a) for a in x.max() * np.linspace(0.2, 1, 161)), name)

    def test_spread(self):
        """A matrix whose inputs have no one scale stays dynamic, and so both devices compute it."""
        how = ("--calibration", self.text, "--samples", SAMPLES, "--length", LENGTH)
        ratio = {name: x.max() / np.quantile(x, 0.999) for name, x in self.seen().items()}
        spread = round(float(np.median(list(ratio.values()))), 3)
        _, report = self.compress(self.plain, "--to", "int8-channel", "--activations", "static", "--spread", spread, *how)
        said = {t["name"]: t.get("inputs") for t in report["tensors"]}
        ranges = self.ranges()
        for name, r in ratio.items():
            if abs(r / spread - 1) > 0.04:  # a bin's width
                self.assertEqual(ranges[name] == 0, r > spread, name)
            self.assertEqual(said[name], "dynamic" if ranges[name] == 0 else said[name])
        self.assertEqual(len({r == 0 for r in ranges.values()}), 2)
        static, dynamic = quantizer("static", ranges), quantizer("dynamic", None)
        wanted = llama_numpy.Llama(self.out, None, lambda x, n: (static if ranges[n] else dynamic)(x, n), np.float16).logits(TOKENS)
        for device in DEVICES:
            self.assertLess(divergence(wanted, self.logits(device, "fast")), 3e-5)

    def test_refusals(self):
        for complaint, *words in (
                ('its "scheme" is one of block, dynamic, static', "--recipe", {"to": "Q8_0", "activations": {"scheme": "int4"}}),
                ('beside the "scheme" is of a static one', "--recipe", {"to": "Q8_0", "activations": {"scheme": "dynamic", "range": "mse"}}),
                ('its "percentile" is a number from 50 to 100', "--recipe",
                 {"to": "Q8_0", "activations": {"scheme": "static", "range": "percentile", "percentile": 3}}),
                ('a "percentile" is of the "range" percentile', "--recipe",
                 {"to": "Q8_0", "activations": {"scheme": "static", "percentile": 99}}),
                ('its "spread" is a number from 0 to', "--recipe", {"to": "Q8_0", "activations": {"scheme": "static", "spread": -1}}),
                ('"activations" has a "scheme"', "--recipe", {"to": "Q8_0", "activations": {"scheme": "static", "clip": 1}}),
                ("no type of GGUF holds nf4: a Hugging Face folder does", "--recipe", {"to": "nf4"}),
                ("nor a scheme as int8-channel", "--to", "int9-channel")):
            with self.subTest(complaint):
                if isinstance(words[1], dict):
                    (self.path / "recipe.json").write_text(json.dumps(words[1]))
                    words[1] = self.path / "recipe.json"
                done = self.nibble("compress", self.plain, "-o", self.path / "never.gguf", *words)
                self.assertEqual((done.returncode, len(done.stderr.splitlines())), (1, 1), done.stderr)
                self.assertRegex(done.stderr, complaint)
        self.compress(self.plain, "--to", "Q8_0", "--activations", "dynamic")
        done = self.nibble("compress", self.out, "-o", self.path / "never.gguf", "--to", "Q4_0", "--activations", "dynamic")
        self.assertRegex(done.stderr, "the source has a scheme of activations already")

    def test_hostile_files(self):
        """A file's lists of ranges are anyone's."""
        for complaint, scheme, names, ranges in (
                ("is neither .dynamic. nor .static.", "per-token", None, None),
                ("are lists of one length", "static", None, None),
                ("are lists of one length", "static", ["output.weight"], [1.0, 2.0]),
                ("are lists of one length", "static", ["a"] * 1000, [1.0] * 1000),
                ("element 1 is neither 0 nor a number from", "static", ["a", "b"], [1.0, float("nan")]),
                ("element 0 is neither 0 nor a number from", "static", ["a"], [-1.0]),
                ("has no matrix blk.0.attn_q.weight", "static", ["output.weight"], [1.0])):
            with self.subTest((complaint, names and len(names))):
                path = self.path / "hostile.gguf"
                self.rewrite(path, scheme, names, ranges)
                done = subprocess.run([ENGINE_LOGITS, path, self.tokens(), "--ctx", "128", "-o", self.path / "never"],
                                      capture_output=True, text=True)
                self.assertEqual(done.returncode, 1)
                self.assertRegex(done.stderr, complaint)

    def tokens(self):
        TOKENS.tofile(self.path / "tokens")
        return self.path / "tokens"

    def rewrite(self, path, scheme, names, ranges):
        case = CASE
        writer_keys = {**families.keys(case)}
        self.compress(self.plain, "--to", "Q8_0")
        reader, writer = gguf.GGUFReader(self.out), gguf.GGUFWriter(path, "llama")
        for key, value in writer_keys.items():
            writer.add_key_value(f"llama.{key}", value, {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32,
                                                         float: gguf.GGUFValueType.FLOAT32}[type(value)])
        families.vocabulary(writer, case)
        writer.add_string("nibble.activations.scheme", scheme)
        if names:
            writer.add_array("nibble.activations.matrices", names)
            writer.add_array("nibble.activations.ranges", ranges)
        for t in reader.tensors:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
