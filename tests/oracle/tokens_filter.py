"""Talks to the filter built from tokens.c, and knows where the real model and the texts lie."""
import os
import pathlib
import struct
import subprocess

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nibble"
MODEL = pathlib.Path(os.environ.get("NIBBLE_MODEL") or CACHE / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
TEXT = pathlib.Path(os.environ.get("NIBBLE_TEXT") or CACHE / "text")


class Filter:
    """One tokenizer in a process of its own."""

    def __init__(self, program, model):
        self.process = subprocess.Popen([program, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        if self.process.wait() != 0:
            raise SystemExit("the filter failed")

    def ask(self, verb, data=b""):
        self.process.stdin.write(verb + struct.pack("<I", len(data)) + data)
        self.process.stdin.flush()

    def read(self, form):
        return struct.unpack(form, self.process.stdout.read(struct.calcsize(form)))

    def ids(self):
        status, n = self.read("<iI")
        ids = list(self.read(f"<{n}i"))
        if status < 0:
            raise ValueError(os.strerror(-status))
        return ids

    def encode(self, text, special=False):
        self.ask(b"E" if special else b"e", text)
        return self.ids()

    def decode(self, ids, special=False):
        self.ask(b"P" if special else b"p", struct.pack(f"<{len(ids)}i", *ids))
        (n,) = self.read("<I")
        return self.process.stdout.read(n)

    def chat(self, messages, prompt=True):
        self.ask(b"C" if prompt else b"c", pack(messages))
        return self.ids()

    def render(self, messages, prompt=True):
        self.ask(b"R" if prompt else b"r", pack(messages))
        status, n = self.read("<iI")
        text = self.process.stdout.read(n)
        if status < 0:
            raise ValueError(os.strerror(-status))
        return text

    def info(self):
        self.ask(b"i")
        names = ("vocab", "bos", "eos", "add_bos", "add_eos")
        known = dict(zip(names, self.read("<5i")))
        ends = self.process.stdout.read(known["vocab"])
        known["eog"] = [i for i, end in enumerate(ends) if end]
        return known


def pack(messages):
    out = b""
    for role, content in messages:
        role, content = role.encode(), content.encode()
        out += struct.pack("<II", len(role), len(content)) + role + content
    return out
