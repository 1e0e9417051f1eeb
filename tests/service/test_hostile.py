"""Clients that break every rule: the daemon ends them, keeps nothing of theirs, and serves the others."""
import os
import random
import signal
import socket
import struct

from harness import *

FAKE = os.environ["NIBBLE_TEST_FAKE_WORKER"]
ALL = (HELLO, STATUS, LIST, OPEN, CLOSE, LOAD, UNLOAD, CANCEL, FILE)
SIZES = {HELLO: 64, STATUS: 16, LIST: 24, OPEN: 152, CLOSE: 264, LOAD: 280, UNLOAD: 88, CANCEL: 16, FILE: 272}


class Hostile(ServiceTest):
    worker = FAKE
    config = "[limits]\nconnections = 40\nqueue-bytes = 8K\n[supervision]\nhello = 0.3\n"

    def setUp(self):
        super().setUp()
        self.admin = self.daemon.admin()
        self.addCleanup(self.admin.close)
        self.admin.load("m", self.daemon.file("m", b"ok ok"))
        self.before = self.daemon.resting_fds()

    def tearDown(self):
        # A well-behaved client is served, and nothing is left of the others.
        with self.daemon.client() as c:
            channel = c.open_channel("m")
            channel.sock.send(b"x")
            self.assertEqual(channel.sock.recv(9), b"x")
            channel.close()
        self.assertEqual(self.daemon.settled_fds(self.before), self.before)
        until(lambda: self.admin.status().channel_bytes == 0, "the end of the channels' memory")
        s = self.admin.status()
        self.assertEqual((s.clients, s.worker_restarts), (1, 0))

    def is_ended(self, *packets, fds=(), hello=True):
        with self.daemon.client(hello=hello) as c:
            try:
                for packet in packets:
                    c.send(packet, fds)
            except Gone:
                pass
            self.assertTrue(c.ended())

    def test_malformed(self):
        header = HEADER.pack(STATUS, 16, 1, 0)
        for hello in (True, False):
            self.is_ended(b"x", hello=hello)
            self.is_ended(header[:15], hello=hello)
            self.is_ended(HEADER.pack(STATUS, 17, 1, 0), hello=hello)
            self.is_ended(header + b"more", hello=hello)
            self.is_ended(HEADER.pack(STATUS, 5000, 1, 0).ljust(5000, b"x"), hello=hello)
            self.is_ended(HEADER.pack(0xFFFFFFFF, 16, 1, -1), hello=hello)
            self.is_ended(b"", hello=hello)

    def test_sizes_of_every_request(self):
        for kind in ALL:
            for size in {16, SIZES[kind] - 1, SIZES[kind] + 1, 4096} - {SIZES[kind]}:
                if size >= 16:
                    self.is_ended(HEADER.pack(kind, size, 1, 0).ljust(size, b"\0"))

    def test_events_are_no_requests(self):
        for kind in (PROGRESS, REBIND, LOST, HELLO | REPLY, 0x400, 0x501):
            self.is_ended(HEADER.pack(kind, 16, 1, 0))

    def test_before_hello(self):
        for kind in ALL[1:]:
            self.is_ended(HEADER.pack(kind, SIZES[kind], 1, 0).ljust(SIZES[kind], b"\0"),
                          hello=False)

    def test_fds_that_nobody_asked_for(self):
        r, w = os.pipe()
        for n in (1, 4, 5, 100):
            self.is_ended(HEADER.pack(STATUS, 16, 1, 0), fds=[w] * n)
        os.close(w)
        # Every copy was closed: the pipe has no writer left.
        self.assertEqual(os.read(r, 1), b"")
        os.close(r)

    def test_a_file_without_and_with_too_many_fds(self):
        fd = os.open(self.daemon.file("f", b"ok ok"), os.O_RDONLY)
        for n in (0, 2, 5):
            with self.daemon.admin() as a:
                a.send(HEADER.pack(FILE, SIZES[FILE], 1, 0) + a.file_body(), [fd] * n)
                self.assertTrue(a.ended())
        with self.daemon.admin() as a:
            a.send(HEADER.pack(LOAD, SIZES[LOAD], 1, 0) + a.load_body("n"), [fd])
            self.assertTrue(a.ended())
        os.close(fd)

    def test_names_of_files(self):
        fd = os.open(self.daemon.file("f", b"ok ok"), os.O_RDONLY)
        with self.daemon.admin() as a:
            for name in (b"", b"a\nb", b"\x1b[31m", b"\xff", b"\xe2\x80\xae", b"x" * 256):
                self.refused(EINVAL, a.call, FILE, name.ljust(256, b"\0"), [fd])
            a.call(FILE, a.file_body("a"), [fd])
            self.refused(EINVAL, a.call, FILE, a.file_body("a"), [fd])  # twice
            # A refusal takes those before it along, and so does a LOAD.
            self.refused(EINVAL, a.call, LOAD, a.load_body("n"))
            a.call(FILE, a.file_body("a"), [fd])
            self.refused(EINVAL, a.call, LOAD, a.load_body("a/b"))
            self.refused(EINVAL, a.call, LOAD, a.load_body("n"))
        os.close(fd)

    def test_more_files_than_a_model_has(self):
        fd = os.open(self.daemon.file("f", b"ok ok"), os.O_RDONLY)
        with self.daemon.admin() as a:
            for i in range(256):
                a.call(FILE, a.file_body(f"{i}"), [fd])
            self.refused(E_FORMAT, a.call, FILE, a.file_body("more"), [fd])
            for i in range(256):
                a.call(FILE, a.file_body(f"{i}"), [fd])
            a.call(LOAD, a.load_body("n"))  # the fake loader reads the first one alone
            a.unload("n")
        os.close(fd)

    def test_names_without_an_end(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.refused(E_NO_MODEL, c.call, OPEN, b"m" * 64 + struct.pack("<Q", 0) + bytes(64))
            self.refused(E_NO_MODEL, c.call, OPEN, c.open_body("m")[:-64] + b"\xff" * 64)
            self.refused(E_NO_MODEL, a.call, UNLOAD, b"\xff" * 72)
            noise, fallback = b"\xff" * (SIZES[LOAD] - HEADER.size), 64 + 32
            self.refused(EINVAL, a.call, LOAD, noise)
            self.refused(EINVAL, a.call, LOAD, b"n\0".ljust(64, b"x") + noise[64:])
            body = a.load_body("n")
            self.refused(E_UNSUPPORTED, a.call, LOAD,
                         body[:fallback] + noise[:32] + body[fallback + 32:])
            self.refused(EINVAL, a.call, LOAD, body[:-88] + noise[:16] + body[-72:])  # the KV cache's type
            self.refused(E_NO_MODEL, a.call, LOAD, body[:-72] + noise[:64] + body[-8:])

    def test_garbage(self):
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        for _ in range(300):
            with self.daemon.client(hello=rng.random() < 0.7) as c:
                try:
                    for _ in range(rng.randrange(1, 6)):
                        kind = rng.choice(ALL[1:] + (rng.randrange(1 << 32),))
                        size = SIZES.get(kind, rng.randrange(16, 300))
                        c.send(HEADER.pack(kind, size, rng.randrange(1 << 32), rng.randrange(99))
                               + rng.randbytes(size - 16))
                except Gone:
                    pass
        self.assertIsNone(self.daemon.process.poll(), f"seed {seed}")

    def test_one_that_does_not_read(self):
        with self.daemon.client() as c:
            with self.assertRaises(Gone):
                for _ in range(100000):
                    c.send(HEADER.pack(LIST, 24, 1, 0) + struct.pack("<II", MODELS, 0))
        until(lambda: "does not read its socket" in self.daemon.logged(), "the line in the log")

    def test_one_that_takes_its_fds_never(self):
        """Replies with fds pile up in the socket; the broker's own fds do not."""
        with self.daemon.client() as c:
            for _ in range(200):
                serial = c.post(OPEN, c.open_body("m", 1 << 16))
            self.assertLess(len(self.daemon.fds()), len(self.before) + 60)
            with self.daemon.client() as other:
                other.status()

    def test_one_that_closes_channels_whose_fds_it_never_takes(self):
        """The memory of a closed channel is charged as long as it is under way: the user's limit bounds it."""
        most = 0
        with self.daemon.client() as c:
            with self.assertRaises(Gone):
                for i in range(1, 5000):
                    c.send(HEADER.pack(OPEN, SIZES[OPEN], i, 0) + c.open_body("m", 1 << 16))
                    c.send(HEADER.pack(CLOSE, 264, i, 0) + struct.pack("<I", i).ljust(248, b"\0"))
                    if i % 20 == 0:
                        most = max(most, len(self.daemon.fds()))
        self.assertLess(most, len(self.before) + 512)

    def test_one_that_never_says_hello(self):
        silent = [self.daemon.client(hello=False) for _ in range(25)]
        with self.daemon.client() as c:
            c.status()
        for s in silent:
            self.assertTrue(s.ended())
            s.close()

    def test_more_connections_than_there_may_be(self):
        many = [self.daemon.client(hello=False) for _ in range(60)]
        for s in many:
            self.assertTrue(s.ended())
            s.close()

    def test_killed_in_mid_stream(self):
        """A process that dies with open channels, its requests unanswered."""
        for _ in range(5):
            pid = os.fork()
            if not pid:
                try:
                    c = self.daemon.client()
                    for _ in range(4):
                        c.open_channel("m").sock.send(b"some bytes")
                    c.post(OPEN, c.open_body("m"))
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(pid, 0)
        until(lambda: self.admin.status().channel_bytes == 0, "the channels' end")

    def test_the_channels_memory_keeps_its_size(self):
        with self.daemon.client() as c:
            channel = c.open_channel("m", 1 << 16)
            for size in (0, channel.size - 1, channel.size + 1):
                with self.assertRaises(OSError):
                    os.ftruncate(channel.memfd, size)
            with self.assertRaises(OSError):
                fcntl.fcntl(channel.memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            channel.close()


if __name__ == "__main__":
    unittest.main()
