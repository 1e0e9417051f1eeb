#!/usr/bin/env python3
"""Our scalar formats against gguf's quants.py: every decoder gives the same floats, every encoder the same bytes, and a file is
packed where every weight is a finite number.

Usage: test_formats.py FORMATS, the filter built from formats.c. NaNs are compared as NaNs, not by their payload.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
from gguf import GGUFWriter
from gguf import GGMLQuantizationType as Type
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES

VALUES = 1 << 20
DECODED = ("F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS").split()
ENCODED = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0".split()


def run(filter_path, verb, name, data):
    out = subprocess.run([filter_path, verb, name], input=data.tobytes(), stdout=subprocess.PIPE, check=True)
    return np.frombuffer(out.stdout, dtype=np.uint8)


def differ(ours, theirs, kind):
    """Places where two arrays differ, a NaN being like any other."""
    a, b = ours.view(kind), theirs.view(kind)
    same = a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}")
    if np.issubdtype(kind, np.floating):
        same |= np.isnan(a) & np.isnan(b)
    return np.flatnonzero(~same)


def blocks_of(name, rng):
    """Blocks of any bits, so of any scale: subnormal, infinite, NaN."""
    block, size = GGML_QUANT_SIZES[Type[name]]
    n = VALUES // block + 1
    return rng.integers(0, 256, (n, size), dtype=np.uint8)


def floats_of(rng):
    """Rows of 32 finite weights at all magnitudes, with the edge cases by name."""
    normal = rng.standard_normal((VALUES // 32, 32)).astype(np.float32)
    normal *= np.exp2(rng.integers(-40, 40, (len(normal), 1))).astype(np.float32)
    ties = rng.integers(-16, 17, (4096, 32)).astype(np.float32) / 2
    sparse = np.where(rng.random((4096, 32)) < 0.1, normal[:4096], np.float32(0))
    constant = np.repeat(normal[:4096, :1], 32, axis=1)
    subnormal = (rng.integers(0, 1 << 23, (2048, 32), dtype=np.uint32)
                 | rng.integers(0, 2, (2048, 32), dtype=np.uint32) << 31).view(np.float32)
    huge = normal[:2048] * np.float32(2.0**80)
    half_edge = rng.integers(0x33000000, 0x47800000, (4096, 32), dtype=np.uint32).view(np.float32)
    zeros = np.zeros((2, 32), np.float32)
    zeros[1] = -0.0
    return {"normal": normal, "ties": ties, "sparse": sparse, "constant": constant, "subnormal": subnormal,
            "huge": huge, "half-precision edges": half_edge, "zeros": zeros}


def elements_of(rng):
    """Float types convert element by element: any bits, infinities and NaNs too."""
    any_bits = rng.integers(0, 1 << 32, (VALUES // 32, 32), dtype=np.uint64).astype(np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 65504, 65519.996, 65520, 6e-8, 3e-8, 2.9e-8,
                        1e-45, -1e-45, 3.4e38, -3.4e38] * 2, np.float32).reshape(1, 32)
    return {"any bits": any_bits, "special": special}


def check_decode(filter_path, name, rng):
    data = blocks_of(name, rng)
    with np.errstate(all="ignore"):
        theirs = quants.dequantize(data, Type[name])
    bad = differ(run(filter_path, "decode", name, data), np.ascontiguousarray(theirs).view(np.uint8).ravel(), np.float32)
    return [f"decode {name}: value {bad[0]} and {len(bad) - 1} more of {theirs.size}"] if len(bad) else []


def check_encode(filter_path, name, rng):
    is_float = GGML_QUANT_SIZES[Type[name]][0] == 1
    failures = []
    for what, rows in {**floats_of(rng), **(elements_of(rng) if is_float else {})}.items():
        with np.errstate(all="ignore"):
            theirs = np.ascontiguousarray(quants.quantize(rows, Type[name])).view(np.uint8).ravel()
        ours = run(filter_path, "encode", name, rows)
        bad = differ(ours, theirs, {"F32": np.float32, "F16": np.float16}.get(name, np.uint8))
        if len(bad):
            failures.append(f"encode {name} of {what}: byte {bad[0]} and {len(bad) - 1} more of {theirs.size}")
    return failures


FILES, ROWS, BLOCKS = 100, 17, 2  # of a type; two row groups


def write_file(path, name, rows):
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("w", rows, raw_dtype=Type[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_pack(filter_path, name, rng):
    """Files of any bits: each is packed, or refused with the place of a block that has no finite weights."""
    block, size = GGML_QUANT_SIZES[Type[name]]
    files = rng.integers(0, 256, (FILES, ROWS, BLOCKS * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        finite = np.isfinite(quants.dequantize(files, Type[name])).reshape(FILES, ROWS, BLOCKS, block).all(axis=3)
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / str(i) for i in range(FILES)]
        for path, rows in zip(paths, files):
            kind = {"F32": np.float32, "F16": np.float16}.get(name, np.uint8)
            write_file(path, name, rows.view(kind))
        done = subprocess.run([filter_path, "pack", *paths], stdout=subprocess.PIPE, check=True, text=True)
    failures, refused = [], 0
    for i, line in enumerate(done.stdout.splitlines()):
        place = re.fullmatch(r"tensor w .* \(row (\d+), \w+ (\d+)\): the file is damaged.*", line)
        refused += bool(line)
        if bool(line) == finite[i].all() or (line and (not place or finite[i][int(place[1]), int(place[2])])):
            failures.append(f"pack {name}: file {i}: \"{line}\"")
    if not 0 < refused < FILES:
        failures.append(f"pack {name}: {refused} of {FILES} files refused: no test")
    return failures


def main():
    filter_path, rng, failures = sys.argv[1], np.random.default_rng(20260822), []
    for name in DECODED:
        failures += check_decode(filter_path, name, rng)
        failures += check_pack(filter_path, name, rng)
    for name in ENCODED:
        failures += check_encode(filter_path, name, rng)
    for line in failures:
        print(line)
    print(f"{len(DECODED)} decoders and {len(ENCODED)} encoders over {VALUES} values and more each, "
          f"{FILES * len(DECODED)} files: "
          f"{len(failures)} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
