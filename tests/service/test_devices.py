"""Devices that come and go: by probe after probe, with the list of Vulkan drivers as the machine."""
import ctypes
import json
import pathlib
import signal
import subprocess

from harness import *

LAVAPIPE = next(pathlib.Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"), None)
PR_SET_MDWE, PR_GET_MDWE = 65, 66


def prctl(*arguments):
    return ctypes.CDLL(None, use_errno=True).prctl(*(arguments + (0,) * (5 - len(arguments))))


@unittest.skipIf(LAVAPIPE is None, "no software Vulkan driver here: install mesa-vulkan-drivers")
class DevicesTest(ServiceTest):
    """One driver, lavapipe, which a link in the daemon's own folder stands for."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="nibble-drivers-")
        self.addCleanup(self.folder.cleanup)
        self.driver = pathlib.Path(self.folder.name) / "driver.json"
        self.driver.symlink_to(LAVAPIPE)
        self.env = {"VK_DRIVER_FILES": str(self.driver), "VK_ICD_FILENAMES": str(self.driver)}
        super().setUp()
        self.model = self.daemon.file("model.gguf", b"")
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", self.model, "Q4_0"], check=True)

    def devices(self):
        with self.daemon.client() as c:
            return {d.name.decode(): d for d in c.list(DEVICES)}

    def probe_until(self, condition, what):
        self.daemon.process.send_signal(signal.SIGHUP)
        return until(lambda: condition(self.devices()), what)

    def test_what_is_listed(self):
        found = self.devices()
        self.assertEqual(list(found)[:2], ["cpu", "vulkan0"])
        cpu, vulkan = found["cpu"], found["vulkan0"]
        self.assertEqual((cpu.kind, cpu.uuid, cpu.node, cpu.state, cpu.reason), (b"cpu", b"", b"", b"ready", b""))
        self.assertEqual((vulkan.kind, vulkan.node, vulkan.state, vulkan.reason), (b"emulated", b"", b"ready", b""))
        self.assertRegex(vulkan.uuid, b"^[0-9a-f]{32}$")
        self.assertIn(b"llvmpipe", vulkan.description)
        self.assertTrue(vulkan.driver and vulkan.isa and vulkan.memory_bytes)

    def test_nothing_is_chosen_silently(self):
        with self.daemon.admin() as a:
            for device in ("", "auto"):  # a CPU's driver is no GPU
                a.load("m", self.model, device=device)
                self.assertEqual(a.model("m").device, b"cpu")
                a.unload("m")
            for options in ({"fallback": "cpu"}, {"gpu_layers": 5}, {"fallback": "cpu", "gpu_layers": 5}):
                a.load("m", self.model, device="auto", **options)
                self.assertEqual(a.model("m").device, b"cpu")
                a.unload("m")
            text = self.refused(E_UNSUPPORTED, a.load, "m", self.model, device="vulkan7")
            self.assertIn("vulkan7", text)
            self.assertEqual(a.list(MODELS), [])

    def test_a_device_that_goes_and_comes(self):
        with self.daemon.admin() as a, self.daemon.client() as c:
            a.load("v", self.model, device="vulkan0")
            a.load("m", self.model)
            channel = c.open_channel("v")
            self.assertEqual(a.model("v").device, b"vulkan0")
            self.driver.unlink()
            gone = self.probe_until(lambda d: d["vulkan0"].state == b"gone" and d["vulkan0"], "its going")
            self.assertIn(b"no driver lists it any more", gone.reason)
            lost = c.event(LOST)
            self.assertEqual(lost.status, E_LOST)
            self.assertIn("vulkan0 is gone", lost.text(24))
            channel.close()
            self.assertEqual({m.name: m.state for m in a.list(MODELS)}, {b"v": b"lost", b"m": b"ready"})
            until(lambda: len(self.daemon.children()) == 1, "the end of its worker")
            self.assertIn("vulkan0 is gone", self.refused(E_UNSUPPORTED, a.load, "w", self.model, device="vulkan0"))
            # Its name is kept for it, so what it had served can be loaded again.
            self.driver.symlink_to(LAVAPIPE)
            self.probe_until(lambda d: d["vulkan0"].state == b"ready", "its return")
            self.assertEqual(list(self.devices())[:2], ["cpu", "vulkan0"])
            a.unload("v")
            a.load("v", self.model, device="vulkan0")
            self.assertEqual(a.model("v").state, b"ready")

    def test_a_driver_that_begins_to_crash_hides_nothing(self):
        """What it had named stays, since nobody knows better; and its row says what it does."""
        broken = self.daemon.file("broken.json", json.dumps({"file_format_version": "1.0.0", "ICD": {
            "library_path": os.environ["NIBBLE_TEST_CRASHING_DRIVER"], "api_version": "1.2.0"}}).encode())
        self.driver.unlink()
        self.driver.symlink_to(broken)
        found = self.probe_until(lambda d: "driver" in d and d, "the driver's row")
        self.assertIn(b"signal 6", found["driver"].reason)
        self.assertEqual({n: d.state for n, d in found.items()},
                         {"cpu": b"ready", "vulkan0": b"ready", "driver": b"unusable"})


@unittest.skipIf(LAVAPIPE is None, "no software Vulkan driver here: install mesa-vulkan-drivers")
@unittest.skipIf(prctl(PR_GET_MDWE) < 0, "this kernel knows no PR_SET_MDWE")
class NoCodeIsMade(ServiceTest):
    """Under MemoryDenyWriteExecute= a CPU's driver would crash at its first shader: it is not let that far."""

    def setUp(self):
        self.worker = self.wrapper = None
        script = tempfile.NamedTemporaryFile("w", suffix=".py", delete=False)
        self.addCleanup(os.unlink, script.name)
        script.write("#!/usr/bin/python3\nimport ctypes, os, sys\n"
                     f"assert ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0) == 0\n"
                     f"os.execv({os.environ['NIBBLE_TEST_WORKER']!r}, ['nibble-worker', *sys.argv[1:]])\n")
        script.close()
        os.chmod(script.name, 0o755)
        self.worker = script.name
        self.env = {"VK_DRIVER_FILES": str(LAVAPIPE), "VK_ICD_FILENAMES": str(LAVAPIPE)}
        super().setUp()
        self.model = self.daemon.file("model.gguf", b"")
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", self.model, "Q4_0"], check=True)

    def test_refused_with_the_remedy(self):
        with self.daemon.admin() as a:
            row = next(d for d in a.list(DEVICES) if d.name == b"vulkan0")
            self.assertEqual(row.state, b"unusable")
            text = self.refused(E_UNSUPPORTED, a.load, "v", self.model, device="vulkan0")
            for said in (row.reason.decode(), text):
                self.assertIn("MemoryDenyWriteExecute", said)
                self.assertIn("cpu", said)
            a.load("m", self.model)
            self.assertEqual(a.model("m").state, b"ready")


if __name__ == "__main__":
    unittest.main()
