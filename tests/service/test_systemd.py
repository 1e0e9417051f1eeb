"""What nibbled and systemd say to each other: sockets given, readiness, status, stopping, the watchdog."""
import os
import signal
import socket
import subprocess
import threading

from harness import *

FAKE = os.environ["NIBBLE_TEST_FAKE_WORKER"]


class Systemd(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="nibble-test-")
        self.addCleanup(directory.cleanup)
        self.root = pathlib.Path(directory.name)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.notify.close)
        self.notify.bind(str(self.root / "notify"))
        self.said, self.stored = [], []
        # Somebody always listens, as systemd does: unheard messages (the watchdog's never end) would block the daemon.
        listener = threading.Thread(target=self.listen)
        listener.start()
        self.addCleanup(listener.join)
        self.addCleanup(self.notify.shutdown, socket.SHUT_RD)

    def activate(self, *names, stored=()):
        """Starts nibbled as systemd would, with listening sockets of these names as fds 3 and up, then (name, fd) of
        the store."""
        runtime = self.root / "run"
        runtime.mkdir(exist_ok=True)
        listening = []
        for name in names:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.addCleanup(sock.close)
            (runtime / name).unlink(missing_ok=True)
            sock.bind(str(runtime / name))
            sock.listen()
            listening.append(sock)
        given = [(s.fileno(), "nibble.socket") for s in listening] + [(fd, name) for name, fd in stored]

        def in_the_child():
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd, _ in given]
            for i, fd in enumerate(high):
                os.dup2(fd, 3 + i)
            os.environ.update(NIBBLE_WORKER=FAKE, NOTIFY_SOCKET=str(self.root / "notify"), WATCHDOG_USEC="200000",
                              NIBBLE_FAKE_DEVICES="cpu vulkan0 vulkan1", WATCHDOG_PID=str(os.getpid()), LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)),
                              LISTEN_FDNAMES=":".join(name for _, name in given))
        self.process = subprocess.Popen(
            [os.environ["NIBBLE_TEST_NIBBLED"], "--runtime-dir", runtime, "--state-dir", self.root / "state"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            pass_fds=range(3, 3 + len(given)), preexec_fn=in_the_child)
        self.addCleanup(self.end)
        return runtime

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def listen(self):
        while True:
            data, fds, _, _ = socket.recv_fds(self.notify, 4096, 4)
            if not data:
                return
            lines = data.decode().splitlines()
            if "FDSTORE=1" in lines:
                self.stored.append((lines[1].removeprefix("FDNAME="), fds[0]))
                self.addCleanup(os.close, fds[0])
            self.said += lines

    def hear(self, wanted):
        until(lambda: wanted in self.said, wanted)

    def test_activation(self):
        # The other way round than the daemon lists them: it goes by their names.
        runtime = self.activate("admin.sock", "nibble.sock")
        self.hear("READY=1")
        with Client(runtime / "nibble.sock") as c, Client(runtime / "admin.sock") as a:
            path = self.root / "m"
            path.write_bytes(b"ok ok")
            a.load("m", path)
            with self.assertRaises(Refused) as caught:
                c.unload("m")
            self.assertEqual(caught.exception.status, E_DENIED)
            self.hear("STATUS=1 models, 2 clients")
        self.hear("WATCHDOG=1")
        self.process.send_signal(signal.SIGHUP)
        self.hear("RELOADING=1")
        self.process.send_signal(signal.SIGTERM)
        self.hear("STOPPING=1")
        _, log = self.process.communicate(timeout=PATIENCE)
        self.assertEqual(self.process.returncode, 0, log)
        # They are systemd's: left where they are.
        self.assertTrue((runtime / "nibble.sock").exists())

    def test_models_outlive_the_broker(self):
        runtime = self.activate("admin.sock", "nibble.sock")
        path = self.root / "m"
        path.write_bytes(b"ok ok")
        self.hear("READY=1")
        with Client(runtime / "admin.sock") as a:
            a.load("m", path, precision="exact", context=77, kv=4096)
            self.hear("FDNAME=model+m+cpu+-+77+4096+exact+f32")
            a.load("n", path)
            self.hear("FDNAME=model+n+cpu+-+0+0+balanced+f16")
            a.load("o", path, kv=8192, kv_type="q8_0")
            self.hear("FDNAME=model+o+cpu+-+0+8192+balanced+q8_0")
            a.unload("n")
            self.hear("FDSTOREREMOVE=1")
            japanese = "FDNAME=model+%e697a5e69cac+cpu+-+0+0+balanced+f16"
            a.load("日本", path)
            self.hear(japanese)
            a.load("s", path, device="vulkan0:3+vulkan1", fallback="cpu+vulkan0:2")
            self.hear("FDNAME=model+s+vulkan0/3,vulkan1+cpu,vulkan0/2+0+0+balanced+f16")
            a.load("style", path, base="日本", scale=-0.25)
            self.hear("FDNAME=adapter+style+%e697a5e69cac+-0.25")
            a.load("small", path, base="m", drafter=1)
            self.hear("FDNAME=drafter+small+m+0")
        self.assertEqual([name for name, _ in self.stored],
                         ["model+m+cpu+-+77+4096+exact+f32", "model+n+cpu+-+0+0+balanced+f16", "model+o+cpu+-+0+8192+balanced+q8_0",
                          japanese.removeprefix("FDNAME="),
                          "model+s+vulkan0/3,vulkan1+cpu,vulkan0/2+0+0+balanced+f16", "adapter+style+%e697a5e69cac+-0.25",
                          "drafter+small+m+0"])
        self.process.kill()
        self.process.communicate()

        # What is no sealed image, or has no such name, is left out.
        plain = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, plain)
        self.said = []
        bad = [("model+p+cpu+-+0+0+exact+f32", plain), ("model+q+cpu", plain), ("model+m+gone+-+0+0+exact+f32", plain),
               ("model+%e697zz+cpu+-+0+0+exact+f32", plain), ("model+%+cpu+-+0+0+exact+f32", plain)]
        for rest in ("-+0+0+exact", "-+0+0+best+f16", "-+0+-1+exact+f32", "-+x+0+exact+f32", "-+4294967296+0+exact+f32",
                     "-+0+0+exact+f32+1", "exact+77+4096/f32", "-", "-+"):
            bad.append((f"model+r+cpu+{rest}", os.dup(self.stored[0][1])))
            self.addCleanup(os.close, bad[-1][1])
        for rest in ("m", "m+", "m+x", "m+1+", "gone+1", "style+1"):
            bad.append((f"adapter+r+{rest}", os.dup(self.stored[0][1])))
            self.addCleanup(os.close, bad[-1][1])
        drafter, adapter = self.stored.pop(), self.stored.pop()  # come first, and wait for their bases
        self.activate("admin.sock", "nibble.sock", stored=[drafter, adapter] + self.stored[:1] + self.stored[2:] + bad)
        self.hear("READY=1")
        with Client(runtime / "admin.sock") as a, Client(runtime / "nibble.sock") as c:
            m, o, j, s, small, style = until(lambda: [m for m in a.list(MODELS) if m.state == b"ready"][5:] and a.list(MODELS),
                                             "the models")
            self.assertEqual((m.name, m.precision, m.kv_type, m.context, m.packed_bytes), (b"m", b"exact", b"f32", 77, 4096))
            self.assertEqual((o.name, o.precision, o.kv_type), (b"o", b"balanced", b"q8_0"))
            self.assertEqual(j.name.decode(), "日本")
            self.assertEqual((s.name, s.device), (b"s", b"vulkan0:3+vulkan1"))
            self.assertEqual((style.name, style.base.decode(), style.scale), (b"style", "日本", -0.25))
            self.assertEqual((small.name, small.base, small.is_drafter), (b"small", b"m", 1))
            channel = c.open_channel("m")
            channel.sock.send(b"x")
            self.assertEqual(channel.sock.recv(1), b"x")
            channel.close()
        self.process.send_signal(signal.SIGTERM)
        self.hear("STOPPING=1")
        _, log = self.process.communicate(timeout=PATIENCE)
        self.assertEqual(log.count("not served again"), 20, log)

    def test_a_socket_of_another_name(self):
        runtime = self.activate("other.sock")
        self.hear("READY=1")
        with Client(runtime / "nibble.sock") as c:  # its own, then
            c.status()
        self.process.send_signal(signal.SIGTERM)
        self.hear("STOPPING=1")
        _, log = self.process.communicate(timeout=PATIENCE)
        self.assertIn("neither nibble.sock nor admin.sock", log)
        self.assertFalse((runtime / "nibble.sock").exists())


if __name__ == "__main__":
    unittest.main()
