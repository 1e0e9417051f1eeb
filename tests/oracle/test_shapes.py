"""Float models whose widths are no multiples of 32, beside llama.cpp on the same weights in float32.

usage: test_shapes.py ENGINE-LOGITS DEVICE...    (the test executable of engine_logits.c)
"""
import os
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import llama  # noqa: E402

TOKENS, VOCAB = 48, 300
# Of the largest logit: llama.cpp keeps keys and values in float32 here, Nibble in float16.
BOUND = 3e-3
SHAPES = [  # embedding, feed-forward, heads, KV heads, key and value length
    (72, 172, 4, 2, 18, 18),
    (64, 172, 2, 1, 32, 32),
    (100, 50, 5, 1, 20, 20),
    (130, 77, 13, 13, 10, 10),
]
TYPES = {"F32": (gguf.GGMLQuantizationType.F32, 0), "F16": (gguf.GGMLQuantizationType.F16, 1),
         "BF16": (gguf.GGMLQuantizationType.BF16, 32)}


def symbols():
    """GPT-2's letters for the bytes, and then others."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    letters = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [letters[b] for b in range(256)] + [f"<{i}>" for i in range(256, VOCAB)]


def tensors(shape, seed):
    """Name: rows of random weights, as every type of a float keeps them."""
    embedding, ffn, heads, kv_heads, k, v = shape
    random = np.random.default_rng(seed)

    def matrix(rows, cols):
        w = random.normal(0, cols ** -0.5, (rows, cols)).astype(np.float32)
        return (w.view(np.uint32) & 0xffff0000).view(np.float32)  # BF16; F16 rounds nothing of 8 bits

    def norm():
        return random.uniform(0.5, 1.5, embedding).astype(np.float32)

    found = {"token_embd": matrix(VOCAB, embedding), "output_norm": norm(), "output": matrix(VOCAB, embedding)}
    for layer in range(2):
        rows = {"attn_norm": norm(), "attn_q": matrix(heads * k, embedding), "attn_k": matrix(kv_heads * k, embedding),
                "attn_v": matrix(kv_heads * v, embedding), "attn_output": matrix(embedding, heads * v),
                "ffn_norm": norm(), "ffn_gate": matrix(ffn, embedding), "ffn_up": matrix(ffn, embedding),
                "ffn_down": matrix(embedding, ffn)}
        found |= {f"blk.{layer}.{name}": w for name, w in rows.items()}
    return found


def write(path, shape, weights, kind):
    embedding, ffn, heads, kv_heads, k, v = shape
    quantization, file_type = TYPES[kind]
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(2)
    w.add_context_length(256)
    w.add_embedding_length(embedding)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_key_length(k)
    w.add_value_length(v)
    w.add_rope_dimension_count(k)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCAB)
    w.add_file_type(file_type)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(symbols())
    w.add_token_types([1] * 256 + [3] * (VOCAB - 256))
    w.add_token_merges(["a b"])
    w.add_eos_token_id(VOCAB - 1)
    for name, rows in weights.items():
        data = gguf.quantize(rows, quantization) if rows.ndim == 2 else rows
        w.add_tensor(name + ".weight", data, raw_dtype=quantization if rows.ndim == 2 else None)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def oracle(path, tokens):
    model = llama.Model(path)
    context = llama.Context(model, TOKENS, float_kv=True)
    context.decode(tokens, range(TOKENS), [0] * TOKENS, [True] * TOKENS)
    logits = context.logits(TOKENS)
    context.close()
    model.close()
    return logits


def nibble(executable, device, model, tokens, scratch):
    out = scratch / "logits"
    tokens.astype("<i4").tofile(scratch / "tokens")
    subprocess.run([executable, model, scratch / "tokens", "--precision", "exact", "--ctx", str(TOKENS),
                    "--threads", "2", "--device", device, "-o", out], check=True)
    return np.fromfile(out, "<f4").reshape(TOKENS, VOCAB)


def main():
    executable, *devices = sys.argv[1:]
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        for i, shape in enumerate(SHAPES):
            weights = tensors(shape, i)
            tokens = np.random.default_rng(100 + i).integers(0, 256, TOKENS)
            write(scratch / "oracle.gguf", shape, weights, "F32")
            want = oracle(scratch / "oracle.gguf", tokens)
            for kind in TYPES:
                write(scratch / "model.gguf", shape, weights, kind)
                for device in devices:
                    got = nibble(executable, device, scratch / "model.gguf", tokens, scratch)
                    off = (np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1)).max()
                    kept = kept and off <= BOUND
                    print(f"{shape} {kind:4} {device:8} {off:.2e} of the largest logit"
                          f"{'' if off <= BOUND else '  NOT KEPT'}", flush=True)
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
