"""Registered memory and matrix jobs, as a client that means no good uses them: the service refuses, or computes something,
and goes on."""
import random

from harness import *

MAKE_GGUF = os.environ["NIBBLE_TEST_MAKE_GGUF"]
REGISTER, UNREGISTER = 9, 10
GEMM, DEQUANTIZE, TENSOR, CANCEL = 8, 9, 7, 5
EPERM, EFAULT, EOVERFLOW, E_CANCELLED = -1, -14, -75, -5012
NO_TENSOR = 2**32 - 1
DONE = 3  # a completion's kind
NOWHERE = (0, 0)
SEAL_WRITE = 8


def memory(size=1 << 20, seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW):
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class Ring:
    """A channel's rings, by docs/protocol.md. Heads and tails go by `words`, each in one access: struct.pack_into writes
    byte after byte, and zeros first, which a worker that looks in between takes for a ring gone mad."""

    def __init__(self, channel):
        self.channel, self.map, self.tail, self.head, self.name = channel, channel.map(), 0, 0, 0
        self.words = memoryview(self.map).cast("I")

    def write(self, offset, data):
        self.map[ARENA_OFFSET + offset:ARENA_OFFSET + offset + len(data)] = data

    def submit(self, op, descriptor=b"", target=0):
        self.name += 1
        self.write(0, descriptor)
        entry = 4096 + self.tail % 256 * 64
        self.map[entry:entry + 64] = struct.pack("<IIQIIQIIQ16x", op, 0, self.name, 0, 0, 0, len(descriptor), 0, target)
        self.tail += 1
        self.words[0] = self.tail
        self.channel.sock.send(b"x")
        return self.name

    def done(self):
        """(name, status) of the next DONE."""
        def look():
            return self.words[128 // 4] != self.head
        until(look, "a completion")
        name, kind, _, status = struct.unpack_from("<QHHi", self.map, 20480 + self.head % 4096 * 64)
        self.head += 1
        self.words[192 // 4] = self.head
        return (name, status) if kind == DONE else self.done()

    def run(self, op, descriptor):
        name = self.submit(op, descriptor)
        got, status = self.done()
        assert got == name, (got, name)
        return status


def place(offset, region):
    return struct.pack("<QII", offset, region, 0)


def matrix(rows=64, cols=64, bits=4, group=32, flags=0, codes=NOWHERE, scales=NOWHERE, zeros=NOWHERE, tensor=NO_TENSOR):
    return struct.pack("<6I", tensor, bits, rows, cols, group, flags) + place(*codes) + place(*scales) + place(*zeros)


def gemm(w, x, y, n=1, terms=2):
    return w + place(*x) + place(*y) + struct.pack("<II", n, terms)


def dequantize(w, out, scales=NOWHERE, first=0, count=1, number=0):
    return w + struct.pack("<II", first, count) + place(*out) + place(*scales) + struct.pack("<II", number, 0)


class Matrices(ServiceTest):
    worker = os.environ["NIBBLE_TEST_WORKER"]
    config = "[limits]\nchannel-bytes-per-user = 100000000\n[supervision]\nbackoff = 0.05\n"

    def setUp(self):
        super().setUp()
        path = self.daemon.file("r.gguf", b"")
        subprocess.run([MAKE_GGUF, "random", path, "Q4_0", "3"], check=True)
        self.admin = self.daemon.admin()
        self.addCleanup(self.admin.close)
        self.admin.load("m", path)
        self.client = self.daemon.client()
        self.addCleanup(self.client.close)
        self.channel = self.client.open_channel("m")
        self.addCleanup(self.channel.close)
        self.ring = Ring(self.channel)

    def register(self, fd, offset=0, size=1 << 20, flags=0, channel=None, client=None):
        body = struct.pack("<IIQQ", self.channel.id if channel is None else channel, flags, offset, size)
        packet = (client or self.client).call(REGISTER, body, [fd])
        return struct.unpack_from("<II", packet.data, 16)[1]

    def unregister(self, region, channel=None):
        self.client.call(UNREGISTER, struct.pack("<II", self.channel.id if channel is None else channel, region))

    def good(self, region, n=1):
        """A product that is right, all of it in one region."""
        w = matrix(codes=(0, region), scales=(4096, region))
        return gemm(w, (8192, region), (65536, region), n)

    def test_registrations(self):
        fd = memory()
        self.refused(EPERM, self.register, memory(seals=0))
        self.refused(EPERM, self.register, memory(seals=fcntl.F_SEAL_GROW))
        with open(self.daemon.file("plain", b"x" * 8192)) as plain:
            self.refused(EPERM, self.register, plain.fileno(), size=4096)
        for offset, size in ((0, 0), (1, 4096), (0, (1 << 20) + 1), (1 << 20, 1), (1 << 21, 4096), (4096, 1 << 20),
                             (2**64 - 4096, 8192), (4096, 2**64 - 1)):
            self.refused(EINVAL, self.register, fd, offset=offset, size=size)
        self.refused(EINVAL, self.register, fd, flags=2)
        self.refused(ENOENT, self.register, fd, channel=77)
        self.refused(E_QUOTA, self.register, memory(1 << 30), size=4096)  # at its full size
        regions = [self.register(fd, size=4096) for _ in range(16)]
        self.assertEqual(len(set(regions)), 16)
        self.refused(E_QUOTA, self.register, fd)
        for region in regions:
            self.unregister(region)
        self.refused(ENOENT, self.unregister, regions[0])
        self.refused(ENOENT, self.unregister, self.register(fd), channel=77)

    def test_foreign_handles(self):
        region = self.register(memory())
        with self.daemon.client() as other:
            channel = other.open_channel("m")
            mine = self.register(memory(), channel=channel.id, client=other)
            ring = Ring(channel)
            self.assertEqual(ring.run(GEMM, self.good(mine)), 0)
            self.assertEqual(ring.run(GEMM, self.good(region + 1)), EFAULT)
        self.assertEqual(self.ring.run(GEMM, self.good(region)), 0)
        self.unregister(region)
        self.assertEqual(self.ring.run(GEMM, self.good(region)), EFAULT)

    def test_places(self):
        region, size = self.register(memory()), 1 << 20
        read_only = self.register(memory(), flags=1)
        constant = self.register(memory(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | SEAL_WRITE))
        good = dict(codes=(0, region), scales=(4096, region))
        x, y = (8192, region), (65536, region)
        self.assertEqual(self.ring.run(GEMM, self.good(region)), 0)
        for offset in (size, size - 4, 2**64 - 4, 2**63, 1, 2):
            self.assertEqual(self.ring.run(GEMM, gemm(matrix(**good), (offset, region), y)), EFAULT)
            self.assertEqual(self.ring.run(GEMM, gemm(matrix(**good), x, (offset, region))), EFAULT)
            self.assertEqual(self.ring.run(GEMM, gemm(matrix(**good | {"scales": (offset, region)}), x, y)), EFAULT)
        for where in (read_only, constant, 99, 2**32 - 1):
            self.assertEqual(self.ring.run(GEMM, gemm(matrix(**good), x, (65536, where))), EFAULT)
            self.assertEqual(self.ring.run(DEQUANTIZE, dequantize(matrix(**good), (0, where))), EFAULT)
        self.assertEqual(self.ring.run(GEMM, gemm(matrix(codes=(0, constant), scales=(4096, constant)), x, y)), 0)
        for wrong in (dict(rows=0), dict(cols=0), dict(bits=5), dict(group=48), dict(flags=4), dict(zeros=(8, region)),
                      dict(tensor=0)):
            self.assertEqual(self.ring.run(GEMM, gemm(matrix(**good | wrong), x, y)), EINVAL, wrong)
        for rows, cols in ((2**31 - 1, 64), (2**31 - 17, 2**20), (64, 2**20), (2**32 - 1, 2**32 - 1)):
            status = self.ring.run(GEMM, gemm(matrix(rows, cols, **good), x, y))
            self.assertIn(status, (EFAULT, EINVAL, EOVERFLOW))
        for n, terms in ((0, 1), (2**32 - 1, 1), (1, 0), (1, 3)):
            self.assertEqual(self.ring.run(GEMM, gemm(matrix(**good), x, y, n, terms)), EINVAL)
        for first, count, number in ((64, 1, 0), (0, 65, 0), (2**32 - 1, 2, 0), (0, 0, 0), (0, 1, 3)):
            self.assertEqual(self.ring.run(DEQUANTIZE, dequantize(matrix(**good), y, first=first, count=count,
                                                                  number=number)), EINVAL)
        self.assertEqual(self.ring.run(GEMM, gemm(struct.pack("<I68x", 12345), x, y)), ENOENT)

    def test_unregister_while_running(self):
        size = 64 << 20
        region = self.register(memory(size), size=size)
        rows, cols, n = 32768, 1024, 64
        w = matrix(rows, cols, group=0, codes=(0, region), scales=(20 << 20, region))
        running = self.ring.submit(GEMM, gemm(w, (24 << 20, region), (32 << 20, region), n))
        self.unregister(region)
        name, status = self.ring.done()
        self.assertEqual(name, running)
        self.assertIn(status, (0, E_CANCELLED, EFAULT))  # run, running, or not begun
        again = self.register(memory())
        self.assertEqual(self.ring.run(GEMM, self.good(again)), 0)

    def test_cancel(self):
        size = 64 << 20
        region = self.register(memory(size), size=size)
        w = matrix(32768, 1024, group=0, codes=(0, region), scales=(20 << 20, region))
        job = self.ring.submit(GEMM, gemm(w, (24 << 20, region), (32 << 20, region), 64))
        self.ring.submit(CANCEL, target=job)
        name, status = self.ring.done()
        self.assertEqual(name, job)
        self.assertIn(status, (0, E_CANCELLED))

    def test_client_dies(self):
        before = self.daemon.resting_fds()
        with self.daemon.client() as other:
            channel = other.open_channel("m")
            for _ in range(5):
                region = self.register(memory(), channel=channel.id, client=other)
            Ring(channel).submit(GEMM, self.good(region))
            channel.close()
        self.assertEqual(self.daemon.settled_fds(before), before)
        self.assertEqual(self.ring.run(GEMM, self.good(self.register(memory()))), 0)

    def test_worker_dies(self):
        """The region is there before the client hears of the new worker."""
        region = self.register(memory())
        os.kill(self.daemon.server(), signal.SIGKILL)
        ring = Ring(Channel(self.client, self.client.event(REBIND)))
        self.assertEqual(ring.run(GEMM, self.good(region)), 0)
        self.unregister(region)
        self.assertEqual(ring.run(GEMM, self.good(region)), EFAULT)

    def test_changing_memory(self):
        """Codes, scales and x of any bits, which change under the worker."""
        fd = memory()
        shared, region = mmap.mmap(fd, 1 << 20), self.register(fd)
        rng = random.Random(7)
        for i in range(40):
            name = self.ring.submit(GEMM, self.good(region, n=40))
            for _ in range(20):
                at = rng.randrange(0, 60000)
                shared[at:at + 64] = rng.randbytes(64)
            self.assertEqual(self.ring.done(), (name, 0))

    def test_any_descriptor(self):
        region, rng = self.register(memory()), random.Random(20261122)
        sizes = {TENSOR: 24, GEMM: 112, DEQUANTIZE: 120}
        words = [0, 1, 2, 4, 8, 32, 64, 128, 4096, 1 << 20, region, 2**31, 2**32 - 1]
        answers = set()
        for _ in range(3000):
            op = rng.choice(list(sizes))
            base = bytearray(self.good(region) if op == GEMM else
                             dequantize(matrix(codes=(0, region), scales=(4096, region)), (65536, region))
                             if op == DEQUANTIZE else struct.pack("<QIIQ", 64, 8, 0, 128))
            for _ in range(rng.randrange(0, 4)):
                struct.pack_into("<I", base, rng.randrange(0, sizes[op] // 4) * 4, rng.choice(words))
            answers.add(self.ring.run(op, bytes(base)))
        self.assertIn(0, answers)
        self.assertTrue(answers <= {0, EINVAL, EFAULT, ENOENT, EOVERFLOW}, answers)
