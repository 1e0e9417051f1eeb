"""Hugging Face folders of small random models, written by numpy and json alone: each family in the names and shapes that
transformers gives it.

A model is (config, weights): config.json as a dict, and {name: float32 array} whose values are those that the dtype keeps.
"""
import json
import pathlib
import struct

import numpy as np

VOCAB = 300


# ---- Numbers of a dtype

def to_bf16(x):
    """The bits, rounded to nearest even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7fff + (u >> 16 & 1)) >> 16).astype(np.uint16)


def kept(x, dtype):
    """What a dtype keeps of float32 numbers."""
    if dtype == "BF16":
        return (to_bf16(x).astype(np.uint32) << 16).view(np.float32)
    return x.astype({"F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32)


def stored(x, dtype):
    """Its bytes in a file."""
    return (to_bf16(x) if dtype == "BF16" else x.astype({"F32": "<f4", "F16": "<f2"}[dtype])).tobytes()


# ---- Files

def safetensors(tensors, dtypes):
    """The bytes of a file of {name: array}; dtypes: {name: dtype}."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, x in tensors.items():
        bits = stored(x, dtypes[name])
        header[name] = {"dtype": dtypes[name], "shape": list(x.shape), "data_offsets": [len(data), len(data) + len(bits)]}
        data += bits
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def symbols():
    """GPT-2's letters for the bytes."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    letters = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [letters[b] for b in range(256)]


def byte_level():
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [{"id": 256 + i, "content": name, "special": True, "normalized": False, "single_word": False,
              "lstrip": False, "rstrip": False} for i, name in enumerate(("<s>", "</s>"))]
    return {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": step,
            "post_processor": None, "decoder": step,
            "model": {"type": "BPE", "unk_token": None, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {letter: i for i, letter in enumerate(symbols())}, "merges": ["a b"][:0]}}


def word_piece():
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + i) for i in range(26)),
             *("##" + chr(97 + i) for i in range(26))]
    special = [{"id": i, "content": names[i], "special": True, "normalized": False, "single_word": False,
                "lstrip": False, "rstrip": False} for i in range(5)]
    return {"version": "1.0", "added_tokens": special,
            "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                           "strip_accents": None, "lowercase": True},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing",
                               "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                                          {"Sequence": {"id": "A", "type_id": 0}},
                                          {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
                               "pair": [],
                               "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}
                                                  for name, i in (("[CLS]", 2), ("[SEP]", 3))}},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": {name: i for i, name in enumerate(names)}}}


def write(folder, config, weights, dtype, shards=1):
    """A folder; vectors are F32 where the others are F16, as some are saved so."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bert = config["architectures"][0].startswith("Bert")
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
             "mask_token": "[MASK]", "tokenizer_class": "BertTokenizer", "do_lower_case": True}
    tokens = names if bert else {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    for name, content in (("config.json", config), ("tokenizer.json", word_piece() if bert else byte_level()),
                          ("tokenizer_config.json", tokens)):
        (folder / name).write_text(json.dumps(content))
    dtypes = {name: "F32" if dtype == "F16" and x.ndim == 1 else dtype for name, x in weights.items()}
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors(weights, dtypes))
        return folder
    parts = [list(weights)[i::shards] for i in range(shards)]
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for file, part in zip(files, parts):
        (folder / file).write_bytes(safetensors({name: weights[name] for name in part}, dtypes))
    index = {"metadata": {"total_size": 0}, "weight_map": {n: f for f, part in zip(files, parts) for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


# ---- Families

class Random:
    def __init__(self, seed, dtype):
        self.random, self.dtype = np.random.default_rng(seed), dtype

    def matrix(self, rows, cols):
        return kept(self.random.normal(0, cols ** -0.5, (rows, cols)).astype(np.float32), self.dtype)

    def vector(self, n, low, high):
        return kept(self.random.uniform(low, high, n).astype(np.float32), self.dtype)


def decoder(r, layers, hidden, ffn, heads, kv_heads, head_dim, tied=False, bias=False, norms=(0.5, 1.5), qk_norm=False,
            fused=False, experts=0, gemma=False):
    """Weights in the names that the decoders share."""
    w = {"model.embed_tokens.weight": r.matrix(VOCAB, hidden)}
    for i in range(layers):
        at, q, kv = f"model.layers.{i}.", heads * head_dim, kv_heads * head_dim
        for name in ["input_layernorm", "post_attention_layernorm",
                     *(["pre_feedforward_layernorm", "post_feedforward_layernorm"] if gemma else [])]:
            w[f"{at}{name}.weight"] = r.vector(hidden, *norms)
        rows = {"qkv_proj": q + 2 * kv} if fused else {"q_proj": q, "k_proj": kv, "v_proj": kv}
        for name, n in rows.items():
            w[f"{at}self_attn.{name}.weight"] = r.matrix(n, hidden)
            if bias:
                w[f"{at}self_attn.{name}.bias"] = r.vector(n, -0.5, 0.5)
        for name in ("q_norm", "k_norm") if qk_norm else ():
            w[f"{at}self_attn.{name}.weight"] = r.vector(head_dim, *norms)
        w[f"{at}self_attn.o_proj.weight"] = r.matrix(hidden, q)
        if experts:
            w[f"{at}block_sparse_moe.gate.weight"] = r.matrix(experts, hidden)
            for e in range(experts):
                for name, shape in (("w1", (ffn, hidden)), ("w2", (hidden, ffn)), ("w3", (ffn, hidden))):
                    w[f"{at}block_sparse_moe.experts.{e}.{name}.weight"] = r.matrix(*shape)
            continue
        rows = {"gate_up_proj": 2 * ffn} if fused else {"gate_proj": ffn, "up_proj": ffn}
        for name, n in rows.items():
            w[f"{at}mlp.{name}.weight"] = r.matrix(n, hidden)
        w[f"{at}mlp.down_proj.weight"] = r.matrix(hidden, ffn)
    w["model.norm.weight"] = r.vector(hidden, *norms)
    if not tied:
        w["lm_head.weight"] = r.matrix(VOCAB, hidden)
    return w


def config(architecture, kind, layers, hidden, ffn, heads, kv_heads, **others):
    return {"architectures": [architecture], "model_type": kind, "vocab_size": VOCAB, "hidden_size": hidden,
            "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "torch_dtype": "float32", "transformers_version": "4.57.0", "use_cache": True,
            "initializer_range": 0.02, "bos_token_id": 256, "eos_token_id": 257} | others


def llama(seed, dtype):
    shape, scaling = (2, 72, 172, 4, 2), {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    c = config("LlamaForCausalLM", "llama", *shape, rope_theta=10000.0, rope_scaling=scaling, attention_bias=True,
               mlp_bias=False, tie_word_embeddings=False, pretraining_tp=1)
    return c, decoder(Random(seed, dtype), *shape, 18, bias=True)


def mistral(seed, dtype):
    shape = (2, 64, 100, 4, 1)
    c = config("MistralForCausalLM", "mistral", *shape, head_dim=24, rope_theta=1000000, sliding_window=None,
               tie_word_embeddings=False)
    return c, decoder(Random(seed, dtype), *shape, 24)


def mixtral(seed, dtype):
    shape = (2, 64, 52, 4, 2)
    c = config("MixtralForCausalLM", "mixtral", *shape, rope_theta=1e6, sliding_window=None, num_local_experts=5,
               num_experts_per_tok=2, output_router_logits=False, router_aux_loss_coef=0.02,
               router_jitter_noise=0.0, tie_word_embeddings=False)
    return c, decoder(Random(seed, dtype), *shape, 16, experts=5)


def qwen2(seed, dtype):
    shape = (2, 60, 84, 6, 2)
    c = config("Qwen2ForCausalLM", "qwen2", *shape, rope_theta=1000000.0, use_sliding_window=False, sliding_window=64,
               max_window_layers=1, tie_word_embeddings=True)
    return c, decoder(Random(seed, dtype), *shape, 10, tied=True, bias=True)


def qwen3(seed, dtype):
    shape, scaling = (2, 64, 76, 4, 2), {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    c = config("Qwen3ForCausalLM", "qwen3", *shape, head_dim=24, rope_theta=1000000, rope_scaling=scaling,
               use_sliding_window=False, max_window_layers=2, attention_bias=False, tie_word_embeddings=True,
               layer_types=["full_attention"] * 2)
    return c, decoder(Random(seed, dtype), *shape, 24, tied=True, qk_norm=True)


def gemma3(seed, dtype):
    shape = (7, 48, 80, 3, 1)
    c = config("Gemma3ForCausalLM", "gemma3_text", *shape, head_dim=32, rope_theta=1000000, rope_local_base_freq=10000,
               rope_scaling={"rope_type": "linear", "factor": 8.0}, query_pre_attn_scalar=32, sliding_window=9,
               sliding_window_pattern=6, attn_logit_softcapping=None, final_logit_softcapping=None)
    c["hidden_activation"] = "gelu_pytorch_tanh"
    del c["hidden_act"]
    return c, decoder(Random(seed, dtype), *shape, 32, tied=True, norms=(-0.5, 0.5), qk_norm=True, gemma=True)


def phi3(seed, dtype):
    shape, random = (2, 96, 72, 3, 3), np.random.default_rng(seed)
    c = config("Phi3ForCausalLM", "phi3", *shape, rope_theta=10000.0, partial_rotary_factor=0.75, sliding_window=None,
               max_position_embeddings=1024,
               original_max_position_embeddings=256, tie_word_embeddings=False, embd_pdrop=0.0, resid_pdrop=0.0,
               rope_scaling={"type": "longrope", "short_factor": list(random.uniform(1, 2, 12)),
                             "long_factor": list(random.uniform(2, 8, 12))})
    return c, decoder(Random(seed, dtype), *shape, 32, fused=True)


def bert(seed, dtype):
    layers, hidden, ffn = 2, 60, 92
    c = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": VOCAB, "hidden_size": hidden,
         "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": 5,
         "max_position_embeddings": 64, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2,
         "position_embedding_type": "absolute", "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1}
    r, w = Random(seed, dtype), {}

    def linear(name, rows, cols):
        w[f"{name}.weight"], w[f"{name}.bias"] = r.matrix(rows, cols), r.vector(rows, -0.2, 0.2)

    def norm(name):
        w[f"{name}.weight"], w[f"{name}.bias"] = r.vector(hidden, 0.5, 1.5), r.vector(hidden, -0.2, 0.2)

    for name, rows in (("word", VOCAB), ("position", 64), ("token_type", 2)):
        w[f"embeddings.{name}_embeddings.weight"] = r.matrix(rows, hidden)
    norm("embeddings.LayerNorm")
    for i in range(layers):
        at = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            linear(f"{at}attention.self.{name}", hidden, hidden)
        linear(f"{at}attention.output.dense", hidden, hidden)
        norm(f"{at}attention.output.LayerNorm")
        linear(f"{at}intermediate.dense", ffn, hidden)
        linear(f"{at}output.dense", hidden, ffn)
        norm(f"{at}output.LayerNorm")
    linear("pooler.dense", hidden, hidden)
    return c, w


FAMILIES = {f.__name__: f for f in (llama, mistral, mixtral, qwen2, qwen3, gemma3, phi3, bert)}
