"""A device that is lost, and where its models go (with the fake worker): to the fallback that their load named, told
to the clients, or to a clear end; and a worker that does not even die."""
import errno
import os
import signal

from harness import *

FAKE = os.environ["NIBBLE_TEST_FAKE_WORKER"]
CONFIG = """[supervision]
hang = 0.4
start = {start}
deaths = 3
deaths-window = 60
backoff = 0.01
drain = 1
"""


class LossTest(ServiceTest):
    worker = FAKE
    config = CONFIG.format(start=60)
    env = {"NIBBLE_FAKE_DEVICES": "cpu gpu stuck"}

    def load(self, admin, name, words, **options):
        return admin.load(name, self.daemon.file(name + ".gguf", words), **options)

    def device(self, client, name):
        return next(d for d in client.list(DEVICES) if d.name == name.encode())

    def rebinds(self, client, channel):
        """The channel's incarnations, to the one that echoes on another device, or its loss."""
        seen = []
        while True:
            event = client.receive()
            if event.type == LOST:
                return seen, event
            if event.type != REBIND:
                continue
            new = Channel(client, event)
            self.addCleanup(new.close)
            seen.append(new)
            if new.device != channel.device:
                return seen, None

    def opened(self, client, name):
        channel = client.open_channel(name)
        self.addCleanup(channel.close)
        return channel

    def echo(self, channel):
        channel.sock.send(b"hello")
        self.assertEqual(channel.sock.recv(64), b"hello")


class Fallback(LossTest):
    def test_sessions_move_when_the_load_said_so(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "m", b"ok gpu:fault", device="gpu", fallback="cpu")
            self.load(a, "calm", b"ok ok", device="cpu")
            calm = self.opened(c, "calm")
            self.echo(calm)
            channel = self.opened(c, "m")
            self.assertEqual((channel.device, channel.numerics), ("gpu", "n1"))
            seen, lost = self.rebinds(c, channel)
            self.assertIsNone(lost)
            self.assertEqual([n.device for n in seen], ["gpu", "gpu", "cpu"])
            self.echo(seen[-1])
            self.echo(calm)  # its worker took one more model, and that is all
            self.assertEqual(a.model("m").device, b"cpu")
            until(lambda: a.model("m").state == b"ready", "the model on the other device")
            gpu = self.device(a, "gpu")
            self.assertEqual((gpu.state, gpu.models), (b"lost", 0))
            log = self.daemon.logged()
            self.assertIn("the fake device fell off the bus?", log)  # the cause, cleaned
            self.assertIn("model m moves from gpu to cpu", log)

    def test_without_a_fallback_there_is_a_clear_end(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "m", b"ok gpu:fault", device="gpu")
            seen, lost = self.rebinds(c, self.opened(c, "m"))
            self.assertEqual(len(seen), 2)
            self.assertEqual(lost.status, E_LOST)
            for part in ("device gpu", "fell off the bus", "load it again"):
                self.assertIn(part, lost.text(24))
            self.assertIn("fell off the bus", self.refused(E_LOST, c.open_channel, "m"))

    def test_a_fallback_that_is_lost_itself(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "m", b"ok fault", device="gpu", fallback="cpu")
            seen, lost = self.rebinds(c, self.opened(c, "m"))
            self.assertEqual(seen[-1].device, "cpu")
            while not lost:
                more, lost = self.rebinds(c, seen[-1])
                self.assertEqual([n.device for n in more], ["cpu"] * len(more))
            self.assertIn("device cpu", lost.text(24))
            # The other way round there is no place to go either.
            self.load(a, "n", b"ok fault", device="gpu", fallback="cpu")
            self.load(a, "o", b"ok ok", device="cpu")
            seen, lost = self.rebinds(c, self.opened(c, "n"))
            self.assertEqual(seen[-1].device, "cpu")

    def test_a_fallback_is_checked_at_the_load(self):
        with self.daemon.admin() as a:
            self.assertIn("its own fallback",
                          self.refused(EINVAL, self.load, a, "m", b"ok ok", fallback="cpu"))
            self.assertIn("nibble devices", self.refused(E_UNSUPPORTED, self.load, a, "m",
                                                         b"ok ok", fallback="vulkan7"))

    def test_a_device_that_fails_is_no_fault_of_the_model(self):
        with self.daemon.admin() as a:
            text = self.refused(E_LOST, self.load, a, "m", b"ok fault-at-add", device="gpu")
            self.assertIn("3 times", text)
            self.assertIn("fell off the bus", text)
            self.assertEqual(self.device(a, "gpu").state, b"lost")
            self.load(a, "m", b"ok ok", device="gpu")
            self.assertEqual(self.device(a, "gpu").state, b"ready")


class Opening(LossTest):
    config = CONFIG.format(start=0.5)

    def test_a_device_that_does_not_open_is_given_up(self):
        with self.daemon.admin() as a:
            text = self.refused(E_LOST, self.load, a, "m", b"ok ok", device="stuck")
            self.assertIn("hung while it opened the device", text)


UNDYING = os.environ.get("NIBBLE_TEST_UNDYING")


@unittest.skipUnless(UNDYING, "a preloaded library is not for sanitizers")
class Stuck(LossTest):
    env = dict(LossTest.env, LD_PRELOAD=UNDYING or "")

    def test_a_worker_that_does_not_die_is_not_waited_for(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "m", b"ok gpu:hang", device="gpu", fallback="cpu")
            self.load(a, "other", b"ok ok", device="cpu")
            before = self.device(a, "gpu").used_bytes
            kv = a.model("m").kv_bytes
            seen, lost = self.rebinds(c, self.opened(c, "m"))
            self.assertIsNone(lost)
            self.echo(seen[-1])
            # Three workers hang there still; the device keeps what they hold, the models are gone.
            stuck = [p for p, mode in self.daemon.children() if mode == "serve"]
            self.assertEqual(len(stuck), 3 + 1)
            self.assertEqual(self.device(a, "gpu").used_bytes, 3 * kv)
            self.assertLess(3 * kv, before)  # weights have one copy, which is the models'
            until(lambda: "stuck in the kernel" in self.daemon.logged(), "a line in the log")
            serving = {h.pid for h in c.list(HOLDERS) if h.role == b"worker" and h.model}
            for left, pid in enumerate(sorted(set(stuck) - serving), -2):
                os.kill(pid, signal.SIGKILL)  # the driver lets go
                until(lambda: self.device(a, "gpu").used_bytes == -left * kv, "the charge")
            self.echo(seen[-1])


class Split(LossTest):
    """Devices made of several, as the broker sees them."""
    env = {"NIBBLE_FAKE_DEVICES": "cpu vulkan0 vulkan1"}

    def names(self, client):
        return [d.name for d in client.list(DEVICES)]

    def argument(self):
        """What the broker tells the one serving worker to open."""
        return pathlib.Path(f"/proc/{self.daemon.server()}/cmdline").read_bytes().split(b"\0")[-2]

    def test_one_is_a_device_as_long_as_it_has_models(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            single = self.names(c)
            for name, options in ((b"vulkan0:3+vulkan1", {"device": "vulkan0:3+vulkan1"}),
                                  (b"cpu+vulkan1:2", {"device": "vulkan1", "gpu_layers": 2}),
                                  (b"cpu+vulkan0:2", {"device": "auto", "gpu_layers": 2})):
                self.load(a, "s", b"ok ok", **options)
                self.assertEqual(a.model("s").device, name)
                self.assertEqual(self.names(c), [*single, name])
                row = self.device(c, name.decode())
                self.assertEqual((row.kind, row.state, row.models), (b"gpu", b"ready", 1))
                self.assertEqual(self.argument(), name)
                self.echo(self.opened(c, "s"))
                a.unload("s", force=True)
                self.assertEqual(self.names(c), single)
                until(lambda: not self.daemon.children(), "the end of its worker")

    def test_refusals(self):
        with self.daemon.admin() as a:
            for status, options, text in ((E_UNSUPPORTED, {"device": "cpu+vulkan9:2"}, "no device \"vulkan9\""),
                                          (E_UNSUPPORTED, {"device": "vulkan9", "gpu_layers": 2}, "no device \"vulkan9\""),
                                          (E_UNSUPPORTED, {"device": "+"}, "no device \"\""),
                                          (-errno.EINVAL, {"device": "cpu:2+cpu"}, "another device"),
                                          (-errno.EINVAL, {"gpu_layers": 2}, "another device"),
                                          (-errno.EINVAL, {"device": "cpu+vulkan0:x"}, "cpu+vulkan0:20"),
                                          (-errno.EINVAL, {"device": "cpu+vulkan0:"}, "cpu+vulkan0:20"),
                                          (-errno.EINVAL, {"device": "cpu+vulkan0:99999"}, "cpu+vulkan0:20"),
                                          (-errno.EINVAL, {"device": "cpu+vulkan0:2", "gpu_layers": 3}, "no other count"),
                                          (-errno.EINVAL, {"device": "cpu+vulkan0:2", "fallback": "cpu+vulkan0:2"}, "own fallback"),
                                          (E_UNSUPPORTED, {"fallback": "cpu+vulkan9:2"}, "no device \"vulkan9\"")):
                self.assertIn(text, self.refused(status, self.load, a, "s", b"ok ok", **options))
            self.assertEqual(self.names(a), [b"cpu", b"vulkan0", b"vulkan1"])
            self.assertEqual(a.list(MODELS), [])

    def test_it_is_lost_as_one(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "calm", b"ok ok", device="vulkan0")
            self.load(a, "m", b"ok vulkan0:3+vulkan1:fault", device="vulkan0:3+vulkan1", fallback="cpu")
            channel = self.opened(c, "m")
            _, lost = self.rebinds(c, channel)
            self.assertIsNone(lost)
            self.assertEqual(a.model("m").device, b"cpu")
            self.assertEqual(self.device(c, "vulkan0").state, b"ready")
            self.assertEqual(a.model("calm").worker_restarts, 0)
            # Loaded again, it is tried again.
            self.load(a, "n", b"ok ok", device="vulkan0:3+vulkan1")
            self.echo(self.opened(c, "n"))

    def test_one_takes_over(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "m", b"ok vulkan0:fault", device="vulkan0", fallback="cpu+vulkan1:2")
            _, lost = self.rebinds(c, self.opened(c, "m"))
            self.assertIsNone(lost)
            self.assertEqual(a.model("m").device, b"cpu+vulkan1:2")


if __name__ == "__main__":
    unittest.main()
