"""Workers that die, hang and lie (a fake one, by order): what the broker makes of it."""
import os
import signal
import struct

from harness import *

FAKE = os.environ["NIBBLE_TEST_FAKE_WORKER"]


class Supervision(ServiceTest):
    worker = FAKE
    config = """[supervision]
hang = 0.4
deaths = 3
deaths-window = 60
backoff = 0.01
drain = 1
"""

    def load(self, admin, name="m", words=b"ok ok"):
        return admin.load(name, self.daemon.file(name + ".gguf", words))

    def echo(self, channel, data=b"hello"):
        channel.sock.send(data)
        self.assertEqual(channel.sock.recv(64), data)

    def rebound(self, client, channel):
        """The channel after its worker's death. The old one's socket has ended."""
        others = []
        while True:
            event = client.event(REBIND)
            if struct.unpack_from("<I", event.data, 16)[0] == channel.id:
                break
            others.append(event)
        client.events = others + client.events
        new = Channel(client, event)
        self.assertEqual(new.arena, channel.arena)
        self.assertGreater(new.incarnation, channel.incarnation)
        self.assertTrue(ended(channel))
        channel.close()
        return new

    def test_death(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "m")
            self.load(a, "n")
            first, second = c.open_channel("m"), c.open_channel("n", 1 << 16)
            self.echo(first)
            until(lambda: c.status().steps == 1, "the page's counters")
            pid = self.daemon.server()
            os.kill(pid, signal.SIGKILL)
            first, second = self.rebound(c, first), self.rebound(c, second)
            self.echo(first)
            self.echo(second)
            self.assertNotEqual(self.daemon.server(), pid)
            m = until(lambda: next((m for m in c.list(MODELS) if m.state == b"ready"), None), "ready")
            self.assertEqual(m.worker_restarts, 1)
            until(lambda: c.status().steps == 3, "counters that go on")
            self.assertEqual(c.status().worker_restarts, 1)
            self.assertEqual(max(h.tokens for h in c.list(HOLDERS) if h.role == b"client"), 15)
            self.assertEqual(len(a.list(DEVICES)), 1)
            for channel in (first, second):
                channel.close()

    def test_too_many_deaths(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a)
            channel = c.open_channel("m")
            for _ in range(2):
                os.kill(self.daemon.server(), signal.SIGKILL)
                channel = self.rebound(c, channel)
            os.kill(self.daemon.server(), signal.SIGKILL)
            lost = c.event(LOST)
            self.assertEqual(lost.status, E_LOST)
            self.assertIn("died 3 times", lost.text(24))
            self.assertEqual(a.model("m").state, b"lost")
            self.assertEqual(a.list(DEVICES)[0].state, b"lost")
            self.assertIn("died 3 times", self.refused(E_LOST, c.open_channel, "m"))
            self.assertEqual(self.daemon.children(), [])
            channel.close()
            until(lambda: c.status().channel_bytes == 0, "the end of the channels' memory")
            a.unload("m")
            self.assertEqual(a.list(DEVICES)[0].state, b"lost")
            self.load(a)  # which tries the device again
            self.assertEqual(a.list(DEVICES)[0].state, b"ready")
            channel = c.open_channel("m")
            os.kill(self.daemon.server(), signal.SIGKILL)
            channel = self.rebound(c, channel)  # with as many deaths to come as any device
            self.echo(channel)
            channel.close()

    def test_hang(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "bad", b"ok hang")
            self.load(a, "good")
            good = c.open_channel("good")
            self.echo(good)
            bad = c.open_channel("bad")
            good = self.rebound(c, good)
            self.assertIn("hung in a step", self.daemon.logged())
            # The bad one hangs each new worker too, until the device is given up.
            self.assertEqual(c.event(LOST).status, E_LOST)
            for channel in (good, bad):
                channel.close()

    def test_garbage(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "bad", b"ok garbage")
            channel = c.open_channel("bad")
            channel = self.rebound(c, channel)
            self.assertIn("no message of its", self.daemon.logged())
            self.assertEqual(c.event(LOST).status, E_LOST)
            channel.close()

    def test_a_model_that_kills_its_worker_does_not_take_the_others(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a, "good")
            channel = c.open_channel("good")
            self.refused(E_LOST, self.load, a, "bad", b"ok die")
            channel = self.rebound(c, channel)
            self.echo(channel)
            self.assertEqual([m.name for m in a.list(MODELS)], [b"good"])
            channel.close()

    def test_a_client_comes_while_no_worker_runs(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a)
            channel = c.open_channel("m")
            os.kill(self.daemon.server(), signal.SIGKILL)
            other = c.open_channel("m")  # before or after the restart: both are right
            channel = self.rebound(c, channel)
            while other.incarnation < channel.incarnation:
                other = self.rebound(c, other)
            self.echo(other)
            self.echo(channel)
            for each in (channel, other):
                each.close()

    def test_a_worker_that_does_not_drain_is_killed(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a)
            channel = c.open_channel("m")
            os.kill(self.daemon.server(), signal.SIGSTOP)
            self.assertEqual(self.daemon.stop(), 0)
            self.assertIn("did not finish in time", self.daemon.logged())
            channel.close()

    def test_a_second_signal_is_an_order(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a)
            c.open_channel("m").close()
            os.kill(self.daemon.server(), signal.SIGSTOP)
            self.daemon.process.send_signal(signal.SIGTERM)
            until(lambda: "stopping" in self.daemon.logged(), "the drain")
            self.assertEqual(self.daemon.stop(), 0)

    def test_workers_go_with_a_killed_broker(self):
        with self.daemon.admin() as a:
            self.load(a)
        pid = self.daemon.server()
        self.daemon.process.kill()
        self.daemon.process.wait()
        until(lambda: not alive(pid), "the worker's end")
        self.daemon.start()


def ended(channel):
    """Whether the other end of the channel's socket was closed, read or not what we wrote."""
    try:
        return channel.sock.recv(1) == b""
    except ConnectionResetError:
        return True


def alive(pid):
    try:
        return b") Z " not in open(f"/proc/{pid}/stat", "rb").read()
    except FileNotFoundError:
        return False


class NoWorker(ServiceTest):
    worker = "/nonexistent/nibble-worker"

    def test_it_says_so(self):
        with self.daemon.admin() as a:
            self.assertEqual(a.list(DEVICES), [])
            self.refused(E_UNSUPPORTED, a.load, "m", self.daemon.file("m", b"ok ok"))
        self.assertIn("no device was found", self.daemon.logged())


if __name__ == "__main__":
    unittest.main()
