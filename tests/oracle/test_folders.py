"""Hugging Face folders beside numpy, llama.cpp and python gguf: what `nibble convert` writes computes what transformers'
description of the model says, and a folder is packed to the very image that its GGUF is packed to.

usage: test_folders.py NIBBLE IMAGES    (the command line, and the filter of images.c; NIBBLE_TEST_* name the service's
programs, as in tests/service)
"""
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import unittest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import folders
import folders_numpy
import harness
import llama
import llama_cpp as ll

NIBBLE, IMAGES = sys.argv[1:]
TOKENS = np.random.default_rng(3).integers(0, 258, 40)
# Of the largest logit. llama.cpp looks its GELU up in a table of half precision.
BOUNDS = {"gemma3": 5e-3}
# How each family's folder is saved: dtype and number of files.
SAVED = {"llama": ("F32", 1), "mistral": ("BF16", 3), "mixtral": ("F16", 4), "qwen2": ("BF16", 1), "qwen3": ("F16", 2),
         "gemma3": ("BF16", 1), "phi3": ("F32", 3), "bert": ("F32", 1)}


def convert(folder, out, *options):
    done = subprocess.run([NIBBLE, "convert", folder, "-o", out, *options], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return out


def images(*paths):
    return subprocess.run([IMAGES, *paths], capture_output=True, text=True, check=True).stdout.splitlines()


def keys(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def llama_logits(path, context):
    model = llama.Model(path)
    c = llama.Context(model, context, float_kv=True)
    c.decode(TOKENS, range(len(TOKENS)), [0] * len(TOKENS), [1] * len(TOKENS))
    found = c.logits(len(TOKENS))
    c.close()
    model.close()
    return found


def llama_vectors(path, tokens):
    """A vector a token of an encoder."""
    model = llama.Model(path)
    c = llama.Context(model, 64, float_kv=True, embeddings=True, pooling_type=0)
    c.decode(tokens, range(len(tokens)), [0] * len(tokens), [1] * len(tokens))
    n = ll.llama_model_n_embd(model.handle)
    found = np.stack([np.ctypeslib.as_array(ll.llama_get_embeddings_ith(c.handle, i), (n,)).copy()
                      for i in range(len(tokens))])
    c.close()
    model.close()
    return found


class Folders(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.path = pathlib.Path(self.scratch.name)

    def folder(self, family, **changes):
        dtype, shards = SAVED[family]
        config, weights = folders.FAMILIES[family](11, dtype)
        return config, weights, folders.write(self.path / family, config | changes, weights, dtype, shards)

    def assertNear(self, ours, theirs, bound):
        off = np.abs(ours - theirs).max() / np.abs(theirs).max()
        self.assertLess(off, bound)
        return off

    def test_logits(self):
        for family in folders.FAMILIES:
            with self.subTest(family):
                config, weights, folder = self.folder(family)
                path = convert(folder, self.path / f"{family}.gguf", "--to", "F32")
                if family == "bert":
                    theirs = folders_numpy.bert_vectors(config, weights, TOKENS % 57)
                    off = self.assertNear(llama_vectors(path, TOKENS % 57), theirs, 5e-3)
                else:
                    theirs = folders_numpy.Decoder(config, weights).logits(TOKENS)
                    off = self.assertNear(llama_logits(path, 64), theirs, BOUNDS.get(family, 1e-4))
                print(f"{family}: {off:.1e} of the largest", flush=True)

    def test_long_factors(self):
        config, weights, folder = self.folder("phi3")
        path = convert(folder, self.path / "phi3.gguf", "--to", "F32")
        theirs = folders_numpy.Decoder(config, weights).logits(TOKENS, long=True)
        self.assertNear(llama_logits(path, 512), theirs, 1e-4)  # beyond the original context

    def test_the_image_is_that_of_the_gguf(self):
        for family in folders.FAMILIES:
            with self.subTest(family):
                folder = self.folder(family)[2]
                path = convert(folder, self.path / f"{family}.gguf")
                ours, theirs = images(folder, path)
                self.assertRegex(ours, "^[0-9]+ ")
                self.assertEqual(ours, theirs)

    def test_values(self):
        """Types and bytes as python gguf's own; rows of Q and K in the order that stock llama.cpp wants."""
        config, weights, folder = self.folder("mistral")
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
                 "down_proj": "ffn_down"}
        for kind, unfit in (("Q8_0", {"ffn_down"}), ("F16", set()), ("BF16", set()), ("F32", set())):
            path = convert(folder, self.path / f"{kind}.gguf", "--to", kind)
            found = {t.name: t for t in gguf.GGUFReader(path).tensors}
            for theirs, ours in names.items():
                (w,) = (x for name, x in weights.items() if name.endswith(f"layers.0.{theirs}.weight")
                        or name.endswith(f"layers.0.self_attn.{theirs}.weight")
                        or name.endswith(f"layers.0.mlp.{theirs}.weight"))
                if ours in heads:
                    w = w.reshape(heads[ours], 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
                wanted = gguf.GGMLQuantizationType["F16" if ours in unfit else kind]
                t = found[f"blk.0.{ours}.weight"]
                self.assertEqual(t.tensor_type, wanted, t.name)
                expected = np.ascontiguousarray(gguf.quants.quantize(w, wanted))
                self.assertEqual(t.data.tobytes(), expected.tobytes(), t.name)
            norm = found["blk.0.attn_norm.weight"]
            self.assertEqual(norm.tensor_type, gguf.GGMLQuantizationType.F32)
            self.assertTrue((norm.data == weights["model.layers.0.input_layernorm.weight"]).all())

    def test_rows_that_do_not_fit_are_told(self):
        folder = self.folder("mistral")[2]
        command = [NIBBLE, "convert", folder, "-o", self.path / "out.gguf", "--to", "Q8_0"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        self.assertIn("2 of them are F16, as Q8_0 takes rows of whole blocks alone: blk.0.ffn_down.weight and others",
                      done.stdout)
        done = subprocess.run([*command, "--json", "--force"], capture_output=True, text=True, check=True)
        self.assertEqual(json.loads(done.stdout)["unfit"], 2)

    def test_file_types(self):
        folder = self.folder("mistral")[2]
        for option, number in ((["--to", "Q8_0"], 7), (["--to", "F32"], 0), ([], 32)):
            self.assertEqual(keys(convert(folder, self.path / "out.gguf", "--force", *option))["general.file_type"], number)

    # ---- Layouts of a folder

    def test_links_of_a_cache(self):
        folder = self.folder("mixtral")[2]
        blobs, snapshot = self.path / "blobs", self.path / "snapshots" / "5f0b02"
        blobs.mkdir()
        snapshot.mkdir(parents=True)
        for i, file in enumerate(sorted(folder.iterdir())):
            (blobs / f"{i:064x}").write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(f"../../blobs/{i:064x}")
        ours, theirs = images(snapshot, folder)
        self.assertEqual(ours, theirs)
        self.assertRegex(ours, "^[0-9]+ ")

    def test_sentence_transformers(self):
        folder = self.folder("bert")[2]
        outer, inner = self.path / "outer", self.path / "outer" / "0_Transformer"
        outer.mkdir()
        folder.rename(inner)
        kinds = [("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        (outer / "1_Pooling").mkdir()
        for modes, number in (({"pooling_mode_mean_tokens": True}, 1), ({"pooling_mode_cls_token": True}, 2),
                              ({"pooling_mode_lasttoken": True}, 3), ({"pooling_mode": "cls"}, 2)):
            (outer / "1_Pooling" / "config.json").write_text(json.dumps(modes | {"word_embedding_dimension": 60}))
            for n in (2, 3):
                modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                           for i, (kind, path) in enumerate(kinds[:n])]
                (outer / "modules.json").write_text(json.dumps(modules))
                found = keys(convert(outer, self.path / "out.gguf", "--force"))
                self.assertEqual(found["bert.pooling_type"], number)
                self.assertEqual(found["nibble.embedding.normalize"], n == 3)
        modules[2]["type"] = "sentence_transformers.models.Dense"
        (outer / "modules.json").write_text(json.dumps(modules))
        self.assertIn("modules.json: module 2 is sentence_transformers.models.Dense", images(outer)[0])

    def test_other_names(self):
        """What older and newer programs save is the same model."""
        def renamed(family, change, **others):
            config, weights, folder = self.folder(family)
            config = {name: value for name, value in (config | others).items() if value is not None}
            weights = {change(name): x for name, x in weights.items()}
            other = folders.write(self.path / "other", config, weights, SAVED[family][0])
            ours, theirs = images(folder, other)
            self.assertEqual(ours, theirs)
            self.assertRegex(ours, "^[0-9]+ ")

        renamed("qwen3", lambda name: name.removeprefix("model."))
        renamed("bert", lambda name: "bert." + name, architectures=["BertForMaskedLM"])
        renamed("bert", lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta"))
        scaling = folders.llama(11, "F32")[0]["rope_scaling"]
        renamed("llama", str, rope_scaling=None, rope_theta=None, rope_parameters=scaling | {"rope_theta": 10000.0})
        renamed("gemma3", str, rope_scaling=None, rope_theta=None, rope_local_base_freq=None, rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
            sliding_window_pattern=None, layer_types=["sliding_attention"] * 5 + ["full_attention", "sliding_attention"])

    def test_window_and_pattern(self):
        config = folders.gemma3(11, "BF16")[0]
        types = ["sliding_attention", "full_attention"] * 4
        folder = self.folder("gemma3", layer_types=types[:7])[2]
        found = keys(convert(folder, self.path / "out.gguf"))
        self.assertEqual(list(found["gemma3.attention.sliding_window_pattern"]), [1, 0, 1, 0, 1, 0, 1])
        self.assertEqual(found["gemma3.attention.sliding_window"], config["sliding_window"])
        folder = self.folder("mistral", sliding_window=100)[2]
        self.assertEqual(keys(convert(folder, self.path / "out.gguf", "--force"))["llama.attention.sliding_window"], 100)

    # ---- GGUF in parts

    def test_parts(self):
        """As python gguf splits a model."""
        folder = self.folder("mixtral")[2]
        whole = convert(folder, self.path / "whole.gguf")
        reader = gguf.GGUFReader(whole)
        writer = gguf.GGUFWriter(self.path / "part.gguf", "llama", split_max_tensors=7)
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
                value = field.contents()
                if value or kind != gguf.GGUFValueType.ARRAY:  # it writes no empty list
                    writer.add_key_value(field.name, value, kind, sub)
        for t in reader.tensors:
            writer.add_tensor(t.name, t.data, raw_shape=t.data.shape, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts = sorted(self.path.glob("part-*.gguf"))
        self.assertGreater(len(parts), 2)
        joined = convert(parts[0], self.path / "joined.gguf")
        ours = {t.name: (t.tensor_type, t.data.tobytes()) for t in gguf.GGUFReader(joined).tensors}
        self.assertEqual(ours, {t.name: (t.tensor_type, t.data.tobytes()) for t in reader.tensors})
        self.assertEqual(*images(parts[0], joined))
        self.assertIn("it is part 2 of", images(parts[1])[0])
        parts[2].unlink()
        self.assertIn(f"part 3 of {len(parts)}, {parts[2].name}, is not beside it: fetch it", images(parts[0])[0])

    # ---- The real encoder

    def test_minilm(self):
        folder = llama.CACHE / "models" / "all-MiniLM-L6-v2"
        path = convert(folder, self.path / "minilm.gguf")
        self.assertEqual(*images(folder, path))
        config = json.loads((folder / "config.json").read_text())
        raw = (folder / "model.safetensors").read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        weights = {}
        for name, t in json.loads(raw[8:start]).items():
            if name != "__metadata__" and t["dtype"] == "F32":
                first, last = t["data_offsets"]
                weights[name] = np.frombuffer(raw[start + first:start + last], "<f4").reshape(t["shape"])
        tokens = np.array([101, 1037, 4937, 7719, 2006, 1996, 13523, 1012, 102])
        ours, theirs = llama_vectors(path, tokens), folders_numpy.bert_vectors(config, weights, tokens)
        ours, theirs = ours.mean(axis=0), theirs.mean(axis=0)
        self.assertGreater(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs), 0.9999)


# ---- The service

# Families that the engine computes.
SERVED = [family for family in SAVED if family != "bert"]


class Service(unittest.TestCase):
    def nibble(self, *words, status=0):
        done = subprocess.run([NIBBLE, *words, "--socket", self.daemon.runtime / "nibble.sock"], capture_output=True,
                              text=True, timeout=120)
        self.assertEqual(done.returncode, status, done.stderr)
        return done.stderr if status else done.stdout

    def answer(self, name):
        return self.nibble("run", name, "--raw", "Hello, world", "-n", "24", "--seed", "5", "--temp", "0.8", "--json")

    def setUp(self):
        self.daemon = harness.Daemon()
        self.addCleanup(self.daemon.stop)
        self.path = pathlib.Path(self.daemon.dir.name)

    def test_answers(self):
        for family in SERVED:
            with self.subTest(family):
                dtype, shards = SAVED[family]
                folder = folders.write(self.path / family, *folders.FAMILIES[family](11, dtype), dtype, shards)
                path = convert(folder, self.path / f"{family}.gguf")
                for name, what in (("folder", f"{folder}/"), ("file", path)):
                    self.nibble("load", what, "--name", name, "--precision", "exact")
                ours, theirs = (json.loads(self.answer(name)) for name in ("folder", "file"))
                self.assertEqual(ours["text"], theirs["text"])
                self.assertGreater(len(ours["text"]), 0)
                # All files of the folder say whether it is the same.
                self.assertIn(f"loaded {family} ", self.nibble("load", f"{folder}/"))
                self.assertIn(f"model {family} shares the weights of folder", self.daemon.logged())
                self.nibble("unload", family)
                os.utime(folder / "tokenizer_config.json")
                self.nibble("load", folder)
                self.assertEqual(self.daemon.logged().count(f"model {family} shares"), 1)
                for name in ("folder", "file", family):
                    self.nibble("unload", name)

    def test_parts_and_broken_folders(self):
        folder = folders.write(self.path / "model", *folders.mistral(11, "BF16"), "BF16", 3)
        error = f"error: {folder}: "
        (folder / SHARD).rename(self.path / "away")
        said = self.nibble("load", folder, status=1)
        self.assertEqual(said, f"{error}model.safetensors.index.json names {SHARD}, which is not in the folder: fetch it\n")
        (self.path / "away").rename(folder / SHARD)
        changed(vision_config={})(folder)
        self.assertIn(f"{error}config.json: vision_config is", self.nibble("load", folder, status=1))
        self.assertIn("no config.json", self.nibble("load", self.path, status=1))
        self.assertEqual(json.loads(self.nibble("models", "--json"))["models"], [])
        self.assertEqual(self.daemon.fds().count("/memfd"), 0)


# ---- What is broken

def edit_json(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def without(key):
    return lambda folder: edit_json(folder, "config.json", lambda c: c.pop(key))


def changed(**values):
    return lambda folder: edit_json(folder, "config.json", lambda c: c.update(values))


SHARD = "model-00002-of-00003.safetensors"


def header(folder, change, extra=b"", file=SHARD):
    """Changes a file's header, as text; `extra` goes behind the data."""
    raw = (folder / file).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    text = change(raw[8:start].decode()).encode()
    (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + raw[start:] + extra)


def entries(change):
    def edit(text):
        content = json.loads(text)
        change(content, sorted((n for n in content if n != "__metadata__"), key=lambda n: content[n]["data_offsets"]))
        return json.dumps(content)
    return edit


def hole(content, names):
    for name in names[1:]:
        content[name]["data_offsets"] = [x + 4 for x in content[name]["data_offsets"]]


def overlap(content, names):
    content[names[1]]["data_offsets"] = [x - 4 for x in content[names[1]]["data_offsets"]]


def twice(content, names):
    content["a"] = content[names[0]]


def shard_of_another(folder):
    other = folder / "other"
    config, weights = folders.mistral(12, "BF16")
    weights = {name: x for i, (name, x) in enumerate(weights.items()) if i % 4}
    folders.write(other, config, weights, "BF16", 3)
    (other / SHARD).rename(folder / SHARD)


def cut(folder):
    raw = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(raw[:-100])


def zeros(folder):
    raw = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(raw[:len(raw) // 3] + bytes(len(raw) - len(raw) // 3))


def small_tokenizer(folder):
    edit_json(folder, "tokenizer.json", lambda t: t["model"]["vocab"].update({f"word{i}": 256 + i for i in range(100)}))


BROKEN = {
    "no config.json": (lambda f: (f / "config.json").unlink(), ["the folder has no config.json"]),
    "no tokenizer.json": (lambda f: (f / "tokenizer.json").unlink(), ["the folder has no tokenizer.json"]),
    "no weights": (lambda f: [p.unlink() for p in f.glob("model*")], ["neither model.safetensors nor"]),
    "a missing shard": (lambda f: (f / SHARD).unlink(), [f"model.safetensors.index.json names {SHARD}", "fetch it"]),
    "a shard of another model": (shard_of_another, [SHARD, "another model"]),
    "a cut shard": (cut, [SHARD, "truncated"]),
    "a shard that ends in zeros": (zeros, [SHARD, "is zero from tensor model.", "to its end"]),
    "a hole": (lambda f: header(f, entries(hole), b"abcd"), [SHARD, "comes behind a hole"]),
    "an overlap": (lambda f: header(f, entries(overlap)), [SHARD, "overlaps with another one"]),
    "bytes behind the last": (lambda f: header(f, str, b"abcd"), [SHARD, "4 bytes follow the last tensor"]),
    "a key twice": (lambda f: header(f, lambda text: text.replace("{", '{"__metadata__": {}, ', 1)), [SHARD, "duplicate"]),
    "two tensors in one place": (lambda f: header(f, entries(twice)), [SHARD, "overlaps with another one"]),
    "no JSON": (lambda f: header(f, lambda text: text.rstrip()[:-1]), [SHARD, "line 1"]),
    "an unknown dtype": (lambda f: header(f, lambda text: text.replace("BF16", "BF17")), [SHARD, "the unknown dtype BF17"]),
    "a dtype that is not read": (lambda f: header(f, lambda text: text.replace("BF16", "I16")), [SHARD, "dtype I16"]),
    "a shape of another size": (lambda f: header(f, lambda text: text.replace("[64]", "[63]")),
                                [SHARD, "by its shape and dtype"]),
    "a header beyond the file": (lambda f: (f / SHARD).write_bytes(b"\xff" * 7 + b"\0" * 9), [SHARD, "its header would have"]),
    "a tensor that the index lacks": (lambda f: edit_json(f, "model.safetensors.index.json",
                                                          lambda i: i["weight_map"].pop("lm_head.weight")),
                                      ["model-00003-of-00003.safetensors has tensor lm_head.weight", "does not place there"]),
    "a tensor that the index has alone": (lambda f: edit_json(f, "model.safetensors.index.json",
                                                              lambda i: i["weight_map"].update({"more.weight": SHARD})),
                                          [f"{SHARD} lacks tensor more.weight"]),
    "a layer too many": (changed(num_hidden_layers=3), ["tensor model.layers.2.", "is missing"]),
    "a layer too few": (changed(num_hidden_layers=1), ["tensor model.layers.1.", "has no place in a llama model of 1 layers"]),
    "heads that do not fit": (changed(num_attention_heads=7), ["q_proj.weight has 96 rows", "7 heads"]),
    "another vocabulary": (changed(vocab_size=301), ["config.json: vocab_size is 301", "has 300 rows"]),
    "a key that is missing": (without("rms_norm_eps"), ["config.json: it lacks rms_norm_eps"]),
    "no architecture": (without("architectures"), ["config.json: it lacks architectures"]),
    "an unknown family": (changed(architectures=["FooForCausalLM"]), ["config.json: the model is a FooForCausalLM", "Qwen3"]),
    "a vision tower": (changed(vision_config={"depth": 3}), ["config.json: vision_config is", "(a vision tower)"]),
    "a quantization": (changed(quantization_config={"bits": 4}), ["config.json: quantization_config is"]),
    "an unknown key": (changed(secret_factor=2), ["config.json: secret_factor is a key that Nibble does not know"]),
    "another activation": (changed(hidden_act="relu"), ['config.json: hidden_act is "relu" (another activation)']),
    "no number": (changed(hidden_size="64"), ['config.json: hidden_size is "64", not a whole number']),
    "an unknown scaling": (changed(rope_scaling={"type": "dynamic", "factor": 2}), ["config.json", "scaled by dynamic"]),
    "an unknown key of the scaling": (changed(rope_scaling={"type": "linear", "factor": 2, "mystery": 1}),
                                      ["config.json: mystery in its rope_scaling"]),
    "half of a head rotated": (changed(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
                               ["config.json: partial_rotary_factor in its rope_scaling"]),
    "a tokenizer that does not fit": (small_tokenizer, ["tokenizer.json", "300"]),
}


class Broken(unittest.TestCase):
    def test_one_clear_line_each(self):
        config, weights = folders.mistral(11, "BF16")
        for name, (spoil, says) in BROKEN.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as scratch:
                path = pathlib.Path(scratch)
                folder, out = folders.write(path / "model", config, weights, "BF16", 3), path / "out.gguf"
                spoil(folder)
                done = subprocess.run([NIBBLE, "convert", folder, "-o", out], capture_output=True, text=True)
                self.assertEqual((done.returncode, done.stdout), (1, ""))
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
                self.assertTrue(done.stderr.startswith(f"error: {folder}: "), done.stderr)
                for text in says:
                    self.assertIn(text, done.stderr)
                self.assertEqual([p.name for p in path.iterdir()], ["model"])
                # Packing says the same, in the room that the daemon's sentences have.
                (line,) = images(folder)
                self.assertIn(line.removeprefix("error: ")[:120], done.stderr)

    def test_outputs(self):
        config, weights = folders.mistral(11, "BF16")
        with tempfile.TemporaryDirectory() as scratch:
            path = pathlib.Path(scratch)
            folder, out = folders.write(path / "model", config, weights, "BF16"), path / "out.gguf"
            out.write_text("old")
            done = subprocess.run([NIBBLE, "convert", folder, "-o", out], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (1, f"error: {out} exists: --force replaces it\n"))
            self.assertEqual(out.read_text(), "old")
            convert(folder, out, "--force")
            self.assertEqual(out.read_bytes()[:4], b"GGUF")
            # A disk without room, as a limit of the process has it too.
            done = subprocess.run([NIBBLE, "convert", folder, "-o", path / "big.gguf"], capture_output=True, text=True,
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
                                  restore_signals=False)  # Python ignores SIGXFSZ, and so does its child then
            self.assertEqual((done.returncode, done.stderr),
                             (1, f"error: {path / 'big.gguf'}: cannot write: File too large\n"))
            self.assertEqual(sorted(p.name for p in path.iterdir()), ["model", "out.gguf"])
            for options in ([], ["-o", out, "--to", "Q4_0"]):
                done = subprocess.run([NIBBLE, "convert", folder, *options], capture_output=True, text=True)
                self.assertEqual(done.returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
