"""A private nibbled in temporary directories, and a client that speaks the control protocol from its page
(docs/protocol.md) alone: python3's standard library, nothing of libnibble."""
import array
import ctypes as c
import fcntl
import json
import mmap
import os
import pathlib
import random
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
PATIENCE = 60.0  # seconds until a thing that must come counts as missing

HELLO, STATUS, LIST, OPEN, CLOSE, LOAD, UNLOAD, CANCEL = range(1, 9)
FILE, JOB_START, JOB_WAIT, JOB_CONTROL, JOB_RESULT = range(11, 16)
REPLY, PROGRESS, REBIND, LOST, JOB_PROGRESS, JOB_FILES = 0x100, 0x200, 0x201, 0x202, 0x203, 0x204
JOB_CANCEL, JOB_PAUSE, JOB_RESUME = range(3)
JOB_DETACHED = 1
MAGIC = 0x3142424E
MODELS, DEVICES, HOLDERS, FINDINGS, JOBS = range(5)
E_VERSION, E_DENIED, E_NO_MODEL, E_EXISTS, E_FORMAT = -5002, -5003, -5004, -5005, -5006
E_UNSUPPORTED, E_TOO_LARGE, E_QUOTA, E_BUSY = -5007, -5008, -5010, -5011
E_LOST, E_POISON, E_PROTOCOL, E_CLOSED = -5013, -5014, -5015, -5016
ECANCELED, ENOENT, EINVAL, EBADF = -125, -2, -22, -9

HEADER = struct.Struct("<IIIi")
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
ARENA_OFFSET = 4096 + 256 * 64 + 4096 * 64


def row(fields):
    return type("Row", (c.Structure,), {"_fields_": fields})


def texts(**sizes):
    return [(name, c.c_char * size) for name, size in sizes.items()]


U32, U64 = c.c_uint32, c.c_uint64
Model = row(texts(name=64, architecture=32, type=16, device=32, precision=16, state=16)
            + [(n, U64) for n in ("packed_bytes", "kv_bytes", "parameters")]
            + [(n, U32) for n in ("vocab", "context", "layers", "embedding", "sessions",
                                  "worker_restarts")] + texts(kv_type=16)
            + [("has_template", c.c_int32)] + texts(template_reason=188)
            + [("embeds_only", c.c_int32), ("longest_embedded", U32)] + texts(base=64) + [("scale", c.c_double)]
            + [("is_drafter", c.c_int32), ("pad", c.c_int32)])
Device = row(texts(name=32, description=128, isa=32, state=16)
             + [("memory_bytes", U64), ("used_bytes", U64), ("threads", U32), ("models", U32)]
             + texts(kind=16, driver=96, uuid=40, node=64, reason=192))
Holder = row(texts(role=16, model=64) + [(n, U32) for n in ("pid", "uid", "sessions", "jobs")]
             + [(n, U64) for n in ("shared_bytes", "private_bytes", "tokens")])
Finding = row(texts(check=24, verdict=16, text=400))
Job = row([(n, U64) for n in ("id", "done", "total", "eta_ms", "disk_bytes", "started_s")]
          + [("uid", U32), ("status", c.c_int32), ("n_results", U32), ("restarts", U32)]
          + texts(kind=16, state=16, name=64, text=240) + [("curve", c.c_float * 32)])
ROWS = {MODELS: Model, DEVICES: Device, HOLDERS: Holder, FINDINGS: Finding, JOBS: Job}
StatusReply = row([("header", c.c_char * 16)] + texts(version=32, numerics=16)
                  + [(n, U64) for n in ("uptime_ms", "weights_bytes", "kv_bytes", "kv_used_bytes",
                                        "channel_bytes", "steps", "mixed_steps", "prefill_tokens",
                                        "decode_tokens")]
                  + [(n, U32) for n in ("models", "clients", "sessions", "jobs",
                                        "worker_restarts", "pad")])


class Refused(Exception):
    def __init__(self, status, text):
        super().__init__(f"{status}: {text}")
        self.status, self.text = status, text


class Gone(Exception):
    """The daemon closed the connection."""


class Packet:
    def __init__(self, data, fds):
        self.type, self.size, self.serial, self.status = HEADER.unpack_from(data)
        self.data, self.fds = data, list(fds)

    def text(self, offset=16):
        return self.data[offset:].split(b"\0")[0].decode()


SANITIZED = os.environ.get("NIBBLE_TEST_SANITIZED") == "1"  # by what compares no bits, but costs a multiple of the time


def until(condition, what, patience=PATIENCE):
    """Polls: for what another process does in its own time."""
    end = time.monotonic() + patience
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"in vain: {what}")
        time.sleep(0.01)


def sealed_memfd(data, seals=fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW):
    fd = os.memfd_create("recipe", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class Client:
    def __init__(self, path, hello=True):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self.serial = 0
        self.events = []
        if hello:
            self.hello()

    def close(self):
        self.sock.close()
        for p in self.events:
            for fd in p.fds:
                os.close(fd)
        self.events = []

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()

    def send(self, data, fds=()):
        """Raw: whatever bytes, whatever fds."""
        try:
            socket.send_fds(self.sock, [data], list(fds))
        except (BrokenPipeError, ConnectionResetError):
            raise Gone() from None

    def post(self, kind, body=b"", fds=()):
        self.serial += 1
        try:
            self.send(HEADER.pack(kind, 16 + len(body), self.serial, 0) + body, fds)
        except Gone:
            pass  # why, there may be to read
        return self.serial

    def receive(self):
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 4096, 4)
        except ConnectionResetError:  # it closed with words of ours unread; what it said is behind that
            data, fds, _, _ = socket.recv_fds(self.sock, 4096, 4)
        if not data:
            raise Gone()
        return Packet(data, fds)

    def reply(self, serial):
        """The reply to that serial; events that come before it are kept."""
        while True:
            p = self.receive()
            if p.type & REPLY and p.serial in (serial, 0):
                if p.status < 0:
                    raise Refused(p.status, p.text())
                return p
            self.events.append(p)

    def call(self, kind, body=b"", fds=()):
        return self.reply(self.post(kind, body, fds))

    def event(self, kind):
        for i, p in enumerate(self.events):
            if p.type == kind:
                return self.events.pop(i)
        while True:
            p = self.receive()
            if p.type == kind:
                return p
            self.events.append(p)

    def ended(self):
        """Waits for the daemon to hang up; whatever comes before is dropped."""
        try:
            while True:
                for fd in self.receive().fds:
                    os.close(fd)
        except Gone:
            return True

    def hello(self, low=1, high=1, magic=MAGIC):
        return self.call(HELLO, struct.pack("<IHHQ32s", magic, low, high, 0, b"test"))

    def status(self):
        return StatusReply.from_buffer_copy(self.call(STATUS).data)

    def list(self, what):
        rows, cursor = [], 0
        while True:
            data = self.call(LIST, struct.pack("<II", what, cursor)).data
            n, total, cursor, size = struct.unpack_from("<IIII", data, 16)
            assert size == c.sizeof(ROWS[what]), (size, c.sizeof(ROWS[what]))
            rows += [ROWS[what].from_buffer_copy(data, 32 + i * size) for i in range(n)]
            if not cursor:
                assert len(rows) == total, (len(rows), total)
                return rows

    def model(self, name):
        return next((m for m in self.list(MODELS) if m.name == name.encode()), None)

    def open_body(self, model, arena=0, adapter=""):
        return struct.pack("<64sQ64s", model.encode(), arena, adapter.encode())

    def open_channel(self, model, arena=0, adapter=""):
        return Channel(self, self.call(OPEN, self.open_body(model, arena, adapter)))

    def close_channel(self, channel):
        self.call(CLOSE, struct.pack("<II240s", channel, 0, b""))

    def load_body(self, name, device="", precision="", context=0, kv=0, fallback="", gpu_layers=0, kv_type="",
                  force=0, base="", scale=0, drafter=0):
        return struct.pack("<64s32s32sIIIfIIQ16s16s64sII", name.encode(), device.encode(), fallback.encode(), gpu_layers,
                           force, 0, scale, context, 0, kv, precision.encode(), kv_type.encode(), base.encode(), drafter,
                           0)

    def file_body(self, name="model.gguf"):
        return struct.pack("<256s", name.encode())

    def give(self, *files):
        """Hands over the files of the next LOAD."""
        for file in map(pathlib.Path, files):
            with open(file, "rb") as f:
                self.call(FILE, self.file_body(file.name), [f.fileno()])

    def load(self, name, *files, **options):
        self.give(*files)
        return self.call(LOAD, self.load_body(name, **options))

    def post_load(self, name, *files, **options):
        self.give(*files)
        return self.post(LOAD, self.load_body(name, **options))

    def start_job(self, recipe, *files, kind="round", name="m", detached=True, names=None):
        """The number of a job of these files, which are paths or fds."""
        fds = [f if isinstance(f, int) else os.open(f, os.O_RDONLY) for f in files]
        names = names or [f"file-{f}.gguf" if isinstance(f, int) else pathlib.Path(f).name for f in files]
        memfd = sealed_memfd(recipe if isinstance(recipe, bytes) else json.dumps(recipe).encode())
        try:
            serial = self.post(JOB_START, struct.pack("<16s64sII", kind.encode(), name.encode(),
                                                      JOB_DETACHED if detached else 0, len(fds)), [memfd])
            self.send_files(serial, names, fds)
            return struct.unpack_from("<Q", self.reply(serial).data, 16)[0]
        finally:
            os.close(memfd)
            for f, fd in zip(files, fds):
                if not isinstance(f, int):
                    os.close(fd)

    def send_files(self, serial, names, fds):
        """To the socket that JOB_FILES brings."""
        p = self.receive()
        while p.type != JOB_FILES and not (p.type & REPLY and p.serial == serial):
            self.events.append(p)
            p = self.receive()
        if p.type != JOB_FILES:
            raise Refused(p.status, p.text())
        with socket.socket(fileno=p.fds[0]) as sock:
            sock.setblocking(True)
            try:
                for name, fd in zip(names, fds):
                    socket.send_fds(sock, [HEADER.pack(FILE, 272, 0, 0) + self.file_body(name)], [fd])
            except (BrokenPipeError, ConnectionResetError):
                pass  # the reply says why

    def wait_job(self, job):
        return self.call(JOB_WAIT, struct.pack("<Q", job))

    def control_job(self, job, what):
        return self.call(JOB_CONTROL, struct.pack("<QII", job, what, 0))

    def job(self, job):
        return next((row for row in self.list(JOBS) if row.id == job), None)

    def job_result(self, job, index=0):
        """(name, bytes) of one of its files."""
        p = self.call(JOB_RESULT, struct.pack("<QQII64s", job, 0, index, 0, b""))
        name = struct.unpack_from("<64s", p.data, 40)[0].split(b"\0")[0].decode()
        with os.fdopen(p.fds[0], "rb") as f:
            return name, f.read()

    def unload(self, name, force=False):
        return self.call(UNLOAD, struct.pack("<64sII", name.encode(), force, 0))


class Channel:
    """A channel's two fds, from OPEN_CHANNEL's reply or from REBIND."""

    def __init__(self, client, packet):
        self.client = client
        self.id, self.incarnation, self.arena = struct.unpack_from("<IIQ", packet.data, 16)
        self.device, self.numerics = (t.split(b"\0")[0].decode()
                                      for t in struct.unpack_from("<32s16s", packet.data, 32))
        self.memfd, sock = packet.fds
        self.sock = socket.socket(fileno=sock)
        self.sock.settimeout(PATIENCE)
        self.size = ARENA_OFFSET + self.arena

    def map(self):
        return mmap.mmap(self.memfd, self.size)

    def close(self):
        os.close(self.memfd)
        self.sock.close()


class Daemon:
    def __init__(self, config="", worker=None, env=None, start=True, before_exec=None, stderr=None):
        self.dir = tempfile.TemporaryDirectory(prefix="nibble-test-")
        root = pathlib.Path(self.dir.name)
        self.runtime, self.state = root / "run", root / "state"
        self.config, self.log_path = root / "nibbled.conf", root / "log"
        self.config.write_text(config)
        self.log = open(self.log_path, "w+")
        self.before_exec, self.stderr = before_exec, stderr or self.log
        self.env = dict(os.environ, **(env or {}))
        if "MESA_SHADER_CACHE_DIR" in self.env:
            pathlib.Path(self.env["MESA_SHADER_CACHE_DIR"]).mkdir(parents=True, exist_ok=True)
        self.env["NIBBLE_WORKER"] = str(worker or os.environ["NIBBLE_TEST_WORKER"])
        for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM"):
            self.env.pop(name, None)
        if start:
            self.start()

    def start(self):
        self.process = subprocess.Popen(
            [os.environ["NIBBLE_TEST_NIBBLED"], "--config", self.config, "--runtime-dir",
             self.runtime, "--state-dir", self.state], env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=self.stderr, preexec_fn=self.before_exec)
        self.pid = self.process.pid
        with self.client():  # waits until the door is open
            pass

    def client(self, **options):
        return self.connect("nibble.sock", **options)

    def admin(self, **options):
        return self.connect("admin.sock", **options)

    def connect(self, name, **options):
        def attempt():
            assert self.process.poll() is None, f"nibbled ended:\n{self.logged()}"
            try:
                return Client(self.runtime / name, **options)
            except (FileNotFoundError, ConnectionRefusedError):
                return None
        return until(attempt, "a connection")

    def file(self, name, content):
        path = pathlib.Path(self.dir.name) / name
        path.write_bytes(content)
        return path

    def kept(self):
        """(path, mtime) of the files that devices left for their next start."""
        return [(p, p.stat().st_mtime_ns) for p in (self.state / "cache").iterdir() if p.is_file()]

    def logged(self):
        return self.log_path.read_text()

    def children(self):
        """(pid, mode) of the workers, zombies left out."""
        found = []
        for pid in pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            try:
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            modes = [w.decode() for w in words if w in (b"probe", b"load", b"serve", b"job")]
            if modes:
                found.append((int(pid), modes[0]))
        return found

    def server(self):
        return until(lambda: next((p for p, m in self.children() if m == "serve"), None),
                     "a serving worker")

    def fds(self):
        """What the broker's fds are, by kind."""
        kinds = []
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                kinds.append(os.readlink(f"/proc/{self.pid}/fd/{fd}").split(":")[0])
            except FileNotFoundError:
                pass  # closed meanwhile
        return sorted(kinds)

    def resting_fds(self):
        """The broker's fds, once a load's worker and its file are gone for good: they stay the same for a while."""
        fds, same = self.fds(), 0
        while same < 10:
            time.sleep(0.05)
            now = self.fds()
            fds, same = now, same + 1 if now == fds else 0
        return fds

    def settled_fds(self, wanted):
        """The broker's fds, once they are the wanted ones or patience is over."""
        try:
            until(lambda: self.fds() == wanted, "the fds of before", patience=5)
        except AssertionError:
            pass
        return self.fds()

    def kill_job(self, client, job, times, pause):
        """Kills the job's worker so often, unless it is over before: each time up to `pause` seconds after its journal has
        grown. What it said that it was at, each time."""
        journal, kills = self.state / "jobs" / str(job) / "journal", []
        for _ in range(times):
            size = journal.stat().st_size if journal.exists() else 0
            until(lambda: client.job(job).state == b"finished" or journal.exists() and journal.stat().st_size > size, "progress")
            time.sleep(random.random() * pause)
            row, workers = client.job(job), [p for p, mode in self.children() if mode == "job"]
            if row.state == b"finished":
                break
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
                kills.append(row.text)
            until(lambda: client.job(job).restarts > row.restarts or client.job(job).state == b"finished", "its next worker")
        return kills

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def finish(self):
        """Stops and cleans up; the exit status and what was logged are for the test to judge."""
        try:
            return self.stop(), self.logged()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.log.close()
            self.dir.cleanup()


class ServiceTest(unittest.TestCase):
    config = ""
    worker = None
    env = None
    before_exec = None  # a static method that runs in the daemon's process first

    def setUp(self):
        self.daemon = Daemon(self.config, self.worker, self.env, before_exec=self.before_exec)
        self.addCleanup(self.judge_end)

    def judge_end(self):
        status, log = self.daemon.finish()
        self.assertEqual(status, 0, log)
        self.assertNotIn("ERROR: ", log)  # of a sanitizer
        self.assertNotIn("runtime error", log)

    def refused(self, status, call, *args, **options):
        """The call is refused with the status, in one sentence, which is returned."""
        with self.assertRaises(Refused) as caught:
            call(*args, **options)
        self.assertEqual(caught.exception.status, status, caught.exception.text)
        self.assertTrue(caught.exception.text)
        return caught.exception.text


LONG = 450  # tokens of a stream that something happens to; the small model's context is 512


class StreamTest(ServiceTest):
    """The real worker, a small random model, and clients as processes of their own."""
    worker = os.environ.get("NIBBLE_TEST_WORKER")

    def setUp(self):
        super().setUp()
        self.running = []
        self.addCleanup(self.end_processes)

    def small_model(self):
        path = self.daemon.file("r.gguf", b"")
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", path, "Q4_0", "3"], check=True)
        return path

    def end_processes(self):
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def cli(self, *arguments):
        process = subprocess.Popen(
            [os.environ["NIBBLE_TEST_CLI"], *arguments, "--socket", self.daemon.runtime / "nibble.sock"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        return process

    def stream(self, seed=7, n=LONG, prompt="Once upon a time"):
        return self.cli("run", "m", prompt, "--raw", "--ignore-eos", "--temp", "0.8", "--top-k", "40",
                        "--seed", str(seed), "-n", str(n), "--json")

    def answer(self, process):
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)
        answer = json.loads(out)
        return answer["text"], answer["tokens"]
