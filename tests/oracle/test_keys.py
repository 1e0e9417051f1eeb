"""What a model file says of its computation is read, or refused by name: small llama models with keys and tensors of all
kinds, written by python gguf, and llama.cpp's logits where it reads them as well.

usage: test_keys.py MAKE-GGUF ENGINE-LOGITS DEVICE...    (the test executable of engine_logits.c)
"""
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import gguf
import numpy as np

import llama
from measures import divergences

MAKE_GGUF, ENGINE_LOGITS, *DEVICES = sys.argv[1:]
V = gguf.GGUFValueType
POSITIONS = 96
TOKENS = np.random.default_rng(1).integers(0, 259, POSITIONS).astype("<i4")


def base():
    """{key: (value, type)} and {tensor: array} of a random model of two layers in F32."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "base.gguf"
        subprocess.run([MAKE_GGUF, "random", path, "F32", "11"], check=True)
        reader = gguf.GGUFReader(path)
        keys = {name: (field.contents(), field.types[0], field.types[-1])
                for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        keys["tokenizer.ggml.merges"] = (["a b"], V.ARRAY, V.STRING)  # python gguf writes no empty list
        return keys, {t.name: np.array(t.data) for t in reader.tensors}


KEYS, TENSORS = base()


def write(path, keys=None, tensors=None):
    """The random model with other keys and tensors. A value is (value, type) or None: without it; a list is an array."""
    writer = gguf.GGUFWriter(path, "llama")
    wanted = dict(KEYS)
    for name, value in (keys or {}).items():
        wanted[name] = value and (value[0], V.ARRAY if isinstance(value[0], list) else value[1], value[1])
    for name, value in wanted.items():
        if value and name != "general.architecture":
            writer.add_key_value(name, value[0], value[1], value[2] if value[1] == V.ARRAY else None)
    for name, array in {**TENSORS, **(tensors or {})}.items():
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Keys(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)

    def run_engine(self, path, device):
        (self.path / "tokens").write_bytes(TOKENS.tobytes())
        return subprocess.run([ENGINE_LOGITS, path, self.path / "tokens", "--precision", "exact", "--ctx", str(POSITIONS),
                               "--threads", "2", "--device", device, "-o", self.path / "logits"],
                              capture_output=True, text=True)

    def ours(self, path, device="cpu"):
        done = self.run_engine(path, device)
        self.assertEqual(done.returncode, 0, done.stderr)
        return np.fromfile(self.path / "logits", "<f4").reshape(POSITIONS, -1)

    def theirs(self, path, first=0, end=POSITIONS, **parameters):
        model = llama.Model(path)
        context = llama.Context(model, POSITIONS, float_kv=True, **parameters)
        n = end - first
        context.decode(TOKENS[first:end], range(first, end), [0] * n, [True] * n)
        logits = context.logits(n)
        context.close()
        model.close()
        return logits

    def write(self, keys=None, tensors=None):
        return write(self.path / "model.gguf", keys, tensors)

    def refused(self, keys=None, tensors=None):
        done = self.run_engine(self.write(keys, tensors), "cpu")
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), done)
        return done.stderr

    def test_read_as_llama_cpp_reads_it(self):
        usual = self.ours(self.write())
        f32 = lambda x: (x, V.FLOAT32)
        yarn = {"rope.scaling.type": ("yarn", V.STRING), "rope.scaling.factor": f32(4.0),
                "rope.scaling.original_context_length": (64, V.UINT32)}
        factors = {"rope_freqs.weight": np.linspace(1, 8, 32, dtype=np.float32)}
        biases = {f"blk.{layer}.{name}.bias": np.linspace(-1, 1, n, dtype=np.float32) for layer in (0, 1)
                  for name, n in (("attn_q", 256), ("attn_k", 128), ("attn_v", 128), ("attn_output", 256),
                                  ("ffn_gate", 512), ("ffn_up", 512), ("ffn_down", 256))}
        same = ["as it is", "type none", "KV heads of each layer", "an FFN of each layer", "no experts", "causal"]
        cases = {
            "as it is": ({}, {}),
            "the old name": ({"rope.scale_linear": f32(4.0)}, {}),
            "a factor without a type": ({"rope.scaling.factor": f32(4.0)}, {}),
            "the new name goes before": ({"rope.scaling.factor": f32(2.0), "rope.scale_linear": f32(4.0)}, {}),
            "type linear": ({"rope.scaling.type": ("linear", V.STRING), "rope.scaling.factor": f32(4.0)}, {}),
            "type linear with the old name": ({"rope.scaling.type": ("linear", V.STRING),
                                               "rope.scale_linear": f32(4.0)}, {}),
            "type none": ({"rope.scaling.type": ("none", V.STRING), "rope.scaling.factor": f32(4.0)}, {}),
            "yarn": (yarn, {}),
            "yarn that shrinks": ({**yarn, "rope.scaling.factor": f32(0.5)}, {}),
            "yarn with other bounds": ({**yarn, "rope.scaling.yarn_beta_fast": f32(4.0), "rope.scaling.yarn_beta_slow": f32(2.0),
                                        "rope.scaling.yarn_ext_factor": f32(0.5)}, {}),
            "yarn with a scale": ({**yarn, "rope.scaling.attn_factor": f32(0.8)}, {}),
            "yarn and factors": (yarn, factors),
            "a scale of the angles": ({"rope.scaling.attn_factor": f32(1.3)}, {}),
            "a base": ({"rope.freq_base": f32(300.0)}, {}),
            "factors": ({}, factors),
            "biases": ({}, biases),
            "a head of its own": ({}, {"output.weight": TENSORS["token_embd.weight"][::-1].copy()}),
            "an epsilon": ({"attention.layer_norm_rms_epsilon": f32(0.5)}, {}),
            "KV heads of each layer": ({"attention.head_count_kv": ([2, 2], V.INT32)}, {}),
            "an FFN of each layer": ({"feed_forward_length": ([512, 512], V.INT32)}, {}),
            "no experts": ({"expert_count": (0, V.UINT32), "expert_used_count": (0, V.UINT32)}, {}),
            "causal": ({"attention.causal": (True, V.BOOL)}, {}),
        }
        for name, (keys, tensors) in cases.items():
            for device in DEVICES if name in ("the old name", "biases") else ["cpu"]:
                with self.subTest(name, device=device):
                    path = self.write({"llama." + key: value for key, value in keys.items()}, tensors)
                    # It takes these from whoever calls it, not from a llama model's file.
                    told = {name.split(".")[-1]: value[0] for name, value in keys.items()
                            if re.search("yarn_(beta|ext)", name)}
                    theirs = self.theirs(path, **told)
                    self.assertLess(divergences(theirs, self.ours(path, device)).max(), 2e-6)
                    # The case is one: llama.cpp's logits are others than without it.
                    self.assertEqual(divergences(theirs, usual).max() < 2e-6, name in same)

    def test_a_window(self):
        """One layer's row sees the last so many positions: llama.cpp's logits of these alone."""
        window = 17
        layer = {name: None for name in TENSORS if name.startswith("blk.1.")}
        one = {"llama.block_count": (1, V.UINT32)}
        plain = write(self.path / "plain.gguf", one, layer)
        path = self.write({**one, "llama.attention.sliding_window": (window, V.UINT32)}, layer)
        for device in DEVICES:
            ours = self.ours(path, device)
            self.assertLess(divergences(self.theirs(plain)[:window], ours[:window]).max(), 2e-6)
            for position in (window, 40, POSITIONS - 1):
                theirs = self.theirs(plain, position + 1 - window, position + 1)
                self.assertLess(divergences(theirs[-1:], ours[position:position + 1]).max(), 2e-6)

    def test_numbers_of_any_type(self):
        usual = self.ours(self.write())
        cases = [("rope.freq_base", 10000, V.UINT32), ("rope.freq_base", 10000, V.INT64), ("rope.freq_base", 10000.0, V.FLOAT64),
                 ("block_count", 2, V.INT32), ("block_count", 2, V.UINT64), ("block_count", 2, V.UINT8),
                 ("block_count", 2.0, V.FLOAT32), ("context_length", 512, V.UINT16), ("context_length", 512.0, V.FLOAT64),
                 ("embedding_length", 256, V.INT64), ("attention.head_count", 4, V.INT8), ("rope.dimension_count", 64.0, V.FLOAT32),
                 ("attention.head_count", [4, 4], V.UINT32), ("attention.head_count_kv", [2, 2], V.INT32),
                 ("attention.head_count_kv", [2.0, 2.0], V.FLOAT32), ("attention.head_count_kv", [2], V.UINT32),
                 ("feed_forward_length", [512, 512], V.INT32), ("rope.freq_base", [10000.0, 10000.0], V.FLOAT32),
                 ("attention.layer_norm_rms_epsilon", float(np.float32(1e-5)), V.FLOAT64)]
        for name, value, kind in cases:
            with self.subTest(name, value=value, kind=kind):
                self.assertTrue((self.ours(self.write({"llama." + name: (value, kind)})) == usual).all())

    def test_values_that_are_refused(self):
        cases = [("block_count", 2.5, V.FLOAT32, "is 2.5, not a whole number from 1 to 1024"),
                 ("block_count", -2, V.INT32, "is -2, not a whole number"), ("block_count", "two", V.STRING, "is no number"),
                 ("block_count", True, V.BOOL, "is no number"), ("block_count", [2, 2], V.INT32, "is an array, not a number"),
                 ("block_count", 1 << 40, V.UINT64, "not a whole number"), ("rope.freq_base", math.nan, V.FLOAT32, "is nan"),
                 ("rope.freq_base", math.inf, V.FLOAT32, "is inf"), ("rope.scaling.factor", 1e-5, V.FLOAT32, "0.001"),
                 ("rope.scaling.factor", -1.0, V.FLOAT32, "is -1, not a number from 0"),
                 ("attention.head_count_kv", [2, 1], V.INT32, "is 2 in layer 0 and 1 in layer 1.* alike"),
                 ("attention.head_count_kv", [2, 2, 2], V.INT32, "has 3 values for 2 layers"),
                 ("attention.head_count_kv", ["2", "2"], V.STRING, "is no number"),
                 ("feed_forward_length", [512, 256], V.INT32, "is 512 in layer 0 and 256 in layer 1"),
                 ("rope.scaling.type", "su", V.STRING, "is 'su', which Nibble does not compute"),
                 ("rope.scaling.type", "yarn", V.STRING, "lacks llama.rope.scaling.factor"),
                 ("attention.causal", False, V.BOOL, "is false .*does not compute"), ("attention.causal", 0, V.UINT8, "is 0 "),
                 ("attention.clamp_kqv", 8.0, V.FLOAT32, "is 8 "), ("attention.max_alibi_bias", 8.0, V.FLOAT32, "is 8 "),
                 ("logit_scale", 0.5, V.FLOAT32, "is 0.5 "), ("residual_scale", 2.0, V.FLOAT32, "is 2 "),
                 ("embedding_scale", 12.0, V.FLOAT32, "is 12 "), ("attn_logit_softcapping", 50.0, V.FLOAT32, "is 50 "),
                 ("final_logit_softcapping", 30.0, V.FLOAT32, "is 30 "), ("use_parallel_residual", True, V.BOOL, "is true "),
                 ("expert_count", 8, V.UINT32, "lacks llama.expert_used_count"), ("pooling_type", 4, V.UINT32, "is 4, not a whole number"),
                 ("expert_group_count", 2, V.UINT32, "is 2 .*by groups"),
                 ("rope.dimension_sections", [16, 8, 8, 0], V.INT32, "is an array .*dimensions"),
                 ("tensor_data_layout", "row by row", V.STRING, "is row by row "),
                 ("rope.scaling.yarn_attn_factor", 2.0, V.FLOAT32, "is 2 ")]
        for name, value, kind, words in cases:
            with self.subTest(name, value=value):
                self.assertRegex(self.refused({"llama." + name: (value, kind)}), rf"llama\.{re.escape(name)}.*{words}|{words}")
        for name, value, kind, words in [("split.count", 3, V.UINT16, "one of 3 parts of a model: give the first one"),
                                         ("general.type", "adapter", V.STRING, "general.type is 'adapter'")]:
            with self.subTest(name):
                self.assertRegex(self.refused({name: (value, kind)}), words)

    def test_values_that_change_nothing(self):
        usual = self.ours(self.write())
        cases = [("vocab_size", 259, V.UINT32), ("attention.layer_norm_epsilon", 0.1, V.FLOAT32), ("logit_scale", 1.0, V.FLOAT32),
                 ("residual_scale", 0.0, V.FLOAT32), ("attention.clamp_kqv", 0.0, V.FLOAT32), ("use_parallel_residual", False, V.BOOL),
                 ("attention.causal", 1, V.UINT8), ("expert_count", 0, V.UINT32), ("pooling_type", 0, V.UINT32), ("pooling_type", 1, V.UINT32),
                 ("rope.dimension_sections", [0, 0, 0, 0], V.INT32), ("attention.sliding_window", 0, V.UINT32),
                 ("attention.sliding_window", 4096, V.UINT32), ("rope.scaling.factor", 0.0, V.FLOAT32), ("attention.scale", 0.0, V.FLOAT32),
                 ("tensor_data_layout", "Meta AI original pth", V.STRING), ("rope.scaling.finetuned", True, V.BOOL)]
        for name, value, kind in cases:
            with self.subTest(name, value=value):
                self.assertTrue((self.ours(self.write({"llama." + name: (value, kind)})) == usual).all())
        other = self.write({"qwen2.attention.causal": (False, V.BOOL), "general.colour": ("blue", V.STRING)})
        self.assertTrue((self.ours(other) == usual).all())

    def test_no_key_is_ignored(self):
        """Every key that python gguf knows, with a value that no model has: it says something, or means experts alone."""
        usual = self.ours(self.write())
        names = {"llama." + value.split(".", 1)[1].format(dense="dense_2") for group in vars(gguf.Keys).values()
                 if isinstance(group, type) for value in vars(group).values()
                 if isinstance(value, str) and value.startswith("{arch}.")} | {"llama.rope.scale_linear", "llama.no.such_key"}
        self.assertGreater(len(names), 90)
        harmless = {"llama." + name for name in (
            "vocab_size attention.layer_norm_epsilon rope.scaling.finetuned expert_used_count expert_feed_forward_length "
            "expert_shared_feed_forward_length expert_chunk_feed_forward_length expert_shared_count "
            "expert_group_used_count expert_weights_scale expert_weights_norm expert_gating_func expert_group_scale "
            "experts_per_group moe_every_n_layers interleave_moe_layer_step leading_dense_block_count "
            "router_logit_softcapping").split()}
        # Read, and without effect here: YaRN's, of other scalings, and a context length.
        yarn = {"llama.rope.scaling." + name for name in ("yarn_beta_fast", "yarn_beta_slow", "original_context_length")}
        self.assertLessEqual(harmless | yarn, names)
        for name in sorted(names):
            with self.subTest(name):
                done = self.run_engine(self.write({name: (7, V.UINT32)}), "cpu")
                if done.returncode == 0:
                    logits = np.fromfile(self.path / "logits", "<f4").reshape(POSITIONS, -1)
                    self.assertEqual((logits == usual).all(), name in harmless | yarn)
                else:
                    self.assertNotIn(name, harmless)

    def test_surplus_tensors(self):
        vector, matrix = np.ones(256, np.float32), np.ones((256, 256), np.float32)
        for name, tensor in [("blk.0.attn_q_norm.weight", vector), ("output_norm.bias", vector), ("blk.1.attn_norm.bias", vector),
                             ("blk.0.post_attention_norm.weight", vector), ("token_embd.bias", vector), ("blk.0.attn_sinks.weight", vector),
                             ("blk.00.attn_q.bias", vector), ("blk.2.attn_q.weight", matrix), ("position_embd.weight", matrix),
                             ("v.blk.0.attn_q.weight", matrix), ("blk.0.attn_q.weight.lora_a", matrix), ("output.scale", vector)]:
            with self.subTest(name):
                self.assertRegex(self.refused(tensors={name: tensor}), rf"tensor {re.escape(name)} has no place in a llama model of 2 ")
        text = self.refused({"llama.block_count": (1, V.UINT32)})
        self.assertRegex(text, r"tensor blk\.1\.attn_norm\.weight \(and 8 more\) has no place in a llama model of 1 layer ")
        self.assertRegex(self.refused({"llama.block_count": (3, V.UINT32)}), r"tensor blk\.2\.attn_norm\.weight is missing")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
