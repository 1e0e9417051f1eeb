"""Vectors of texts from the command line and by the ring: the real encoder, a small random decoder, clients at once, a
worker that dies, and clients that mean no good."""
import array
import math
import random

from harness import *
from test_cli import NIBBLE, CliTest
from test_matrices import E_CANCELLED, EFAULT, SEAL_WRITE, Ring, memory, place

MINILM = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "nibble/models/all-MiniLM-L6-v2")
WIDTH, LONGEST, SMALL = 384, 512, 256  # SMALL: of the decoder's vectors
EMBED, CANCEL, REGISTER, UNREGISTER = 11, 5, 9, 10
E_CONTEXT = -5009
MANY = 40 * int(os.environ["NIBBLE_TEST_JOBS"])  # texts, so that something else can come between
IDS, PLAIN, TRUNCATE = 1, 2, 4


def words(n, seed=7):
    rng = random.Random(seed)
    letters = "etaoinshrdlu"
    return " ".join("".join(rng.choices(letters, k=rng.randrange(1, 9))) for _ in range(n))


class EmbedTest(CliTest):
    worker = os.environ["NIBBLE_TEST_WORKER"]
    config = "[supervision]\nbackoff = 0.05\n"

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="nibble-test-")
        cls.addClassCleanup(folder.cleanup)
        cls.decoder = pathlib.Path(folder.name, "small.gguf")
        subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", cls.decoder, "Q4_0", "3"], check=True)

    def setUp(self):
        super().setUp()
        self.nibble("load", MINILM, "--name", "mini")
        self.nibble("load", self.decoder, "--name", "small")

    def raw(self, *arguments):
        process = subprocess.Popen([NIBBLE, "embed", *arguments, "--raw", "--socket",
                                    self.daemon.runtime / "nibble.sock"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def begun(self, file):
        """The vectors of a file's texts, in the midst of its steps: a step takes some thirty texts."""
        before = self.json("status")["steps"]
        process = self.raw("mini", "--file", file)
        until(lambda: self.json("status")["steps"] > before + 2, "some texts")
        return process

    def bytes_of(self, process):
        out, err = process.communicate(timeout=120)
        self.assertEqual((process.returncode, err), (0, b""))
        return out

    def lines(self, n, longest=12):
        rng = random.Random(n)
        return self.daemon.file("lines", "\n".join(words(rng.randrange(1, longest), i) for i in range(n)).encode())


class Commands(EmbedTest):
    def test_listing(self):
        models = {m["name"]: m for m in self.json("models")["models"]}
        self.assertEqual([(m["embeds_only"], m["embedding"], m["longest_embedded"]) for m in
                          (models["mini"], models["small"])], [(True, WIDTH, LONGEST), (False, SMALL, 512)])
        self.nibble("unload", "mini")
        out, _ = self.nibble("load", MINILM, "--name", "mini")
        self.assertNotIn("template", out)
        self.assertIn("nibble embed mini TEXT...", out)

    def test_ways_of_output(self):
        texts = ["A man is eating food.", "A man is eating a piece of bread.", "Naïve façade", ""]
        got = self.json("embed", "mini", *texts)
        self.assertEqual((got["model"], got["n"], got["dims"], len(got["vectors"])), ("mini", 4, WIDTH, 4))
        self.assertEqual(got["tokens"], [8, 11, 4, 2])
        for vector in got["vectors"]:
            self.assertAlmostEqual(sum(x * x for x in vector), 1, places=5)
        self.assertAlmostEqual(sum(x * y for x, y in zip(*got["vectors"][:2])), 0.7553, places=3)  # as its makers say
        raw = array.array("f", self.bytes_of(self.raw("mini", *texts)))
        for x, y in zip(raw, sum(got["vectors"], [])):
            self.assertAlmostEqual(x, y, delta=1e-8)
        plain = self.json("embed", "mini", texts[0], "--no-normalise")["vectors"][0]
        length = math.sqrt(sum(x * x for x in plain))
        self.assertGreater(length, 1.5)
        for x, y in zip(plain, got["vectors"][0]):
            self.assertAlmostEqual(x / length, y, places=6)
        table = self.nibble("embed", "mini", *texts)[0].splitlines()
        self.assertEqual(len(table), 5)
        self.assertIn("0.7553", table[1])
        self.assertEqual(table[1].split()[-4], "1.0000")
        one = self.nibble("embed", "mini", texts[0])[0]
        self.assertRegex(one, r"^1  8 tokens, 384 numbers: -?0\.\d+.* \.\.\.\n$")

    def test_files(self):
        file = self.daemon.file("text", b"one\r\n\ntwo words\nlast without a newline")
        got = self.json("embed", "mini", "--file", file)
        self.assertEqual(got["tokens"], [3, 2, 4, 7])
        piped = self.nibble("embed", "mini", "--file", "-", "--json", text=file.read_text())[0]
        self.assertEqual(json.loads(piped), got)
        self.assertEqual(self.json("embed", "mini", "one", "", "two words", "last without a newline"), got)
        self.assertEqual(len(self.nibble("embed", "mini", "--file", self.lines(20))[0].splitlines()), 20)
        self.assertIn("no text", self.fails("embed", "mini", "--file", "/dev/null"))

    def test_batches(self):
        """Alone as in a batch of 32 and in one of hundreds, by either model."""
        for model, width in (("mini", WIDTH), ("small", SMALL)):
            file = self.lines(200)
            texts = file.read_text().split("\n")
            all_of_them = self.bytes_of(self.raw(model, "--file", file))
            self.assertEqual(len(all_of_them), 200 * width * 4)
            self.assertEqual(self.bytes_of(self.raw(model, *texts[32:64])), all_of_them[32 * width * 4:64 * width * 4])
            self.assertEqual(self.bytes_of(self.raw(model, texts[77])), all_of_them[77 * width * 4:78 * width * 4])

    def test_the_worker_is_killed(self):
        file = self.lines(MANY)
        whole = self.bytes_of(self.raw("mini", "--file", file))
        for _ in range(2):
            process = self.begun(file)
            self.assertEqual(self.json("status")["jobs"], 1)
            os.kill(self.daemon.server(), signal.SIGKILL)
            self.assertTrue(self.bytes_of(process) == whole)
        self.assertEqual(self.json("status")["worker_restarts"], 2)

    def test_clients_at_once(self):
        file, answer = self.lines(MANY // 4), ("run", "small", "Once", "--raw", "--ignore-eos", "-n", "300", "--seed", "3",
                                         "--temp", "0.7")
        alone = {model: self.bytes_of(self.raw(model, "--file", file)) for model in ("mini", "small")}
        story = self.nibble(*answer)[0]
        stream = self.start(*answer)
        running = [(model, self.raw(model, "--file", file)) for model in ("mini", "small", "mini", "small")]
        for model, process in running:
            self.assertTrue(self.bytes_of(process) == alone[model])
        self.assertEqual(self.finish(stream)[0], story)

    def test_a_client_is_killed(self):
        file = self.lines(MANY)
        for _ in range(3):
            process = self.begun(file)
            process.kill()
            process.communicate()
        until(lambda: self.json("status")["jobs"] == 0, "the end of its job")
        self.assertEqual(self.json("status")["worker_restarts"], 0)
        self.bytes_of(self.raw("mini", "Hello"))

    def test_refusals(self):
        vectors_alone = "mini gives vectors of texts and generates none: `nibble embed mini TEXT...`"
        text = self.daemon.file("text", words(300).encode())
        for arguments in (["run", "mini", "Hello"], ["render", "mini", "Hello"], ["bench", "mini"],
                          ["eval", "mini", "--text", text, "--ctx", "64"]):
            self.assertIn(vectors_alone, self.fails(*arguments))
        self.assertIn("use nibble embed", self.fails("run", "mini", "Hello", "--raw"))
        too_long = "word " * LONGEST
        self.assertIn("514 tokens are more than the 512", self.fails("embed", "mini", too_long))
        self.assertIn("text 2: ", self.fails("embed", "mini", "ok", too_long))
        self.assertEqual(self.json("embed", "mini", too_long, "--truncate")["tokens"], [LONGEST + 2])
        self.assertEqual(self.bytes_of(self.raw("mini", too_long, "--truncate")),
                         self.bytes_of(self.raw("mini", "word " * (LONGEST - 2))))
        self.assertIn("a text without a token", self.fails("embed", "small", ""))
        self.assertIn("nosuch", self.fails("embed", "nosuch", "Hello"))
        for arguments in (["embed", "mini"], ["embed", "mini", "a", "--file", "b"], ["embed", "mini", "a", "--raw", "--json"]):
            self.fails(*arguments, status=2)


class Rings(EmbedTest):
    def setUp(self):
        super().setUp()
        self.client = self.daemon.client()
        self.addCleanup(self.client.close)
        self.channel = self.client.open_channel("small")
        self.addCleanup(self.channel.close)
        self.ring = Ring(self.channel)

    def register(self, fd, size=1 << 20, flags=0):
        packet = self.client.call(REGISTER, struct.pack("<IIQQ", self.channel.id, flags, 0, size), [fd])
        return struct.unpack_from("<II", packet.data, 16)[1]

    def batch(self, n=4, out=(65536, 0), tokens=5, flags=IDS, at=4096):
        """Writes n texts of so many ids; the descriptor of them."""
        self.ring.write(at, struct.pack(f"<{n * tokens}i", *(i * 7 % 250 for i in range(n * tokens))))
        lengths = at + (n * tokens * 4 + 7) // 8 * 8
        self.ring.write(lengths, struct.pack(f"<{n}I", *[tokens] * n))
        return struct.pack("<QQQQ", at, n * tokens * 4, lengths, lengths + n * 4) + place(*out) + struct.pack("<II", n, flags)

    def at(self, offset, n):
        return self.ring.map[ARENA_OFFSET + offset:ARENA_OFFSET + offset + n]

    def test_regions(self):
        fd = memory()
        shared, region = mmap.mmap(fd, 1 << 20), self.register(fd)
        self.assertEqual(self.ring.run(EMBED, self.batch()), 0)
        self.assertEqual(self.ring.run(EMBED, self.batch(out=(8192, region))), 0)
        self.assertEqual(shared[8192:8192 + 4 * SMALL * 4], self.at(65536, 4 * SMALL * 4))
        end = (1 << 20) - 4 * SMALL * 4
        self.assertEqual(self.ring.run(EMBED, self.batch(out=(end, region))), 0)
        read_only = self.register(memory(), flags=1)
        constant = self.register(memory(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | SEAL_WRITE))
        for out in ((end + 4, region), (2, region), (2**64 - 4, region), (0, read_only), (0, constant), (0, 99)):
            self.assertEqual(self.ring.run(EMBED, self.batch(out=out)), EFAULT, out)
        self.client.call(UNREGISTER, struct.pack("<II", self.channel.id, region))
        self.assertEqual(self.ring.run(EMBED, self.batch(out=(0, region))), EFAULT)

    def test_unregister_while_running(self):
        for _ in range(5):
            region = self.register(memory(8 << 20), 8 << 20)
            job = self.ring.submit(EMBED, self.batch(n=2000, tokens=20, out=(0, region)))
            self.client.call(UNREGISTER, struct.pack("<II", self.channel.id, region))
            name, status = self.ring.done()
            self.assertEqual(name, job)
            self.assertIn(status, (0, E_CANCELLED, EFAULT))
        self.assertEqual(self.ring.run(EMBED, self.batch()), 0)

    def test_overlaps(self):
        """Results that are written over the job's own input, lengths and counts: the input was copied before."""
        self.assertEqual(self.ring.run(EMBED, self.batch()), 0)
        right = self.at(65536, 4 * SMALL * 4)
        self.assertEqual(self.ring.run(EMBED, self.batch(out=(4096, 0))), 0)
        self.assertEqual(self.at(4096, 4 * SMALL * 4), right)
        self.assertEqual(self.ring.run(EMBED, self.batch(out=(0, 0))), 0)
        self.assertEqual(self.at(0, 4 * SMALL * 4), right)

    def test_any_descriptor(self):
        region, rng = self.register(memory()), random.Random(20261128)
        interesting = [0, 1, 2, 4, 8, 4096, 65536, 1 << 20, (4 << 20) - 4, 4 << 20, region, 2**31, 2**32 - 1]
        answers = set()
        for _ in range(2000):
            base = bytearray(self.batch(out=rng.choice(((65536, 0), (0, region)))))
            for _ in range(rng.randrange(0, 4)):
                struct.pack_into("<I", base, rng.randrange(0, 14) * 4, rng.choice(interesting))
            answers.add(self.ring.run(EMBED, bytes(base)))
        self.assertIn(0, answers)
        self.assertTrue(answers <= {0, EINVAL, EFAULT, E_CONTEXT, E_QUOTA, -7}, answers)  # -7: E2BIG
        self.assertEqual(self.ring.run(EMBED, self.batch()), 0)

    def test_changing_memory(self):
        """Texts, lengths and counts that change under the worker."""
        rng = random.Random(3)
        for _ in range(40):
            job = self.ring.submit(EMBED, self.batch(n=200, tokens=20))
            for _ in range(30):
                self.ring.write(rng.randrange(4096, 60000), rng.randbytes(64))
            name, status = self.ring.done()
            self.assertEqual(name, job)
            self.assertIn(status, (0, EINVAL))  # of the lengths or ids that were there
        self.assertEqual(self.ring.run(EMBED, self.batch()), 0)
        self.assertEqual(self.json("status")["worker_restarts"], 0)


if __name__ == "__main__":
    unittest.main()
