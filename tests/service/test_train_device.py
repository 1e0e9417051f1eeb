"""A distillation on a Vulkan device: its losses are the CPU's, it gives the same bytes when it is killed, its sandbox lets the
driver work and no more, and what the device does not train is refused before anything begins."""
import pathlib

from harness import *

LENGTH, STEPS = 32, 6
SMALL = {"layers": 2, "width": 64, "feed_forward": 96, "heads": 2, "tokens": 0, "length": LENGTH, "held_out": 1, "to": "F32"}
RECIPE = {"layers": 1, "length": LENGTH, "batch": 2 * LENGTH, "tokens": STEPS * 2 * LENGTH, "held_out": 1, "rate": 0.002, "to": "F32",
          "hard": 0.3, "hidden": 0.5}


class TrainDevice(StreamTest):
    config = "[jobs]\nidle = 0\n"

    def setUp(self):
        super().setUp()
        self.client = self.daemon.client()
        self.addCleanup(lambda: self.client.close())
        self.folder = pathlib.Path(self.daemon.dir.name)
        self.model = self.folder / "m.gguf"
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", self.model, "F32", "5"], check=True)
        self.text = self.folder / "t.txt"
        self.text.write_text("".join(f"{i} and {i * i} are {i + i * i}.\n" for i in range(60)))

    def start(self, recipe=RECIPE, **changes):
        return self.client.start_job({**recipe, **changes}, self.model, self.text, kind="distill",
                                     names=["m.gguf", "calibration/t.txt"])

    def train(self, recipe=RECIPE, **changes):
        """(the report, the file's bytes)"""
        job = self.start(recipe, **changes)
        self.client.wait_job(job)
        return json.loads(self.client.job_result(job, 1)[1]), self.client.job_result(job)[1]

    def test_beside_the_cpu(self):
        small = self.train(SMALL)[1]
        self.model.write_bytes(small)
        cpu, file = self.train()
        own, student = self.train(device="vulkan0")
        self.assertEqual(cpu["device"], "cpu")
        self.assertRegex(own["device"], "^vulkan0: ")
        self.assertEqual([point["step"] for point in own["curve"]], list(range(1, STEPS + 1)))
        for a, b in zip([*cpu["curve"], *cpu["held_out"].values()], [*own["curve"], *own["held_out"].values()]):
            for key, value in a.items() if isinstance(a, dict) else ():
                self.assertAlmostEqual(b[key], value, delta=1e-5 * abs(value), msg=key)
        self.assertEqual(len(student), len(file))
        self.assertNotEqual(student, file)
        job = self.start(device="vulkan0")
        kills = self.daemon.kill_job(self.client, job, 2, 0.3)
        self.client.wait_job(job)
        self.assertGreater(len(kills), 0)
        self.assertEqual(self.client.job_result(job)[1], student)

    def test_refusals(self):
        for changes, complaint in (({"precision": "bf16"}, '"precision": "bf16" is trained on the CPU alone: leave it out, or "device"'),
                                   ({"attention": 1}, '"attention" is trained on the CPU alone'),
                                   ({"qat": True, "to": "Q8_0", "activations": "dynamic"}, '"activations": "dynamic" is trained on'),
                                   ({"device": "cuda0"}, '"device" is cpu, or one as vulkan0'),
                                   ({"device": "vulkan0000000"}, '"device" is cpu, or one as vulkan0')):
            with self.subTest(complaint), self.assertRaisesRegex(Refused, complaint):
                self.start(**{"device": "vulkan0", **changes})
        with self.assertRaisesRegex(Refused, "there is no device vulkan99: this machine has"):
            self.train(device="vulkan99")


if __name__ == "__main__":
    unittest.main()
