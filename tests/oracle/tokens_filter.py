"""Talks to the filter built from tokens.c, and knows where the real model and the texts lie."""
import json
import os
import pathlib
import struct

from program import Program

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nibble"
MODEL = pathlib.Path(os.environ.get("NIBBLE_MODEL") or CACHE / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
MINILM = pathlib.Path(os.environ.get("NIBBLE_MINILM") or CACHE / "models/all-MiniLM-L6-v2")
TEXT = pathlib.Path(os.environ.get("NIBBLE_TEXT") or CACHE / "text")


class Filter(Program):
    """One tokenizer in a process of its own."""

    def verb(self, verb, data=b""):
        self.ask(verb, struct.pack("<I", len(data)), data)

    def ids(self):
        status, n = self.read("<iI")
        ids = list(self.read(f"<{n}i"))
        if status < 0:
            raise ValueError(os.strerror(-status))
        return ids

    def encode(self, text, special=False):
        self.verb(b"E" if special else b"e", text)
        return self.ids()

    def encode_whole(self, text):
        """With what goes before and after a text."""
        self.verb(b"w", text)
        return self.ids()

    def decode(self, ids, special=False):
        self.verb(b"P" if special else b"p", struct.pack(f"<{len(ids)}i", *ids))
        (n,) = self.read("<I")
        return self.bytes(n)

    def chat(self, messages, prompt=True):
        self.verb(b"c", conversation(messages, prompt))
        return self.ids()

    def render(self, messages, prompt=True):
        self.verb(b"r", conversation(messages, prompt))
        status, n = self.read("<iI")
        text = self.bytes(n)
        if status < 0:
            raise ValueError(os.strerror(-status))
        return text

    def info(self):
        self.verb(b"i")
        names = ("vocab", "bos", "eos", "add_bos", "add_eos")
        known = dict(zip(names, self.read("<5i")))
        ends = self.bytes(known["vocab"])
        known["eog"] = [i for i, end in enumerate(ends) if end]
        return known


def conversation(messages, prompt):
    messages = [{"role": role, "content": content} for role, content in messages]
    return json.dumps({"messages": messages, "add_generation_prompt": prompt}).encode()
