"""What llama.cpp does with a file: prefill, decode and batched decode, in tokens a second.

The counterpart of `nibble bench NAME --json`: the same sizes, no sampling on this side at all.
"""
import time

import numpy as np

import llama


class Peer:
    def __init__(self, path, prompt=512, gen=64, depth=16, clients=8, threads=2):
        self.prompt, self.gen, self.depth = prompt, gen, depth
        self.model = llama.Model(path)
        room = max(prompt, depth + gen) + 1
        self.contexts = {n: llama.Context(self.model, room, sequences=n, threads=threads)
                         for n in {1, clients}}
        self.clients = clients

    def _ids(self, n, seed):
        return np.random.default_rng(seed).integers(0, self.model.vocab_size, n)

    def prefill(self, seed):
        context = self.contexts[1]
        context.clear()
        ids = self._ids(self.prompt, seed)
        wanted = np.arange(self.prompt) == self.prompt - 1
        began = time.perf_counter()
        for at in range(0, self.prompt, 512):
            part = slice(at, at + 512)
            rows = len(ids[part])
            context.decode(ids[part], range(at, at + rows), [0] * rows, wanted[part])
        return self.prompt / (time.perf_counter() - began)

    def decode(self, sequences, seed):
        """Tokens a second of all sequences together, each at its own depth."""
        context = self.contexts[sequences]
        context.clear()
        ids = self._ids(self.depth + self.gen, seed)
        lanes = range(sequences)
        for lane in lanes:
            context.decode(ids[:self.depth], range(self.depth), [lane] * self.depth,
                           [0] * self.depth)
        began = time.perf_counter()
        for at in range(self.depth, self.depth + self.gen):
            context.decode([ids[at]] * sequences, [at] * sequences, lanes, [1] * sequences)
        return sequences * self.gen / (time.perf_counter() - began)

    def measure(self, seed):
        alone = {"prefill_tps": self.prefill(seed), "decode_tps": self.decode(1, seed)}
        return alone if self.clients == 1 else \
            {**alone, "aggregate_tps": self.decode(self.clients, seed)}

    def close(self):
        for context in self.contexts.values():
            context.close()
        self.model.close()
