"""Small vocabularies: merges that are trained on a text, and the alphabet of byte-level BPE."""
import numpy as np


def train(symbols, n):
    """Merges of the most frequent neighbours in a list of strings: (left, right), in order."""
    names = sorted(set(symbols))
    number = {name: i for i, name in enumerate(names)}
    ids = np.array([number[s] for s in symbols], dtype=np.int64)
    merges = []
    while len(merges) < n:
        pairs, counts = np.unique(ids[:-1] << 32 | ids[1:], return_counts=True)
        used = set()
        for pair in pairs[np.argsort(-counts, kind="stable")][:60]:
            left, right = int(pair >> 32), int(pair & 0xffffffff)
            joined = names[left] + names[right]
            if joined in number or left in used or right in used or len(joined) > 40:
                continue
            used |= {left, right}
            number[joined] = len(names)
            names.append(joined)
            merges.append((names[left], names[right]))
            at = np.flatnonzero((ids[:-1] == left) & (ids[1:] == right))
            at = at[np.concatenate(([True], np.diff(at) > 1))] if len(at) else at
            ids[at] = number[joined]
            ids = np.delete(ids, at + 1)
    return merges[:n]


def alphabet():
    plain = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
