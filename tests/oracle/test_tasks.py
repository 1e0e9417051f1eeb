"""tools/tasks: the same seed gives the same bytes, and its answers are WordNet's own, read here by another way.

usage: test_tasks.py TASKS
"""
import importlib.machinery
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ITEMS = 60


def load(path):
    loader = importlib.machinery.SourceFileLoader("tasks", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("tasks", loader))
    loader.exec_module(module)
    return module


class Tasks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        tasks = load(pathlib.Path(sys.argv[1]))
        fetch_text = tasks.sibling("fetch-text")
        cls.text, scratch = fetch_text.TEXT, tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.folder = pathlib.Path(scratch.name)
        subprocess.run(["dpkg", "-x", fetch_text.fetch("wordnet-base", fetch_text.CACHE / "debs"), cls.folder], check=True)
        cls.wordnet = cls.folder / "usr/share/wordnet"
        for name, seed in (("one", 1), ("same", 1), ("other", 2)):
            (cls.folder / name).mkdir()
            tasks.build(cls.folder / name, cls.wordnet, cls.text, ITEMS, seed)

    def items(self, name):
        return [json.loads(line) for line in (self.folder / "one" / name).read_text().splitlines()]

    def test_seed(self):
        for name in ("definitions.jsonl", "last-words.jsonl", "sentences.jsonl", "passages.txt"):
            one, same, other = ((self.folder / f / name).read_bytes() for f in ("one", "same", "other"))
            self.assertEqual(one, same, name)
            self.assertNotEqual(one, other, name)

    def test_definitions(self):
        words = {}  # {a definition's beginning, to its first semicolon: the words of all that begin so}
        for kind in ("noun", "verb"):
            for line in (self.wordnet / f"data.{kind}").read_text().lower().splitlines():
                data, _, gloss = line.partition("| ")
                words.setdefault(gloss.split(";")[0].strip(), set()).update(data.split())
        items = self.items("definitions.jsonl")
        self.assertEqual(len(items), ITEMS)
        self.assertEqual({item["answer"] for item in items}, {0, 1, 2, 3})
        for item in items:
            word = re.search(r'"(?:to )?(\w+)"', item["question"])[1]
            holds = [word in words[choice.lower().split(";")[0].strip()] for choice in item["choices"]]
            self.assertEqual(holds, [i == item["answer"] for i in range(4)], item)

    def test_last_words(self):
        novel = " ".join((self.text / "novel.txt").read_text().split())
        for item in self.items("last-words.jsonl"):
            self.assertRegex(item["text"], rf"\b{item['last']}\b")
            self.assertIn(f"{item['text']} {item['last']}", novel)

    def test_sentences(self):
        scores = [item["score"] for item in self.items("sentences.jsonl")]
        self.assertGreater(len(scores), ITEMS * 0.8)
        self.assertTrue(0 <= min(scores) < 0.3 and 0.7 < max(scores) < 1)

    def test_passages(self):
        lines = (self.folder / "one" / "passages.txt").read_text().splitlines()
        self.assertEqual((len(lines), len(set(lines))), (10000, 10000))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
