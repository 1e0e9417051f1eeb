"""`nibble eval` beside llama.cpp's logits and plain numpy: perplexity, KL divergence and their intervals, tasks, vectors,
and the charts of a report, read back from their SVG.

usage: test_eval.py NIBBLE LIBNIBBLE    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import functools
import json
import math
import os
import pathlib
import re
import struct
import subprocess
import sys
import unittest
import unittest.mock
import xml.etree.ElementTree
import zlib

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import gguf
import numpy as np

import families
import harness
import libnibble as nb
import llama
from measures import log_softmax

NIBBLE, LIBRARY = sys.argv[1:]
CASE = families.Case("llama", "eval", families.size(57, 101, 4, 2, 18), families.UNTIED)
WINDOW, RESAMPLES, SEED = 64, 2000, 1
# Student's t at 97.5 % (NIST/SEMATECH e-Handbook, 1.3.6.7.2), by degrees of freedom.
T = {3: 3.182446, 4: 2.776445, 6: 2.446912, 8: 2.306004}
Z = 1.959964
# float32 on both sides, in another order.
CLOSE = 2e-4
TEXT = ("The sea was calm, and nobody spoke of the storm that had been. " * 20)[:5 * WINDOW + 10]
OTHER = "".join(chr(97 + (i * i + 7 * i) % 26) if i % 5 else " " for i in range(4 * WINDOW))


# --- Plain numpy

def of_mean(values):
    n = len(values)
    half = T[n - 1] * np.std(values, ddof=1) / math.sqrt(n)
    return [np.mean(values) - half, np.mean(values) + half]


def draws(n, seed=SEED):
    """How often each sample of the bootstrap has each observation, by SplitMix64: [RESAMPLES][n]."""
    mask, found = (1 << 64) - 1, np.zeros((RESAMPLES, n), int)
    for sample in range(RESAMPLES):
        for _ in range(n):
            seed = (seed + 0x9e3779b97f4a7c15) & mask
            z = seed
            z = ((z ^ (z >> 30)) * 0xbf58476d1ce4e5b9) & mask
            z = ((z ^ (z >> 27)) * 0x94d049bb133111eb) & mask
            found[sample, ((z ^ (z >> 31)) >> 32) * n >> 32] += 1
    return found


def percentiles(values):
    values = np.sort(values)
    return [values[int(0.025 * (len(values) - 1))], values[math.ceil(0.975 * (len(values) - 1))]]


def ranks(x):
    order = np.argsort(x, kind="stable")
    found = np.empty(len(x))
    found[order] = np.arange(len(x))
    return np.array([found[x == value].mean() for value in x])


def spearman(a, b):
    return np.corrcoef(ranks(np.asarray(a)), ranks(np.asarray(b)))[0, 1]


def wilson(k, n):
    share, zz = k / n, Z * Z
    middle, half = share + zz / (2 * n), Z * math.sqrt(share * (1 - share) / n + zz / (4 * n * n))
    return [(middle - half) / (1 + zz / n), (middle + half) / (1 + zz / n)]


def mcnemar(gained, lost):
    n, fewer = gained + lost, min(gained, lost)
    return min(1, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2 ** n)


# --- llama.cpp

class Oracle:
    def __init__(self, path):
        self.model = llama.Model(path)
        self.context = llama.Context(self.model, 512, float_kv=True)

    def log_probs(self, ids):
        """Of each token of a sequence that begins with none: [n][vocabulary]."""
        self.context.clear()
        self.context.decode(ids, range(len(ids)), [0] * len(ids), [1] * len(ids))
        return log_softmax(self.context.logits(len(ids)))

    def windows(self, text):
        """Each window's scored rows and the ids that they predict."""
        ids = self.model.tokenize(text)
        for i in range(len(ids) // WINDOW):
            window = ids[i * WINDOW:(i + 1) * WINDOW]
            yield self.log_probs(window)[WINDOW // 2:WINDOW - 1], window[WINDOW // 2 + 1:]

    def continuation(self, beginning, end):
        """Log-probabilities of the end's tokens, and whether each is the likeliest."""
        whole = beginning + " " + end
        head, ids = self.model.tokenize(beginning), self.model.tokenize(whole)
        shared = next((i for i, (a, b) in enumerate(zip(head, ids)) if a != b), min(len(head), len(ids) - 1))
        rows = self.log_probs(ids)[shared - 1:-1]
        return rows[range(len(rows)), ids[shared:]], (rows.argmax(axis=1) == ids[shared:]).all()

    def close(self):
        self.context.close()
        self.model.close()


def choices(oracle, item):
    """Which choice is the likeliest: by the sum, and by the sum a byte."""
    sums = [oracle.continuation(item["question"], choice)[0].sum() for choice in item["choices"]]
    return int(np.argmax(sums)), int(np.argmax([s / len(c.encode()) for s, c in zip(sums, item["choices"])]))


class Service(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon("[limits]\nchannel-bytes-per-user = 1000000000\n", os.environ["NIBBLE_TEST_WORKER"])
        arrays, random = families.weights(CASE), np.random.default_rng(3)
        cls.reference = families.write(cls.daemon.file("reference.gguf", b""), CASE, arrays)
        cls.models = []
        for i, noise in enumerate((0.02, 0.1, 0.3)):
            other = {name: (a * (1 + noise * random.standard_normal(a.shape))).astype(np.float32) for name, a in arrays.items()}
            cls.models.append(families.write(cls.daemon.file(f"noise-{i}.gguf", b""), CASE, other))
        cls.text, cls.other = cls.daemon.file("text.txt", TEXT.encode()), cls.daemon.file("other.txt", OTHER.encode())

    @classmethod
    def tearDownClass(cls):
        status, log = cls.daemon.finish()
        assert status == 0, log

    def run_eval(self, *words, status=0):
        done = subprocess.run([NIBBLE, "eval", *map(str, words), "--socket", self.daemon.runtime / "nibble.sock"],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stderr if status else done.stdout

    def eval(self, *words):
        return json.loads(self.run_eval(*words, "--json", "--precision", "exact"))

    def close_to(self, found, right, bound=CLOSE, what=""):
        np.testing.assert_allclose(found, right, rtol=bound, atol=bound, err_msg=what)

    def lines(self, name, items):
        return self.daemon.file(name, "".join(json.dumps(item) + "\n" for item in items).encode())


class Text(Service):
    def rows(self, path, text):
        """Each window's (our -log P, the reference's, KL divergences, same top tokens), of llama.cpp's logits."""
        model, reference = Oracle(path), Oracle(self.reference)
        found = []
        for (q, ids), (p, _) in zip(model.windows(text), reference.windows(text)):
            at = range(len(ids))
            found.append((-q[at, ids], -p[at, ids], (np.exp(p) * (p - q)).sum(axis=1), q.argmax(axis=1) == p.argmax(axis=1)))
        model.close()
        reference.close()
        return found

    def check_row(self, row, windows):
        own, theirs, kld, top = (np.array(part) for part in zip(*windows))
        self.assertEqual((row["windows"], row["tokens"]), (len(own), own.size))
        ppl, other = math.exp(own.mean()), math.exp(theirs.mean())
        influence = ppl * (own.mean(axis=1) - own.mean()) - other * (theirs.mean(axis=1) - theirs.mean()) + ppl - other
        weights, order = draws(len(own)), np.argsort(kld, axis=None, kind="stable")
        sampled = [np.repeat(kld.flat[order], np.repeat(w, kld.shape[1])[order]) for w in weights]
        right = {
            "perplexity": ppl, "perplexity_ci": np.exp(of_mean(own.mean(axis=1))),
            "stderr": ppl * np.std(own.mean(axis=1), ddof=1) / math.sqrt(len(own)),
            "reference_perplexity": other, "perplexity_difference": ppl - other, "perplexity_difference_ci": of_mean(influence),
            "perplexity_ratio": ppl / other, "perplexity_ratio_ci": np.exp(of_mean((own - theirs).mean(axis=1))),
            "kld_mean": kld.mean(), "kld_mean_ci": np.maximum(of_mean(kld.mean(axis=1)), 0),
            "kld_99": np.sort(kld, axis=None)[int(0.99 * (kld.size - 1))],
            "kld_99_ci": percentiles([s[int(0.99 * (len(s) - 1))] for s in sampled]),
            "kld_max": kld.max(), "kld_max_ci": percentiles([s[-1] for s in sampled]),
            "top1": top.mean(), "top1_ci": np.clip(of_mean(top.mean(axis=1)), 0, 1)}
        for key, value in right.items():
            self.close_to(row[key], value, CLOSE, key)

    def test_beside_llama_cpp(self):
        got = self.eval(self.models[1], "--text", self.text, "--text", self.other, "--ctx", WINDOW, "--reference",
                        self.reference)
        windows = [self.rows(self.models[1], text) for text in (TEXT, OTHER)]
        self.assertEqual([len(w) for w in windows], [5, 4])
        for row, part, name in zip(got["texts"], windows, (self.text, self.other)):
            self.assertEqual(row["text"], str(name))
            self.check_row(row, part)
        self.check_row(got, windows[0] + windows[1])

    def test_itself_and_one_window(self):
        got = self.eval(self.reference, "--text", self.text, "--ctx", WINDOW, "--windows", 1, "--reference", self.reference)
        self.assertEqual((got["kld_mean"], got["kld_max"], got["top1"], got["perplexity_ratio"]), (0, 0, 1, 1))
        for key in ("stderr", "perplexity_ci", "kld_mean_ci", "kld_99_ci", "perplexity_difference_ci"):
            self.assertIsNone(got[key], key)
        # Several models are a list, each as it is alone.
        both = self.eval(self.reference, self.models[0], "--text", self.text, "--ctx", WINDOW, "--windows", 1,
                         "--reference", self.reference)["models"]
        self.assertEqual([m["model"] for m in both], [str(self.reference), str(self.models[0])])
        self.assertEqual({k: v for k, v in got.items() if k in both[0]}, both[0])


class Tasks(Service):
    CHOICES = [{"question": q, "choices": c, "answer": a} for q, c, a in [
        ("The capital of France is", ["London", "Paris", "a river in Germany"], 1),
        ("One, two, three,", ["seven", "four", "ninety"], 1),
        ("A dog is", ["an animal", "a kind of stone that floats", "made of iron"], 0),
        ("Water boils at one hundred", ["degrees", "apples", "years of age"], 0),
        ("The opposite of hot is", ["warm and pleasant", "cold"], 1),
        ("Bees make", ["honey", "cars", "bread and butter", "milk"], 2)]]
    CLOZE = [{"text": t, "last": w} for t, w in [
        ("One, two, three, four,", "five"), ("The capital of France is", "Paris"), ("Once upon a", "time"),
        ("He opened the door and saw a purple", "hippopotamus"), ("Thank you very", "much"), ("The United States of", "America"),
        ("My name is", "Xerxes")]]

    def test_beside_llama_cpp(self):
        """The real model, its weights in float32: the same decisions as llama.cpp's logits."""
        path = llama.f32_model()
        got = self.eval(path, "--tasks", self.lines("choices", self.CHOICES), "--tasks", self.lines("cloze", self.CLOZE))
        oracle, (choice, cloze) = Oracle(path), got["tasks"]
        best = [choices(oracle, item) for item in self.CHOICES]
        ends = [oracle.continuation(item["text"], item["last"]) for item in self.CLOZE]
        oracle.close()
        right = [[b[how] == item["answer"] for b, item in zip(best, self.CHOICES)] for how in range(2)]
        print(f"multiple choice: {right}; cloze: {[bool(e[1]) for e in ends]}")
        self.assertEqual((choice["kind"], choice["items"], cloze["kind"]), ("choice", 6, "cloze"))
        for key, of in (("accuracy", right[0]), ("accuracy_norm", right[1])):
            self.assertEqual(choice[key], np.mean(of))
            self.close_to(choice[key + "_ci"], wilson(sum(of), len(of)), 1e-6)
        self.assertEqual(cloze["accuracy"], np.mean([e[1] for e in ends]))
        sums = [e[0].sum() for e in ends]
        self.close_to(cloze["logprob"], np.mean(sums), 1e-3)
        self.close_to(cloze["logprob_ci"], of_mean(sums), 1e-3)

    def test_pairs(self):
        """Differences from the reference, question by question."""
        random = np.random.default_rng(5)
        words = ["".join(map(chr, random.integers(97, 123, 6))) for _ in range(200)]
        items = [{"question": words[4 * i], "choices": words[4 * i + 1:4 * i + 4], "answer": i % 3} for i in range(40)]
        # Read once more as cloze, for the paired mean.
        ends = [{"text": item["question"] + "\n", "last": item["choices"][0]} for item in items]
        row, cloze = self.eval(self.models[2], "--reference", self.reference, "--tasks", self.lines("pairs", items),
                               "--tasks", self.lines("ends", ends))["tasks"]
        oracles = [Oracle(path) for path in (self.models[2], self.reference)]
        own, theirs = (np.array([choices(o, item)[0] == item["answer"] for item in items]) for o in oracles)
        for oracle in oracles:
            oracle.close()
        gained, lost = int((own & ~theirs).sum()), int((theirs & ~own).sum())
        print(f"pairs: {own.sum()} and {theirs.sum()} right, {gained} gained, {lost} lost")
        self.assertGreater(gained + lost, 2)
        self.assertEqual((row["accuracy"], row["reference_accuracy"]), (own.mean(), theirs.mean()))
        self.close_to(row["accuracy_difference"], (gained - lost) / 40, 1e-12)
        self.close_to(row["accuracy_mcnemar_p"], mcnemar(gained, lost), 1e-9)
        b, c = gained + 0.5, lost + 0.5
        half = Z * math.sqrt(b + c - (b - c) ** 2 / 42) / 42
        self.close_to(row["accuracy_difference_ci"], [(b - c) / 42 - half, (b - c) / 42 + half], 1e-6)
        self.close_to(cloze["logprob_difference"], cloze["logprob"] - cloze["reference_logprob"], 1e-9)

    def test_errors(self):
        good = json.dumps(self.CHOICES[0]) + "\n"
        for lines, words in [
                (good + "{", ":2: no JSON"), ('{"a": "x"}', ":1: neither"), ("[1]", ":1: neither"), ("\n \n", "no item"),
                (good + "\n" + json.dumps(self.CLOZE[0]), ":3: cloze, while the lines before are choice"),
                ('{"question": "q", "choices": ["a"], "answer": 0}', ':1: "choices"'),
                ('{"question": "q", "choices": ["a", ""], "answer": 0}', ':1: "choices"'),
                ('{"question": "q", "choices": ["a", "b"], "answer": 2}', ':1: "answer"'),
                ('{"question": "", "choices": ["a", "b"], "answer": 1}', ':1: "question"'),
                ('{"text": "t", "last": ""}', ':1: "last"'), ('{"text": 1, "last": "w"}', ':1: "text"'),
                ('{"a": "x", "b": "y", "score": "1"}', ':1: "score"'), ('{"a": "x", "score": 1}', ':1: "a" and "b"'),
                (json.dumps({"text": "long " * 100, "last": "w"}), ":1: .*context")]:
            with self.subTest(lines):
                err = self.run_eval(self.reference, "--tasks", self.daemon.file("bad", lines.encode()), status=1)
                self.assertRegex(err, rf"^error: .*bad:?.*{words[1:] if words[0] == ':' else words}.*\n$")
        self.run_eval(self.reference, "--tasks", "/nonexistent", status=1)
        # Before anything is measured.
        lost = self.run_eval(self.reference, "/nonexistent/model.gguf", "--text", self.text, "--ctx", 120, status=1)
        self.assertIn("/nonexistent/model.gguf: No such file", lost)
        self.run_eval(self.reference, "--passages", self.text, status=2)
        self.run_eval(self.reference, status=2)
        self.run_eval(self.reference, "--request", "5", status=2)


class Vectors(Service):
    PASSAGES = [f"{'abcdefghij'[i % 10]} passage {i * i} of {i % 7}" for i in range(60)]

    def vectors(self, path, texts):
        socket = ["--socket", self.daemon.runtime / "nibble.sock"]
        subprocess.run([NIBBLE, "load", path, "--name", "v", "--precision", "exact", *socket], check=True,
                       stdout=subprocess.DEVNULL)
        session = nb.Session(LIBRARY, self.daemon.runtime / "nibble.sock", "v")
        found, _ = session.embed(texts)
        session.close()
        subprocess.run([NIBBLE, "unload", "v", "--force", *socket], check=True, stdout=subprocess.DEVNULL)
        return found.astype(np.float64)

    def test_recall_and_similarity(self):
        pairs = [{"a": self.PASSAGES[i], "b": self.PASSAGES[i * 7 % 60], "score": i * i % 11} for i in range(40)]
        got = self.eval(self.models[1], "--reference", self.reference, "--queries", 0, "--tasks", self.lines("sim", pairs),
                        "--passages", self.daemon.file("passages", "\n".join(self.PASSAGES).encode()))
        own, theirs = (self.vectors(path, self.PASSAGES) for path in (self.models[1], self.reference))
        nearest = []
        for x in (own, theirs):
            scores = x @ x.T
            np.fill_diagonal(scores, -9)
            nearest.append(np.argsort(-scores, axis=1)[:, :10])
        recall = [len(set(a) & set(b)) / 10 for a, b in zip(*nearest)]
        cosines = (own * theirs).sum(axis=1)
        row, task = got["vectors"], got["tasks"][0]
        self.assertEqual((row["passages"], row["queries"]), (60, 60))
        self.close_to(row["recall10"], np.mean(recall), 1e-9)
        self.close_to([row["cosine"], row["cosine_min"]], [cosines.mean(), cosines.min()], 1e-6)
        at = [(i, i * 7 % 60) for i in range(40)]
        score = np.array([p["score"] for p in pairs])
        sims = [np.array([x[a] @ x[b] for a, b in at]) for x in (own, theirs)]
        self.close_to([task["spearman"], task["reference_spearman"]], [spearman(s, score) for s in sims], 1e-9)
        sampled = [[spearman(np.repeat(s, w), np.repeat(score, w)) for s in sims] for w in draws(40)]
        self.close_to(task["spearman_ci"], percentiles([a for a, _ in sampled]), 1e-9)
        self.close_to(task["spearman_difference_ci"], percentiles([a - b for a, b in sampled]), 1e-9)


class Report(Service):
    def markers(self, svg, frame):
        """Middles of the filled circles inside the plot: a path that begins and ends in curves."""
        left, top, right, bottom = frame
        found = []
        for path in xml.etree.ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}path"):
            if "C" not in path.get("d", "") or not re.search(r"fill:rgb\(0%,44", path.get("style", "")):
                continue
            numbers = np.array(re.findall(r"-?[\d.]+", path.get("d")), float).reshape(-1, 2)
            middle = (numbers.min(axis=0) + numbers.max(axis=0)) / 2
            if left <= middle[0] <= right and top <= middle[1] <= bottom:
                found.append(middle)
        return np.array(found)

    def check_chart(self, folder, report, chart):
        left, top, right, bottom = chart["plot"]
        log = np.log if chart["y_log"] else np.asarray
        xs = np.array([m["file_bytes"] / 1e6 for m in report["models"]])
        ys = np.array([m[chart["figure"]] for m in report["models"]]) * (100 if chart["figure"] == "top1" else 1)
        (x0, x1), (y0, y1) = chart["x"], log(np.array(chart["y"]))
        right_places = np.stack([left + (xs - x0) / (x1 - x0) * (right - left),
                                 bottom - (log(ys) - y0) / (y1 - y0) * (bottom - top)], axis=1)
        found = self.markers(folder / f"{chart['name']}.svg", chart["plot"])
        self.assertEqual(len(found), len(xs), chart["name"])
        np.testing.assert_allclose(found, right_places, rtol=0, atol=0.01)

    def check_png(self, path):
        """Whole, of the size that is promised, and not of one colour."""
        data, at, pixels = path.read_bytes(), 8, b""
        self.assertEqual(data[:8], b"\x89PNG\r\n\x1a\n")
        while at < len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            body = data[at + 8:at + 8 + size]
            self.assertEqual(zlib.crc32(kind + body), struct.unpack_from(">I", data, at + 8 + size)[0])
            pixels += body if kind == b"IDAT" else b""
            if kind == b"IHDR":
                self.assertEqual(struct.unpack_from(">II", body), (1920, 1200))
            at += size + 12
        self.assertGreater(len(set(zlib.decompress(pixels))), 20)

    def test_sizes(self):
        """Of a model in parts, of a folder, and of none where a model is given by name."""
        split = functools.partial(gguf.GGUFWriter, split_max_tensors=7)
        with unittest.mock.patch.object(gguf, "GGUFWriter", split):
            families.write(self.daemon.file("split.gguf", b""), CASE, families.weights(CASE))
        parts = sorted(pathlib.Path(self.daemon.dir.name).glob("split-*-of-*.gguf"))
        self.assertGreater(len(parts), 2)
        pair = self.lines("pair", [{"a": "x", "b": "y", "score": 1}] * 2)
        folder = llama.CACHE / "models" / "all-MiniLM-L6-v2"
        models = self.eval(parts[0], folder, "--tasks", pair)["models"]
        sizes = [sum(p.stat().st_size for p in files) for files in (parts, filter(pathlib.Path.is_file, folder.iterdir()))]
        self.assertEqual([m["file_bytes"] for m in models], sizes)
        socket = ["--socket", self.daemon.runtime / "nibble.sock"]
        subprocess.run([NIBBLE, "load", self.reference, "--name", "named", *socket], check=True, stdout=subprocess.DEVNULL)
        named = json.loads(self.run_eval("named", "--tasks", pair, "--json"))
        self.assertEqual((named["file_bytes"], named["label"], named["weights_bytes"] > 0), (None, "named", True))

    def test_report(self):
        folder = pathlib.Path(self.daemon.dir.name, "report")
        # Models of different sizes: what follows a GGUF's last tensor is not looked at.
        for i, path in enumerate(self.models):
            with open(path, "ab") as f:
                f.write(bytes(300000 * i))
        out = self.run_eval(*self.models, "--reference", self.reference, "--text", self.text, "--ctx", WINDOW, "--report",
                            folder, "--cost", "--request", "8,4", "--price", "1.5", "--runs", 1)
        self.assertIn("noise-1", out)
        report = json.loads((folder / "report.json").read_text())
        self.assertEqual([m["label"] for m in report["models"]], ["noise-0", "noise-1", "noise-2"])
        self.assertEqual([c["name"] for c in report["charts"]], ["kl", "perplexity", "perplexity-alone", "top"])
        for chart in report["charts"]:
            self.check_chart(folder, report, chart)
            self.check_png(folder / f"{chart['name']}.png")
        for model, path in zip(report["models"], self.models):
            cost = model["cost"]
            self.assertEqual(model["file_bytes"], path.stat().st_size)
            self.assertEqual(cost["memory_bytes"], model["weights_bytes"] + cost["kv_bytes"])
            self.close_to(cost["cost_of_1000_requests"], 1000 * cost["request_seconds"] * 1.5 / 3600, 1e-9)
            self.assertGreater(min(cost["prefill_tps"], cost["decode_tps"], cost["ms_per_token"]), 0)
            if cost["joules_per_request"] is None:
                self.assertIn("not readable: ", cost["energy"])
        markdown = (folder / "report.md").read_text()
        self.assertIn(f"{report['models'][1]['kld_mean']:.4g} (", markdown)
        self.assertIn("](kl.svg)", markdown)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
