"""Vectors of texts, through libnibble and the service, beside numpy in float64, the `tokenizers` package and llama.cpp:
all-MiniLM-L6-v2, whose folder says what it is, and a decoder whose last token's row is the vector.

usage: test_embeddings.py LIBNIBBLE NIBBLE    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import unittest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import numpy as np
from tokenizers import Tokenizer

import folders_numpy
import harness
import libnibble as nb
import llama
import llama_cpp as ll

LIBRARY, NIBBLE = sys.argv[1:]
MINILM = llama.CACHE / "models" / "all-MiniLM-L6-v2"
# The least cosine to float64; what int8 activations would cost, these weights of float32 do not pay.
BOUNDS = {"exact": 0.99999, "balanced": 0.999, "fast": 0.999}
LONGEST = 512
MEAN, LAST = 1, 3


def texts():
    """Of 26 languages, from a word to more than a page; none longer than the model takes."""
    found = ["a", "Hello, world!", "", "   ", "naïve façade — 北京 😀"]
    for i, path in enumerate(sorted((llama.CACHE / "text" / "languages").glob("*.txt"))):
        text = path.read_text()[1000:]
        found.append(text[:20 + 37 * i % 150])
    return found + ["word " * (LONGEST - 2)]


def safetensors(path):
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    assert {t["dtype"] for t in header.values()} <= {"F32", "I64"}
    return {name: np.frombuffer(data, "<f4", offset=8 + size + t["data_offsets"][0],
                                count=int(np.prod(t["shape"]))).reshape(t["shape"]).astype(np.float64)
            for name, t in header.items() if t["dtype"] == "F32"}


def unit(x):
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True))


def cosines(a, b):
    return (unit(a.astype(np.float64)) * unit(b.astype(np.float64))).sum(axis=-1)


def llama_vectors(path, ids, pooling):
    model = llama.Model(path)
    c = llama.Context(model, LONGEST, float_kv=True, embeddings=True, pooling_type=pooling)
    n, found = ll.llama_model_n_embd(model.handle), []
    for tokens in ids:
        c.clear()
        c.decode(tokens, range(len(tokens)), [0] * len(tokens), [1] * len(tokens))
        found.append(np.ctypeslib.as_array(ll.llama_get_embeddings_seq(c.handle, 0), (n,)).copy())
    c.close()
    model.close()
    return np.stack(found)


class Embeddings(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.texts = texts()
        tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        cls.ids = [tokenizer.encode(text).ids for text in cls.texts]
        weights, config = safetensors(MINILM / "model.safetensors"), json.loads((MINILM / "config.json").read_text())
        cls.rows = [folders_numpy.bert_vectors(config, weights, np.array(ids)) for ids in cls.ids]
        cls.right = np.stack([rows.mean(axis=0) for rows in cls.rows])
        cls.daemon = harness.Daemon("[limits]\nchannel-bytes-per-user = 1000000000\n", os.environ["NIBBLE_TEST_WORKER"])
        cls.gguf = cls.daemon.file("minilm.gguf", b"")

    @classmethod
    def tearDownClass(cls):
        status, log = cls.daemon.finish()
        assert status == 0, log

    def session(self, path, precision="exact"):
        socket = ["--socket", self.daemon.runtime / "nibble.sock"]
        subprocess.run([NIBBLE, "load", path, "--name", "m", "--precision", precision, *socket], check=True,
                       stdout=subprocess.DEVNULL)
        self.addCleanup(subprocess.run, [NIBBLE, "unload", "m", "--force", *socket], check=True, stdout=subprocess.DEVNULL)
        session = nb.Session(LIBRARY, self.daemon.runtime / "nibble.sock", "m")
        self.addCleanup(session.close)
        return session

    def test_beside_float64(self):
        for precision, bound in BOUNDS.items():
            with self.subTest(precision):
                session = self.session(MINILM, precision)
                vectors, counts = session.embed(self.texts)
                self.assertEqual(counts, [len(ids) for ids in self.ids])
                found = cosines(vectors, self.right)
                print(f"{precision}: cosine {found.min():.8f} at least, {np.median(found):.8f} usually")
                self.assertGreaterEqual(found.min(), bound)
                np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, rtol=0, atol=1e-6)
                self.doCleanups()

    def test_as_the_model_gives_them(self):
        plain, _ = self.session(MINILM).embed(self.texts, no_normalise=True)
        np.testing.assert_allclose(plain, self.right, rtol=0, atol=1e-4 * np.abs(self.right).max())

    def test_a_folder_that_does_not_normalise(self):
        plain = self.session(MINILM).embed(self.texts[:4], no_normalise=True)[0]
        self.doCleanups()
        folder = pathlib.Path(self.daemon.dir.name) / "plain"
        shutil.copytree(MINILM, folder)
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps(modules[:2]))
        self.assertTrue((self.session(folder).embed(self.texts[:4])[0] == plain).all())

    def test_beside_llama_cpp(self):
        subprocess.run([NIBBLE, "convert", MINILM, "-o", self.gguf, "--force"], check=True, stdout=subprocess.DEVNULL)
        session = self.session(self.gguf)
        found = cosines(session.embed(self.texts)[0], llama_vectors(self.gguf, self.ids, MEAN))
        print(f"llama.cpp: cosine {found.min():.8f} at least")
        self.assertGreaterEqual(found.min(), BOUNDS["exact"])

    def test_same_bytes(self):
        """Alone, together, as ids and in registered memory."""
        session = self.session(MINILM, "balanced")
        together, _ = session.embed(self.texts)
        alone = np.concatenate([session.embed([text])[0] for text in self.texts])
        as_ids, _ = session.embed(self.ids)
        memory = nb.Memory(session, 4096 + together.nbytes)
        memory.register()
        session.embed_to(self.texts, memory.place(4096))
        self.assertTrue((together == alone).all())
        self.assertTrue((together == as_ids).all())
        self.assertTrue((together == memory.get(4096, together.shape, np.float32)).all())
        memory.close()

    def test_too_long(self):
        session, text = self.session(MINILM), "word " * (LONGEST - 1)
        with self.assertRaisesRegex(nb.Failure, "text 2: 513 tokens are more than the 512"):
            session.embed(["a", text])
        vectors, counts = session.embed(["a", text], truncate=True)
        self.assertEqual(counts, [3, LONGEST + 1])
        self.assertTrue((vectors == session.embed(["a", "word " * (LONGEST - 2)])[0]).all())

    def test_decoder(self):
        session, model = self.session(llama.PACKAGED), llama.Model(llama.PACKAGED)
        ids = [model.tokenize(text) for text in self.texts[5:12]]
        model.close()
        vectors, counts = session.embed([i.tolist() for i in ids])
        self.assertEqual(counts, [len(i) for i in ids])
        found = cosines(vectors, llama_vectors(llama.f32_model(), ids, LAST))
        print(f"a decoder: cosine {found.min():.8f} at least")
        self.assertGreaterEqual(found.min(), 0.99999)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
