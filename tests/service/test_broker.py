"""The broker with a fake worker: requests, listings, loading, quotas, drain."""
import os
import signal
import struct
import subprocess

from harness import *

FAKE = os.environ["NIBBLE_TEST_FAKE_WORKER"]


class Broker(ServiceTest):
    worker = FAKE

    def load(self, admin, name="m", words=b"ok ok", **options):
        return admin.load(name, self.daemon.file(name + ".gguf", words), **options)

    def test_hello(self):
        with self.daemon.client(hello=False) as c:
            reply = c.hello(0, 9)
            magic, low, high = struct.unpack_from("<IHH", reply.data, 16)
            self.assertEqual((magic, low, high), (MAGIC, 1, 1))
        for arguments, status in (((2, 3), E_VERSION), ((1, 1, 7), E_PROTOCOL)):
            with self.daemon.client(hello=False) as c:
                self.refused(status, c.hello, *arguments)
                self.assertTrue(c.ended())

    def test_lists_and_status(self):
        with self.daemon.admin() as a:
            self.assertEqual([d.name for d in a.list(DEVICES)], [b"cpu"])
            self.assertEqual(a.list(MODELS), [])
            for i in range(30):  # more than a packet holds
                self.load(a, f"m{i}")
            self.assertEqual([m.name for m in a.list(MODELS)], [b"m%d" % i for i in range(30)])
            m = a.model("m7")
            self.assertEqual((m.state, m.type, m.device, m.precision, m.kv_type, m.packed_bytes, m.parameters),
                             (b"ready", b"F32", b"cpu", b"balanced", b"f16", 4096, 42))
            s = a.status()
            self.assertEqual((s.models, s.clients, s.weights_bytes, s.kv_bytes),
                             (30, 1, 30 * 4096, 30000))
            roles = [h.role for h in a.list(HOLDERS)]
            self.assertEqual(roles, [b"broker", b"worker", b"client"])
            self.refused(EINVAL, a.call, LIST, struct.pack("<II", 5, 0))

    def test_a_model_without_a_chat_template_says_so(self):
        with self.daemon.admin() as a:
            self.load(a, "chat")
            self.load(a, "base", b"ok base")
            self.assertEqual([(m.has_template, m.template_reason) for m in a.list(MODELS)],
                             [(1, b""), (0, b"its file??[31mhas none")])

    def test_a_file_is_packed_once(self):
        """A file that is loaded already is not read again, as long as it is the same; weights count once."""
        with self.daemon.admin() as a:
            self.load(a, "m")
            path = pathlib.Path(self.daemon.dir.name) / "m.gguf"
            a.load("n", path, precision="exact")
            a.unload("m")
            a.load("o", path)
            self.assertEqual([m.packed_bytes for m in a.list(MODELS)], [4096, 4096])
            self.assertEqual(a.status().weights_bytes, 4096)
            # Written to in place, with the time of before: another file.
            times = os.stat(path)
            path.write_bytes(b"fail x")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            self.refused(E_FORMAT, a.load, "p", path)
            a.unload("n")
            a.unload("o")
            path.write_bytes(b"ok ok")
            a.load("q", path)
            self.assertEqual(a.status().weights_bytes, 4096)

    def test_zeros_are_for_those_who_ask(self):
        """An image with the zeros of an incomplete file is no other load's that did not ask for them."""
        with self.daemon.admin() as a:
            path = self.daemon.file("m.gguf", b"zeros ok")
            self.assertEqual(self.refused(E_FORMAT, a.load, "m", path), "tensor 7 is zero")
            a.load("m", path, force=1)
            self.refused(E_FORMAT, a.load, "n", path)
            a.load("o", path, force=1)
            self.assertEqual(a.status().weights_bytes, 4096)  # shared
            self.load(a, "whole", force=1)
            a.load("again", pathlib.Path(self.daemon.dir.name) / "whole.gguf")
            self.assertEqual(a.status().weights_bytes, 2 * 4096)  # it has none, whatever was asked for

    def test_roles(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.refused(E_DENIED, self.load, c)
            self.refused(E_DENIED, c.unload, "m")
            self.refused(E_DENIED, a.open_channel, "m")
            c.status()  # a refusal is no end

    def test_channel(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.refused(E_NO_MODEL, c.open_channel, "m")
            self.load(a)
            channel = c.open_channel("m", 100000)
            self.assertEqual(channel.arena, 102400)
            self.assertEqual(os.fstat(channel.memfd).st_size, channel.size)
            self.assertEqual(fcntl.fcntl(channel.memfd, fcntl.F_GET_SEALS) & 15, SEALS)
            channel.sock.send(b"abc")
            self.assertEqual(channel.sock.recv(9), b"abc")
            until(lambda: max(h.tokens for h in c.list(HOLDERS)), "tokens in the listing")
            row = next(h for h in c.list(HOLDERS) if h.model == b"m" and h.role == b"client")
            self.assertEqual((row.tokens, row.sessions, row.private_bytes), (3, 1, channel.size))
            self.assertEqual(c.status().channel_bytes, channel.size)
            c.close_channel(channel.id)
            self.assertEqual(channel.sock.recv(9), b"")
            self.refused(ENOENT, c.close_channel, channel.id)
            for arena in (1, (256 << 20) + 1, 1 << 63):
                self.refused(EINVAL, c.open_channel, "m", arena)
            channel.close()
            until(lambda: c.status().channel_bytes == 0, "the end of the channel's memory")

    def test_handles_are_the_connections_own(self):
        with self.daemon.client() as c, self.daemon.client() as other, self.daemon.admin() as a:
            self.load(a)
            channel = c.open_channel("m")
            self.refused(ENOENT, other.close_channel, channel.id)
            channel.sock.send(b"a")
            self.assertEqual(channel.sock.recv(9), b"a")
            channel.close()

    def test_bad_loads(self):
        d = self.daemon
        with d.admin() as a:
            for words, status, say in ((b"fail", E_FORMAT, "tensor 7 is ?[31mbroken"),
                                       (b"crash", -5, "killed by signal 11 (SEGV)"),
                                       (b"garbage", -5, "killed by signal 9"),
                                       (b"greedy", E_TOO_LARGE, "the machine allows"),
                                       (b"lie", -5, "exited with status 1"),
                                       (b"ok refuse", E_UNSUPPORTED, "no such thing"),
                                       (b"ok die", E_LOST, "exited with status 7")):
                text = self.refused(status, self.load, a, "m", words)
                self.assertIn(say, text)
                self.assertEqual(a.list(MODELS), [])
            for name in ("", "a/b", "x" * 64, "-x", "a b", "a+b", "a\x7f", "a\u0085b", "a\u00a0b", "a\u202eb", "a\u200b", "語" * 21 + "a"):
                path = d.file("f", b"ok ok")
                self.refused(EINVAL, a.load, name, path)
            for raw in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", "ä".encode()[:1]):  # no UTF-8
                body = a.load_body("").replace(bytes(len(raw)), raw, 1)
                self.refused(EINVAL, a.call, LOAD, body)
            for name in ("語" * 21, "हिन्दी", "x-"):
                self.load(a, name)
                self.assertEqual([m.name for m in a.list(MODELS)], [name.encode()])
                self.assertIn(f"model {name} is ready", d.logged())
                a.unload(name)
            self.refused(EINVAL, self.load, a, precision="best")
            self.refused(EINVAL, self.load, a, kv_type="q4_0")
            self.refused(EINVAL, self.load, a, kv_type="q8_0" * 4)
            self.refused(E_UNSUPPORTED, self.load, a, device="gpu")
            self.refused(E_TOO_LARGE, self.load, a, kv=1 << 60)
            self.load(a)
            self.refused(E_EXISTS, self.load, a)
            self.assertEqual(len(a.list(MODELS)), 1)

    def test_bad_files(self):
        with self.daemon.admin() as a:
            path = self.daemon.file("f", b"ok ok")
            r, w = os.pipe()
            fds = [(os.open(path, os.O_RDWR), EBADF), (os.open(path, os.O_WRONLY), EBADF),
                   (os.open(path, os.O_PATH), EBADF), (os.open("/", os.O_RDONLY), E_FORMAT),
                   (os.open("/dev/zero", os.O_RDONLY), E_FORMAT),
                   (os.open(self.daemon.file("empty", b""), os.O_RDONLY), E_FORMAT),
                   (r, E_FORMAT), (w, E_FORMAT)]
            for fd, status in fds:
                self.refused(status, a.call, FILE, a.file_body(), [fd])
                os.close(fd)

    def test_progress_and_cancel(self):
        with self.daemon.admin() as a:
            self.load(a)
            progress = [p for p in a.events if p.type == PROGRESS]
            self.assertTrue(progress)
            self.assertEqual({p.serial for p in progress}, {a.serial})
            serial = a.post_load("slow", self.daemon.file("slow", b"sleep"))
            queued = a.post_load("queued", self.daemon.file("queued", b"ok ok"))
            a.event(PROGRESS)
            self.assertEqual(a.list(MODELS)[1].state, b"loading")
            a.send(HEADER.pack(CANCEL, 16, serial, 0))
            self.refused(ECANCELED, a.reply, serial)
            a.reply(queued)
            self.assertEqual([m.name for m in a.list(MODELS)], [b"m", b"queued"])

    def test_a_load_ends_with_its_admin(self):
        with self.daemon.admin() as a:
            a.post_load("slow", self.daemon.file("slow", b"sleep"))
            a.event(PROGRESS)
        with self.daemon.admin() as a:
            until(lambda: not a.list(MODELS), "the model's end")
            until(lambda: not self.daemon.children(), "the loader's end")

    def test_unload(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.refused(E_NO_MODEL, a.unload, "m")
            self.load(a)
            channel = c.open_channel("m")
            self.assertIn("by force", self.refused(E_BUSY, a.unload, "m"))
            a.unload("m", force=True)
            lost = c.event(LOST)
            self.assertEqual((lost.status, struct.unpack_from("<I", lost.data, 16)[0]),
                             (E_NO_MODEL, channel.id))
            self.refused(E_NO_MODEL, c.open_channel, "m")
            channel.close()
            until(lambda: c.status().channel_bytes == 0, "the end of the channel's memory")
            until(lambda: not self.daemon.children(), "the end of a worker without models")
            self.load(a)
            c.open_channel("m").close()

    def test_a_client_that_hangs_up_its_channel(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a)
            c.open_channel("m").close()
            self.assertEqual(c.event(LOST).status, E_CLOSED)
            until(lambda: c.status().channel_bytes == 0, "the end of the channel's memory")

    def test_everything_goes_with_its_client(self):
        with self.daemon.admin() as a:
            self.load(a)
            with self.daemon.client() as c:
                c.open_channel("m").close()
            until(lambda: a.status().clients == 1, "the client's end")
            before = self.daemon.resting_fds()
            for _ in range(20):
                with self.daemon.client() as c:
                    for channel in [c.open_channel("m") for _ in range(4)]:
                        channel.close()
            self.assertEqual(self.daemon.settled_fds(before), before)
            until(lambda: a.status().channel_bytes == 0, "the end of the channels' memory")
            self.assertEqual(a.status().clients, 1)

    def test_reload(self):
        with self.daemon.client() as c, self.daemon.admin() as a:
            self.load(a)
            self.daemon.config.write_text("[limits]\nchannels-per-user = 0\n")
            self.daemon.process.send_signal(signal.SIGHUP)
            until(lambda: "read again" in self.daemon.logged(), "the new settings")
            self.refused(E_QUOTA, c.open_channel, "m")
            self.daemon.config.write_text("[limits]\nchanels-per-user = 9\n")
            self.daemon.process.send_signal(signal.SIGHUP)
            until(lambda: ":2: [limits] chanels-per-user: no such setting" in self.daemon.logged(),
                  "the complaint")
            self.refused(E_QUOTA, c.open_channel, "m")

    def test_drain(self):
        d = self.daemon
        with d.client() as c, d.client() as late, d.admin() as a:
            self.load(a)
            channel = c.open_channel("m")
            d.process.send_signal(signal.SIGTERM)
            until(lambda: "stopping" in d.logged(), "the drain")
            self.refused(E_LOST, late.open_channel, "m")
            self.refused(E_LOST, self.load, a, "n")
            self.assertFalse((d.runtime / "nibble.sock").exists())
            channel.sock.send(b"x")  # what runs goes on
            self.assertEqual(channel.sock.recv(9), b"x")
            self.assertIsNone(d.process.poll())
            c.close_channel(channel.id)
            channel.close()
            self.assertEqual(d.process.wait(PATIENCE), 0)
            self.assertTrue(c.ended())

    def test_second_daemon(self):
        second = subprocess.run([os.environ["NIBBLE_TEST_NIBBLED"], "--runtime-dir",
                                 self.daemon.runtime, "--state-dir", self.daemon.state],
                                capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(second.returncode, 1)
        self.assertIn("a daemon answers on", second.stderr)

    def test_stale_sockets(self):
        self.daemon.process.kill()
        self.daemon.process.wait()
        self.assertTrue((self.daemon.runtime / "nibble.sock").exists())
        self.daemon.start()


class Quotas(ServiceTest):
    worker = FAKE
    config = """[limits]
connections-per-user = 3
channels-per-user = 3
channels-per-connection = 2
channel-bytes-per-user = 3M
[memory]
bytes = 9000
"""

    def test_quotas(self):
        with self.daemon.client() as c, self.daemon.client() as d, self.daemon.admin() as a:
            path = self.daemon.file("m", b"ok ok")
            with self.daemon.client(hello=False) as e:
                self.assertIn("3 of 3 connections", self.refused(E_QUOTA, e.hello))
                self.assertTrue(e.ended())
            a.load("m", path)
            self.assertIn("channel-bytes-per-user",
                          self.refused(E_QUOTA, c.open_channel, "m", 3 << 20))
            channels = [c.open_channel("m", 1 << 16), c.open_channel("m", 1 << 16)]
            self.assertIn("channels-per-connection", self.refused(E_QUOTA, c.open_channel, "m"))
            channels.append(d.open_channel("m", 1 << 16))
            self.assertIn("channels-per-user", self.refused(E_QUOTA, d.open_channel, "m", 1 << 16))
            d.close_channel(channels[-1].id)
            channels.append(d.open_channel("m", 1 << 16))
            for channel in channels:
                channel.close()

    def test_memory(self):
        with self.daemon.admin() as a:
            a.load("m", self.daemon.file("m", b"ok ok"))  # 4096 bytes and 1000 of KV: 3904 are left
            text = self.refused(E_TOO_LARGE, a.load, "n", self.daemon.file("n", b"greedy"))
            self.assertIn('"n" needs 3.8 KiB', text)
            self.assertIn("bytes in [memory]", text)


class Arguments(unittest.TestCase):
    def run_daemon(self, *arguments):
        return subprocess.run([os.environ["NIBBLE_TEST_NIBBLED"], *arguments], capture_output=True,
                              text=True, timeout=PATIENCE)

    def test_arguments(self):
        self.assertEqual(self.run_daemon("--help").returncode, 0)
        self.assertEqual(self.run_daemon("--nonsense").returncode, 2)
        self.assertEqual(self.run_daemon("more").returncode, 2)
        missing = self.run_daemon("--config", "/nonexistent", "--runtime-dir", "/nonexistent/a",
                                  "--state-dir", "/nonexistent/b")
        self.assertEqual(missing.returncode, 1)
        self.assertIn("/nonexistent: cannot be read", missing.stderr)

    def test_links_nothing_else(self):
        out = subprocess.run(["ldd", os.environ["NIBBLE_TEST_NIBBLED"]], capture_output=True, text=True, check=True)
        names = {line.split()[0].split("/")[-1].split(".so")[0] for line in out.stdout.splitlines()}
        allowed = {"linux-vdso", "libc", "libsystemd", "libinih", "ld-linux-x86-64",
                   "ld-linux-aarch64", "libasan", "libubsan", "libm", "libgcc_s", "libstdc++",
                   # of libsystemd
                   "libcap", "libgcrypt", "libgpg-error", "liblzma", "libzstd", "liblz4"}
        self.assertLessEqual(names, allowed)


if __name__ == "__main__":
    unittest.main()
