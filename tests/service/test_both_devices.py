"""The same model on a Vulkan device and on the CPU at the same time: the same answers, from one copy of the weights.

With two terms everywhere: with one, a driver's other rounding lets single int8 codes fall otherwise, and so few tokens
would show it."""
from test_cli import MODEL, NIBBLE, CliTest
from test_devices import LAVAPIPE
from test_one_copy import pss
from harness import *

TEXT = "Shared memory is a way for processes to work on the same data. " * 4 + \
    "A service holds the model once, and each program that wants an answer asks it over a ring of submissions."
# Of perplexity: docs/numerics.md's bounds for logits leave it far below; on so few tokens a key's or a value's code that
# falls to the other side shows more.
SAME = {"f16": 5e-4, "q8_0": 1e-2}


@unittest.skipIf(LAVAPIPE is None, "no software Vulkan driver here: install mesa-vulkan-drivers")
class BothDevices(CliTest):
    def setUp(self):
        self.env = {"VK_DRIVER_FILES": str(LAVAPIPE), "VK_ICD_FILENAMES": str(LAVAPIPE)}
        super().setUp()

    def load(self, device, precision="exact", kv_type="f16"):
        loaded = self.json("load", MODEL, "--name", device, "--device", device, "--precision", precision, "--context", "512",
                           "--kv-type", kv_type)
        self.assertEqual(loaded["device"], device)

    def perplexity(self, device, kv_type="f16"):
        """Of the file, which is loaded for this alone."""
        text = self.daemon.file("text", TEXT.encode())
        return self.json("eval", MODEL, "--device", device, "--precision", "exact", "--text", text, "--ctx", "48",
                         "--windows", "2", "--kv-type", kv_type)["perplexity"]

    def test_the_cpus_answers(self):
        self.compare("f16")

    def test_the_cpus_answers_with_codes(self):
        self.compare("q8_0")
        halves, codes = (self.perplexity("vulkan0", kv_type) for kv_type in ("f16", "q8_0"))
        self.assertNotEqual(halves, codes)
        self.assertLess(abs(codes / halves - 1), 0.02)

    def compare(self, kv_type):
        for device in ("cpu", "vulkan0"):
            self.load(device, kv_type=kv_type)
        self.assertEqual([m["kv_type"] for m in self.json("models")["models"]], [kv_type] * 2)
        prompt = ("What is the capital of France?", "--system", "", "-n", "12")
        answers = {device: self.json("run", device, *prompt) for device in ("cpu", "vulkan0")}
        self.assertIn("Paris", answers["cpu"]["text"])
        for key in ("text", "tokens", "finish"):
            self.assertEqual(answers["vulkan0"][key], answers["cpu"][key])
        cpu, vulkan = self.perplexity("cpu", kv_type), self.perplexity("vulkan0", kv_type)
        self.assertLess(abs(vulkan / cpu - 1), SAME[kv_type])
        self.assertNotEqual(vulkan, cpu)  # a driver rounds otherwise: bit for bit the same would be the CPU twice

    def test_layers_on_both(self):
        """One model over both devices: the CPU's answer, and refusals that say what is possible."""
        self.load("cpu")
        shared = self.json("load", MODEL, "--name", "shared", "--device", "vulkan0", "--gpu-layers", "12",
                           "--precision", "exact", "--context", "512")
        self.assertEqual(shared["device"], "cpu+vulkan0:12")
        prompt = ("What is the capital of France?", "--system", "", "-n", "12")
        answers = {name: self.json("run", name, *prompt) for name in ("cpu", "shared")}
        self.assertIn("Paris", answers["shared"]["text"])
        for key in ("text", "tokens", "finish"):
            self.assertEqual(answers["shared"][key], answers["cpu"][key])
        self.assertIn("leaves none of them for cpu", self.fails("load", MODEL, "--name", "all", "--device", "vulkan0",
                                                              "--gpu-layers", "30"))
        self.assertIn("another device", self.fails("load", MODEL, "--name", "none", "--gpu-layers", "3"))

    def test_one_copy(self):
        """Both serving workers in mid-answer, and the memory of all processes."""
        for device in ("cpu", "vulkan0"):
            self.load(device)
        weights = self.json("status")["weights_bytes"]
        self.assertLess(weights, 1.03 * MODEL.stat().st_size)
        talkers = [self.start("run", device, "Count to a thousand.", "-n", "4000", "--ignore-eos")
                   for device in ("cpu", "vulkan0")]
        for process in talkers:
            self.addCleanup(process.communicate)
            self.addCleanup(process.kill)
            os.read(process.stdout.fileno(), 1)
        workers = [pid for pid, mode in self.daemon.children() if mode == "serve"]
        self.assertEqual(len(workers), 2)
        mapped = [self.mapped(pid) for pid in workers]
        for rss, share in mapped:
            self.assertGreater(rss, 0.9 * weights)  # each of them sees all of the weights
        self.assertLess(sum(share for _, share in mapped), 1.1 * weights)  # and they are there once
        print(f"{sum(map(pss, workers)) >> 20} MiB of two workers, {int(weights) >> 20} of weights")

    def mapped(self, pid):
        """Resident and proportional bytes of the image's mapping."""
        rss = share = 0
        of_image = False
        for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                of_image = "memfd:nibble-model" in line
            elif of_image and words[0] in ("Rss:", "Pss:"):
                rss += (words[0] == "Rss:") * int(words[1]) << 10
                share += (words[0] == "Pss:") * int(words[1]) << 10
        return rss, share

    def test_refusals(self):
        self.assertIn("vulkan9", self.fails("load", MODEL, "--device", "vulkan9"))
        self.load("vulkan0")
        self.assertIn("vulkan0, not on cpu", self.fails("bench", "vulkan0", "--device", "cpu", "--prompt", "8", status=2))
        self.assertIn("--device is for a FILE", self.fails("eval", "vulkan0", "--device", "cpu", "--text", MODEL, status=2))


@unittest.skipIf(LAVAPIPE is None, "no software Vulkan driver here: install mesa-vulkan-drivers")
class TwoDrivers(CliTest):
    """A copy of the driver stands for a second GPU."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="nibble-drivers-")
        self.addCleanup(folder.cleanup)
        manifest = json.loads(LAVAPIPE.read_text())
        first, library = manifest["ICD"]["library_path"], pathlib.Path(folder.name) / "libvulkan_second.so"
        library.write_bytes(pathlib.Path(first).read_bytes())
        manifest["ICD"]["library_path"] = str(library)
        self.second = pathlib.Path(folder.name) / "second.json"
        self.second.write_text(json.dumps(manifest))
        files = f"{LAVAPIPE}:{self.second}"
        self.env = {"VK_DRIVER_FILES": files, "VK_ICD_FILENAMES": files, "LD_LIBRARY_PATH": folder.name}
        super().setUp()

    def test_layers_on_each(self):
        """The CPU's answer, and a model that is lost as a whole when one of its devices goes."""
        self.assertEqual([d["name"] for d in self.json("devices")["devices"]], ["cpu", "vulkan0", "vulkan1"])
        for name, device in (("whole", "cpu"), ("cut", "vulkan0:20+vulkan1")):
            loaded = self.json("load", MODEL, "--name", name, "--device", device, "--precision", "exact", "--context", "512")
            self.assertEqual(loaded["device"], device)
        prompt = ("What is the capital of France?", "--system", "", "-n", "12")
        answers = {name: self.json("run", name, *prompt) for name in ("whole", "cut")}
        self.assertIn("Paris", answers["cut"]["text"])
        for key in ("text", "tokens", "finish"):
            self.assertEqual(answers["cut"][key], answers["whole"][key])
        self.second.unlink()
        self.daemon.process.send_signal(signal.SIGHUP)
        with self.daemon.client() as c:
            until(lambda: {m.name: m.state for m in c.list(MODELS)} == {b"whole": b"ready", b"cut": b"lost"}, "its loss")
        self.assertIn("vulkan1 is gone", self.fails("run", "cut", *prompt))


if __name__ == "__main__":
    unittest.main()
