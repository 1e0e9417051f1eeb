"""One user against the service: descriptors that do not close, descriptors that nobody takes, connections that say
nothing. Others are served all the while, and the attacker again when it is over."""
import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import unittest

from harness import *
import slow

FAKE = os.environ["NIBBLE_TEST_FAKE_WORKER"]
REGISTER = 9
NOBODY = 65534


@contextlib.contextmanager
def as_nobody():
    """What is done inside is another user's."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def open_to_all(daemon):
    os.chmod(daemon.dir.name, 0o711)
    os.chmod(daemon.runtime / "nibble.sock", 0o666)


@unittest.skipIf(os.geteuid(), "two users take root")
class Attack(ServiceTest):
    worker = FAKE

    def setUp(self):
        super().setUp()
        open_to_all(self.daemon)
        self.admin = self.daemon.admin()
        self.addCleanup(self.admin.close)
        self.admin.load("m", self.daemon.file("m", b"ok ok"))

    def attacker(self, **options):
        with as_nobody():
            return self.daemon.client(**options)

    def others_are_served(self):
        with self.daemon.client() as c:
            channel = c.open_channel("m")
            channel.sock.send(b"x")
            self.assertEqual(channel.sock.recv(9), b"x")
            channel.close()
        self.admin.status()


class SlowDescriptors(Attack):
    """Each way by which one comes in, with each kind of descriptor."""

    def give(self, c, thing, *packets, n=1):
        """The last packet brings it, and nobody else has it then."""
        with slow.stopped(self.daemon.pid):
            for packet in packets[:-1]:
                c.send(packet)
            try:
                c.send(packets[-1], [thing.fileno()] * n)
            except OSError:
                pass  # refused at the door
            thing.leave()

    def before_hello(self, thing):
        with self.attacker(hello=False) as c:
            self.give(c, thing, HEADER.pack(STATUS, 16, 1, 0))

    def where_none_belongs(self, thing, n=1):
        with self.attacker() as c:
            self.give(c, thing, HEADER.pack(STATUS, 16, 1, 0), n=n)
            self.assertTrue(c.ended())

    def too_many(self, thing):
        self.where_none_belongs(thing, 100)

    def no_memory(self, thing):
        with self.attacker() as c:
            channel = c.open_channel("m")
            self.give(c, thing, HEADER.pack(REGISTER, 40, 99, 0) + struct.pack("<IIQQ", channel.id, 0, 0, 4096))
            self.assertEqual(self.refused(-1, c.reply, 99)[:12], "only a memfd")
            c.status()
            channel.close()

    def behind_what_ends_the_connection(self, thing):
        with self.attacker() as c:
            self.give(c, thing, b"x", HEADER.pack(FILE, 272, 2, 0).ljust(272, b"\0"))
            self.assertTrue(c.ended())

    def in_an_empty_packet(self, thing):
        with self.attacker() as c:
            self.give(c, thing, b"", b"")
            self.assertTrue(c.ended())

    def before_it_is_accepted(self, thing):
        with slow.stopped(self.daemon.pid), self.attacker(hello=False) as c:
            try:
                c.send(HEADER.pack(STATUS, 16, 1, 0), [thing.fileno()])
            except OSError:
                pass
            thing.leave()

    def each_way(self, kind):
        for way in (self.before_hello, self.before_it_is_accepted, self.where_none_belongs, self.too_many,
                    self.no_memory, self.behind_what_ends_the_connection, self.in_an_empty_packet):
            with self.subTest(way.__name__):
                try:
                    thing = kind()
                except OSError as error:
                    self.skipTest(str(error))
                try:
                    way(thing)
                    self.others_are_served()
                finally:
                    thing.release()
                self.others_are_served()

    def test_a_lingering_socket(self):
        self.each_way(slow.Lingering)

    def test_a_fuse_file(self):
        self.each_way(slow.FuseFile)

    def test_a_full_pipe(self):
        self.each_way(slow.Pipe)

    def test_a_terminal(self):
        self.each_way(slow.Terminal)


class SlowDescriptorsOfOlderKernels(SlowDescriptors):
    before_exec = staticmethod(slow.without_passrights)


class TooManySlowDescriptors(Attack):
    """What does not close is its user's: past a limit that user waits, nobody else does."""
    before_exec = staticmethod(slow.without_passrights)
    config = "[limits]\nclosing-per-user = 4\n"

    def test_its_user_waits(self):
        things = []
        self.addCleanup(lambda: [thing.release() for thing in things])
        with slow.stopped(self.daemon.pid):
            for _ in range(4):
                thing = slow.Lingering()
                things.append(thing)
                with self.attacker(hello=False) as c:
                    c.send(HEADER.pack(STATUS, 16, 1, 0), [thing.fileno()])
                    thing.leave()
        until(lambda: "take long to close" in self.daemon.logged(), "the line in the log")
        self.assertIn("take long to close", self.refused(E_QUOTA, self.attacker))
        self.others_are_served()
        for thing in things:
            thing.release()
        things.clear()

        def again():
            try:
                self.attacker().close()
                return True
            except Refused:
                return False
        until(again, "a connection for the attacker, once they are closed")


class DescriptorsUnderWay(Attack):
    """Channels opened and closed, what comes of them never taken. The kernel counts what is under way against the
    daemon's limit; a worker that cannot be reached for that is not dead."""
    before_exec = staticmethod(slow.with_files(1200))

    def test_they_are_charged(self):
        attackers = [self.attacker() for _ in range(20)]
        self.addCleanup(lambda: [c.close() for c in attackers])
        for c in attackers:
            try:
                for i in range(1, 120):
                    c.send(HEADER.pack(OPEN, 152, 2 * i, 0) + c.open_body("m", 1 << 16))
                    c.send(HEADER.pack(CLOSE, 264, 2 * i + 1, 0) + struct.pack("<I", i).ljust(248, b"\0"))
            except Gone:
                pass  # it does not read
            until(self.one_is_served, "a worker that is not busy")
        self.assertEqual(self.admin.status().worker_restarts, 0)

    def one_is_served(self):
        try:
            self.others_are_served()
            return True
        except Refused as why:
            if why.status != E_BUSY:
                raise

    def channel_or_none(self, c):
        try:
            return c.open_channel("m", 1 << 16)
        except Refused as why:
            if why.status != E_BUSY:  # this worker is a slow one
                raise

    def test_what_is_read_is_given_back(self):
        with self.attacker() as c:
            for _ in range(400):
                channel = until(lambda: self.channel_or_none(c), "a channel")
                c.close_channel(channel.id)
                channel.close()

    def test_one_that_reads_nothing_is_refused(self):
        """Its own replies say so, once it reads."""
        with self.attacker() as c:
            serials = [(c.post(OPEN, c.open_body("m", 1 << 16)),
                        c.post(CLOSE, struct.pack("<I", i).ljust(248, b"\0"))) for i in range(1, 180)]
            refused = 0
            for opened, closed in serials:
                for serial in (opened, closed):
                    try:
                        for fd in c.reply(serial).fds:
                            os.close(fd)
                    except Refused as why:
                        refused += why.status == E_QUOTA and "file descriptors" in why.text
            self.assertGreater(refused, 0)
            c.open_channel("m", 1 << 16).close()  # now that all is read


class Silence(Attack):
    """Connections that say nothing."""
    config = "[limits]\nconnections = 80\nconnections-per-user = 64\n[supervision]\nhello = 60\n"

    def silent(self, n, wanted):
        """n connections; as many as wanted are not sent away at once."""
        many, away = [], set()
        with as_nobody():
            for _ in range(n):
                many.append(Client(self.daemon.runtime / "nibble.sock", hello=False))
        self.addCleanup(lambda: [c.close() for c in many])

        def look():
            away.update(c for c in many if select.select([c.sock], [], [], 0)[0])
            return len(away) >= n - wanted
        until(look, "the daemon's refusals")
        for _ in range(100):  # turns of its loop
            self.admin.status()
        look()
        self.assertEqual(n - len(away), wanted)

    def test_others_have_their_share(self):
        self.silent(100, 59)  # of 80 a quarter is kept, and one is the administrator's
        text = self.refused(E_QUOTA, self.attacker)
        self.assertIn("of 80 connections", text)
        self.others_are_served()
        with self.daemon.admin() as a:
            a.status()

    def test_one_users_share(self):
        self.daemon.config.write_text("[limits]\nconnections-per-user = 5\n[supervision]\nhello = 60\n")
        self.daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "read again" in self.daemon.logged(), "the new settings")
        self.silent(20, 5)
        self.assertIn("5 of 5 connections", self.refused(E_QUOTA, self.attacker))
        self.others_are_served()

    def test_an_administrator_comes_in_whatever_he_runs(self):
        mine = []
        self.addCleanup(lambda: [c.close() for c in mine])
        with self.assertRaises(Refused):
            while len(mine) < 100:
                mine.append(self.daemon.client())
        with self.daemon.admin() as a:
            a.status()


class IdleWorker(Attack):
    config = "[supervision]\nhang = 0.5\nbackoff = 0.01\n"

    def test_one_that_is_stopped_is_replaced(self):
        with self.daemon.client() as c:
            channel = c.open_channel("m")
            channel.sock.send(b"x")
            self.assertEqual(channel.sock.recv(9), b"x")
            os.kill(self.daemon.server(), signal.SIGSTOP)
            new = Channel(c, c.event(REBIND))
            new.sock.send(b"y")
            self.assertEqual(new.sock.recv(9), b"y")
            self.assertIn("did not answer while it was idle", self.daemon.logged())
            channel.close()
            new.close()


class IdleRealWorker(IdleWorker):
    worker = os.environ["NIBBLE_TEST_WORKER"]

    def setUp(self):
        ServiceTest.setUp(self)
        open_to_all(self.daemon)
        self.admin = self.daemon.admin()
        self.addCleanup(self.admin.close)
        path = self.daemon.file("r.gguf", b"")
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", path, "Q4_0", "3"], check=True)
        self.admin.load("m", path)

    def test_one_that_is_stopped_is_replaced(self):
        with self.daemon.client() as c:
            channel = c.open_channel("m")
            first = self.daemon.server()
            os.kill(first, signal.SIGSTOP)
            new = Channel(c, c.event(REBIND))
            self.assertNotEqual(self.daemon.server(), first)
            channel.close()
            new.close()

    def test_one_that_is_well_is_left_alone(self):
        with self.daemon.client() as c:
            channel = c.open_channel("m")
            time.sleep(2)  # several times what a hang takes
            self.assertEqual(c.status().worker_restarts, 0)
            self.assertEqual(self.daemon.logged().count("did not answer"), 0)
            channel.close()


class Wakes(StreamTest):
    """A byte with a descriptor on the wake socket, while another client's stream goes on."""
    config = "[limits]\nclosing-per-user = 4\n[supervision]\nhang = 3\n"

    def setUp(self):
        super().setUp()
        with self.daemon.admin() as a:
            a.load("m", self.small_model())

    def attack(self, things, closes):
        """Each on a channel of its own, which its client closes then, or the worker does."""
        taken = 0
        with self.daemon.client() as c:
            channels = [c.open_channel("m") for _ in things]
            with slow.stopped(self.daemon.server()):
                for thing, channel in zip(things, channels):
                    try:
                        socket.send_fds(channel.sock, [b"x"], [thing.fileno()])
                        taken += 1
                    except PermissionError:
                        pass
                    thing.leave()
                    if closes:
                        c.post(CLOSE, struct.pack("<I", channel.id).ljust(248, b"\0"))
            for channel in channels:
                try:
                    if taken and not closes:
                        self.assertEqual(c.event(LOST).status, E_CLOSED)
                except Gone:
                    pass  # disconnected: it has left too many
                channel.close()
        return taken

    def ids(self):
        stream = self.cli("run", "m", "Once", "--raw", "--ignore-eos", "-n", "200", "--json")
        out, err = stream.communicate(timeout=PATIENCE)
        self.assertEqual(stream.returncode, 0, err)
        return json.loads(out)["text"]

    def test_streams_go_on(self):
        alone, taken = self.ids(), 0
        for closes in (False, True):
            thing = slow.Lingering()
            try:
                taken += self.attack([thing], closes)
                self.assertEqual(self.ids(), alone)
            finally:
                thing.release()
        with self.daemon.client() as c:
            self.assertEqual(c.status().worker_restarts, 0)
        return taken


class WakesOfOlderKernels(Wakes):
    before_exec = staticmethod(slow.without_passrights)

    def test_streams_go_on(self):
        self.assertEqual(super().test_streams_go_on(), 2)

    def test_their_user_waits(self):
        self.user_waits(False)

    def test_their_user_waits_when_it_closes_the_channels(self):
        self.user_waits(True)

    def user_waits(self, closes):
        things = [slow.Lingering() for _ in range(4)]
        try:
            self.attack(things, closes)
            until(lambda: "take long to close" in self.daemon.logged(), "the line in the log")
            self.assertIn("take long to close", self.refused(E_QUOTA, self.daemon.client))
            with self.daemon.admin() as a:  # whom nothing of this touches
                self.assertEqual(a.status().worker_restarts, 0)
        finally:
            for thing in things:
                thing.release()

        def again():
            try:
                self.daemon.client().close()
                return True
            except Refused:
                return False
        until(again, "a connection, once they are closed")


class UnreadLog(unittest.TestCase):
    def test_the_broker_goes_on(self):
        r, w = os.pipe()
        daemon = Daemon("", FAKE, stderr=w)
        try:
            os.set_blocking(w, False)
            try:
                while True:
                    os.write(w, b"x" * 4096)
            except BlockingIOError:
                pass
            os.set_blocking(w, True)
            with daemon.admin() as a:
                for i in range(3):  # a line each, and one more
                    a.load("m", daemon.file("m", b"ok ok"))
                    a.unload("m")
                a.status()
            drained = b""
            while drained.count(b"model m is unloaded by user") < 3:
                drained += os.read(r, 1 << 16)
        finally:
            os.close(r)
            status, _ = daemon.finish()
            os.close(w)
        self.assertEqual(status, 0)


@unittest.skipIf(os.geteuid(), "a limit that root cannot raise takes root to set")
class FewDescriptors(unittest.TestCase):
    def test_the_limit_is_used_and_named(self):
        daemon = Daemon("", os.environ["NIBBLE_TEST_WORKER"], before_exec=slow.with_files(200))
        path = daemon.file("r.gguf", b"")
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", path, "Q4_0", "3"], check=True)
        try:
            with daemon.admin() as a, daemon.client() as c:
                a.load("m", path)
                c.open_channel("m").close()
                many = []
                with self.assertRaises(Refused) as caught:
                    while len(many) < 100:
                        many.append(daemon.client())
                for each in many:
                    each.close()
                self.assertIn("34 of 34 file descriptors", caught.exception.text)
                a.status()
        finally:
            status, log = daemon.finish()
        self.assertEqual(status, 0, log)
        self.assertIn("the hard limit of descriptors is 200", log)
        self.assertIn("68 of 1024 connections", log)

    def test_one_that_is_too_low_is_refused(self):
        daemon = Daemon("", FAKE, start=False, before_exec=slow.with_files(20))
        with self.assertRaisesRegex(AssertionError, "the hard limit of descriptors is 20, and 24 are the least"):
            daemon.start()
        self.assertEqual(daemon.finish()[0], 1)


if __name__ == "__main__":
    unittest.main()
