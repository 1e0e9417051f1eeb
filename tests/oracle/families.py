"""Tiny models of every family, with random weights: a table of shapes, and the GGUF files that it stands for.

A size is a letter: E embedding, F feed-forward, H heads, G heads of keys and values, D a head's length, L layers, X
experts, C chosen ones, Y an expert's feed-forward, V vocabulary, P positions, T token types. Q, K and S are products: all
heads' queries, all heads' keys, and both with the values; R is half of what RoPE turns, I is 2 F.
"""
import ctypes
import dataclasses
import pathlib
import zlib

import gguf
import llama_cpp
import numpy as np

TYPE = gguf.GGMLQuantizationType
VALUE = gguf.GGUFValueType
POSITIONS, VOCAB = 128, 283
# Outside the layers.
ENDS = set("token_embd token_types position_embd token_embd_norm output_norm output rope_freqs rope_factors_long "
           "rope_factors_short".split())

# Tensors by name and dimensions, rows first; those of one dimension are norms or biases.
TOKENS = "token_embd V E; "
PRE_NORMS = "attn_norm E; ffn_norm E; "
POST_NORMS = "post_attention_norm E; post_ffw_norm E; "
HEAD_NORMS = "attn_q_norm D; attn_k_norm D; "
OUT = "attn_output E Q; "
SEPARATE = "attn_q Q E; attn_k K E; attn_v K E; "
FUSED = "attn_qkv S E; "
QKV_BIASES = "attn_q.bias Q; attn_k.bias K; attn_v.bias K; "
FFN = "ffn_up F E; ffn_down E F; "
FFN_BIASES = "ffn_up.bias F; ffn_down.bias E; "
GATE = "ffn_gate F E; "
EXPERTS = "ffn_gate_inp X E; ffn_gate_exps X Y E; ffn_up_exps X Y E; ffn_down_exps X E Y; "
END = "output_norm E; "
UNTIED = "output V E; "
LLAMA = TOKENS + PRE_NORMS + SEPARATE + OUT + GATE + FFN + END
MIXTURE = TOKENS + PRE_NORMS + SEPARATE + OUT + EXPERTS + END
LAYER_NORM_BIASES = "attn_norm.bias E; ffn_norm.bias E; output_norm.bias E; "
GPT2 = (TOKENS + PRE_NORMS + LAYER_NORM_BIASES + OUT + "attn_output.bias E; " + FFN + FFN_BIASES + END)
GEMMA = TOKENS + PRE_NORMS + POST_NORMS + SEPARATE + OUT + GATE + FFN + END
BERT = (TOKENS + "position_embd P E; token_embd_norm E; token_embd_norm.bias E; " + SEPARATE + OUT + FFN +
        "attn_output_norm E; attn_output_norm.bias E; layer_output_norm E; layer_output_norm.bias E; ")
BERT_BIASES = QKV_BIASES + "attn_output.bias E; " + FFN_BIASES

YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32,
        "rope.scaling.attn_factor": 1.1}
LONGROPE = {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.2}
LONG_AND_SHORT = "rope_factors_long R; rope_factors_short R; "
MEAN, CLS, LAST = 1, 2, 3  # pooling_type


@dataclasses.dataclass(frozen=True)
class Family:
    tensors: str
    keys: dict = dataclasses.field(default_factory=dict)
    layer_norm: bool = False
    free_heads: bool = True  # D may be another than E / H
    ropes: bool = True
    gelu: str = None  # which: the makers' own for bert, though llama.cpp has tanh's everywhere; None: SiLU


@dataclasses.dataclass(frozen=True)
class Case:
    family: str
    name: str
    size: dict  # without D: E / H; without L: 2
    tensors: str = ""  # more of them
    without: str = ""
    keys: dict = dataclasses.field(default_factory=dict)
    # That change nothing here, by mathematics: a bias of the keys adds the same to all of a query's scores where no RoPE
    # turns it.
    idle: str = ""
    first_type: int = None  # of TYPES, which the matrices take in turn; None: they are F32

    def __str__(self):
        return f"{self.family}, {self.name}"

    @property
    def embeds(self):
        return "pooling_type" in self.keys


FAMILIES = {
    "llama": Family(LLAMA),
    "smollm3": Family(LLAMA),
    "qwen2": Family(LLAMA, free_heads=False),
    "qwen3": Family(LLAMA + HEAD_NORMS),
    "qwen3moe": Family(MIXTURE + HEAD_NORMS),
    "gemma2": Family(GEMMA, gelu="tanh"),
    "gemma3": Family(GEMMA + HEAD_NORMS, gelu="tanh"),
    "phi3": Family(TOKENS + PRE_NORMS + FUSED + OUT + "ffn_up I E; ffn_down E F; " + END, free_heads=False),
    "gpt2": Family(GPT2 + FUSED + "attn_qkv.bias S; position_embd P E; ", layer_norm=True, free_heads=False, ropes=False,
                   gelu="tanh"),
    "starcoder2": Family(GPT2 + SEPARATE, layer_norm=True, free_heads=False, gelu="tanh"),
    "olmo2": Family(TOKENS + POST_NORMS + SEPARATE + OUT + "attn_q_norm Q; attn_k_norm K; " + GATE + FFN + END + UNTIED,
                    free_heads=False),
    "granite": Family(LLAMA),
    "command-r": Family(TOKENS + "attn_norm E; " + SEPARATE + OUT + GATE + FFN + END, layer_norm=True, free_heads=False),
    "bert": Family(BERT, {"attention.causal": False}, layer_norm=True, free_heads=False, ropes=False, gelu="erf"),
}


# What llama.cpp reads and does not use is not here: a window of phi3, rope.freq_base_swa of olmo2. Nor is what Nibble refuses:
# granite without RoPE (rope.scaling.finetuned).


def size(E, F, H, G, D=None, L=2, **others):
    return {"E": E, "F": F, "H": H, "G": G, "D": D or E // H, "L": L, **others}


CASES = [
    Case("llama", "untied, odd widths", size(57, 101, 4, 2, 18), UNTIED),
    Case("llama", "tied, all biases", size(72, 52, 6, 6, 10),
         QKV_BIASES + FFN_BIASES + "attn_output.bias E; ffn_gate.bias F; ", keys={"rope.freq_base": 500.0}),
    Case("llama", "fused, one KV head, YaRN", size(70, 64, 5, 1), FUSED, SEPARATE, YARN),
    Case("llama", "linear, factors", size(64, 77, 4, 2, 32), "rope_freqs R; ", keys={"rope.scaling.factor": 2.5}),
    Case("llama", "4 experts, 2 chosen", size(48, 40, 4, 2, 14, X=4, C=2), EXPERTS + UNTIED, GATE + FFN),
    Case("llama", "7 experts, 3 chosen", size(57, 33, 3, 1, 22, X=7, C=3), EXPERTS, GATE + FFN),
    Case("llama", "8 experts, 1 chosen", size(64, 32, 4, 4, X=8, C=1), EXPERTS, GATE + FFN),
    Case("smollm3", "tied", size(60, 84, 6, 2, 14, L=5)),
    Case("smollm3", "untied, biases", size(65, 70, 3, 3, 20, L=4), UNTIED + QKV_BIASES, idle="blk.3.attn_k.bias"),
    Case("qwen2", "tied, biases", size(66, 99, 3, 1), QKV_BIASES),
    Case("qwen2", "untied, a bias of the head", size(70, 50, 7, 7), UNTIED + "output.bias V; "),
    Case("qwen2", "linear", size(96, 61, 6, 2), QKV_BIASES, keys={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    Case("qwen3", "tied", size(56, 90, 4, 2, 22)),
    Case("qwen3", "untied, YaRN, one KV head", size(75, 60, 3, 1, 16), UNTIED, keys=YARN),
    Case("qwen3", "as many KV heads", size(40, 44, 5, 5, 12), keys={"rope.freq_base": 1e6}),
    Case("qwen3", "an embedding of the last token", size(56, 90, 4, 2, 22), keys={"pooling_type": LAST}),
    Case("qwen3moe", "6 experts, 2 chosen", size(52, 88, 4, 2, 18, X=6, C=2, Y=37),
         keys={"expert_feed_forward_length": 37}),
    Case("qwen3moe", "9 experts, 4 chosen", size(64, 80, 6, 1, 14, X=9, C=4, Y=28), UNTIED,
         keys={"expert_feed_forward_length": 28}),
    Case("gemma2", "every second layer's window", size(60, 90, 4, 2, 18, L=4),
         keys={"attention.sliding_window": 24, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}),
    Case("gemma2", "every third without, RoPE in part", size(57, 64, 3, 3, 24, L=4),
         keys={"attention.sliding_window": 33, "attention.sliding_window_pattern": 3, "rope.dimension_count": 16,
               "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    Case("gemma2", "46 layers", size(40, 32, 2, 1, 12, L=46), keys={"attention.sliding_window": 20}),
    Case("gemma3", "every sixth layer without a window", size(60, 72, 4, 1, 18, L=7),
         keys={"attention.sliding_window": 20, "rope.freq_base": 1e6, "rope.scaling.type": "linear",
               "rope.scaling.factor": 8.0}),
    Case("gemma3", "two bases, untied", size(57, 64, 6, 2, 10, L=4), UNTIED,
         keys={"attention.sliding_window": 40, "attention.sliding_window_pattern": 2, "rope.freq_base": 1e5,
               "rope.freq_base_swa": 300.0, "final_logit_softcapping": 6.0}),
    Case("gemma3", "windows by a list", size(45, 50, 3, 1, 14, L=3),
         keys={"attention.sliding_window": 17, "attention.sliding_window_pattern": [False, True, True]}),
    Case("gemma3", "no window, long heads", size(48, 50, 2, 2, 136)),
    Case("gemma3", "62 layers", size(40, 32, 2, 1, 12, L=62), keys={"attention.sliding_window": 20}),
    Case("phi3", "untied", size(66, 80, 3, 3), UNTIED),
    Case("phi3", "RoPE in part, one KV head", size(80, 61, 5, 1), keys={"rope.dimension_count": 12}),
    Case("phi3", "long factors", size(72, 64, 4, 2), UNTIED + LONG_AND_SHORT,
         keys={**LONGROPE, "rope.scaling.original_context_length": 64}, idle="rope_factors_short"),
    Case("phi3", "short factors", size(72, 64, 4, 2), UNTIED + LONG_AND_SHORT,
         keys={**LONGROPE, "context_length": 1024, "rope.scaling.original_context_length": 512}, idle="rope_factors_long"),
    Case("gpt2", "tied", size(70, 91, 5, 5)),
    Case("gpt2", "untied, fewer KV heads", size(84, 61, 6, 2), UNTIED),
    Case("starcoder2", "biases", size(66, 80, 3, 1), QKV_BIASES),
    Case("starcoder2", "untied, no biases of q, k and v", size(84, 61, 6, 2), UNTIED, keys={"rope.freq_base": 1e5}),
    Case("olmo2", "no window", size(70, 77, 5, 5)),
    Case("olmo2", "every fourth layer without a window, YaRN", size(84, 64, 6, 2, L=5),
         keys={**YARN, "attention.sliding_window": 24}),
    Case("olmo2", "windows by a list", size(60, 50, 3, 1, L=4),
         keys={"attention.sliding_window": 24, "attention.sliding_window_pattern": [True, False, False, True]}),
    Case("granite", "scales", size(57, 70, 4, 2, 18),
         keys={"logit_scale": 1.7, "residual_scale": 0.4, "embedding_scale": 2.0, "attention.scale": 0.5}),
    Case("granite", "untied, biases", size(66, 52, 3, 3, 20), UNTIED + QKV_BIASES + "attn_output.bias E; ",
         keys={"logit_scale": 1.3, "residual_scale": 0.7, "embedding_scale": 3.0}),
    Case("command-r", "a scale of logits", size(66, 80, 3, 1), keys={"logit_scale": 0.3}),
    Case("command-r", "biases, RoPE in part", size(84, 60, 6, 6), QKV_BIASES, keys={"rope.dimension_count": 8}),
    Case("command-r", "64 layers, so norms of heads", size(40, 32, 4, 2, L=64), "attn_q_norm H D; attn_k_norm G D; "),
    Case("bert", "mean", size(60, 90, 6, 6), BERT_BIASES + "token_types T E; ", keys={"pooling_type": MEAN},
         idle="attn_k.bias"),
    Case("bert", "first token, no biases", size(66, 61, 3, 3, L=3), keys={"pooling_type": CLS}),
    Case("bert", "last token, fused", size(70, 64, 5, 5), FUSED + "attn_qkv.bias S; token_types T E; ", SEPARATE,
         keys={"pooling_type": LAST}),
]


# With widths that types of blocks of 256 weights allow, and a feed-forward that only those of 32 do.
WIDE = {"E": 256, "F": 288, "H": 4, "G": 2, "D": 64, "L": 2}
TYPES = "Q8_0 Q4_K Q5_1 Q6_K Q4_0 Q3_K BF16 Q5_0 Q2_K Q4_1 IQ4_NL Q5_K F16 IQ4_XS".split()
FLOATS = {"ffn_gate_inp", "position_embd", "token_types", "attn_q_norm", "attn_k_norm"}  # in every file
CASES += [Case(family, f"matrices of {TYPES[first]} and other types", {**WIDE, **other}, tensors, without, found,
               first_type=first)
          for family, other, tensors, without, found in [
              ("llama", {"F": 256, "D": 128}, UNTIED, "", {}),
              ("llama", {"X": 4, "C": 2}, UNTIED + EXPERTS, GATE + FFN, {}),
              ("smollm3", {"L": 4}, "", "", {}),
              ("qwen2", {"G": 1}, QKV_BIASES, "", {}),
              ("qwen3", {"D": 128}, "", "", {}),
              ("qwen3moe", {"X": 6, "C": 2, "Y": 96}, "", "", {"expert_feed_forward_length": 96}),
              ("gemma2", {"D": 128}, "", "", {"attention.sliding_window": 40}),
              ("gemma3", {"D": 128, "L": 3}, "", "", {"attention.sliding_window": 30, "attention.sliding_window_pattern": 2}),
              ("phi3", {"L": 3}, UNTIED, "", {}),
              ("gpt2", {"G": 4, "L": 3}, "", "", {}),
              ("starcoder2", {}, QKV_BIASES, "", {}),
              ("olmo2", {"F": 256}, "", "", {}),
              ("granite", {}, "", "", {"logit_scale": 1.7, "residual_scale": 0.4, "embedding_scale": 2.0}),
              ("command-r", {}, "", "", {"logit_scale": 0.3}),
              ("bert", {"G": 4}, BERT_BIASES + "token_types T E; ", "", {"pooling_type": MEAN}),
          ] for first in (0, 7)]


def tokens():
    """Sequences of ids, [longest first]: more positions than a window, a KV block and the longest chunk have."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, n).astype("<i4") for n in (105, 105, 41)]


def dimensions(case):
    of = {"V": VOCAB, "T": 2, "P": case.keys.get("context_length", POSITIONS), "Y": case.size["F"], **case.size}
    of |= {"Q": of["H"] * of["D"], "K": of["G"] * of["D"], "I": 2 * of["F"],
           "R": case.keys.get("rope.dimension_count", of["D"]) // 2}
    return of | {"S": of["Q"] + 2 * of["K"]}


def shapes(case):
    """{tensor: shape} in the order of a file."""
    def listed(text):
        return [entry for entry in text.split("; ") if entry]

    of, dropped = dimensions(case), listed(case.without)
    found = {}
    for entry in [e for e in listed(FAMILIES[case.family].tensors) if e not in dropped] + listed(case.tensors):
        name, *letters = entry.split()
        outside = name.removesuffix(".bias") in ENDS
        for place in [""] if outside else [f"blk.{layer}." for layer in range(of["L"])]:
            found[place + name + ("" if name.endswith(".bias") else ".weight")] = tuple(of[letter] for letter in letters)
    return found


# What a matrix's rows are longer or shorter by than would keep their inputs' size: scores that differ, experts that are chosen
# for a reason.
GAINS = {"attn_q": 1.2, "attn_k": 1.2, "ffn_gate_inp": 2.0, "output": 3.0, "token_embd": 1.5}


def weights(case):
    """{tensor: array} of normal numbers; norms around 1, biases around 0, factors of RoPE from 1 on."""
    random = np.random.default_rng(zlib.crc32(str(case).encode()))

    def array(tensor, shape):
        name = tensor.split(".")[-2]
        if tensor.endswith(".bias"):
            return 0.3 * random.standard_normal(shape)
        if name.startswith("rope_f"):
            return random.uniform(1, 4, shape)
        if name.endswith("_norm"):
            return random.uniform(0.5, 1.5, shape)
        return random.standard_normal(shape) * GAINS.get(name, 1) * shape[-1] ** -0.5

    return {tensor: array(tensor, shape).astype(np.float32) for tensor, shape in shapes(case).items()}


def quantize(rows, kind):
    """Blocks of a type, as llama.cpp makes them: bytes [...][rows][bytes of a row]."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    found = np.zeros((*rows.shape[:-1], rows.shape[-1] // block * size), np.uint8)
    n = rows.size // rows.shape[-1]
    written = ggml.ggml_quantize_chunk(kind, rows.ctypes.data, found.ctypes.data, 0, n, rows.shape[-1], None)
    assert written == found.nbytes
    return found


ggml = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]


def typed(case, arrays):
    """A case's weights in its types: ({tensor: bytes or floats}, {tensor: type}, {tensor: the floats that they stand for})."""
    packed, types, floats, turn = {}, {}, {}, case.first_type
    for tensor, array in arrays.items():
        packed[tensor] = floats[tensor] = array
        if array.ndim == 1 or tensor.split(".")[-2] in FLOATS:
            continue
        while array.shape[-1] % gguf.GGML_QUANT_SIZES[TYPE[TYPES[turn % len(TYPES)]]][0]:
            turn += 1
        kind = types[tensor] = TYPE[TYPES[turn % len(TYPES)]]
        packed[tensor] = quantize(array, kind)
        floats[tensor] = gguf.quants.dequantize(packed[tensor], kind)
        turn += 1
    return packed, types, floats


def keys(case):
    """{key without the architecture: value} of a file."""
    family, of = FAMILIES[case.family], dimensions(case)
    found = {"context_length": of["P"], "embedding_length": of["E"], "block_count": of["L"], "feed_forward_length": of["F"],
             "attention.head_count": of["H"], "attention.head_count_kv": of["G"],
             "attention.layer_norm_epsilon" if family.layer_norm else "attention.layer_norm_rms_epsilon": 0.01}
    if family.free_heads:
        found |= {"attention.key_length": of["D"], "attention.value_length": of["D"]}
    if family.ropes:
        found["rope.dimension_count"] = of["D"]
    if "X" in of:
        found |= {"expert_count": of["X"], "expert_used_count": of["C"]}
    return {**found, **family.keys, **case.keys}


def vocabulary(writer, case):
    if case.family == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(special + [f"\u2581{i}" for i in range(VOCAB - len(special))])
        writer.add_token_types([3] * len(special) + [1] * (VOCAB - len(special)))
        writer.add_token_type_count(2)
        writer.add_pad_token_id(0)
        writer.add_unk_token_id(1)
        writer.add_bos_token_id(2)
        writer.add_sep_token_id(3)
        writer.add_mask_token_id(4)
        return
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    letters = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}  # GPT-2's of the bytes
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([letters[b] for b in range(256)] + [f"<{i}>" for i in range(256, VOCAB)])
    writer.add_token_types([1] * 256 + [3] * (VOCAB - 256))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCAB - 1)


def write(path, case, arrays, metadata=None, types=None, template=None, tokenizer=None):
    """A GGUF file of a case. `metadata`: keys() with other values; `types`: {tensor: type} of those that are not F32, whose
    arrays are bytes of blocks; `template`: of chats; `tokenizer`: what puts another one than vocabulary() does."""
    kinds = {bool: VALUE.BOOL, int: VALUE.UINT32, float: VALUE.FLOAT32, str: VALUE.STRING, list: VALUE.ARRAY}
    writer = gguf.GGUFWriter(path, case.family)
    for key, value in (metadata or keys(case)).items():
        writer.add_key_value(f"{case.family}.{key}", value, kinds[type(value)])
    (tokenizer or vocabulary)(writer, case)
    if template:
        writer.add_chat_template(template)
    for tensor, array in arrays.items():
        writer.add_tensor(tensor, array, raw_dtype=(types or {}).get(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
