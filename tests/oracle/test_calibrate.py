"""What `nibble compress --calibration` learns and does: the importance of each column is numpy's, in float64, of the same text;
python gguf and llama.cpp read what is written, and a job that is killed at any instant gives the same bytes.

usage: test_calibrate.py NIBBLE MAKE-GGUF    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import json
import os
import pathlib
import subprocess
import sys
import unittest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import families
import harness
import llama
from llama_numpy import Llama, floats
from measures import counted

NIBBLE, MAKE_GGUF = sys.argv[1:3]
SAMPLES, LENGTH = 9, 40
TEXT = counted(60)
HOW = ("--samples", str(SAMPLES), "--length", str(LENGTH))


def tensors(path):
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


def windows(tokens):
    """As docs/rooms/quant.md has them: evenly over the text."""
    room = len(tokens) - LENGTH
    return [tokens[i * room // (SAMPLES - 1):][:LENGTH] for i in range(SAMPLES)]


class Calibrate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = harness.Daemon()
        cls.addClassCleanup(cls.daemon.finish)
        cls.path = pathlib.Path(cls.daemon.dir.name)
        cls.model, cls.text = cls.path / "model.gguf", cls.path / "text.txt"
        subprocess.run([MAKE_GGUF, "random", cls.model, "F32", "5"], check=True)
        cls.text.write_text(TEXT)

    def nibble(self, *words):
        return subprocess.run([NIBBLE, *words, "--socket", self.daemon.runtime / "nibble.sock"], capture_output=True,
                              text=True, timeout=120)

    def compress(self, source, *words):
        """The compressed file, and the importance matrix that was kept."""
        out, kept = self.path / "out.gguf", self.path / "kept.gguf"
        kept.unlink(missing_ok=True)
        save = () if "--imatrix" in words else ("--save-imatrix", kept)
        done = self.nibble("compress", source, "-o", out, "--force", *save, *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out.read_bytes(), tensors(kept) if save else {}

    def refused(self, complaint, *words):
        done = self.nibble("compress", self.model, "-o", self.path / "never.gguf", "--to", "Q4_0", *words)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, complaint)
        self.assertEqual(len(done.stderr.splitlines()), 1)
        self.assertFalse((self.path / "never.gguf").exists())

    def test_importance(self):
        compressed, kept = self.compress(self.model, "--to", "Q4_0", "--calibration", self.text, *HOW)
        theirs = llama.Model(self.model)
        tokens = theirs.tokenize(TEXT)
        theirs.close()
        oracle = Llama(self.model)
        for window in windows(tokens):
            oracle.run(window)
        self.assertEqual({name.removesuffix(".in_sum2") for name in kept if name.endswith(".in_sum2")}, set(oracle.sums))
        for name, sums in oracle.sums.items():
            self.assertEqual(kept[name + ".counts"].ravel(), [oracle.rows])
            worst = np.abs(kept[name + ".in_sum2"].ravel() / sums - 1).max()
            self.assertLess(worst, 1e-5, name)
        # Error feedback measures it by the way.
        _, fed = self.compress(self.model, "--to", "Q4_0", "--method", "gptq", "--calibration", self.text, *HOW)
        self.assertEqual({name: x.tobytes() for name, x in fed.items()}, {name: x.tobytes() for name, x in kept.items()})
        # What was kept does what the text does; the errors that count are smaller than plain rounding's.
        again, _ = self.compress(self.model, "--to", "Q4_0", "--imatrix", (self.path / "kept.gguf").rename(self.path / "given.gguf"))
        self.assertEqual(again, compressed)
        plain, _ = self.path / "plain.gguf", self.nibble("compress", self.model, "-o", self.path / "plain.gguf", "--to", "Q4_0")
        ours, theirs, exact = (floats(p) for p in (self.path / "out.gguf", plain, self.model))
        for name, sums in oracle.sums.items():
            error = lambda found: (((found[name] - exact[name]) ** 2) @ sums).sum()
            self.assertLess(error(ours), 0.95 * error(theirs), name)

    def test_for_llama_quantize(self):
        """The keys and shapes that llama.cpp's loader looks for, and its own quantizer on our numbers."""
        _, kept = self.compress(self.model, "--to", "Q4_0", "--calibration", self.text, *HOW)
        reader = gguf.GGUFReader(self.path / "kept.gguf")
        fields = {name: reader.fields[name].contents() for name in
                  ("general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")}
        self.assertEqual(fields, {"general.type": "imatrix", "imatrix.datasets": ["calibration"],
                                  "imatrix.chunk_count": SAMPLES, "imatrix.chunk_size": LENGTH})
        shapes = {t.name: (t.tensor_type.name, [int(n) for n in t.shape]) for t in reader.tensors}
        self.assertEqual(shapes["blk.0.ffn_down.weight.in_sum2"], ("F32", [512, 1]))
        self.assertEqual(shapes["blk.0.ffn_down.weight.counts"], ("F32", [1, 1]))
        importance = {n.removesuffix(".in_sum2"): (x / kept[n.replace("in_sum2", "counts")]).ravel()
                      for n, x in kept.items() if n.endswith("in_sum2")}
        llama.quantize(self.model, self.path / "theirs.gguf", 2, importance)
        model = llama.Model(self.path / "out.gguf")
        context = llama.Context(model, 64)
        context.decode(range(32), range(32), [0] * 32, [1] * 32)
        self.assertTrue(np.isfinite(context.logits(32)).all())
        context.close()
        model.close()

    def test_texts(self):
        same, _ = self.compress(self.model, "--to", "IQ4_NL", "--calibration", self.text, *HOW)
        lines = TEXT.splitlines(keepends=True)
        for name in ("lines.jsonl", "lines"):  # by its name, by its content
            path = self.path / name
            path.write_text("\n\n".join(json.dumps({"id": i, "text": line}) for i, line in enumerate(lines)) + "\n")
            found, _ = self.compress(self.model, "--to", "IQ4_NL", "--calibration", path, *HOW)
            self.assertEqual(found, same)
        for i, part in enumerate((lines[:7], lines[7:])):
            (self.path / f"part{i}").write_text("".join(part))
        found, _ = self.compress(self.model, "--to", "IQ4_NL", "--calibration", self.path / "part0",
                                 "--calibration", self.path / "part1", *HOW)
        self.assertEqual(found, same)
        recipe = self.path / "recipe.json"
        recipe.write_text(json.dumps({"to": "IQ4_NL", "calibration": {"samples": SAMPLES, "length": LENGTH}}))
        found, _ = self.compress(self.model, "--recipe", recipe, "--calibration", self.text)
        self.assertEqual(found, same)

    def test_refusals(self):
        self.refused(r"the text has \d+ tokens, and 128 windows of 256 need 32768: give more", "--calibration", self.text)
        self.refused(r"512 windows of 256 need 131072", "--calibration", self.text, "--effort", "best")
        self.refused("longer than the model's context of", "--calibration", self.text, "--samples", "1", "--length", "8192")
        bad = self.path / "bad.jsonl"
        bad.write_text('{"text": "good"}\n{"words": "bad"}\n')
        self.refused('bad.jsonl: line 2 is no JSON object with a string "text"', "--calibration", bad)
        self.refused("no GGUF file as llama-imatrix writes", "--imatrix", self.text)
        self.refused("is no importance matrix", "--imatrix", self.model)
        writer = gguf.GGUFWriter(self.path / "other.gguf", "llama")
        writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 128), np.float32))
        writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        self.refused("importance matrix is of another model: its blk.0.attn_q.weight has 128", "--imatrix", self.path / "other.gguf")

    def test_experts(self):
        """Each token counts once for each of the experts that it takes."""
        case = families.Case("qwen3moe", "whole blocks", families.size(64, 96, 4, 2, 16, X=6, C=2, Y=32),
                             keys={"expert_feed_forward_length": 32})
        path = self.path / "experts.gguf"
        families.write(path, case, families.weights(case))
        _, kept = self.compress(path, "--to", "Q8_0", "--calibration", self.text, *HOW)
        counts = {name: kept[f"blk.1.ffn_{name}_exps.weight.counts"].ravel() for name in ("gate", "up", "down")}
        self.assertEqual(counts["gate"].sum(), 2 * SAMPLES * LENGTH)
        for found in counts.values():
            self.assertEqual(found.tolist(), counts["gate"].tolist())
        # All experts together have seen each token twice.
        both = kept["blk.1.ffn_gate_exps.weight.in_sum2"].sum(axis=0)
        router = kept["blk.1.ffn_gate_inp.weight.in_sum2"].ravel()
        self.assertLess(np.abs(both / (2 * router) - 1).max(), 1e-5)

    def test_error_feedback(self):
        """What the head reads changes least, on the text that was learnt from, in a float64 model of both files."""
        def change(to, method):
            self.compress(self.model, "--to", to, "--method", method, "--calibration", self.text, *HOW)
            return of_file()

        def of_file():
            oracle = Llama(self.model, floats(self.path / "out.gguf"))
            return sum(((oracle.run(w) - x) ** 2).sum() for w, x in zip(parts, exact))

        def of_folder(name, *words):
            for done in (self.nibble("compress", self.model, "-o", self.path / name, "--to", "NF4", *words),
                         self.nibble("convert", self.path / name, "-o", self.path / "out.gguf", "--to", "F32", "--force")):
                self.assertEqual(done.returncode, 0, done.stderr)
            return of_file()

        theirs, oracle = llama.Model(self.model), Llama(self.model)
        parts = windows(theirs.tokenize(TEXT))
        theirs.close()
        exact = [oracle.run(w) for w in parts]
        for to in ("Q4_0", "Q4_1", "IQ4_NL", "Q5_0"):
            search, gptq = change(to, "search"), change(to, "gptq")
            print(f"{to}: error feedback leaves {gptq / search:.3f} of the search's error")
            self.assertLess(gptq, 0.8 * search, to)
        how = ("--calibration", self.text, *HOW)
        nearest, search, gptq = of_folder("nearest"), of_folder("search", *how), of_folder("gptq", "--method", "gptq", *how)
        print(f"NF4: error feedback leaves {gptq / search:.3f} of the search's error, {gptq / nearest:.3f} of rounding's")
        self.assertLess(search, nearest)
        self.assertLess(gptq, 0.8 * search)
        self.refused("method gptq learns from text", "--method", "gptq", "--imatrix", self.path / "kept.gguf")
        self.refused("static activations have ranges that calibration text shows", "--activations", "static", "--imatrix",
                     self.path / "kept.gguf")
        self.refused('"method" is "search"', "--method", "magic", "--calibration", self.text)
        for scheme in ("int8-channel", "int8-channel-zero"):
            done = self.nibble("compress", self.model, "-o", self.path / "never.gguf", "--to", scheme, "--method", "gptq", *how)
            self.assertIn(f"as {scheme}: error feedback knows the types' own groups alone", done.stderr)
        recipe = self.path / "wrong.json"
        for wrong in ({"passes": "3"}, {"passes": 2.5}, {"passes": 2 ** 32 + 2}, {"mismatch": "0.5"}, {"damping": True}):
            recipe.write_text(json.dumps({"gptq": wrong}))
            self.refused('the recipe\'s "gptq": "damping" is from', "--recipe", recipe, *how)

    def test_written_by_the_model(self):
        """Without a text the model writes its own: the same from the same seed, another from another."""
        def compress(seed, *words, **keys):
            recipe = self.path / "seed.json"
            recipe.write_text(json.dumps({"to": "IQ4_NL", "calibration": {"samples": 40, "length": 24, "seed": seed}, **keys}))
            return self.compress(self.model, "--recipe", recipe, *words)

        first, kept = compress(1, "--method", "search")
        again, _ = compress(1, "--method", "search")
        other, _ = compress(2, "--method", "search")
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertEqual(kept["blk.0.attn_q.weight.counts"].ravel().tolist(), [40 * 24])
        # What a recipe asks for is what an option does.
        for option, keys in ((("--method", "gptq"), {"method": "gptq"}), (("--fold", "awq"), {"fold": "awq"}),
                             (("--to", "Q8_0", "--sparse", "0.5", "--sparse-by", "wanda"),
                              {"to": "Q8_0", "sparse": {"share": 0.5, "by": "wanda"}})):
            self.assertEqual(compress(1, *option)[0], compress(1, **keys)[0])

    def test_feedback_of_experts(self):
        case = families.Case("qwen3moe", "whole blocks", families.size(64, 96, 4, 2, 16, X=6, C=2, Y=32),
                             keys={"expert_feed_forward_length": 32})
        path = self.path / "experts.gguf"
        families.write(path, case, families.weights(case))
        self.compress(path, "--to", "Q4_0", "--method", "gptq", "--calibration", self.text, *HOW)
        found, exact = floats(self.path / "out.gguf"), floats(path)
        for name in (n for n in exact if "_exps" in n):
            self.assertLess(np.abs(found[name] - exact[name]).max(), np.abs(exact[name]).max(), name)
        model = llama.Model(self.path / "out.gguf")
        model.close()

    def statistics(self):
        """Files of what earlier jobs have measured."""
        return list((self.daemon.state / "jobs" / "statistics").glob("*"))

    def test_statistics_are_kept(self):
        """What was measured of the same files serves the next job, whatever it writes. Lost or spoiled, it is measured again,
        and so it is of another text, and of other windows."""
        client = self.daemon.client()
        self.addCleanup(client.close)
        texts = [self.path / f"{name}.txt" for name in ("kept", "other")]
        for path in texts:
            path.write_text(TEXT + path.name)

        def work(to, text=texts[0], samples=40):
            """How much there was to do, and what came of it."""
            recipe = {"to": to, "method": "search", "calibration": {"samples": samples, "length": 32}}
            job = client.start_job(recipe, self.model, text, kind="weighted", names=["model.gguf", "calibration/text.txt"])
            row = harness.until(lambda: (lambda row: row.total and row)(client.job(job)), "its first word")
            client.wait_job(job)
            results = [client.job_result(job, i) for i in range(3)]
            client.control_job(job, harness.JOB_CANCEL)  # of one that is over: away with it
            return row.total, results

        for file in self.statistics():
            file.unlink()
        whole, result = work("Q4_0")
        less, same = work("Q4_0")
        self.assertLess(less, whole)
        self.assertEqual(same, result)
        eight, _ = work("Q8_0")
        for other in ({"text": texts[1]}, {"samples": 39}):
            self.assertGreater(work("Q8_0", **other)[0], eight)
        for spoil in (lambda data: data[:-1], lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:], lambda data: b""):
            work("Q4_0")
            for file in self.statistics():
                file.write_bytes(spoil(file.read_bytes()))
            self.assertEqual(work("Q4_0"), (whole, result))
        for i in range(20):
            texts[1].write_text(TEXT + str(i))
            work("Q4_0", text=texts[1], samples=2)
        self.assertEqual(len(self.statistics()), 16)

    def test_killed(self):
        tune = {"tokens": 2048, "batch": 256, "layer_steps": 2, "code": 3e-4}
        ways = [{"method": method, "tune": tune} for method in ("search", "gptq", "tune", "auto")]
        ways += [{"method": method, "sparse": {"share": 0.5, "by": by}}
                 for method, by in (("search", "magnitude"), ("search", "wanda"), ("gptq", "sparsegpt"))]
        for way in ways:
            with self.subTest(way):
                kills = self.kill({"to": "Q4_0", "calibration": {"samples": 40, "length": 32},
                                   "activations": {"scheme": "static"}, **way}, "weighted")
                self.assertIn(b"calibrating", kills)
        with self.subTest("a folder"):
            self.assertTrue(self.kill({"to": "NF4", "method": "gptq", "calibration": {"samples": 40, "length": 32}}, "folder"))

    def test_estimate(self):
        """The time that is left is told before any of it has passed."""
        client = self.daemon.client()
        self.addCleanup(client.close)
        recipe = {"to": "Q4_0", "method": "tune", "calibration": {"samples": 40, "length": 32}, "tune": {"tokens": 4096, "batch": 256}}
        job = client.start_job(recipe, self.model, self.text, kind="weighted", names=["model.gguf", "calibration/text.txt"])
        row = harness.until(lambda: (lambda row: row.total and row)(client.job(job)), "its first word")
        self.assertEqual(row.state, b"running")
        self.assertLess(row.eta_ms, 2 ** 64 - 1)
        client.wait_job(job)

    def test_tuning(self):
        """Tuned or left as it was, as held-out windows of the same text say; the file is one that llama.cpp loads."""
        recipe = self.path / "tune.json"
        recipe.write_text(json.dumps({"to": "Q4_0", "method": "tune", "calibration": {"samples": 48, "length": 32},
                                      "tune": {"tokens": 4096, "batch": 256, "layer_steps": 2, "code": 3e-4}}))
        done = self.nibble("compress", self.model, "-o", self.path / "out.gguf", "--force", "--recipe", recipe, "--json",
                           "--calibration", self.text)
        self.assertEqual(done.returncode, 0, done.stderr)
        tuning = json.loads(done.stdout)["tuning"]
        self.assertEqual(tuning["kept"], tuning["before"] - tuning["after"] > 2 * tuning["error"])
        self.assertGreater(tuning["steps"], 8)
        model = llama.Model(self.path / "out.gguf")
        model.close()

    def test_auto(self):
        """What was tried is told, and what gained nothing is not in the file."""
        how = ("--calibration", self.text, "--samples", "48", "--length", "32", "--json", "--force")
        out, searched = self.path / "out.gguf", self.path / "searched.gguf"
        recipe = self.path / "auto.json"
        recipe.write_text(json.dumps({"tune": {"tokens": 2048, "batch": 256, "layer_steps": 2}}))
        done = self.nibble("compress", self.model, "-o", out, "--recipe", recipe, "--to", "Q4_0", "--method", "auto", *how)
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout)
        tried = report["tried"]
        self.assertEqual(report["calibration"], {"text": "given", "samples": 48, "length": 32})
        self.assertEqual([t["method"] for t in tried], ["search", "gptq", "tune"])
        kept = tried[0]["divergence"]
        for t in tried[1:]:
            self.assertEqual(t["kept"], t["gain"] > 2 * t["error"], t)
        self.assertAlmostEqual(tried[1]["gain"], kept - tried[1]["divergence"], delta=2e-4 * kept)
        self.assertTrue(tried[1]["kept"])
        # Halves leave nothing to feed back: the file is search's.
        for file, method in ((out, "auto"), (searched, "search")):
            done = self.nibble("compress", self.model, "-o", file, "--to", "F16", "--method", method, "--effort", "fast", *how)
            self.assertEqual(done.returncode, 0, done.stderr)
            if method == "auto":
                self.assertEqual([t["kept"] for t in json.loads(done.stdout)["tried"]], [True, False])
        self.assertEqual(out.read_bytes(), searched.read_bytes())

    def kill(self, recipe, kind):
        """A job that is killed gives the same bytes. What it was at, each time, in a word."""
        client = self.daemon.client()
        self.addCleanup(client.close)

        def start():
            return client.start_job(recipe, self.model, self.text, kind=kind, names=["model.gguf", "calibration/text.txt"])

        def results(job):
            client.wait_job(job)
            found = [client.job_result(job, i) for i in range(3)]
            client.control_job(job, harness.JOB_CANCEL)  # of one that is over: away with it
            return found

        alone = results(start())
        for file in self.statistics():
            file.unlink()
        job = start()
        kills = {word for text in self.daemon.kill_job(client, job, 8, 0.01) for word in text.split()[:1]}
        self.assertEqual(results(job), alone)
        return kills


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
