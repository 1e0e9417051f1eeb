"""`nibble distill --vocabulary`: the student has the tokens that its text uses, numbered anew, with their rows; llama.cpp loads the
file, writes the text with the same tokens and any other text so that it comes back, and has the held-out loss and divergence that
are told: the teacher's probabilities are of what is kept.

usage: test_vocabulary.py NIBBLE MAKE-GGUF    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import ctypes
import sys
import unittest

from training import Trainings, case_of

import families
import gguf
import llama
import llama_cpp as ll
import numpy as np
from measures import log_softmax
from tokens_trained import alphabet, train

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
CASE = case_of("llama", L=2)
SPECIAL = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<|a|>": CONTROL, "<u>": USER}
WORDS = "the cat sat on a mat while other cats were sitting near the door and the dogs ate all the meat at noon".split()
BOOK = " ".join(WORDS[i] + "s" * int(i % 3 == 0) for i in np.random.default_rng(6).integers(0, len(WORDS), 1500))
LEARNT = BOOK[:3000].replace("d", "n")  # without tokens of other letters
OTHER = "Wizards quickly jinxed the cats, at 27 °C \u2014 \u732b\u306f\u5bdd\u308b \U0001f408\n\tdogs and doors."


def byte_level(writer, case):
    letters = alphabet()
    merges = train([letters[b] for b in BOOK.encode()], 120)
    tokens = dict.fromkeys([*letters.values(), *(a + b for a, b in merges), *SPECIAL])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(tokens))
    writer.add_token_types([SPECIAL.get(t, NORMAL) for t in tokens])
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    writer.add_bos_token_id(list(tokens).index("<s>"))
    writer.add_eos_token_id(list(tokens).index("</s>"))
    return list(tokens)


def sentencepiece(writer, case):
    text = BOOK.replace(" ", "\u2581")
    merges = train(list(text), 120)
    special = SPECIAL | {f"<0x{b:02X}>": BYTE for b in range(256)}
    tokens = dict.fromkeys([*special, *(a + b for a, b in merges), *sorted(set(text))])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(tokens))
    writer.add_token_types([special.get(t, NORMAL) for t in tokens])
    writer.add_add_bos_token(False)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    return list(tokens)


class Silent:
    """A writer that writes nothing: for the tokens alone."""

    def __getattr__(self, name):
        return lambda *args: None


def text_of(model, ids):
    ids = np.asarray(ids, np.int32)
    buffer = ctypes.create_string_buffer(8 * len(ids) + 4096)
    n = ll.llama_detokenize(model.vocab, ids.ctypes.data_as(ctypes.POINTER(ll.llama_token)), len(ids), buffer, len(buffer), False, False)
    return buffer.raw[:n].decode()


def contents(path):
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer")}
    return fields, {t.name: np.array(t.data).reshape(t.shape[::-1]) for t in reader.tensors}


class Vocabulary(Trainings):
    def make(self, tokenizer):
        """The model's file lies in self.path / "whole.gguf"."""
        arrays, random = families.weights(CASE), np.random.default_rng(9)
        n = len(tokenizer(Silent(), CASE))
        for name in ("token_embd.weight", "output.weight"):
            if name in arrays:
                arrays[name] = random.normal(0, 0.3, (n, CASE.size["E"])).astype(np.float32)
        metadata = {**families.keys(CASE), "vocab_size": n}
        families.write(self.path / "whole.gguf", CASE, arrays, metadata, tokenizer=tokenizer)
        self.text.write_text(LEARNT)
        return self.path / "whole.gguf"

    def cut(self, model, vocabulary, *words):
        return self.distill(model, "--text", self.text, "--length", "32", "--held-out", "1", "--to", "F32", "--vocabulary", vocabulary,
                            *words)

    def check(self, model, report, most):
        """The student beside the whole model; and which of its tokens it has."""
        (was, weights), (now, kept) = contents(model), contents(self.path / "student.gguf")
        texts, left = was["tokenizer.ggml.tokens"], now["tokenizer.ggml.tokens"]
        of = [texts.index(t) for t in left]
        self.assertEqual(of, sorted(of))
        self.assertEqual(report["vocabulary"], {"tokens": len(of), "of": len(texts)})
        self.assertLessEqual(len(of), most)
        for key in ("token_type", "scores"):
            if f"tokenizer.ggml.{key}" in was:
                self.assertEqual(now[f"tokenizer.ggml.{key}"], [was[f"tokenizer.ggml.{key}"][i] for i in of])
        for name, x in kept.items():
            whole = weights[name]
            np.testing.assert_array_equal(x, whole[of] if name in ("token_embd.weight", "output.weight") else whole, name)
        for role in ("bos", "eos"):
            key = f"tokenizer.ggml.{role}_token_id"
            self.assertEqual(left[now[key]], texts[was.get(key, 1 if role == "bos" else 2)])
        self.assertLessEqual({*SPECIAL}, {*left})
        return of

    def test_what_is_kept(self):
        for tokenizer in (byte_level, sentencepiece):
            with self.subTest(tokenizer.__name__):
                model = self.make(tokenizer)
                report = self.cut(model, "1/1", "--tokens", "0")
                whole, student = llama.Model(model), llama.Model(self.path / "student.gguf")
                of = self.check(model, report, whole.vocab_size - 20)
                # The text's tokens are what they were, any other text comes back, and nothing that is dropped was used.
                used = whole.tokenize(LEARNT)
                self.assertEqual([of[i] for i in student.tokenize(LEARNT)], used.tolist())
                for text in (OTHER, BOOK[3000:]):
                    self.assertEqual(text_of(student, student.tokenize(text)).strip(), text.strip())
                student.close()
                least = self.cut(model, str(len(of) - 12), "--tokens", "0")
                few = self.check(model, least, len(of) - 12)
                self.assertLess({*few}, {*of})
                student = llama.Model(self.path / "student.gguf")
                for text in (OTHER, LEARNT):
                    self.assertEqual(text_of(student, student.tokenize(text)).strip(), text.strip())
                student.close()
                whole.close()
                self.refused("a vocabulary of 40 tokens is not to be had: control, byte and special tokens are", model, "--text",
                             self.text, "--length", "32", "--held-out", "1", "--vocabulary", "40")

    def test_beside_llama_cpp(self):
        """Of a student of one layer: before it is trained its loss of the held-out window, and how far it is from what the
        teacher says of the tokens that are kept, are those of llama.cpp's logits; and it learns."""
        for tokenizer in (byte_level, sentencepiece):
            with self.subTest(tokenizer.__name__):
                model = self.make(tokenizer)
                self.cut(model, "0.95", "--tokens", "0", "--layers", "1", "--layers-by", "evenly")
                of = self.check_rows(model)
                report = self.cut(model, "0.95", "--tokens", "20000", "--layers", "1", "--layers-by", "evenly", "--rate", "0.003", "--batch", "512")
                before, after = report["held_out"]["before"], report["held_out"]["after"]
                self.assertLess(after["divergence"], before["divergence"])
                self.assertGreater(report["curve"][0]["norm"], 0)
                student = llama.Model(self.path / "student.gguf")
                tokens = student.tokenize(LEARNT)
                student.close()
                windows = len(tokens) // 32
                at = windows // 2 * (len(tokens) - 32) // (windows - 1)
                window = tokens[at:][:32]
                q = log_softmax(llama.logits_of(self.path / "student.gguf", window))
                p = log_softmax(llama.logits_of(model, np.array(of, np.int32)[window])[:, of])
                self.assertAlmostEqual(after["loss"], -q[np.arange(31), window[1:]].mean(), delta=2e-3)
                self.assertAlmostEqual(after["divergence"], (np.exp(p) * (p - q)).sum(axis=1).mean(), delta=2e-3)

    def check_rows(self, model):
        texts = contents(model)[0]["tokenizer.ggml.tokens"]
        return [texts.index(t) for t in contents(self.path / "student.gguf")[0]["tokenizer.ggml.tokens"]]

    def test_refusals(self):
        encoder = self.path / "encoder.gguf"
        families.write(encoder, case_of("bert"), families.weights(case_of("bert")))
        self.text.write_text("1 2 3\n" * 200)
        self.refused('a tokenizer of the kind "bert" is not cut', encoder, "--text", self.text, "--vocabulary", "1/2")
        self.refused('beside a whole model as it is', self.model, "--text", self.long, "--vocabulary", "1/2", "--adapter-rank", "2")
        self.refused("--vocabulary many: a number", self.model, "--text", self.long, "--vocabulary", "many")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
