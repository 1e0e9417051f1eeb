"""kill -9 of the worker, family by family: a small model of each (families.py) generates, greedily and by chance, and embeds,
while the worker of them all dies twice; tokens, log-probabilities and vectors are those of answers that nothing disturbed.

usage: test_recovery.py LIBNIBBLE    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import ctypes as c
import dataclasses
import os
import pathlib
import signal
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import families  # noqa: E402
import harness  # noqa: E402
import libnibble as nb  # noqa: E402

LIBRARY = sys.argv[1]
CONTEXT, TOKENS = 256, 200
DEATHS = [10, 30]  # tokens of the first stream before each
SAMPLINGS = [{}, {"temperature": 0.9, "top_k": 40, "seed": 11}]
CONFIG = """[limits]
channel-bytes-per-user = 1000000000
[supervision]
backoff = 0.01
"""


def first_cases():
    """{family: its first case, with a context that is long enough}"""
    found = {}
    for case in families.CASES:
        longer = case if case.embeds else dataclasses.replace(case, keys={**case.keys, "context_length": CONTEXT})
        found.setdefault(case.family, longer)
    return found


class Recovery(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cases = first_cases()
        cls.daemon = harness.Daemon(CONFIG, os.environ["NIBBLE_TEST_WORKER"])
        cls.sessions = []
        with cls.daemon.admin() as admin:
            for family, case in cls.cases.items():
                path = families.write(cls.daemon.file("model.gguf", b""), case, families.weights(case))
                admin.load(family, path, device="cpu", precision="exact")

    @classmethod
    def tearDownClass(cls):
        for session in cls.sessions:
            session.close()
        status, log = cls.daemon.finish()
        assert status == 0, log

    def session(self, family):
        session = nb.Session(LIBRARY, self.daemon.runtime / "nibble.sock", family)
        self.sessions.append(session)
        return session

    def kill(self):
        os.kill(self.daemon.server(), signal.SIGKILL)

    def test_streams(self):
        ids = [token % 256 for token in families.tokens()[2]]
        streams = [(family, self.session(family), options) for family, case in self.cases.items() if not case.embeds
                   for options in SAMPLINGS]
        self.assertGreaterEqual(len(streams), 26)
        whole = []
        for _, session, options in streams:
            stream = nb.Stream(session, ids, TOKENS, **options).read()
            whole.append(stream.answer)
            stream.free()
        again = [nb.Stream(session, ids, TOKENS, **options) for _, session, options in streams]
        for n in DEATHS:
            again[0].read(n)
            self.kill()
        for (family, _, options), stream, answer in zip(streams, again, whole):
            with self.subTest(family, **options):
                self.assertEqual(len(answer), TOKENS)
                self.assertEqual(stream.read().answer, answer)
            stream.free()
        # How far the worker is ahead of this process, nobody says: some may have been done before the second death.
        self.assertGreaterEqual(sum(stream.moves for stream in again), len(streams))

    def test_vectors(self):
        session, deaths = self.session("bert"), []

        def on_progress(_, done, n):
            if done < n and len(deaths) < len(DEATHS):
                deaths.append(done)
                self.kill()
            return 0

        texts = [families.tokens()[0][i % 7:20 + i % 80].tolist() for i in range(200)]
        whole, _ = session.embed(texts)
        progress = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_size_t, c.c_size_t)(on_progress)
        again, _ = session.embed(texts, progress=c.cast(progress, c.c_void_p))
        self.assertEqual(len(deaths), len(DEATHS))
        self.assertEqual(again.tobytes(), whole.tobytes())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
