"""One device beside another at the same tier, or beside the float oracle: how far perplexities differ, and whether by
more than chance.

usage: tests/oracle/run tests/oracle/devices.py build/tests/oracle/engine-logits [--device vulkan0]
                                  [--beside cpu|float] [--windows 8] [--skip 0] [--tier TIER]... [--domain DOMAIN]...

Windows of 512 tokens of a novel, a manual and code; the second half of each is scored, as `nibble
eval` does; --skip leaves out so many that were scored before. The standard error is of the mean
difference of the same tokens' log-probabilities, over windows, for tokens of one have the same past:
a difference of about that size says nothing but how many windows there were. Takes long on a CPU
that plays a GPU, and is no part of tools/check.
"""
import argparse
import pathlib
import subprocess
import tempfile

import numpy as np

import llama
import test_logits as logits


def device_logits(executable, device, tier, windows, vocab_size, scratch):
    """Scored rows, [windows][rows][vocabulary], read as they are wanted."""
    tokens, out = scratch / "tokens", scratch / device
    windows.astype("<i4").tofile(tokens)
    subprocess.run([executable, llama.PACKAGED, tokens, "--precision", tier, "--device", device, "--ctx",
                    str(logits.WINDOW), "--threads", "2", "-o", out], check=True)
    return np.memmap(out, "<f4", "r", shape=(*windows.shape, vocab_size))[:, logits.SCORED]


def oracle_rows(windows):
    """The same of llama.cpp on the same weights in F32, window after window."""
    context = llama.Context(llama.Model(llama.f32_model()), logits.WINDOW, float_kv=True)
    for window in windows:
        yield logits.oracle_logits(context, window)


def line(name, windows):
    divergence, ours, others = (np.concatenate(part) for part in zip(*windows))
    off = ours - others
    means = [(here - there).mean() for _, here, there in windows]
    print(f"  {name:6} {len(off):6} tokens, perplexity {np.exp(ours.mean()):8.4f} beside "
          f"{np.exp(others.mean()):8.4f}: {100 * np.expm1(off.mean()):+.4f} % (standard error "
          f"{100 * np.std(means) / len(means) ** 0.5:.4f}), KL {divergence.mean():.2e}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("executable")
    parser.add_argument("--device", default="vulkan0")
    parser.add_argument("--beside", default="cpu")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--tier", action="append", choices=logits.LIMITS)
    parser.add_argument("--domain", action="append", choices=logits.DOMAINS)
    options = parser.parse_args()
    logits.WINDOWS = options.skip + options.windows
    model = llama.Model(llama.PACKAGED)
    for tier in options.tier or logits.LIMITS:
        print(f"{tier}: {options.device} beside {options.beside}", flush=True)
        everything = []
        for domain in options.domain or logits.DOMAINS:
            windows = logits.windows_of(model, domain)[options.skip:]
            with tempfile.TemporaryDirectory() as scratch:
                ours, others = (oracle_rows(windows) if device == "float" else
                                device_logits(options.executable, device, tier, windows, model.vocab_size,
                                              pathlib.Path(scratch))
                                for device in (options.device, options.beside))
                found = [logits.compare(*each) for each in zip(windows, others, ours)]
            line(domain, found)
            everything += found
        line("all", everything)


if __name__ == "__main__":
    main()
