"""Drivers that are missing, broken or deadly, and a disk without room for what drivers keep: each is said by its name, and
everything else works."""
import json
import pathlib
import signal
import subprocess

from harness import *

LAVAPIPE = next(pathlib.Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"), None)


def manifest(library):
    return json.dumps({"file_format_version": "1.0.0", "ICD": {"library_path": library, "api_version": "1.2.0"}}).encode()


class DriverTest(ServiceTest):
    """The daemon's environment names the manifests of a folder that the test fills."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="nibble-drivers-")
        self.addCleanup(self.folder.cleanup)
        named = ":".join(self.fill())
        self.env = {"VK_DRIVER_FILES": named, "VK_ICD_FILENAMES": named}
        super().setUp()
        self.model = self.daemon.file("model.gguf", b"")
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", self.model, "Q4_0"], check=True)

    def put(self, name, content):
        path = pathlib.Path(self.folder.name) / name
        path.write_bytes(content)
        return str(path)

    def devices(self):
        with self.daemon.client() as c:
            return {d.name.decode(): d for d in c.list(DEVICES)}

    def findings(self):
        with self.daemon.client() as c:
            return [(f.check.decode(), f.verdict.decode(), f.text.decode()) for f in c.list(FINDINGS)]

    def cpu_serves(self):
        with self.daemon.admin() as a:
            a.load("on-cpu", self.model)
            self.assertEqual(a.model("on-cpu").state, b"ready")


class Faulty(DriverTest):
    """No driver that works: each row says what is wrong with its driver."""
    WRONG = {"absent": "No such file or directory", "text": "no valid JSON", "empty": "names no ICD.library_path",
             "gone": "/no/such/library.so", "beside": "No such file or directory", "pipe": "no regular file",
             "folder": "a folder without manifests"}

    def fill(self):
        root = pathlib.Path(self.folder.name)
        os.mkfifo(root / "pipe.json")
        (root / "folder.json").mkdir()
        return [str(root / "pipe.json"), str(root / "folder.json"), str(root / "absent.json"), self.put("text.json", b"{ this is no JSON"),
                self.put("empty.json", b'{"ICD": {}}'), self.put("gone.json", manifest("/no/such/library.so")),
                self.put("beside.json", manifest("./library.so"))]

    def test_reasons(self):
        devices, findings = self.devices(), self.findings()
        self.assertEqual(set(devices) - {d for d in devices if d.startswith("npu")}, {"cpu", *self.WRONG})
        for name, why in self.WRONG.items():
            d = devices[name]
            self.assertEqual((d.kind, d.state, d.driver.decode()),
                             (b"driver", b"unusable", f"{self.folder.name}/{name}.json"))
            self.assertIn(why, d.reason.decode())
            self.assertTrue([t for check, verdict, t in findings if (check, verdict) == ("driver", "problem")
                             and f"/{name}.json" in t and "VK_DRIVER_FILES" in t and why in t], findings)
            with self.daemon.admin() as a:
                self.assertIn(why, self.refused(E_UNSUPPORTED, a.load, "m", self.model, device=name))
        self.cpu_serves()

    def test_mended(self):
        """A driver's row goes when the driver has devices, and comes back with the fault."""
        pathlib.Path(self.folder.name, "absent.json").symlink_to(LAVAPIPE)
        self.daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "vulkan0" in self.devices() and "absent" not in self.devices(), "the driver's device")
        self.assertEqual(self.devices()["gone"].kind, b"driver")

    def test_doctor(self):
        done = subprocess.run([os.environ["NIBBLE_TEST_CLI"], "doctor", "--socket", self.daemon.runtime / "nibble.sock"],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        for said in ("VK_DRIVER_FILES=", "text.json, which VK_DRIVER_FILES names: no valid JSON", "descriptors"):
            self.assertIn(said, done.stdout)


@unittest.skipIf(LAVAPIPE is None, "no software Vulkan driver here: install mesa-vulkan-drivers")
class Deadly(DriverTest):
    """A driver that kills whoever loads it hides its own devices alone, at the daemon's start as well."""

    def fill(self):
        self.good = str(LAVAPIPE)
        return [self.put("deadly.json", manifest(os.environ["NIBBLE_TEST_CRASHING_DRIVER"])), self.good]

    def test_others_are_there(self):
        devices = self.devices()
        self.assertEqual((devices["cpu"].state, devices["vulkan0"].state), (b"ready", b"ready"))
        self.assertEqual((devices["deadly"].kind, devices["deadly"].state), (b"driver", b"unusable"))
        self.assertIn(b"signal 6", devices["deadly"].reason)
        with self.daemon.admin() as a:
            a.load("m", self.model, device="vulkan0")
            self.assertEqual((a.model("m").state, a.model("m").device), (b"ready", b"vulkan0"))
        worker = pathlib.Path(f"/proc/{self.daemon.server()}/environ").read_bytes().split(b"\0")
        for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
            self.assertIn(f"{variable}={self.good}".encode(), worker)
        self.cpu_serves()


@unittest.skipIf(LAVAPIPE is None, "no software Vulkan driver here: install mesa-vulkan-drivers")
class FullDisk(StreamTest):
    """Mesa maps its cache's index: without room for it, writing there would end the worker."""

    def setUp(self):
        self.disk = tempfile.TemporaryDirectory(prefix="nibble-disk-")
        self.addCleanup(self.disk.cleanup)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", self.disk.name],
                          capture_output=True).returncode:
            self.skipTest("a small disk cannot be mounted here (not root)")
        self.addCleanup(subprocess.run, ["umount", "-l", self.disk.name])
        self.env = {"VK_DRIVER_FILES": str(LAVAPIPE), "VK_ICD_FILENAMES": str(LAVAPIPE),
                    "MESA_SHADER_CACHE_DIR": self.disk.name}
        super().setUp()

    def test_vulkan_goes_on(self):
        with open(f"{self.disk.name}/fill", "wb", buffering=0) as f, self.assertRaises(OSError):
            while True:
                f.write(bytes(4096))
        with self.daemon.admin() as a:
            a.load("m", self.small_model(), device="vulkan0")
            self.assertEqual(a.model("m").device, b"vulkan0")
        self.assertTrue(self.answer(self.stream(n=20))[1])
        self.assertIn("drivers keep no compiled shaders", self.daemon.logged())


if __name__ == "__main__":
    unittest.main()
