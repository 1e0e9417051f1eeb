#!/usr/bin/env python3
"""Mean KL divergence at equal sizes: files of ours beside every preset of llama-quantize that is no larger, with the same imatrix.

Usage: tests/oracle/run tests/peers/compression/sizes.py NIBBLE IMATRIX OURS.gguf... [--windows 8] [--socket PATH] [--presets Q4_0 ...]
IMATRIX is what `nibble compress --save-imatrix` kept. Presets whose blocks hold the packaged model's weights exactly (Q4_1,
Q5_1: they lie on a Q4_1 grid) are left out. A daemon runs at the socket; divergences are `nibble eval`'s, against the F32 file.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import llama_cpp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "oracle"))
import llama  # noqa: E402

TEXTS = ("novel", "prose", "code")
EXACT = {"Q4_1", "Q5_1", "F16", "BF16", "F32"}


def presets():
    prefix = "LLAMA_FTYPE_MOSTLY_"
    return {name.removeprefix(prefix): value for name, value in vars(llama_cpp.llama_cpp).items()
            if name.startswith(prefix) and isinstance(value, int) and name.removeprefix(prefix) not in EXACT}


def importance(path):
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    return {name.removesuffix(".in_sum2"): (sums / tensors[name.replace("in_sum2", "counts")]).ravel()
            for name, sums in tensors.items() if name.endswith(".in_sum2")}


def divergences(args, path):
    """Of all texts together, then of each."""
    command = [args.nibble, "eval", path, "-r", llama.f32_model(), "--json", "-w", str(args.windows), "--precision", "exact"]
    for name in TEXTS:
        command += ["-t", llama.CACHE / "text" / f"{name}.txt"]
    if args.socket:
        command += ["--socket", args.socket]
    report = json.loads(subprocess.run([str(w) for w in command], check=True, stdout=subprocess.PIPE).stdout)
    return [report["kld_mean"], *(t["kld_mean"] for t in report["texts"])]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble")
    parser.add_argument("imatrix")
    parser.add_argument("ours", nargs="+", type=pathlib.Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--socket")
    parser.add_argument("--presets", nargs="+")
    parser.add_argument("--list", action="store_true", help="only the presets' sizes")
    args = parser.parse_args()
    largest = max(p.stat().st_size for p in args.ours)
    found = importance(args.imatrix)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, value in presets().items():
            path = pathlib.Path(folder) / f"{name}.gguf"
            if args.presets and name not in args.presets:
                continue
            try:
                llama.quantize(llama.f32_model(), path, value, found)
            except RuntimeError:
                print(f"{name:10} llama-quantize refuses", flush=True)
                continue
            print(f"{name:10} {path.stat().st_size / 1e6:7.2f} MB", flush=True)
            if path.stat().st_size > 1.005 * largest or args.list:
                path.unlink()
            else:
                files.append(path)
        for path in files + args.ours if not args.list else []:
            found = divergences(args, path)
            print(f"{path.stem:10} {path.stat().st_size / 1e6:7.2f} MB", *(f"{kl:.4f}" for kl in found), flush=True)


if __name__ == "__main__":
    main()
