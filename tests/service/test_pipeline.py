"""`nibble pipeline`: each file is the one that the jobs make by hand; a run that was interrupted is gone on with; a chain stops
where it misses a target, and says which; the shape that is chosen meets the targets and learns best."""
import json
import pathlib
import signal

from harness import *

CLI = os.environ["NIBBLE_TEST_CLI"]
CUT = {"distill": {"layers": 1, "tokens": 0, "length": 64}}
HEAL = {"distill": {"tokens": 8192, "length": 64, "batch": 512, "held_out": 4, "rate": 0.002}}
ROUND = {"compress": {"to": "Q4_0"}, "text": []}


def counted(lines):
    return "".join(f"{i} and {i * i} are {i + i * i}.\n" for i in range(lines))


class PipelineTest(StreamTest):
    config = "[jobs]\nidle = 0\n"

    def setUp(self):
        super().setUp()
        self.model, self.out = self.daemon.file("m.gguf", b""), pathlib.Path(self.daemon.dir.name) / "out"
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", self.model, "F32", "5"], check=True)
        self.text = self.daemon.file("learnt.txt", counted(500).encode())
        self.judge = self.daemon.file("judge.txt", counted(90)[::-1].encode())

    def recipe(self, steps, **more):
        recipe = {"text": [str(self.text)], "judge": {"text": [str(self.judge)], "windows": 2, "window": 64, "prompt": 16,
                                                               "gen": 4}, "steps": steps}
        return self.daemon.file("recipe.json", json.dumps({**recipe, **more}).encode())

    def pipeline(self, *words):
        return self.cli("pipeline", self.model, "-o", self.out, *words)

    def run_pipeline(self, *words, status=0):
        """(what it says as JSON, what it complains of)"""
        out, err = (process := self.pipeline(*words, "--json")).communicate(timeout=150)
        self.assertEqual(process.returncode, status, err)
        return json.loads(out) if out else None, err

    def by_hand(self, *words):
        out, err = (process := self.cli(*words)).communicate(timeout=150)
        self.assertEqual(process.returncode, 0, err)
        return out

    def test_files_are_those_of_the_jobs(self):
        """And the figures those of eval; an order of steps is another chain, with its own files."""
        path = self.recipe({"cut": CUT, "heal": HEAL, "int4": ROUND}, chains=[["cut", "heal", "int4"], ["cut", "int4"]])
        found, _ = self.run_pipeline("--recipe", path)
        names = ["cut", "cut+heal", "cut+heal+int4", "cut+int4"]
        self.assertEqual([step["file"] for step in found["steps"]], names)
        folder = pathlib.Path(self.daemon.dir.name)
        for name, words in (("cut", ("distill", self.model, "--layers", "1", "--tokens", "0", "--length", "64")),
                            ("heal", ("distill", folder / "cut", "--teacher", self.model, "--tokens", "8192", "--length", "64",
                                      "--batch", "512", "--held-out", "4", "--rate", "0.002"))):
            self.by_hand(*words, "--text", self.text, "-o", folder / name)
        self.by_hand("compress", folder / "heal", "--to", "Q4_0", "-o", folder / "int4")
        self.by_hand("compress", folder / "cut", "--to", "Q4_0", "-o", folder / "int4-alone")
        for name, by_hand in zip(names, ("cut", "heal", "int4", "int4-alone")):
            self.assertEqual((self.out / f"{name}.gguf").read_bytes(), (folder / by_hand).read_bytes(), name)
        judged = json.loads(self.by_hand("eval", *(folder / n for n in ("cut", "heal", "int4", "int4-alone")), "--reference",
                                         self.model, "--text", self.judge, "--windows", "2", "--ctx", "64", "--json"))
        for model, expected in zip(found["models"], judged["models"]):
            self.assertEqual(model["kld_mean"], expected["kld_mean"])
        least = min(("cut+heal+int4", "cut+int4"), key=lambda n: found["models"][names.index(n)]["kld_mean"])
        self.assertEqual(found["best"], least)
        self.assertIn("cut+heal+int4", (self.out / "report.md").read_text())

    def test_goes_on(self):
        """Killed while a job runs, it is taken up: one job, and the bytes of a run that was not disturbed. What is there already
        is not made again, unless its recipe is another."""
        steps = {"cut": CUT, "heal": {"distill": {**HEAL["distill"], "tokens": 32768}}, "int4": ROUND}
        path = self.recipe(steps)
        client = self.daemon.client()
        self.addCleanup(client.close)
        process = self.pipeline("--recipe", path)
        until(lambda: (self.out / "cut+heal.job").exists() and any(row.done for row in client.list(JOBS)), "the second job")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        job, = client.list(JOBS)
        found, _ = self.run_pipeline("--recipe", path)
        self.assertNotIn("seconds", found["steps"][1])  # it did not begin under this command's eyes
        self.assertEqual(client.list(JOBS), [])
        files = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in self.out.glob("*.gguf")}
        again, _ = self.run_pipeline("--recipe", path)
        self.assertEqual(again["models"], found["models"])
        self.assertEqual({p: (p.read_bytes(), p.stat().st_mtime_ns) for p in self.out.glob("*.gguf")}, files)
        self.out = self.out.with_name("other")
        self.run_pipeline("--recipe", path)
        for p in files:
            self.assertEqual((self.out / p.name).read_bytes(), files[p][0], p.name)
        self.run_pipeline("--recipe", self.recipe({**steps, "int4": {"compress": {"to": "Q8_0"}, "text": []}}))
        changed = [p.name for p in files if (self.out / p.name).read_bytes() != files[p][0]]
        self.assertEqual(changed, ["cut+heal+int4.gguf"])

    def test_stops_where_a_target_is_missed(self):
        steps = {"cut": {**CUT, "targets": {"kld": 1e-6}}, "int4": ROUND}
        found, err = self.run_pipeline("--recipe", self.recipe(steps), status=1)
        self.assertRegex(err, r"cut stopped at cut: kld is [0-9.e-]+ nats, at most 1e-06 was wanted\n.*no chain meets its targets")
        self.assertEqual([chain["stopped_at"] for chain in found["chains"]], ["cut"])
        self.assertFalse((self.out / "cut+int4.gguf").exists())
        found, err = self.run_pipeline("--recipe", self.recipe({"cut": CUT, "int4": ROUND}, chains=[["cut", "int4"], ["int4"]],
                                                               targets={"size": "600k"}))
        self.assertEqual([len(chain["missed"]) for chain in found["chains"]], [0, 1])
        self.assertEqual(found["best"], "cut+int4")
        self.assertIn("size is", found["chains"][1]["missed"][0])

    def test_search(self):
        """Among shapes of the size the one with the least divergence after the last trial; where none is left the first says why."""
        cut = {"distill": {"tokens": 0, "weights": "fit", "length": 64, "held_out": 4, "batch": 512},
               "search": {"layers": [1, 1.0, 2, 0.4], "tokens": 2048}}
        targets = {"size": 500_000}
        path = self.recipe({"cut": cut, "int4": ROUND}, targets=targets)
        found, _ = self.run_pipeline("--recipe", path)
        shapes = found["steps"][0]["shapes"]
        self.assertEqual([s["layers"] for s in shapes], [1, 2])
        chosen, = (s for s in shapes if s.get("chosen"))
        tried = [s for s in shapes if "divergence" in s]
        self.assertEqual(chosen, min(tried, key=lambda s: s["divergence"]))
        self.assertLess(found["models"][-1]["file_bytes"], 500_001)
        self.assertGreater(found["models"][-1]["file_bytes"], 450_000)
        self.assertFalse((self.out / "trials").exists())
        self.assertEqual(json.loads((self.out / "cut.made.json").read_text())["asked"]["recipe"], found["steps"][0]["recipe"])
        found, err = self.run_pipeline("--recipe", self.recipe({"cut": cut, "int4": ROUND}, targets={"size": 20_000}), status=1)
        self.assertIn("no shape meets the targets", err)
        found, err = self.run_pipeline("--recipe", self.recipe({"cut": cut, "int4": ROUND}, targets={**targets, "token_ms": 1e-6}),
                                       status=1)
        self.assertRegex(err, r"a token takes [0-9.e-]+ ms, and 1e-06 were wanted")

    def test_leaves_alone_what_is_not_its_own(self):
        self.out.mkdir()
        (self.out / "cut.gguf").write_text("mine")
        _, err = self.run_pipeline("--recipe", self.recipe({"cut": CUT}), status=1)
        self.assertRegex(err, "cut.gguf is there, and no pipeline has made it")
        self.assertEqual((self.out / "cut.gguf").read_text(), "mine")

    def test_refusals(self):
        for steps, more, complaint in (
                ({}, {}, '"steps" is an object'),
                ({"Cut": CUT}, {}, 'a step\'s name is 1 to 31 of a-z.*"Cut"'),
                ({"../x": CUT}, {}, "a step's name"),
                ({"a": {}}, {}, 'step "a" is either'),
                ({"a": {**CUT, **ROUND}}, {}, 'step "a" is either'),
                ({"a": CUT}, {"step": 1}, 'key "step" that no pipeline knows'),
                ({"a": {**CUT, "target": {}}}, {}, 'key "target" that no pipeline knows'),
                ({"a": CUT}, {"chains": [["b"]]}, 'a chain is a list of 1 to 16 steps, and "b" is none'),
                ({"a": CUT}, {"chains": []}, '"chains" is a list of 1 to 16'),
                ({"a": CUT}, {"chains": [[]]}, '"chains" is a list of lists'),
                ({"a": CUT}, {"targets": {"size": "many"}}, 'the target "size" is a number above 0, or a size'),
                ({"a": CUT}, {"targets": {"speed": 1}}, 'a key "speed" that is none'),
                ({"a": CUT}, {"targets": {"cosine": 0.9}}, 'the target "cosine" needs "judge"'),
                ({"a": CUT}, {"judge": {"windows": 0}}, '"windows" is a whole number from 1'),
                ({"a": CUT}, {"judge": {}, "targets": {"kld": 1}}, 'the target "kld" needs text'),
                ({"a": {"distill": {"weights": "fit"}}}, {}, 'step "a" is to fit: "targets" has no "size"'),
                ({"a": {**CUT, "search": {"layers": [0]}}}, {}, '"search" is of a distillation'),
                ({"a": {**ROUND, "search": {"layers": [1]}}}, {}, '"search" is of a distillation'),
                ({"a": {"distill": {"adapter": {}}}}, {}, "an adapter is no model"),
                ({"a": {**CUT, "text": []}}, {}, 'step "a" needs "text"'),
                ({"a": {"distill": {"weights": "fit"}}, "b": ROUND, "c": {"compress": {"to": "Q8_0"}}},
                 {"targets": {"size": 1}, "chains": [["a", "b"], ["a", "c"]]}, 'two chains of it end in "b" and "c"'),
                ({"a": {"distill": {"layers": 9, "length": 64}}}, {}, "the teacher has 2 layers")):
            with self.subTest(steps=steps, **more):
                out, err = self.run_pipeline("--recipe", self.recipe(steps, **more), status=1)
                self.assertRegex(err, complaint)
                self.assertEqual(len(err.splitlines()), 1, err)


if __name__ == "__main__":
    unittest.main()
