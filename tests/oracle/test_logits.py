"""Nibble's logits beside a float oracle's: llama.cpp on the same weights in float32, float32 KV.

Four windows of 512 tokens of each of a novel, a manual and code; the second half of each is scored,
as llama-perplexity does. Checks, for every tier of precision and every domain, the mean KL
divergence of Nibble's distribution from the oracle's and the ratio of their perplexities.

usage: test_logits.py ENGINE-LOGITS    (the test executable of engine_logits.c)
"""
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

# Spinning OpenMP threads would take the processors from each other where others work too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import llama  # noqa: E402
from measures import log_softmax  # noqa: E402

WINDOW, WINDOWS = 512, 4
DOMAINS = ["novel", "prose", "code"]
LIMITS = {  # tier: mean KL divergence, relative difference of perplexity
    "exact": (5e-5, 0.0005),
    "balanced": (0.0012, 0.003),
    "fast": (0.0030, 0.006),
}
# A window's scored rows: those that predict the tokens of its second half.
SCORED = slice(WINDOW // 2, WINDOW - 1)


def windows_of(model, domain):
    """The first tokens of a domain's text, [WINDOWS][WINDOW]."""
    text = (llama.CACHE / "text" / f"{domain}.txt").read_bytes()[:WINDOW * WINDOWS * 16]
    ids = model.tokenize(text)
    if len(ids) < WINDOW * WINDOWS:
        sys.exit(f"{domain}.txt is too short; run tools/fetch-text")
    return ids[:WINDOW * WINDOWS].reshape(WINDOWS, WINDOW)


def oracle_logits(context, window):
    context.clear()
    scored = np.zeros(WINDOW, bool)
    scored[SCORED] = True
    context.decode(window, range(WINDOW), [0] * WINDOW, scored)
    return context.logits(int(scored.sum()))


def compare(window, reference, logits):
    """Of one window's scored rows: (KL divergences, our -log P of the next token, the oracle's)."""
    if logits.shape != reference.shape or not np.isfinite(logits).all():
        sys.exit(f"logits are not finite numbers of shape {reference.shape}")
    p, q = log_softmax(reference), log_softmax(logits)
    targets = window[SCORED.start + 1:SCORED.stop + 1]
    rows = np.arange(len(targets))
    return (np.exp(p) * (p - q)).sum(axis=1), -q[rows, targets], -p[rows, targets]


def nibble_logits(executable, windows, tier, vocab_size, scratch):
    """Nibble's scored rows, [WINDOWS][rows][vocabulary]."""
    tokens, out = scratch / "tokens", scratch / "logits"
    windows.astype("<i4").tofile(tokens)
    subprocess.run([executable, llama.PACKAGED, tokens, "--precision", tier, "--ctx", str(WINDOW),
                    "--threads", "2", "-o", out], check=True)
    found = np.fromfile(out, "<f4")
    if found.size != windows.size * vocab_size:
        sys.exit(f"{executable} wrote {found.size} logits; expected {windows.size * vocab_size}")
    return found.reshape(WINDOWS, WINDOW, vocab_size)[:, SCORED]


def measure(executable, scratch):
    """{tier: {domain: [windows' compare()]}}"""
    model = llama.Model(llama.f32_model())
    context = llama.Context(model, WINDOW, float_kv=True)
    found = {tier: {} for tier in LIMITS}
    for domain in DOMAINS:
        windows = windows_of(model, domain)
        references = [oracle_logits(context, window) for window in windows]
        for tier in LIMITS:
            ours = nibble_logits(executable, windows, tier, model.vocab_size, scratch)
            found[tier][domain] = [compare(*each) for each in zip(windows, references, ours)]
    return found


def summary(windows):
    """Mean and largest KL divergence, our perplexity, the oracle's, and how far ours is off."""
    divergence, ours, oracles = (np.concatenate(part) for part in zip(*windows))
    off = np.exp(ours.mean() - oracles.mean()) - 1
    return divergence.mean(), divergence.max(), np.exp(ours.mean()), np.exp(oracles.mean()), off


def verdict(tier, domains):
    """Prints a tier's figures and says whether every domain keeps its limits."""
    most_kl, most_off = LIMITS[tier]
    print(f"{tier}: KL at most {most_kl}, perplexity within {100 * most_off:.2f} %")
    everything = [window for windows in domains.values() for window in windows]
    kept = True
    for name, windows in [*domains.items(), ("all", everything)]:
        kl, most, ours, oracles, off = summary(windows)
        good = kl <= most_kl and abs(off) <= most_off
        kept = kept and good
        print(f"  {name:6} KL {kl:.7f} (largest {most:.4f}), perplexity {ours:8.4f}, oracle "
              f"{oracles:8.4f}: {100 * off:+.4f} %{'' if good else '  NOT KEPT'}", flush=True)
    return kept


def main():
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(sys.argv[1], pathlib.Path(scratch))
    verdicts = [verdict(tier, domains) for tier, domains in found.items()]
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main()
