"""What devices keep from one start of their worker to the next (with the fake worker): files of the state directory that
only the daemon can touch, taken from a worker bounded and sealed, given back to the next one, and to nobody else's."""
import os
import stat

from harness import *

FAKE = os.environ["NIBBLE_TEST_FAKE_WORKER"]
CONFIG = "[supervision]\nbackoff = 0.01\n"


class CacheTest(ServiceTest):
    worker = FAKE
    config = CONFIG

    def setUp(self):
        super().setUp()
        self.dir = self.daemon.state / "cache"
        self.kept = self.dir / "cpu"

    def load(self, admin, words, name="m"):
        admin.load(name, self.daemon.file("m.gguf", words))

    def serve_once(self, words=b"ok keep"):
        with self.daemon.admin() as a:
            self.load(a, words)
            a.unload("m")
            until(lambda: not [m for _, m in self.daemon.children() if m == "serve"], "the worker's end")

    def mode(self, path):
        return stat.S_IMODE(path.lstat().st_mode)


class Kept(CacheTest):
    def test_from_start_to_start(self):
        self.serve_once()
        self.assertEqual(self.kept.read_bytes(), b"x")
        self.assertEqual([self.mode(p) for p in (self.kept, self.dir, self.dir / "drivers")], [0o600, 0o700, 0o700])
        self.daemon.stop()
        self.daemon.start()
        self.serve_once()
        self.assertEqual(self.kept.read_bytes(), b"xx")
        self.assertEqual(sorted(p.name for p in self.dir.iterdir()), ["cpu", "drivers"])

    def test_what_others_may_change_is_not_used(self):
        self.kept.write_bytes(b"foreign")
        self.kept.chmod(0o622)
        self.serve_once()
        self.assertIn("cache/cpu is not a file of ours alone", self.daemon.logged())
        self.assertEqual((self.kept.read_bytes(), self.mode(self.kept)), (b"x", 0o600))

    def test_links_are_not_followed(self):
        other = self.daemon.file("other", b"precious")
        self.kept.symlink_to(other)
        self.serve_once()
        self.assertEqual((self.kept.read_bytes(), other.read_bytes()), (b"x", b"precious"))

    def test_pipes_are_not_waited_for(self):
        os.mkfifo(self.kept, 0o600)
        self.serve_once()
        self.assertEqual(self.kept.read_bytes(), b"x")


class Hostile(CacheTest):
    def test_what_a_worker_may_not_send(self):
        for word in (b"keep-loose", b"keep-huge", b"keep-pipe", b"keep-none"):
            with self.daemon.admin() as a:
                self.refused(E_LOST, self.load, a, b"ok " + word)
            self.assertFalse(self.kept.exists())
        self.assertEqual(self.daemon.logged().count("which is no message of its: killed"), 4)


class Without(CacheTest):
    """A place that is not ours: said once, and everything else works."""

    def test_said_once(self):
        self.daemon.stop()
        (self.dir / "drivers").rmdir()
        self.dir.rmdir()
        self.dir.write_text("in the way")
        self.daemon.start()
        self.serve_once()
        self.serve_once()
        self.assertEqual(self.dir.read_text(), "in the way")
        self.assertEqual(self.daemon.logged().count("compile their shaders at each start"), 1)


if __name__ == "__main__":
    unittest.main()
