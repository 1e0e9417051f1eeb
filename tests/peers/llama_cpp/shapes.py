"""Models of random weights in the shapes of known ones: what a family's speed depends on.

Each is written once, to ~/.cache/nibble/peers; matrices are Q4_0 (llama.cpp's fastest type here), norms and routers F32.
"""
import os
import pathlib

import gguf
import numpy as np

FOLDER = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "nibble" / "peers"

SHAPES = {
    "qwen3-0.6b": {"arch": "qwen3", "width": 1024, "layers": 28, "heads": 16, "kv_heads": 8, "head": 128,
                   "ffn": 3072, "vocab": 151936},
    "gemma-3-270m": {"arch": "gemma3", "width": 640, "layers": 18, "heads": 4, "kv_heads": 1, "head": 256,
                     "ffn": 2048, "vocab": 262144, "window": 512},
    "phi-3-mini-2-layers": {"arch": "phi3", "width": 3072, "layers": 2, "heads": 32, "kv_heads": 32, "head": 96,
                            "ffn": 8192, "vocab": 32064},
    "qwen3moe-8-experts": {"arch": "qwen3moe", "width": 1024, "layers": 12, "heads": 16, "kv_heads": 4, "head": 128,
                           "ffn": 1536, "vocab": 32000, "experts": 8, "chosen": 2},
}


class Writer:
    def __init__(self, path, shape):
        self.shape = shape
        self.rng = np.random.default_rng(1)
        self.file = gguf.GGUFWriter(path, shape["arch"])

    def keys(self):
        s, w = self.shape, self.file
        w.add_context_length(4096)
        w.add_embedding_length(s["width"])
        w.add_block_count(s["layers"])
        w.add_feed_forward_length(s["ffn"])
        w.add_head_count(s["heads"])
        w.add_head_count_kv(s["kv_heads"])
        w.add_key_length(s["head"])
        w.add_value_length(s["head"])
        w.add_rope_dimension_count(s["head"])
        w.add_layer_norm_rms_eps(1e-6)
        if "window" in s:
            w.add_sliding_window(s["window"])
        if "experts" in s:
            w.add_expert_count(s["experts"])
            w.add_expert_used_count(s["chosen"])
            w.add_expert_feed_forward_length(s["ffn"])
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("qwen2")
        w.add_token_list([f"<{i}>" for i in range(s["vocab"])])
        w.add_token_types([1] * s["vocab"])
        w.add_token_merges(["< 0"])
        w.add_eos_token_id(s["vocab"] - 1)

    def norm(self, name, n):
        self.file.add_tensor(name + ".weight", self.rng.uniform(0.8, 1.2, n).astype(np.float32))

    def matrix(self, name, *shape):
        """Random codes; a weight's deviation is 1 / sqrt(columns)."""
        rows, blocks = int(np.prod(shape[:-1])), shape[-1] // 32
        data = self.rng.integers(0, 256, (rows, blocks, 18), dtype=np.uint8)
        scale = np.float16(1 / np.sqrt(shape[-1]) / 4.6)
        data[:, :, :2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
        self.file.add_tensor(name + ".weight", data.reshape(*shape[:-1], blocks * 18), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def layer(self, p):
        s = self.shape
        width, ffn, q, kv = s["width"], s["ffn"], s["heads"] * s["head"], s["kv_heads"] * s["head"]
        self.norm(p + "attn_norm", width)
        self.norm(p + "ffn_norm", width)
        if s["arch"] == "phi3":
            self.matrix(p + "attn_qkv", q + 2 * kv, width)
        else:
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                self.matrix(p + "attn_" + name, rows, width)
            self.norm(p + "attn_q_norm", s["head"])
            self.norm(p + "attn_k_norm", s["head"])
        self.matrix(p + "attn_output", width, q)
        if s["arch"] == "gemma3":
            self.norm(p + "post_attention_norm", width)
            self.norm(p + "post_ffw_norm", width)
        if "experts" in s:
            self.file.add_tensor(p + "ffn_gate_inp.weight",
                                 (self.rng.standard_normal((s["experts"], width)) / np.sqrt(width)).astype(np.float32))
            for name, rows, cols in (("gate", ffn, width), ("up", ffn, width), ("down", width, ffn)):
                self.matrix(p + f"ffn_{name}_exps", s["experts"], rows, cols)
        elif s["arch"] == "phi3":
            self.matrix(p + "ffn_up", 2 * ffn, width)
            self.matrix(p + "ffn_down", width, ffn)
        else:
            for name, rows, cols in (("gate", ffn, width), ("up", ffn, width), ("down", width, ffn)):
                self.matrix(p + "ffn_" + name, rows, cols)

    def write(self):
        s = self.shape
        self.keys()
        self.matrix("token_embd", s["vocab"], s["width"])
        self.norm("output_norm", s["width"])
        for i in range(s["layers"]):
            self.layer(f"blk.{i}.")
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


def model(name):
    """The path of a shape's file, which is written where there is none."""
    path = FOLDER / f"{name}.gguf"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        Writer(part, SHAPES[name]).write()
        part.rename(path)
    return path
