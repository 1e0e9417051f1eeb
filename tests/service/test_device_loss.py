"""A Vulkan device that is lost, hangs or is full in the middle of what it does, through a loader that fails by order
(tests/loss/faults.c): streams go on with the same bytes, and what cannot go on says why."""
import mmap
import os
import pathlib
import signal
import struct
import subprocess
import tempfile

from harness import *

SHIM = pathlib.Path(os.environ["NIBBLE_TEST_FAULTY_VULKAN"]).parent
NONE, LOST_, HANG, FULL = range(4)
SUBMIT, WAIT, ALLOCATE, COPY = range(4)
PROMPT = "It was the best of times, it was the worst of times. " * 6  # a token a byte, nearly
CACHE = pathlib.Path(os.environ["MESA_SHADER_CACHE_DIR"])
CACHE.mkdir(parents=True, exist_ok=True)
# In the one place that a worker with a driver may write to.
ORDERS = tempfile.NamedTemporaryFile(prefix="orders-", dir=CACHE)


def real_loader():
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    return next(line.split("=> ")[1] for line in listed.splitlines() if line.split()[:1] == ["libvulkan.so.1"])


class Faulty(StreamTest):
    config = "[supervision]\nbackoff = 0.05\ndeaths = 4\nhang = 60\n"

    def setUp(self):
        path = pathlib.Path(ORDERS.name)
        path.write_bytes(bytes(4096))
        with open(path, "r+b") as file:
            self.orders = mmap.mmap(file.fileno(), 4096)
        self.addCleanup(self.orders.close)
        self.env = {"NIBBLE_TEST_FAULTS": str(path), "NIBBLE_TEST_VULKAN": real_loader(),
                    "LD_LIBRARY_PATH": f"{SHIM}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
        super().setUp()
        self.path = self.small_model()
        self.admin = self.daemon.admin()
        self.addCleanup(self.admin.close)

    def order(self, fault, place, countdown=1, again=0, no_import=0):
        """The countdown last: with it the order holds."""
        struct.pack_into("<IIIII", self.orders, 0, fault, place, 0, again, no_import)
        struct.pack_into("<I", self.orders, 8, countdown)

    def seen(self, place):
        return struct.unpack_from("<I", self.orders, 20 + 4 * place)[0]

    def load(self, name="m", **options):
        self.admin.load(name, self.path, device="vulkan0", **options)
        self.prepared(name)

    def prepared(self, name="m"):
        """Afterwards the worker submits nothing but steps: `nibble bench` waits for that."""
        process = self.cli("bench", name, *"--prompt 1 --gen 2 --depth 1 --clients 1 --runs 1".split())
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)

    def in_decode(self, tokens=10):
        """A stream that has come so far, and is long enough to go on when an order comes, however busy the machine."""
        before = self.admin.status().decode_tokens
        process = self.stream()
        until(lambda: self.admin.status().decode_tokens >= before + tokens, "tokens")
        return process

    def restarts(self):
        return self.admin.status().worker_restarts


class Loss(Faulty):
    def test_in_decode(self):
        self.load()
        alone = self.answer(self.stream())
        for place in (SUBMIT, WAIT):
            process = self.in_decode()
            self.order(LOST_, place)
            self.assertEqual(self.answer(process), alone)
        self.assertEqual(self.restarts(), 2)
        log = self.daemon.logged()
        # A decode submits steps of one row and, once in many, the clearing of its next block.
        self.assertRegex(log, r"failed in (a step of 1 rows|clearing a KV block): VK_ERROR_DEVICE_LOST from vkQueueSubmit")
        self.assertIn("VK_ERROR_DEVICE_LOST from vkWaitSemaphores", log)
        self.assertIn("a new one takes over its 1 models", log)

    def test_in_prefill(self):
        self.load()
        alone = self.answer(self.stream(n=50, prompt=PROMPT))
        before = self.seen(SUBMIT)
        self.answer(self.stream(n=1, prompt=PROMPT))
        self.order(LOST_, SUBMIT, self.seen(SUBMIT) - before)  # the last submission before the token
        self.assertEqual(self.answer(self.stream(n=50, prompt=PROMPT)), alone)
        self.assertEqual(self.restarts(), 1)
        self.assertRegex(self.daemon.logged(), r"failed in a step of \d\d+ rows: .*, from \w+ of layer \d+ on")

    def test_while_it_prepares(self):
        self.load()
        alone = self.answer(self.stream())
        self.admin.unload("m")
        self.admin.load("m", self.path, device="vulkan0")
        self.order(LOST_, SUBMIT)  # nobody asks for a step
        until(lambda: "failed in preparing a model: VK_ERROR_DEVICE_LOST" in self.daemon.logged(), "its end")
        self.assertEqual(self.answer(self.stream()), alone)
        self.prepared()
        self.assertEqual(self.answer(self.stream()), alone)
        self.assertEqual(self.restarts(), 1)

    def test_in_uploads(self):
        self.order(LOST_, COPY, no_import=1)
        self.load()  # the second worker's
        self.assertEqual(self.restarts(), 1)
        self.assertGreater(self.seen(COPY), 1)
        alone = self.answer(self.stream())
        process = self.in_decode()
        self.order(LOST_, COPY, no_import=1)
        os.kill(self.daemon.server(), signal.SIGKILL)  # whose successor is lost while it uploads
        self.assertEqual(self.answer(process), alone)
        self.assertEqual(self.restarts(), 3)
        self.assertIn("VK_ERROR_DEVICE_LOST", self.daemon.logged())

    def test_a_killed_worker(self):
        self.load()
        for options in ({}, {"n": 50, "prompt": PROMPT}):
            alone = self.answer(self.stream(**options))
            # In the middle of a step: one that does not end by itself.
            process = self.stream(**options) if options else self.in_decode()
            self.order(HANG, SUBMIT)
            until(lambda: not struct.unpack_from("<I", self.orders, 8)[0], "the step")
            os.kill(self.daemon.server(), signal.SIGKILL)
            self.assertEqual(self.answer(process), alone)
        self.assertEqual(self.restarts(), 2)

    def test_for_good_with_a_fallback(self):
        self.load(fallback="cpu")
        alone = self.answer(self.stream())
        process = self.in_decode()
        self.order(LOST_, SUBMIT, again=1)
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)
        self.assertIn("moved to device cpu", err)
        tokens = json.loads(out)["tokens"]
        self.assertEqual((len(tokens), tokens[:10]), (len(alone[1]), alone[1][:10]))
        self.assertEqual(self.admin.model("m").device, b"cpu")
        device = next(d for d in self.admin.list(DEVICES) if d.name == b"vulkan0")
        self.assertEqual((device.state, device.models), (b"lost", 0))
        self.assertIn(b"VK_ERROR_DEVICE_LOST", device.reason)
        # Mended: the next load tries it again.
        self.order(NONE, SUBMIT, 0)
        self.admin.unload("m")
        self.load()
        self.assertEqual(self.answer(self.stream()), alone)

    def test_figures_of_two_devices_are_none(self):
        self.load(fallback="cpu", kv_type="q8_0")
        self.order(LOST_, SUBMIT, 20, again=1)
        text = self.daemon.file("text", b"It was the best of times. " * 40)
        out, err = self.cli("eval", "m", "--text", text, "--ctx", "64").communicate(timeout=120)
        self.assertEqual((out, len(err.strip().splitlines())), ("", 1), err)
        self.assertIn("m has moved from vulkan0 to cpu", err)
        self.assertEqual(self.admin.model("m").kv_type, b"q8_0")  # as the load said, wherever it runs

    def test_for_good_without_a_fallback(self):
        self.load()
        process = self.in_decode()
        self.order(LOST_, SUBMIT, again=1)
        out, err = process.communicate(timeout=120)
        self.assertEqual((process.returncode, len(err.strip().splitlines())), (1, 1), err)
        for part in ("device vulkan0", "4 times", "VK_ERROR_DEVICE_LOST", "load it again"):
            self.assertIn(part, err)


class Kept(Faulty):
    """No fault: what a device keeps is written once the model is prepared, and the next start has nothing to add."""

    def test_a_second_start_measures_nothing(self):
        self.load()
        written = until(self.daemon.kept, "what the device keeps")
        alone = self.answer(self.stream())
        for restart in (False, True):
            if restart:
                self.admin.close()
                self.daemon.stop()
                self.daemon.start()
                self.admin = self.daemon.admin()
                self.addCleanup(self.admin.close)
            else:
                self.admin.unload("m")
            self.load()
            self.assertEqual(self.answer(self.stream()), alone)
            self.assertEqual(self.daemon.kept(), written)


class Full(Faulty):
    def test_at_open_it_is_a_refusal(self):
        self.load()
        alone = self.answer(self.stream())
        process = self.in_decode()
        self.order(FULL, ALLOCATE, 2, again=1)  # of one kind of memory alone, another may take its place
        self.assertRegex(self.refused(E_TOO_LARGE, self.load, "n"), r"no memory for .* KV blocks")
        self.order(NONE, SUBMIT, 0)
        self.assertEqual(self.answer(process), alone)
        self.load("n")
        self.assertEqual(self.restarts(), 0)

    def test_in_a_step_the_worker_ends(self):
        self.load()
        until(self.daemon.kept, "the model's preparation, which goes on without memory")
        alone = self.answer(self.stream())
        process = self.in_decode()
        self.order(FULL, SUBMIT)
        self.assertEqual(self.answer(process), alone)
        self.assertEqual(self.restarts(), 1)
        self.assertRegex(self.daemon.logged(), r"VK_ERROR_OUT_OF_DEVICE_MEMORY from vkQueueSubmit \(\d+ MB used, ")

    def test_a_block_that_is_not_cleared_is_not_read(self):
        self.load()
        alone = self.answer(self.stream())
        self.order(FULL, SUBMIT)  # a stream's first block was the last one's: it is cleared before the first step
        self.assertEqual(self.answer(self.stream()), alone)
        self.assertEqual(self.restarts(), 1)
        self.assertIn("failed in clearing a KV block: VK_ERROR_OUT_OF_DEVICE_MEMORY", self.daemon.logged())


class Hang(Faulty):
    def hang_after(self, seconds):
        self.daemon.config.write_text(self.config.replace("hang = 60", f"hang = {seconds}"))
        self.daemon.process.send_signal(signal.SIGHUP)

    def test_the_watchdog_ends_it(self):
        self.load()
        alone = self.answer(self.stream())
        process = self.in_decode()
        self.order(HANG, SUBMIT)
        self.hang_after(1)
        until(lambda: "hung in a step" in self.daemon.logged(), "the watchdog")
        self.hang_after(60)  # a busy machine compiles shaders for longer than that
        self.assertEqual(self.answer(process), alone)
        self.assertEqual(self.restarts(), 1)


if __name__ == "__main__":
    unittest.main()
