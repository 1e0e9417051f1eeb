"""`nibble-mpi`: a training that processes share has the curve that one process has, whose file is the service's; a process that
is killed is told of, and the same command goes on to the same bytes."""
import contextlib
import json
import pathlib
import signal

from harness import *

MPI = os.environ["NIBBLE_TEST_MPI"]
LENGTH = 64
# Open MPI leaks a little, and reads another process's memory, which a container may forbid.
SETTINGS = {"ASAN_OPTIONS": "detect_leaks=0", "OMPI_MCA_btl": "self,vader", "OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
RECIPE = {"layers": 1, "length": LENGTH, "batch": 8 * LENGTH, "tokens": 24 * 8 * LENGTH, "held_out": 8, "rate": 0.002, "to": "F32",
          "hidden": 0.3}


class MpiTest(StreamTest):
    config = "[jobs]\nidle = 0\n"

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.daemon.dir.name)
        self.model = self.folder / "m.gguf"
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", self.model, "F32", "5"], check=True)
        self.text = self.folder / "t.txt"
        self.text.write_text("".join(f"{i} and {i * i} are {i + i * i}.\n" for i in range(600)))

    def start(self, ranks, out, recipe=RECIPE, text=None):
        path = self.folder / "recipe.json"
        path.write_text(json.dumps(recipe))
        words = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks), MPI, self.model, "-o",
                 self.folder / out, "--recipe", path, "--text", text or self.text]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "TMPDIR": str(self.folder), **SETTINGS})
        self.running.append(process)
        return process

    def train(self, ranks, out):
        """(the report, the file's bytes)"""
        report, said = (process := self.start(ranks, out)).communicate(timeout=150)
        self.assertEqual(process.returncode, 0, said)
        self.assertFalse((self.folder / f"{out}.mpi").exists())
        return json.loads(report), (self.folder / out).read_bytes()

    def test_ranks(self):
        alone, student = self.train(1, "one.gguf")
        out, err = (process := self.cli("distill", self.model, "--recipe", self.folder / "recipe.json", "--text", self.text, "-o",
                                        self.folder / "service.gguf")).communicate(timeout=150)
        self.assertEqual(process.returncode, 0, err)
        self.assertEqual(student, (self.folder / "service.gguf").read_bytes())
        shared, student = self.train(2, "two.gguf")
        self.assertEqual(len(shared["curve"]), 24)
        for a, b in zip(alone["curve"], shared["curve"]):
            for key in ("loss", "divergence", "hidden", "norm"):
                self.assertAlmostEqual(a[key], b[key], delta=1e-5 * abs(a[key]))
        self.kill(student)

    @staticmethod
    def ranks(process):
        """The processes that mpirun has started; none once it has ended."""
        found = []
        for task in pathlib.Path(f"/proc/{process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += task.read_text().split()
        return found

    def kill(self, student):
        """At three instants, once a state is there; that is gone on with."""
        kills, saved = 0, self.folder / "killed.gguf.mpi" / "scratch.1"
        for _ in range(3):
            process = self.start(2, "killed.gguf")
            until(lambda: process.poll() is not None or saved.exists() and saved.stat().st_size, "a state")
            time.sleep(random.random() * 0.3)
            for pid in self.ranks(process)[-1:]:
                os.kill(int(pid), signal.SIGKILL)
            _, said = process.communicate(timeout=60)
            if process.returncode:
                self.assertRegex(said, "signal 9|rank [01]|non-zero")  # of this one, or of the other, which cannot go on
                kills += 1
            if not process.returncode:
                break
        again = self.train(2, "killed.gguf")[1] if process.returncode else (self.folder / "killed.gguf").read_bytes()
        self.assertEqual(again, student)
        self.assertGreater(kills, 0)

    def test_refusals(self):
        for recipe, text, complaint in (({**RECIPE, "batch": LENGTH}, None, "a step has 1 batches, and 2 processes share it"),
                                        ({**RECIPE, "layer": 1}, None, 'key "layer" that a distillation does not know'),
                                        ({**RECIPE, "device": "vulkan0"}, None, "a training compute on their CPUs: leave out"),
                                        (RECIPE, self.folder / "nothing.txt", "nothing.txt: No such file")):
            with self.subTest(complaint):
                _, said = (process := self.start(2, "never.gguf", recipe, text)).communicate(timeout=60)
                self.assertNotEqual(process.returncode, 0)
                self.assertRegex(said, f"error: process [12] of 2: .*{complaint}")
                self.assertFalse((self.folder / "never.gguf").exists())
        (self.folder / "there.gguf").write_text("mine")
        _, said = (process := self.start(2, "there.gguf")).communicate(timeout=60)
        self.assertIn("there.gguf exists: --force replaces it", said)
        self.assertEqual((self.folder / "there.gguf").read_text(), "mine")


if __name__ == "__main__":
    unittest.main()
