"""Jobs of the service: killed, paused, restarted with the daemon, refused; their results are the same to the byte."""
import json
import os
import pathlib
import pty
import re
import resource
import signal
import struct
import subprocess
import time

from harness import *

CLI = os.environ["NIBBLE_TEST_CLI"]
REAL_WORKER = os.environ["NIBBLE_TEST_WORKER"]
BF16, F32, Q4_0 = 30, 0, 2
# High bytes of BF16 numbers of some 0.01 to 1, of either sign: the low byte may be any.
HIGH = bytes((0x80 if i & 1 else 0) | 0x3c + (i >> 1) % 4 for i in range(256))


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def gguf(tensors):
    """A GGUF of (name, type, rows, columns, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1) + text("general.architecture") + struct.pack("<I", 8) + text("llama")
    at, data = 0, b""
    for name, kind, rows, columns, content in tensors:
        out += text(name) + struct.pack("<IQQIQ", 2, columns, rows, kind, at)
        data += content + bytes(-len(content) % 32)
        at = len(data)
    return out + bytes(-len(out) % 32) + data


def matrix(rows, columns):
    numbers = bytearray(os.urandom(2 * rows * columns))
    numbers[1::2] = numbers[1::2].translate(HIGH)
    return bytes(numbers)


def model(n=16, rows=256, columns=1024):
    return gguf([(f"blk.{i}.ffn_up.weight", BF16, rows, columns, matrix(rows, columns)) for i in range(n)])


class JobsTest(ServiceTest):
    worker = REAL_WORKER
    config = "[jobs]\nidle = 0\n"  # other tests may have both processors

    def setUp(self):
        super().setUp()
        self.client = self.daemon.client()
        self.addCleanup(lambda: self.client.close())

    def source(self, content=None, name="source.gguf"):
        return self.daemon.file(name, model(2, 8, 256) if content is None else content)

    def again(self, number=signal.SIGKILL):
        """The daemon ends, and another begins with the same state directory."""
        self.client.close()
        self.daemon.process.send_signal(number)
        self.daemon.process.wait(PATIENCE)
        self.daemon.start()
        self.client = self.daemon.client()

    def run_job(self, recipe, *files, **options):
        job = self.client.start_job(recipe, *files, **options)
        self.client.wait_job(job)
        return self.client.job_result(job)[1]

    def folder(self, job):
        return self.daemon.state / "jobs" / str(job)

    def gone(self, job):
        return not self.folder(job).exists() and not (self.folder(job).parent / f"gone.{job}").exists()

    def cli(self, *arguments, **options):
        return subprocess.run([CLI, *map(str, arguments), "--socket", self.daemon.runtime / "nibble.sock"],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, **options)


class Survival(JobsTest):
    def worker_of_job(self):
        return until(lambda: next((p for p, m in self.daemon.children() if m == "job"), None), "a job's worker")

    def test_killed_at_ten_instants(self):
        source = self.source(model(60, 1024))
        alone = self.run_job({"to": "Q4_0"}, source)
        job = self.client.start_job({"to": "Q4_0"}, source)
        kills = len(self.daemon.kill_job(self.client, job, 10, 0.01))
        self.client.wait_job(job)
        self.assertGreater(kills, 2)
        self.assertEqual(self.client.job_result(job)[1], alone)

    def test_the_broker_is_killed(self):
        source = self.source(model())
        alone = self.run_job({"to": "Q5_1"}, source)
        job = self.client.start_job({"to": "Q5_1"}, source)
        until(lambda: (self.folder(job) / "journal").exists() and (self.folder(job) / "journal").stat().st_size > 200, "progress")
        self.again()
        row = self.client.job(job)
        self.assertEqual((row.kind, row.name, row.uid), (b"round", b"m", os.getuid()))
        self.client.wait_job(job)
        self.assertEqual(self.client.job_result(job)[1], alone)
        name, report = self.client.job_result(job, 1)
        self.assertEqual(name, "report.json")
        self.assertEqual(len(json.loads(report)["tensors"]), 16)
        # A finished one is there after a restart, until its owner lets it go; its number is not used again.
        self.again(signal.SIGTERM)
        self.assertEqual(self.client.job(job).state, b"finished")
        self.assertEqual(self.client.job_result(job)[1], alone)
        self.client.control_job(job, JOB_CANCEL)
        self.assertIsNone(self.client.job(job))
        self.assertGreater(self.client.start_job({"to": "Q5_1"}, source), job)
        until(lambda: self.gone(job), "the end of its folder")

    def test_paused_over_a_restart(self):
        source = self.source(model())
        alone = self.run_job({"to": "Q8_0"}, source)
        job = self.client.start_job({"to": "Q8_0"}, source)
        self.client.control_job(job, JOB_PAUSE)
        self.assertIn("is paused", self.refused(EINVAL, self.client.control_job, job, JOB_PAUSE))
        until(lambda: not [m for _, m in self.daemon.children() if m == "job"], "the end of its worker")
        self.again()
        time.sleep(0.2)
        self.assertEqual(self.client.job(job).state, b"paused")
        self.assertIn("is paused", self.refused(E_BUSY, self.client.job_result, job))
        self.client.control_job(job, JOB_RESUME)
        self.client.wait_job(job)
        self.assertEqual(self.client.job_result(job)[1], alone)

    def test_a_torn_journal(self):
        source = self.source(model(8))
        alone = self.run_job({"to": "Q4_1"}, source)
        job = self.client.start_job({"to": "Q4_1"}, source)
        self.client.wait_job(job)
        folder = self.folder(job)
        whole = (folder / "journal").read_bytes()
        record = (folder / "job").read_text().replace("state=finished", "state=waiting")
        for damage in (lambda: os.truncate(folder / "journal", len(whole) - 7),  # torn at its end
                       lambda: (folder / "journal").write_bytes(whole[:60] + b"x" + whole[61:]),  # in its first record
                       lambda: (folder / "journal").write_bytes(whole[:5]),  # in its header
                       lambda: (folder / "result.0").write_bytes(b""),  # results that are not there
                       lambda: (folder / "result.0").write_bytes(alone[:5000] + b"\1" * 9 + alone[5009:])):
            self.daemon.stop(signal.SIGKILL)
            damage()
            (folder / "job").write_text(record)
            self.again()
            self.client.wait_job(job)
            self.assertEqual(self.client.job_result(job)[1], alone)
            # What is done again is told again.
            self.assertEqual((folder / "journal").read_bytes()[:len(whole)], whole)

    def test_the_source_changes(self):
        source = self.source(model(2))
        job = self.client.start_job({"to": "Q8_0"}, source)
        self.client.control_job(job, JOB_PAUSE)
        until(lambda: not [m for _, m in self.daemon.children() if m == "job"], "the end of its worker")
        if self.client.job(job).state == b"finished":
            self.skipTest("it was too fast to be paused")
        source.write_bytes(model(2))
        self.client.control_job(job, JOB_RESUME)
        with self.assertRaisesRegex(Refused, "source.gguf is not the file any more that the job began with"):
            self.client.wait_job(job)
        self.assertEqual(self.client.job(job).state, b"failed")

    def test_files_that_cannot_be_opened_again(self):
        """Of what has no path for the daemon, the job has a copy."""
        content = model(3)
        alone = self.run_job({"to": "Q8_0"}, self.source(content))
        path = self.source(content, "unlinked.gguf")
        fd = os.open(path, os.O_RDONLY)
        path.unlink()
        job = self.client.start_job({"to": "Q8_0"}, fd)
        os.close(fd)
        self.client.wait_job(job)
        self.assertEqual(self.client.job_result(job)[1], alone)
        self.assertGreater(self.client.job(job).disk_bytes, len(content) + len(alone))

    def test_attached(self):
        source = self.source(model())
        with self.daemon.client() as other:
            job = other.start_job({"to": "Q8_0"}, source, detached=False)
            self.assertTrue(self.client.job(job))
        until(lambda: self.client.job(job) is None, "its end with its client's")
        until(lambda: self.gone(job), "the end of its folder")
        with self.daemon.client() as other:  # one that is finished stays
            job = other.start_job({"to": "Q8_0"}, self.source(), detached=False)
            other.wait_job(job)
        time.sleep(0.1)
        self.assertEqual(self.client.job(job).state, b"finished")


class Requests(JobsTest):
    config = "[limits]\njobs-per-user = 3\njob-bytes-per-user = 20M\n[jobs]\nidle = 0\n"

    def test_cli(self):
        source, out = self.source(), self.daemon.file("out.gguf", b"")
        out.unlink()
        done = self.cli("compress", source, "-o", out, "--to", "q8_0")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("blk.1.ffn_up.weight 8 x 256 Q8_0 8.50", re.sub(" +", " ", done.stdout))
        self.assertIn("2 tensors", done.stdout)
        converted = self.daemon.file("converted.gguf", b"")
        self.assertEqual(self.cli("convert", source, "-o", converted, "--to", "Q8_0", "-f").returncode, 0)
        self.assertEqual(out.read_bytes(), converted.read_bytes())
        self.assertIn("exists: --force", self.cli("compress", source, "-o", out, "--to", "Q8_0").stderr)
        started = self.cli("compress", source, "--to", "Q4_0", "--detach", "--json")
        job = json.loads(started.stdout)["id"]
        self.assertEqual(self.cli("wait", job).stdout, f"job {job} is finished\n")
        (row,) = json.loads(self.cli("jobs", "--json").stdout)["jobs"]
        self.assertEqual((row["id"], row["state"], row["name"], row["progress"]), (job, "finished", "source.gguf", "100 %"))
        result = json.loads(self.cli("result", job, "-o", out, "-f", "--json", "--keep").stdout)
        self.assertEqual((result["type"], result["tensors"][0]["bits"]), ("Q4_0", 4.5))
        # A disk that is full where the result goes loses nothing.
        full = self.cli("result", job, "-o", self.daemon.runtime / "x.gguf",
                        preexec_fn=lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))))
        self.assertIn("x.gguf: File too large", full.stderr)
        self.assertEqual(list(self.daemon.runtime.glob("x.gguf*")), [])
        self.assertEqual(self.cli("result", job, "-o", out, "-f").returncode, 0)
        self.assertIn(f"there is no job {job}", self.cli("wait", job).stderr)

    def test_recipes(self):
        tensors = [("token_embd.weight", BF16, 8, 96, matrix(8, 96)), ("blk.0.attn_k.weight", BF16, 8, 256, matrix(8, 256)),
                   ("blk.0.attn_norm.weight", F32, 1, 256, struct.pack("<f", 1) * 256), ("output.weight", BF16, 8, 80, matrix(8, 80))]
        source = self.source(gguf(tensors))

        def types(recipe):
            job = self.client.start_job(recipe, source)
            self.client.wait_job(job)
            report = json.loads(self.client.job_result(job, 1)[1])
            self.client.control_job(job, JOB_CANCEL)
            return [t["type"] for t in report["tensors"]], report

        with self.assertRaisesRegex(Refused, r"output.weight has rows of 80, no whole blocks of 32 as Q4_0 takes.*--else F16"):
            types({"to": "Q4_0"})
        got, report = types({"to": "Q4_0", "else": "F16", "embedding": "Q8_0",
                             "tensors": [{"match": r"attn_k\.", "to": "Q5_1"}, {"match": "never", "to": "F32"}]})
        self.assertEqual(got, ["Q8_0", "Q5_1", "F32", "F16"])
        self.assertEqual(report["tensors"][3]["instead_of"], "Q4_0")
        self.assertIn('"never" matches no matrix', report["warnings"][0])
        _, report = types({"to": "F16"})
        self.assertEqual(report["warnings"], [])
        for recipe, complaint in (
                (b"{", "no JSON: line 1"), (b"[]", "no JSON object"), (b"{}", 'no "to"'), ({"to": 4}, "no type's name"),
                ({"to": "Q9"}, '"Q9" is no type that Nibble writes; these are: F32'), ({"to": "Q8_0", "tom": 1}, 'key "tom"'),
                (b'{"to": "F16", "to": "F32"}', "duplicate"), ({"to": "F16", "tensors": [{"match": "("}]}, "match.*and a"),
                ({"to": "F16", "tensors": [{"match": "(", "to": "F16"}]}, r'"\(": missing'),
                ({"to": "F16", "tensors": [{"match": "x" * 300, "to": "F16"}]}, "1 to 256 bytes"),
                ({"to": "F16", "tensors": [{"match": "x", "to": "F16"}] * 300}, "256 rules"),
                ({"to": "F16", "tensors": [{"match": r"^(([a-z.0-9_])*)*[#!]$", "to": "F16"}]}, "too many steps"),
                (b'{"to": "F16", "tensors": ' + b"[" * 30000, "no JSON")):
            with self.assertRaisesRegex(Refused, complaint):
                types(recipe)
            for row in self.client.list(JOBS):
                self.client.control_job(row.id, JOB_CANCEL)

    def test_damaged_sources(self):
        good = matrix(8, 256)
        nan = bytearray(good)
        nan[2 * (3 * 256 + 7):][:2] = b"\xc0\x7f"
        nan = bytes(nan[:2 * (3 * 256 + 7)]) + b"\xc0\x7f" + bytes(nan[2 * (3 * 256 + 8):])
        for content, complaint in ((gguf([("a.weight", BF16, 8, 256, good), ("b.weight", BF16, 8, 256, nan)]),
                                    r"tensor b.weight has .*NaN.*row 3, element 7"),
                                   (b"GGUF" + bytes(50), "version"), (b"not at all", "GGUF")):
            job = self.client.start_job({"to": "Q8_0"}, self.source(content))
            with self.assertRaisesRegex(Refused, complaint):
                self.client.wait_job(job)
            self.assertEqual(self.client.job(job).state, b"failed")
            self.client.control_job(job, JOB_CANCEL)
        large = gguf([("a.weight", BF16, 8, 256, good[:2 * 256 * 5] + b"\0\x7f" + good[2 * 256 * 5 + 2:])])
        for kind in ("F16", "Q8_0"):
            job = self.client.start_job({"to": kind}, self.source(large))
            with self.assertRaisesRegex(Refused, f"tensor a.weight has numbers in row 5 that are too large for {kind}"):
                self.client.wait_job(job)
            self.client.control_job(job, JOB_CANCEL)
        few = gguf([("a.weight", Q4_0, 8, 256, (b"\0\x3c" + os.urandom(16)) * 64)])
        job = self.client.start_job({"to": "Q4_1"}, self.source(few))
        self.client.wait_job(job)
        self.assertIn("quantized already (Q4_0, 4.50 bits", json.loads(self.client.job_result(job, 1)[1])["warnings"][0])

    def test_limits(self):
        source = self.source()
        jobs = [self.client.start_job({"to": "Q8_0"}, source) for _ in range(3)]
        self.assertIn("jobs-per-user", self.refused(E_QUOTA, self.client.start_job, {"to": "Q8_0"}, source))
        for job in jobs:
            self.client.control_job(job, JOB_CANCEL)
        large = self.source(model(24, 512), "large.gguf")
        job = self.client.start_job({"to": "F32"}, large)
        with self.assertRaisesRegex(Refused, "job-bytes-per-user"):
            self.client.wait_job(job)
        fd = os.open(large, os.O_RDONLY)
        large.unlink()
        self.assertIn("job-bytes-per-user", self.refused(E_QUOTA, self.client.start_job, {"to": "Q4_0"}, fd))
        os.close(fd)
        self.assertEqual([row.id for row in self.client.list(JOBS)], [job])

    def test_requests_that_cannot_be(self):
        c, source = self.client, self.source()

        def start(memfd, kind=b"round", files=1):
            return c.call(JOB_START, struct.pack("<16s64sII", kind, b"m", 0, files), [memfd])

        memfd = sealed_memfd(b"{}", fcntl.F_SEAL_SHRINK)
        self.assertIn("sealed", self.refused(EINVAL, start, memfd))
        os.close(memfd)
        with open(source, "rb") as f:
            self.assertIn("sealed", self.refused(EINVAL, start, f.fileno()))
        memfd = sealed_memfd(b"{}")
        for files in (0, 257, 1 << 31):
            self.assertIn("1 to 256 files", self.refused(EINVAL, start, memfd, files=files))
        for kind in (b"", b"Round", b"../x", b"x" * 16):
            self.refused(EINVAL, start, memfd, kind)
        os.close(memfd)
        self.assertIn('no kind of job "dream"', self.refused(E_UNSUPPORTED, c.start_job, {}, source, kind="dream"))
        self.assertIn("1 to 65536 bytes", self.refused(EINVAL, c.start_job, b" " * 65537, source))
        for job, body in ((JOB_WAIT, struct.pack("<Q", 99)), (JOB_CONTROL, struct.pack("<QII", 99, 0, 0)),
                          (JOB_RESULT, struct.pack("<QQII64s", 99, 0, 0, 0, b""))):
            self.assertIn("no job 99", self.refused(ENOENT, c.call, job, body))
        job = c.start_job({"to": "F16"}, source, name="a\x1b[2Jb")
        c.wait_job(job)
        self.assertEqual(c.job(job).name, b"a?[2Jb")
        self.refused(EINVAL, c.control_job, job, 7)
        self.refused(EINVAL, c.job_result, job, 2)
        self.refused(EINVAL, c.control_job, job, JOB_RESUME)

    def test_files_that_cannot_be(self):
        c, source = self.client, self.source()
        resting = self.daemon.resting_fds()
        read, write = os.pipe()
        self.assertIn("no regular file", self.refused(E_FORMAT, c.start_job, {"to": "F16"}, read))
        for name in ("", "a\nb", "\x1b[2J"):
            self.assertIn("without control characters", self.refused(E_FORMAT, c.start_job, {"to": "F16"}, source, names=[name]))
        self.assertIn("no two alike", self.refused(E_FORMAT, c.start_job, {"to": "F16"}, source, source))
        # Who cannot read a file cannot have the daemon read it.
        for flags in (os.O_PATH, os.O_WRONLY):
            fd = os.open(source, flags)
            self.assertIn("must be opened for reading", self.refused(EBADF, c.start_job, {"to": "F16"}, fd))
            os.close(fd)
        # What is no file on the files' socket, and nothing at all.
        memfd, start = sealed_memfd(b'{"to": "F16"}'), struct.pack("<16s64sII", b"round", b"m", 0, 1)
        file = HEADER.pack(FILE, 272, 0, 0) + c.file_body("x")
        for data, fds in ((b"x", []), (file, []), (file, [read, read]), (HEADER.pack(LOAD, 272, 0, 0) + file[16:], [read]),
                          (file + bytes(8), [read]), (b"", [])):
            serial = c.post(JOB_START, start, [memfd])
            with socket.socket(fileno=c.event(JOB_FILES).fds[0]) as sock:
                socket.send_fds(sock, [data], fds) if data else None
            self.assertIn("other files than it had said", self.refused(-71, c.reply, serial))
        c.post(JOB_START, start, [memfd])  # and one that nobody goes on with ends with its connection
        os.close(c.event(JOB_FILES).fds[0])
        for fd in (read, write, memfd):
            os.close(fd)
        until(lambda: not [m for _, m in self.daemon.children() if m == "job"], "the end of the workers")
        self.assertEqual(c.list(JOBS), [])
        until(lambda: [p.name for p in (self.daemon.state / "jobs").iterdir()] == ["last"], "the end of their folders")
        self.assertEqual(self.daemon.settled_fds(resting), resting)

    @unittest.skipIf(os.geteuid(), "two users take root")
    def test_another_users_jobs(self):
        os.chmod(self.daemon.dir.name, 0o711)
        os.chmod(self.daemon.runtime / "nibble.sock", 0o666)
        job = self.client.start_job({"to": "Q8_0"}, self.source())
        self.client.wait_job(job)
        os.seteuid(65534)
        try:
            other = self.daemon.client()
        finally:
            os.seteuid(0)
        with other, self.daemon.admin() as admin:
            self.assertEqual(other.list(JOBS), [])
            for call in (other.wait_job, other.job_result, lambda job: other.control_job(job, JOB_CANCEL)):
                self.assertIn(f"no job {job}", self.refused(ENOENT, call, job))
            self.assertEqual([row.id for row in admin.list(JOBS)], [job])
            admin.control_job(job, JOB_CANCEL)
        self.assertEqual(self.client.list(JOBS), [])

    def test_progress_and_interrupts(self):
        """At a terminal: a line of progress, and ^C cancels."""
        self.client.close()
        source, out = self.source(model(60)), pathlib.Path(self.daemon.dir.name) / "out.gguf"
        master, slave = pty.openpty()
        process = subprocess.Popen([CLI, "compress", source, "-o", out, "--to", "Q4_0", "--socket", self.daemon.runtime / "nibble.sock"],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave)
        os.close(slave)
        shown = b""
        while b"running" not in shown:
            shown += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(PATIENCE), -signal.SIGINT)
        os.close(master)
        self.client = self.daemon.client()
        until(lambda: self.client.list(JOBS) == [], "its end")
        self.assertFalse(out.exists())


class FullDisk(JobsTest):
    @staticmethod
    def before_exec():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    def test_full_disk(self):
        source = self.source(model(8))
        before = source.read_bytes()
        job = self.client.start_job({"to": "Q8_0"}, source)
        with self.assertRaisesRegex(Refused, "the state directory has no room for the result of 22.* bytes: File too large"):
            self.client.wait_job(job)
        self.assertEqual(source.read_bytes(), before)


class Poison(JobsTest):
    def setUp(self):
        super().setUp()
        script = self.daemon.file("worker", f'#!/bin/sh\n[ "$1 $2" = "job run" ] && kill -9 $$\nexec {REAL_WORKER} "$@"\n'.encode())
        script.chmod(0o755)
        self.daemon.env["NIBBLE_WORKER"] = str(script)
        self.again()

    def test_it_kills_its_workers(self):
        job = self.client.start_job({"to": "Q8_0"}, self.source())
        with self.assertRaisesRegex(Refused, r"was killed by signal 9 \(KILL\), the third in a row that came no further") as caught:
            self.client.wait_job(job)
        self.assertEqual(caught.exception.status, E_POISON)
        self.daemon.env["NIBBLE_WORKER"] = REAL_WORKER
        self.again()
        self.assertEqual((self.client.job(job).state, self.client.job(job).restarts), (b"failed", 3))
        self.client.control_job(job, JOB_RESUME)
        self.client.wait_job(job)


class Keeping(JobsTest):
    config = "[jobs]\nkeep = 1\n"

    def test_kept_for_a_while(self):
        job = self.client.start_job({"to": "Q8_0"}, self.source())
        self.client.wait_job(job)
        until(lambda: self.client.job(job) is None, "its end")
        until(lambda: self.gone(job), "the end of its folder")


if __name__ == "__main__":
    unittest.main()
