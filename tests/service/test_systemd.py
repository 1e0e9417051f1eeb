"""What nibbled and systemd say to each other: sockets given, readiness, status, stopping, the watchdog."""
import os
import signal
import socket
import subprocess

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
        self.notify.settimeout(PATIENCE)
        self.said = []

    def activate(self, *names):
        """Starts nibbled as systemd would, with listening sockets of these names as fds 3 and up."""
        runtime = self.root / "run"
        runtime.mkdir()
        listening = []
        for name in names:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.addCleanup(sock.close)
            sock.bind(str(runtime / name))
            sock.listen()
            listening.append(sock)

        def in_the_child():
            high = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 100) for s in listening]
            for i, fd in enumerate(high):
                os.dup2(fd, 3 + i)
            os.environ.update(NIBBLE_WORKER=FAKE, NOTIFY_SOCKET=str(self.root / "notify"), WATCHDOG_USEC="200000",
                              WATCHDOG_PID=str(os.getpid()), LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)))
        self.process = subprocess.Popen(
            [os.environ["NIBBLE_TEST_NIBBLED"], "--runtime-dir", runtime, "--state-dir", self.root / "state"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            pass_fds=range(3, 3 + len(names)), preexec_fn=in_the_child)
        self.addCleanup(self.end)
        return runtime

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def hear(self, wanted):
        while wanted not in self.said:
            self.said += self.notify.recv(4096).decode().splitlines()

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

    def test_a_socket_of_another_name(self):
        runtime = self.activate("other.sock")
        self.hear("READY=1")
        with Client(runtime / "nibble.sock") as c:  # its own, then
            c.status()
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=PATIENCE)
        self.assertIn("neither nibble.sock nor admin.sock", log)
        self.assertFalse((runtime / "nibble.sock").exists())


if __name__ == "__main__":
    unittest.main()
