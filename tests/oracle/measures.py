"""What tests of compressed models share: a text to learn from, and how far logits are from others, in float64."""
import numpy as np


def counted(lines):
    """A text of so many lines."""
    return "".join(f"{i} times {i} is {i * i}, and the {chr(97 + i % 26)}s of line {i} go on.\n" for i in range(lines))


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def divergences(reference, found):
    """KL of each row, in nats, from the reference's logits to those found."""
    p, q = log_softmax(reference), log_softmax(found)
    return (np.exp(p) * (p - q)).sum(axis=1)


def divergence(reference, found):
    return divergences(reference, found).mean()


def perplexity(logits, tokens):
    """Of each token but the first, by the logits of the one before."""
    return np.exp(-log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]].mean())
