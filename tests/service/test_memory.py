"""Memory and the limits of a machine: who is charged for what until when, one account for weights and KV memory, and the
limits of the process, named as what they are. Groups of the kernel are made where this user may make one."""
import fcntl
import resource

from harness import *

FAKE = os.environ["NIBBLE_TEST_FAKE_WORKER"]
MAKE_GGUF = os.environ["NIBBLE_TEST_MAKE_GGUF"]
MIB = 1 << 20
MODEL = pathlib.Path(os.environ.get("NIBBLE_MODEL") or pathlib.Path(
    os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache",
    "nibble/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
REGISTER, UNREGISTER = 9, 10


class Closed(ServiceTest):
    """A client that keeps what its channels were made of."""
    worker = FAKE
    config = "[limits]\nchannel-bytes-per-user = 64M\nfds-per-user = 200\n"

    def setUp(self):
        super().setUp()
        self.admin = self.daemon.admin()
        self.addCleanup(self.admin.close)
        self.admin.load("m", self.daemon.file("m", b"ok ok"))
        self.before = self.daemon.resting_fds()

    def charged(self):
        return self.admin.status().channel_bytes

    def nothing_charged(self):
        until(lambda: self.charged() == 0, "nothing is charged")

    def filled(self, client, megabytes=8):
        channel = client.open_channel("m", megabytes * MIB)
        with channel.map() as m:
            m[ARENA_OFFSET:] = b"x" * (megabytes * MIB)
        return channel

    def pages(self, channel):
        return os.fstat(channel.memfd).st_blocks * 512

    def test_closed_and_kept(self):
        """Twelve of them, of which seven fit: what is closed counts, and holds no pages."""
        kept = []
        with self.daemon.client() as c:
            with self.assertRaises(Refused) as caught:
                for _ in range(12):
                    kept.append(self.filled(c))
                    c.close_channel(kept[-1].id)
            self.assertEqual(caught.exception.status, E_QUOTA)
            self.assertEqual(len(kept), 7)
            self.assertEqual(self.charged(), sum(k.size for k in kept))
            until(lambda: not sum(map(self.pages, kept)), "the end of the pages")
        self.assertEqual(self.charged(), sum(k.size for k in kept))  # the connection is not what counts
        for k in kept:
            k.close()
        self.nothing_charged()
        self.assertEqual(self.daemon.settled_fds(self.before), self.before)

    def test_written_again(self):
        """Whoever takes pages after the close has them on his account."""
        with self.daemon.client() as c:
            channel = self.filled(c, 32)
            m = channel.map()
            c.close_channel(channel.id)
            until(lambda: not self.pages(channel), "the end of the pages")
            m[ARENA_OFFSET:] = b"y" * (32 * MIB)
            self.assertEqual(self.charged(), channel.size)
            channel.close()
            time.sleep(0.1)
            self.assertEqual(self.charged(), channel.size)  # the map has it still
            m.close()
            self.nothing_charged()

    def test_passed_on(self):
        """To a process that was forked, into a socket, by a name of its own, for reading alone."""
        with self.daemon.client() as c:
            for keep in ("fork", "socket", "read"):
                with self.subTest(keep):
                    channel = self.filled(c)
                    if keep == "fork":
                        r, w = os.pipe()
                        if not os.fork():
                            os.close(w)
                            os.read(r, 1)
                            os._exit(0)
                        os.close(r)
                        end = lambda: (os.close(w), os.wait())
                    elif keep == "socket":
                        a, b = socket.socketpair()
                        socket.send_fds(a, [b"x"], [channel.memfd])
                        end = lambda: (a.close(), b.close())
                    else:
                        fd = os.open(f"/proc/self/fd/{channel.memfd}", os.O_RDONLY)
                        end = lambda: os.close(fd)
                    c.close_channel(channel.id)
                    channel.close()
                    time.sleep(0.2)
                    self.assertEqual(self.charged(), channel.size)
                    end()
                    self.nothing_charged()

    def test_honest_ones_are_not_in_the_way(self):
        with self.daemon.client() as c:
            for _ in range(30):
                channel = c.open_channel("m", 30 * MIB)
                c.close_channel(channel.id)
                channel.close()
                self.nothing_charged()

    def test_what_was_there_is_still_read(self):
        """A channel that the daemon ends keeps its content: the last completions are in it."""
        with self.daemon.client() as c:
            channel = self.filled(c)
            self.admin.unload("m", force=True)
            c.event(LOST)
            time.sleep(0.2)
            with channel.map() as m:
                self.assertEqual(m[ARENA_OFFSET:ARENA_OFFSET + 4], b"xxxx")
            self.assertEqual(self.charged(), channel.size)
            channel.close()
            self.nothing_charged()

    def test_a_new_worker_needs_no_room_in_the_limit(self):
        with self.daemon.client() as c:
            channels = [self.filled(c, 24), self.filled(c, 24)]
            os.kill(self.daemon.server(), signal.SIGKILL)
            again = [Channel(c, c.event(REBIND)), Channel(c, c.event(REBIND))]
            self.assertEqual(self.charged(), 4 * channels[0].size)
            self.refused(E_QUOTA, c.open_channel, "m")
            for channel in channels:
                channel.close()
            until(lambda: self.charged() == 2 * channels[0].size, "the end of the old ones")
            for channel in again:
                channel.close()


class Registered(StreamTest):
    """The real worker, which must say that it has dropped what a client had registered."""
    config = "[limits]\nchannel-bytes-per-user = 16M\n"

    def setUp(self):
        super().setUp()
        self.admin = self.daemon.admin()
        self.addCleanup(self.admin.close)
        self.admin.load("m", self.small_model())

    def register(self, client, channel, size):
        fd = os.memfd_create("registered", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        try:
            reply = client.call(REGISTER, struct.pack("<IIQQ", channel.id, 0, 0, size), [fd])
        finally:
            os.close(fd)
        return struct.unpack_from("<II", reply.data, 16)[1]

    def charged(self):
        return self.admin.status().channel_bytes

    def test_until_the_worker_has_dropped_them(self):
        with self.daemon.client() as c:
            channel = c.open_channel("m", 1 << 16)
            own = self.charged()
            region = self.register(c, channel, 8 * MIB)
            self.assertEqual(self.charged(), own + 8 * MIB)
            worker = self.daemon.server()
            os.kill(worker, signal.SIGSTOP)
            c.call(UNREGISTER, struct.pack("<II", channel.id, region))
            self.assertEqual(self.charged(), own + 8 * MIB)
            self.refused(E_QUOTA, self.register, c, channel, 8 * MIB)
            os.kill(worker, signal.SIGCONT)
            until(lambda: self.charged() == own, "the worker's word")
            self.register(c, channel, 8 * MIB)
            os.kill(worker, signal.SIGSTOP)
            c.close_channel(channel.id)
            self.assertGreaterEqual(self.charged(), own + 8 * MIB)
            os.kill(worker, signal.SIGKILL)  # its end says it too
            channel.close()
            until(lambda: self.charged() == 0, "the worker's end")


class Account(ServiceTest):
    """Weights and KV memory of the real worker are one account."""
    worker = os.environ["NIBBLE_TEST_WORKER"]
    config = "[memory]\nbytes = 6M\n"

    def setUp(self):
        super().setUp()
        self.path = self.daemon.file("r.gguf", b"")
        subprocess.run([MAKE_GGUF, "random", self.path, "Q4_0", "3"], check=True)

    def taken(self, client):
        return sum(m.kv_bytes for m in client.list(MODELS)) + max(m.packed_bytes for m in client.list(MODELS))

    def test_kv_is_bounded_whether_weights_are_new_or_shared(self):
        with self.daemon.admin() as a:
            text = self.refused(E_TOO_LARGE, a.load, "m", self.path, kv=1 << 40)
            self.assertRegex(text, r'"m" asks for 1\.0 TiB of KV memory and 6\.0 MiB is left .*bytes in \[memory\]')
            a.load("m", self.path)
            self.assertLess(self.taken(a), 6 * MIB)
            text = self.refused(E_TOO_LARGE, a.load, "n", self.path, kv=1 << 40)
            self.assertRegex(text, r'"n" asks for 1\.0 TiB of KV memory and 1\.3 MiB is left .*bytes in \[memory\]')
            self.refused(E_TOO_LARGE, a.load, "n", self.path, kv=4 * MIB)
            a.load("n", self.path, kv=1 << 20)
            # What is left bounds the default too, and is no whole context any more.
            text = self.refused(E_TOO_LARGE, a.load, "o", self.path)
            self.assertRegex(text, r"one context of 512 tokens takes .* allowed \(bytes in \[memory\]")
            self.assertLess(self.taken(a), 6 * MIB)

    def test_the_machine(self):
        self.daemon.config.write_text("")
        self.daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "settings read again" in self.daemon.logged(), "the new settings")
        with self.daemon.admin() as a:
            for name in ("m", "n"):
                text = self.refused(E_TOO_LARGE, a.load, name, self.path, kv=1 << 44)
                self.assertRegex(text, r"asks for 16\.0 TiB of KV memory and \S+ \wiB is left \(the machine|control group")
                if name == "m":
                    a.load("m", self.path)

    def test_no_model(self):
        """What is no regular file is told at once, from the command line and on the socket."""
        fifo, sock = self.daemon.dir.name + "/fifo", socket.socket(socket.AF_UNIX)
        os.mkfifo(fifo)
        sock.bind(self.daemon.dir.name + "/sock")
        for path, what in ((fifo, "a FIFO"), (sock.getsockname(), "a socket"), ("/dev/zero", "a character device")):
            for verb in (["load"], ["eval", "--text", "/dev/null"]):
                done = subprocess.run([os.environ["NIBBLE_TEST_CLI"], *verb, path, "--socket",
                                       self.daemon.runtime / "nibble.sock"], capture_output=True, text=True, timeout=PATIENCE)
                self.assertEqual((done.returncode, done.stdout), (1, ""))
                self.assertIn(f"it is {what}, and no regular file or folder", done.stderr)
        sock.close()
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        with self.daemon.admin() as a:
            self.refused(E_FORMAT, a.call, FILE, a.file_body(), [fd])
        os.close(fd)


class Limited(unittest.TestCase):
    """A daemon under a limit of the process or a group of the kernel."""

    def start(self, prepare, config=""):
        """The daemon, started by a process that has called `prepare`."""
        daemon = Daemon(config, start=False, before_exec=prepare)
        self.addCleanup(daemon.finish)
        daemon.start()
        path = daemon.file("r.gguf", b"")
        subprocess.run([MAKE_GGUF, "random", path, "Q4_0", "3"], check=True)
        return daemon, path

    def limited(self, what, value):
        return self.start(lambda: resource.setrlimit(what, (value, value)))

    def refused(self, call, *args, **options):
        with self.assertRaises(Refused) as caught:
            call(*args, **options)
        return caught.exception.text

    def test_file_size(self):
        d, path = self.limited(resource.RLIMIT_FSIZE, 100 << 10)
        with d.admin() as a:
            self.assertIn("needs 697.4 KiB of memory and 100.0 KiB is there (a file of the daemon may have 100.0 KiB: "
                          "ulimit -f, LimitFSIZE=)", self.refused(a.load, "m", path))

    def test_file_size_of_a_channel(self):
        d, path = self.limited(resource.RLIMIT_FSIZE, 1000 << 10)
        with d.admin() as a, d.client() as c:
            a.load("m", path)
            self.assertIn("this process may make files of 1000 KiB (raise it: ulimit -f, LimitFSIZE=)",
                          self.refused(c.open_channel, "m"))
            c.open_channel("m", 1 << 16).close()

    def test_few_descriptors(self):
        """Of the worker: its limit is lower than the one it sets itself, and no reason to end."""
        d, path = self.limited(resource.RLIMIT_NOFILE, 32)
        with d.admin() as a, d.client() as c:
            a.load("m", path)
            c.open_channel("m").close()

    @unittest.skipIf(SANITIZED, "a sanitizer maps terabytes")
    def test_addresses(self):
        d, path = self.limited(resource.RLIMIT_AS, 700 * MIB)
        with d.admin() as a:
            text = self.refused(a.load, "m", path, kv=1 << 30)
            self.assertIn("this process may map 716800 KiB of addresses (raise it: ulimit -v, LimitAS=)", text)
            self.assertIn("1024 MB of KV memory", text)
            a.load("m", path)

    def test_descriptors_of_a_command(self):
        d, _ = self.start(lambda: None)
        for n in (4, 5):  # beside the three standard ones and the socket
            done = subprocess.run(["bash", "-c", f'ulimit -n {n}; exec "$0" models --socket "$1"', os.environ["NIBBLE_TEST_CLI"],
                                   d.runtime / "nibble.sock"], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn(f"Too many open files: this process may have {n} descriptors (raise it: ulimit -n", done.stderr)

    def test_doctor(self):
        """Names what is low for a command, and what the CPU's threads are by."""
        d, _ = self.start(lambda: None)
        for option, limit, words in (("n", "12", "open files: 12, few (ulimit -n)"),
                                     ("f", "1000", "file size: 1000 KiB, few (ulimit -f)"),
                                     ("f", "unlimited", "limits: open files ")):
            done = subprocess.run(["bash", "-c", f'ulimit -S -{option} {limit}; "$0" doctor --json --socket "$1"',
                                   os.environ["NIBBLE_TEST_CLI"], d.runtime / "nibble.sock"],
                                  capture_output=True, text=True)
            checks = json.loads(done.stdout)["checks"]
            self.assertTrue([c for c in checks if c["check"] == "shell" and c["text"].startswith(words)], checks)
            self.assertTrue([c for c in checks if c["text"].startswith("cpu: native CPU, ")], checks)

    # ---- Groups

    def group(self, controller, **values):
        """A group of this name with these settings; the test is skipped only where none can be made."""
        group = f"nibble-test-{os.getpid()}-{controller}"
        own = {line.split(":")[1]: line.strip().split(":", 2)[2] for line in open("/proc/self/cgroup")}
        for line in open("/proc/self/mountinfo"):
            head, tail = line.split(" - ")
            root, point = head.split()[3:5]
            kind, _, options = tail.split()[:3]
            if kind == "cgroup" and controller in options.split(","):
                at = next((p for names, p in own.items() if controller in names.split(",")), "/")
                version = 1
            elif kind == "cgroup2":
                at, version = own.get("", "/"), 2
            else:
                continue
            base = pathlib.Path(point + (at[len(root):] if root != "/" else at))
            path = base / group
            try:
                path.mkdir()
            except OSError:
                continue
            self.addCleanup(self.remove, path)
            try:
                for name, value in values[f"v{version}"].items():
                    (path / name).write_text(value)
                return path
            except OSError:
                continue
        self.skipTest(f"no group of the controller {controller} can be made here")

    def remove(self, path):
        def gone():
            try:
                path.rmdir()
                return True
            except OSError:
                return False
        until(gone, "the end of the group")

    def test_half_a_processor(self):
        path = self.group("cpu", v1={"cpu.cfs_quota_us": "50000"}, v2={"cpu.max": "50000 100000"})
        d, model = self.start(lambda: (path / "cgroup.procs").write_text(str(os.getpid())))
        with d.admin() as a:
            cpu = a.list(DEVICES)[0]
            self.assertEqual(cpu.threads, 1)
            if os.cpu_count() > 1:
                self.assertRegex(cpu.description, b"1 thread: control group \\S+ grants 0.50 CPUs")
            a.load("m", model)
            self.assertEqual(a.list(DEVICES)[0].threads, 1)

    def test_one_of_the_processors(self):
        one = min(os.sched_getaffinity(0))
        d, model = self.start(lambda: os.sched_setaffinity(0, {one}))
        with d.admin() as a:
            self.assertEqual(a.list(DEVICES)[0].threads, 1)

    @unittest.skipIf(SANITIZED, "a sanitizer's own memory is no figure of ours")
    def test_little_memory(self):
        """A model that the group has no room for is refused with its figures; nothing is killed."""
        path = self.group("memory", v1={"memory.limit_in_bytes": str(400 * MIB)},
                          v2={"memory.max": str(400 * MIB)})
        d, model = self.start(lambda: (path / "cgroup.procs").write_text(str(os.getpid())))
        with d.admin() as a:
            self.assertEqual(a.list(DEVICES)[0].memory_bytes, 400 * MIB)
            text = self.refused(a.load, "m", model, kv=300 * MIB)
            self.assertRegex(text, r"asks for 300\.0 MiB of KV memory and \S+ \wiB is left \(control group \S+ allows 400\.0 MiB,"
                                   r" \S+ \wiB used, 256\.0 MiB kept free\)")
            a.load("m", model)

    @unittest.skipIf(SANITIZED, "a sanitizer's own memory is no figure of ours")
    def test_less_memory_than_the_model_has(self):
        """Sixty megabytes, all of them to be used: the figures, and no loader that the kernel kills."""
        path = self.group("memory", v1={"memory.limit_in_bytes": str(60 * MIB)}, v2={"memory.max": str(60 * MIB)})
        d, _ = self.start(lambda: (path / "cgroup.procs").write_text(str(os.getpid())), "[memory]\nreserve = 0\n")
        with d.admin() as a:
            text = self.refused(a.load, "m", MODEL)
            self.assertRegex(text, r"needs \S+ MiB of memory and \S+ MiB is there \(control group \S+ allows 60\.0 MiB")
        self.assertNotIn("killed", d.logged())


if __name__ == "__main__":
    unittest.main()
