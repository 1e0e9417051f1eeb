"""The whole service: nibbled, the real worker, a small random model, and clients as processes of their own."""
import os
import random
import signal
import struct
import subprocess

from harness import *

MAKE_GGUF = os.environ["NIBBLE_TEST_MAKE_GGUF"]


def anonymous_bytes(pid):
    """Private memory, what a leak would grow."""
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Service(StreamTest):
    config = "[supervision]\nbackoff = 0.05\nhello = 5\n"

    def setUp(self):
        super().setUp()
        self.path = self.small_model()
        self.admin = self.daemon.admin()
        self.addCleanup(self.admin.close)
        self.admin.load("m", self.path)

    def in_mid_stream(self, start, tokens=20):
        """Starts a stream and returns with its worker stopped (SIGSTOP) somewhere in its middle."""
        for _ in range(10):
            before = self.admin.status().decode_tokens
            process = start()
            until(lambda: self.admin.status().decode_tokens >= before + tokens, "tokens")
            worker = self.daemon.server()
            os.kill(worker, signal.SIGSTOP)
            s = self.admin.status()
            if s.jobs == 1 and s.decode_tokens < before + LONG - 20:
                return process, worker
            os.kill(worker, signal.SIGCONT)  # too late: once more
            process.communicate(timeout=60)
        self.fail("no stream was caught in its middle")

    def test_the_worker_is_killed_in_mid_stream(self):
        alone = self.answer(self.stream())
        self.assertEqual(len(alone[1]), LONG)
        for _ in range(2):
            process, worker = self.in_mid_stream(self.stream)
            os.kill(worker, signal.SIGKILL)
            self.assertEqual(self.answer(process), alone)
        self.assertEqual(self.admin.status().worker_restarts, 2)
        self.assertNotEqual(self.answer(self.stream(seed=8)), alone)

    def test_a_client_is_killed_in_mid_stream(self):
        self.answer(self.stream(n=10))
        until(lambda: self.admin.status().clients == 1, "the client's end")
        worker = self.daemon.server()
        fds = self.daemon.resting_fds()
        worker_fds = len(os.listdir(f"/proc/{worker}/fd"))
        memory = anonymous_bytes(self.daemon.pid)
        for _ in range(6):
            process, _ = self.in_mid_stream(self.stream)
            process.kill()
            process.communicate()
            os.kill(worker, signal.SIGCONT)
            until(lambda: self.admin.status().clients == 1, "the client's end")
        until(lambda: self.admin.status().jobs == 0, "the job's end")
        until(lambda: self.admin.status().channel_bytes == 0, "the end of the channels' memory")
        s = self.admin.status()
        self.assertEqual((s.sessions, s.worker_restarts), (0, 0))
        self.assertEqual(self.daemon.settled_fds(fds), fds)
        until(lambda: len(os.listdir(f"/proc/{worker}/fd")) == worker_fds, "the worker's fds of before")
        self.assertLess(anonymous_bytes(self.daemon.pid) - memory, 512 << 10)

    def test_drain(self):
        alone = self.answer(self.stream())
        process, worker = self.in_mid_stream(self.stream)
        self.daemon.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in self.daemon.logged(), "the drain")
        os.kill(worker, signal.SIGCONT)
        self.assertEqual(self.answer(process), alone)
        self.assertEqual(self.daemon.process.wait(PATIENCE), 0)

    def test_unload(self):
        process, worker = self.in_mid_stream(self.stream)
        self.refused(E_BUSY, self.admin.unload, "m")
        self.admin.unload("m", force=True)
        os.kill(worker, signal.SIGCONT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, out)
        self.assertEqual(len(err.strip().splitlines()), 1, err)
        self.admin.load("m", self.path)
        self.answer(self.stream(n=5))

    def test_wild_rings(self):
        """Memory of a client's own that it fills with anything: its channel ends, the stream beside it does not."""
        alone = self.answer(self.stream())
        stream = self.stream()
        worker = self.daemon.server()
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        for i in range(40):
            with self.daemon.client() as c:
                channel = c.open_channel("m", 1 << 16)
                memory = channel.map()
                if i % 2:  # indices alone, else entries too
                    memory[4096:ARENA_OFFSET] = rng.randbytes(ARENA_OFFSET - 4096)
                for at in range(0, 6 * 64, 64):
                    struct.pack_into("<I", memory, at, rng.choice((0, 1, 255, 256, 257, 1 << 31, (1 << 32) - 1,
                                                                   rng.randrange(1 << 32))))
                try:
                    channel.sock.send(rng.randbytes(rng.randrange(1, 100)))
                    channel.sock.setblocking(False)
                    channel.sock.recv(64)
                except (BlockingIOError, ConnectionError):
                    pass
                memory.close()
                channel.close()
        self.assertEqual(self.answer(stream), alone, f"seed {seed}")
        self.assertEqual(self.daemon.server(), worker, f"seed {seed}")
        self.assertEqual(self.admin.status().worker_restarts, 0, f"seed {seed}")

    def test_bad_files(self):
        whole = self.path.read_bytes()
        bad = {"truncated": whole[:len(whole) // 2], "short": whole[:20], "text": b"no model at all\n" * 99,
               "architecture": whole.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lmaal", 1)}
        self.assertNotEqual(bad["architecture"], whole)
        for name, content in bad.items():
            process = self.cli("load", self.daemon.file(name, content), "--name", name)
            out, err = process.communicate(timeout=60)
            self.assertEqual((process.returncode, len(err.strip().splitlines())), (1, 1), (name, err))
        self.assertEqual([m.name for m in self.admin.list(MODELS)], [b"m"])
        self.answer(self.stream(n=5))

    def refusal(self, name, content):
        """What the CLI says of such a file."""
        process = self.cli("load", self.daemon.file(name, content), "--name", name)
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, len(err.strip().splitlines())), (1, 1), (name, err))
        return err if isinstance(err, str) else err.decode()

    def test_damaged_files(self):
        """A number that is none, and a download cut short at its full length: the tensor is named."""
        whole = bytearray(self.path.read_bytes())
        # The last tensors are blk.1.ffn_down and the norm: 256 floats.
        norm = len(whole) - 256 * 4
        damaged = whole[:]
        struct.pack_into("<f", damaged, norm + 12, float("nan"))
        self.assertRegex(self.refusal("nan", damaged), r"output_norm\.weight .*NaN \(element 3\)")
        half = whole[:len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
        self.assertRegex(self.refusal("half", half), r"zero from tensor blk\.\d\.\w+\.weight to its end.* --force")
        process = self.cli("load", self.daemon.file("half", half), "--name", "half", "--force")
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)
        self.refusal("half", half)
        self.admin.unload("half")

    def test_files_that_say_more(self):
        """A key or a tensor that Nibble would leave out is named."""
        whole = self.path.read_bytes()
        count = b"llama.block_count" + struct.pack("<I", 4)
        self.assertEqual(whole.count(count + struct.pack("<I", 2)), 1)
        self.assertRegex(self.refusal("unknown", whole.replace(b"llama.vocab_size", b"llama.vocab_sizf")),
                         "llama.vocab_sizf is a key that Nibble does not know.*--remove-metadata")
        self.assertRegex(self.refusal("surplus", whole.replace(count + struct.pack("<I", 2), count + struct.pack("<I", 1))),
                         r"tensor blk\.1\.\w+\.weight \(and 8 more\) has no place")


class Small(ServiceTest):
    worker = os.environ["NIBBLE_TEST_WORKER"]
    config = "[memory]\nbytes = 100K\n"

    def test_a_model_larger_than_memory(self):
        path = self.daemon.file("r.gguf", b"")
        subprocess.run([MAKE_GGUF, "random", path, "Q4_0", "3"], check=True)
        with self.daemon.admin() as a:
            text = self.refused(E_TOO_LARGE, a.load, "m", path)
            self.assertRegex(text, r'"m" needs \d+\.\d KiB of memory .* 100\.0 KiB is there')
            self.assertEqual(a.list(MODELS), [])


if __name__ == "__main__":
    unittest.main()
