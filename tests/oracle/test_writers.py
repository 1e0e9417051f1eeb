"""Hugging Face folders that `nibble convert` and `nibble compress` write: read back they are the model they were made of; NF4
and INT8 are what numpy makes of the documented definitions, in both directions; damaged ones are refused by name.

usage: test_writers.py NIBBLE    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import folders
import harness
import quantized_numpy as quantized

NIBBLE, = sys.argv[1:]
SHAPE = (2, 64, 192, 4, 2)  # layers, width, FFN, heads, KV heads: whole blocks of 64
ABSMAX, MAP = ".absmax", ".nested_quant_map"


def nibble(*words):
    done = subprocess.run([NIBBLE, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert "Sanitizer" not in done.stderr, done.stderr
    return done


def keys(path):
    """A GGUF's metadata, without what a reader may derive."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()
            if not name.startswith("GGUF.") and name != "tokenizer.ggml.add_sep_token"}


def tensors(path):
    return {t.name: (t.tensor_type, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def rotary(w, heads):
    """Rows as a GGUF has them: rotary pairs side by side."""
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


class Writers(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.path = pathlib.Path(scratch.name)

    def convert(self, source, name, *words):
        done = nibble("convert", source, "-o", self.path / name, *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.path / name

    def refused(self, source, *words):
        done = nibble("convert", source, "-o", self.path / "refused", *words)
        self.assertNotEqual(done.returncode, 0)
        self.assertFalse(list(self.path.glob("refused*")))
        return done.stderr

    def model(self, seed=5):
        """A llama whose rows are whole blocks of 64: its folder, and its weights."""
        config = folders.config("LlamaForCausalLM", "llama", *SHAPE, rope_theta=10000.0, tie_word_embeddings=False)
        weights = folders.decoder(folders.Random(seed, "F16"), *SHAPE, 16)
        weights["model.layers.0.mlp.up_proj.weight"][3, 64:128] = 0  # a block of zeros
        return folders.write(self.path / f"model{seed}", config, weights, "F16"), weights

    def test_what_comes_back(self):
        for family, make in folders.FAMILIES.items():
            for dtype in ("F32", "BF16"):
                with self.subTest(f"{family} {dtype}"):
                    folder = folders.write(self.path / f"{family}-{dtype}", *make(11, dtype), dtype)
                    file = self.convert(folder, f"{family}-{dtype}.gguf")
                    for source in (folder, file):
                        name = f"{family}-{dtype}-{'folder' if source == folder else 'file'}"
                        again = self.convert(self.convert(source, name, "--format", "safetensors"), f"{name}.gguf")
                        self.assertEqual(tensors(again), tensors(file))
                        self.assertEqual(keys(again), keys(file))

    def test_texts_are_copied(self):
        folder, weights = self.model()
        out = self.convert(folder, "out", "--format", "safetensors", "--to", "BF16")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            self.assertEqual((out / name).read_bytes(), (folder / name).read_bytes())
        config = json.loads((folder / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
        self.assertEqual(json.loads((out / "config.json").read_text()), config)
        for name, x in quantized.read(out).items():
            self.assertEqual(x.tobytes(), (folders.kept(weights[name], "BF16") if x.ndim > 1 else weights[name]).tobytes())

    def linear(self, weights):
        return {name: w for name, w in weights.items() if w.ndim > 1 and "embed" not in name and "lm_head" not in name}

    def test_nf4(self):
        folder, weights = self.model()
        found = quantized.read(self.convert(folder, "nf4", "--to", "NF4"))
        config = json.loads((self.path / "nf4" / "config.json").read_text())["quantization_config"]
        self.assertEqual((config["quant_method"], config["bnb_4bit_quant_type"], config["bnb_4bit_use_double_quant"],
                          config["llm_int8_skip_modules"]), ("bitsandbytes", "nf4", True, ["lm_head"]))
        for name, w in self.linear(weights).items():
            wanted = quantized.encode_nf4(w)
            self.assertEqual(found[name].tobytes(), wanted[""].tobytes(), name)
            self.assertEqual(found[name].shape, wanted[""].shape)
            np.testing.assert_allclose(found[name + MAP], quantized.dynamic_map(), rtol=3e-7, atol=1e-12)
            np.testing.assert_allclose(found[name + ".nested_absmax"], wanted[".nested_absmax"], rtol=1e-6)
            # A scale that lies between two entries of the map may fall to either side.
            off = np.abs(found[name + ABSMAX].astype(int) - wanted[ABSMAX].astype(int))
            self.assertLessEqual(off.max(), 1)
            self.assertLess((off > 0).mean(), 0.01)
            self.assertLess(np.abs(quantized.decode_nf4(found, name) - w).max(), 0.16 * np.abs(w).max())
        self.assertEqual(found["model.embed_tokens.weight"].dtype, np.float16)
        again = quantized.read(self.convert(self.path / "nf4", "again", "--to", "NF4"))  # keeps its codes
        for name in self.linear(weights):
            self.assertEqual(again[name].tobytes(), found[name].tobytes(), name)

    def test_int8(self):
        folder, weights = self.model()
        found = quantized.read(self.convert(folder, "int8", "--to", "INT8"))
        for name, w in self.linear(weights).items():
            for suffix, wanted in quantized.encode_int8(w).items():
                self.assertEqual(found[name + suffix].tobytes(), wanted.tobytes(), name + suffix)
            self.assertEqual(found[name + "_scale"].shape, (len(w), 1))

    def theirs(self, folder, weights, encode):
        """The folder with linear layers as numpy has them; and its tensors."""
        found = {}
        for name, w in weights.items():
            if name in self.linear(weights):
                found |= {name + suffix: x for suffix, x in encode(w).items()}
            else:
                found[name] = w.astype(np.float16 if w.ndim > 1 else np.float32)
        quantized.write(folder, found)
        return found

    def test_reads_what_numpy_writes(self):
        def plain_nf4(w):  # no double quantization
            parts = quantized.encode_nf4(w)
            state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(w.shape)}
            most = np.abs(quantized.blocks(w, 64)).max(axis=1)
            return {"": parts[""], ABSMAX: most, ".quant_map": quantized.VALUES,
                    quantized.STATE: np.frombuffer(json.dumps(state).encode(), np.uint8)}

        nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        int8 = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": {
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}}}}
        for kind, encode, config in (("nested", quantized.encode_nf4, nf4), ("plain", plain_nf4, nf4),
                                     ("int8", quantized.encode_int8, int8)):
            with self.subTest(kind):
                folder, weights = self.model()
                text = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
                (folder / "config.json").write_text(json.dumps(text))
                found = self.theirs(folder, weights, encode)
                ours = {t.name: t for t in gguf.GGUFReader(self.convert(folder, f"{kind}.gguf", "--to", "F32")).tensors}
                for part, gguf_name, heads in (("self_attn.q_proj", "attn_q", SHAPE[3]), ("mlp.down_proj", "ffn_down", 0),
                                               ("self_attn.k_proj", "attn_k", SHAPE[4])):
                    w = quantized.decode(found, f"model.layers.1.{part}.weight").astype(np.float32)
                    self.assertEqual(ours[f"blk.1.{gguf_name}.weight"].data.tobytes(),
                                     (rotary(w, heads) if heads else w).tobytes(), part)

    def test_hostile(self):
        name = "model.layers.0.mlp.down_proj.weight"

        def state(**changes):
            def change(found):
                text = json.loads(found[name + quantized.STATE].tobytes()) | changes
                found[name + quantized.STATE] = np.frombuffer(json.dumps(text).encode(), np.uint8)
            return change

        def part(suffix, make):
            return lambda found: found.update({name + suffix: make(found[name + suffix])})

        def number(suffix, value):
            def make(x):
                x = x.copy()
                x[0] = value
                return x
            return part(suffix, make)

        cases = {
            "no state": (lambda found: found.pop(name + quantized.STATE), ["lacks its quant_state.bitsandbytes__nf4"]),
            "no scales": (lambda found: found.pop(name + ABSMAX), ["lacks its absmax"]),
            "too few scales": (part(ABSMAX, lambda x: x[:-1]), ["absmax of U8 and"]),
            "scales of floats": (part(ABSMAX, lambda x: x.astype(np.float32)), ["absmax of F32"]),
            "another shape": (state(shape=[64, 64]), ["not two codes in each for 64 by 64"]),
            "a shape that overflows": (state(shape=[2 ** 62, 4]), ["without a shape"]),
            "narrow rows": (state(shape=[64 * 6, 32]), ["rows of 32 elements"]),
            "FP4": (state(quant_type="fp4"), ["is not NF4"]),
            "odd blocks": (state(blocksize=96), ["multiple of 64"]),
            "no offset": (state(nested_offset="x"), ["nested_offset"]),
            "an endless offset": (state(nested_offset=1e300), ["nested_offset"]),
            "a nested block of none": (state(nested_blocksize=0), ["nested_blocksize"]),
            "other values": (number(".quant_map", -0.5), ["other values than NF4's"]),
            "a map with a NaN": (number(MAP, np.nan), ["nested_quant_map", "not finite"]),
            "a scale with a NaN": (number(".nested_absmax", np.nan), ["blk.0.ffn_down.weight", "NaN"]),
            "one more tensor": (lambda found: found.update({name + ".absmin": found[name + ABSMAX]}), ["absmin", "no place"]),
        }
        nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        for what, (change, says) in cases.items():
            with self.subTest(what):
                folder, weights = self.model()
                config = json.loads((folder / "config.json").read_text()) | {"quantization_config": nf4}
                (folder / "config.json").write_text(json.dumps(config))
                found = self.theirs(folder, weights, quantized.encode_nf4)
                change(found)
                quantized.write(folder, found)
                error = self.refused(folder, "--to", "F32")
                for words in says:
                    self.assertIn(words, error)

    def test_refusals(self):
        folder, _ = self.model()
        file = self.convert(folder, "file.gguf")
        self.assertIn("no GGUF has NF4", self.refused(folder, "--to", "NF4", "--format", "gguf"))
        done = nibble("convert", folder, "-o", self.path / "x.gguf", "--to", "NF4")
        self.assertIn("no GGUF has NF4", done.stderr)
        self.assertIn("exists", nibble("convert", folder, "-o", folder, "--format", "safetensors").stderr)
        w = gguf.GGUFWriter(self.path / "other.gguf", "gpt2")
        w.add_block_count(1)
        w.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
        for step in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close):
            step()
        self.assertIn("the model is a gpt2; folders are written of",
                      self.refused(self.path / "other.gguf", "--format", "safetensors"))
        data = bytearray(file.read_bytes())
        at = data.index(b"llama.vocab_size") + len(b"llama.vocab_size") - 1
        data[at:at + 1] = b"_"  # a key that no folder has
        (self.path / "odd.gguf").write_bytes(data)
        self.assertIn("llama.vocab_siz_", self.refused(self.path / "odd.gguf", "--format", "safetensors"))

    def test_rows_that_do_not_fit(self):
        folder = folders.write(self.path / "qwen2", *folders.FAMILIES["qwen2"](11, "BF16"), "BF16")
        done = nibble("convert", folder, "-o", self.path / "out", "--to", "NF4")
        self.assertIn("are F16, as NF4 takes rows of whole blocks alone", done.stdout)
        skipped = json.loads((self.path / "out" / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
        self.assertIn("model.layers.0.mlp.down_proj", skipped)

    def test_service(self):
        """The job writes what `convert` writes, and the daemon computes with NF4 what it computes with its floats."""
        daemon = harness.Daemon("[jobs]\nidle = 0\n[limits]\nchannel-bytes-per-user = 1000000000\n",
                                os.environ["NIBBLE_TEST_WORKER"])
        self.addCleanup(daemon.finish)
        socket = "--socket", daemon.runtime / "nibble.sock"
        folder, weights = self.model()
        text = self.path / "text"
        text.write_text("the sea was calm and nobody spoke of the storm " * 20)
        for kind, most in (("NF4", 0), ("INT8", 1e-7)):
            with self.subTest(kind):
                wanted = self.convert(folder, kind, "--to", kind)
                out = self.path / f"{kind}-job"
                done = nibble("compress", folder, "-o", out, "--to", kind, *socket)
                self.assertEqual(done.returncode, 0, done.stderr)
                for file in wanted.iterdir():
                    self.assertEqual((out / file.name).read_bytes(), file.read_bytes(), file.name)
                floats = self.convert(out, f"{kind}.gguf", "--to", "F32")
                done = nibble("eval", out, "-r", floats, "-t", text, "-c", 64, "--precision", "exact", "--json", *socket)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertLessEqual(json.loads(done.stdout)["kld_mean"], most)
        done = nibble("compress", folder, "-o", self.path / "fed", "--to", "NF4", "--method", "gptq", "--calibration", text,
                      "--samples", 4, "--length", 16, *socket)
        self.assertEqual(done.returncode, 0, done.stderr)
        found = quantized.read(self.path / "fed")
        for name, w in weights.items():
            error = np.abs(quantized.decode(found, name) - w)
            self.assertLess(error.mean(), 0.2 * np.abs(w).mean(), name)
        for words, says in ((["--to", "NF4", "--fold", "awq"], "a folder is of --to F32"),
                            (["--to", "INT8", "--calibration", text], "methods and text are of NF4"),
                            (["--to", "NF4", "--method", "tune"], 'a folder\'s "method" is search or gptq')):
            done = nibble("compress", folder, "-o", self.path / "x", *words, *socket)
            self.assertIn(says, done.stderr)
            self.assertFalse((self.path / "x").exists())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
