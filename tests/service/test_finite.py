"""Models whose weights are numbers and whose results are none, from the command line: every verb that computes ends with
status 1 and says so, and nothing that looks like a result is printed."""
import os
import subprocess

from test_cli import CliTest


class Finite(CliTest):
    def setUp(self):
        super().setUp()
        self.text = self.daemon.file("text", b"The quick brown fox jumps over the lazy dog. " * 20)
        for name, words in (("good", ["1"]), ("loud", ["1", "blk.1.ffn_norm.weight", "1e30"])):
            path = self.daemon.file(name + ".gguf", b"")
            subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", path, "Q8_0", *words], check=True)
            self.nibble("load", path, "--name", name)

    def refuses(self, *words):
        out, err = self.nibble(*words, status=1)
        self.assertEqual(out.strip(), "")
        self.assertIn("error: ", err)
        return err

    def test_run(self):
        for words in ([], ["--temp", "0"], ["--temp", "1", "--top-k", "40"], ["--json"]):
            self.refuses("run", "loud", "Hello", "--raw", "--max-tokens", "4", *words)
        self.nibble("run", "good", "Hello", "--raw", "--max-tokens", "4")

    def test_eval(self):
        how = ("--text", self.text, "--ctx", "64")
        for words in ([], ["--json"]):
            self.assertIn("the model", self.refuses("eval", "loud", *how, *words))
            self.assertIn("the model", self.refuses("eval", "loud", *how, "--reference", "good", *words))
            self.assertIn("the reference", self.refuses("eval", "good", *how, "--reference", "loud", *words))
        self.assertEqual(self.json("eval", "good", *how, "--reference", "good")["kld_mean"], 0)
