"""Adapters of loaded models as the broker has them: names, channels, what dies and what moves with what. The worker is a
fake one; what a real one computes is compared with llama.cpp by tests/oracle/test_adapters.py."""
from harness import *

FAKE = os.environ["NIBBLE_TEST_FAKE_WORKER"]


class Adapters(ServiceTest):
    worker = FAKE
    env = {"NIBBLE_FAKE_DEVICES": "cpu vulkan0"}
    config = "[supervision]\nbackoff = 0.01\ndeaths = 3\n"

    def setUp(self):
        super().setUp()
        self.admin, self.client = self.daemon.admin(), self.daemon.client()
        self.addCleanup(self.admin.close)
        self.addCleanup(self.client.close)
        self.file = self.daemon.file("m", b"ok ok")

    def load(self, name, base="", **options):
        self.admin.load(name, self.file, base=base, **options)

    def names(self):
        return [m.name.decode() for m in self.admin.list(MODELS)]

    def says(self, status, complaint, call, *args, **options):
        self.assertIn(complaint, self.refused(status, call, *args, **options))

    def echo(self, channel):
        channel.sock.send(b"x")
        self.assertEqual(channel.sock.recv(1), b"x")

    def test_it_is_served_as_its_base_is(self):
        self.load("m", precision="exact", kv_type="q8_0", context=77)
        self.load("style", "m", scale=-0.25)
        m, style = self.admin.list(MODELS)
        self.assertEqual((m.base, m.scale, style.base, style.scale), (b"", 0, b"m", -0.25))
        self.assertEqual((style.state, style.device, style.precision, style.kv_type),
                         (b"ready", b"cpu", b"exact", b"q8_0"))
        self.assertEqual(self.admin.status().weights_bytes, 4096)  # one file, one image

    def test_channels(self):
        self.load("m")
        self.load("style", "m", scale=1)
        self.load("other")
        plain, adapted = self.client.open_channel("m"), self.client.open_channel("m", adapter="style")
        for channel in (plain, adapted):
            self.echo(channel)
        until(lambda: [m.sessions for m in self.admin.list(MODELS)] == [1, 1, 0], "their sessions")
        open_channel = self.client.open_channel
        self.says(E_NO_MODEL, '"m" has no adapter "nothing"', open_channel, "m", adapter="nothing")
        self.says(E_NO_MODEL, '"m" has no adapter "other"', open_channel, "m", adapter="other")
        self.says(E_NO_MODEL, '"other" has no adapter "style"', open_channel, "other", adapter="style")
        self.says(E_NO_MODEL, '"style" is an adapter of "m": open that with it', open_channel, "style")
        plain.close()
        adapted.close()

    def test_refusals(self):
        self.load("m")
        self.load("style", "m", scale=1)
        self.says(E_EXISTS, "style", self.load, "style", "m", scale=2)
        self.says(E_NO_MODEL, '"n" is not loaded', self.load, "x", "n", scale=1)
        self.says(E_NO_MODEL, '"style" is an adapter itself', self.load, "x", "style", scale=1)
        for scale in (1001, -1001, float("inf"), float("nan")):
            self.says(EINVAL, "scale is from -1000 to 1000", self.load, "x", "m", scale=scale)
        self.says(EINVAL, "a scale is for an adapter alone", self.load, "x", scale=1)
        for options in ({"device": "cpu"}, {"fallback": "vulkan0"}, {"gpu_layers": 1}, {"precision": "exact"},
                        {"context": 7}, {"kv": 4096}, {"kv_type": "f16"}):
            self.says(EINVAL, 'served as its base "m" is', self.load, "x", "m", scale=1, **options)
        refuse = self.daemon.file("r", b"ok refuse")
        self.says(E_UNSUPPORTED, "no such thing", self.admin.load, "x", refuse, base="m", scale=1)
        self.assertEqual(self.names(), ["m", "style"])

    def test_it_goes_with_its_base(self):
        self.load("m")
        for name in ("a", "b"):
            self.load(name, "m", scale=1)
        channel = self.client.open_channel("m", adapter="b")
        self.says(E_BUSY, '1 clients use "m"', self.admin.unload, "m")
        self.admin.unload("a")
        self.assertEqual(self.names(), ["m", "b"])
        self.admin.unload("m", force=True)
        lost = self.client.event(LOST)
        self.assertEqual((lost.status, self.names()), (E_NO_MODEL, []))
        channel.close()

    def test_a_base_that_is_unloaded_during_the_load(self):
        self.load("m")
        sleeping = self.daemon.file("s", b"sleep ok")
        serial = self.admin.post_load("a", sleeping, base="m", scale=1)
        until(lambda: self.names() == ["m", "a"], "the load")
        with self.daemon.admin() as other:
            other.unload("m")
        self.says(E_NO_MODEL, 'its base "m" was unloaded', self.admin.reply, serial)
        self.assertEqual(self.names(), [])

    def test_a_temporary_base_takes_it_along(self):
        with self.daemon.admin() as other:
            body = bytearray(other.load_body("m"))
            struct.pack_into("<I", body, 152 - 16, 1)
            other.give(self.file)
            other.call(LOAD, bytes(body))
            self.load("a", "m", scale=1)
            self.load("n")
        until(lambda: self.names() == ["n"], "its end")

    def test_a_new_worker_has_it(self):
        self.load("m")
        self.load("a", "m", scale=1)
        channel = self.client.open_channel("m", adapter="a")
        os.kill(self.daemon.server(), signal.SIGKILL)
        channel.close()
        channel = Channel(self.client, self.client.event(REBIND))
        self.echo(channel)
        until(lambda: all(m.state == b"ready" for m in self.admin.list(MODELS)), "both again")
        self.assertEqual([(m.state, m.worker_restarts) for m in self.admin.list(MODELS)], [(b"ready", 1)] * 2)
        channel.close()

    def test_it_moves_with_its_base(self):
        self.admin.load("m", self.file, device="vulkan0", fallback="cpu")
        self.load("a", "m", scale=1)
        self.admin.load("n", self.file, device="vulkan0")
        self.load("b", "n", scale=1)
        self.assertEqual([m.device for m in self.admin.list(MODELS)], [b"vulkan0"] * 4)
        self.end_device("vulkan0")
        self.assertEqual([(m.name, m.device, m.state) for m in self.admin.list(MODELS)],
                         [(b"m", b"cpu", b"ready"), (b"a", b"cpu", b"ready"), (b"n", b"vulkan0", b"lost"),
                          (b"b", b"vulkan0", b"lost")])

    def test_a_drafter_goes_the_same_ways(self):
        self.load("m")
        self.load("d", "m", drafter=1)
        self.says(E_NO_MODEL, '"d" is a drafter itself: a drafter', self.load, "x", "d", drafter=1)
        self.says(E_NO_MODEL, '"d" is a drafter itself: an adapter', self.load, "x", "d", scale=1)
        self.says(E_NO_MODEL, '"n" is not loaded: a drafter', self.load, "x", "n", drafter=1)
        self.says(EINVAL, "a scale is for an adapter alone", self.load, "x", "m", drafter=1, scale=1)
        self.says(EINVAL, "a drafter is for a model that is named", self.load, "x", drafter=1)
        self.says(EINVAL, 'a drafter is served as its base "m" is', self.load, "x", "m", drafter=1, precision="exact")
        self.says(E_NO_MODEL, '"d" drafts for "m"', self.client.open_channel, "d")
        self.says(E_NO_MODEL, '"m" has no adapter "d"', self.client.open_channel, "m", adapter="d")
        self.assertEqual([(m.name, m.base, m.is_drafter) for m in self.admin.list(MODELS)], [(b"m", b"", 0), (b"d", b"m", 1)])
        os.kill(self.daemon.server(), signal.SIGKILL)
        until(lambda: [(m.state, m.worker_restarts) for m in self.admin.list(MODELS)] == [(b"ready", 1)] * 2, "both again")
        self.admin.unload("m")
        self.assertEqual(self.names(), [])

    def end_device(self, name):
        """Kills its workers until the device is given up."""
        def device():
            return next(d for d in self.admin.list(DEVICES) if d.name == name.encode())

        for _ in range(3):
            restarts = self.admin.status().worker_restarts
            os.kill(self.daemon.server(), signal.SIGKILL)
            until(lambda: self.admin.status().worker_restarts > restarts, "its death")
            until(lambda: device().state in (b"ready", b"lost"), "the next one")
        until(lambda: all(m.state in (b"ready", b"lost") for m in self.admin.list(MODELS)), "the moves")


if __name__ == "__main__":
    unittest.main()
