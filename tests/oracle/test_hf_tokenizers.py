#!/usr/bin/env python3
"""tokenizer.json through our conversion: the same ids as the `tokenizers` package, and as llama.cpp on our GGUF.

Usage: test_hf_tokenizers.py FILTER CONVERT, the programs built from tokens.c and hf_tokenizer.c.
"""
import copy
import json
import pathlib
import subprocess
import sys
import tempfile
import unicodedata

import gguf
from tokenizers import Tokenizer, pre_tokenizers, trainers

from tokens_filter import MINILM, TEXT, Filter
from tokens_text import mixture
from tokens_theirs import Theirs

FILTER, CONVERT = sys.argv[1:3]
failures = 0


def check(what, good):
    global failures
    if not good:
        failures += 1
        print(f"FAILED: {what}")


# ---- Pre-tokenizers as vendors' files have them

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS = BYTES | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = (CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTION + "?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTION + "?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = GPT4O.replace(CONTRACTION + "?", "").replace("{1,3}", "")


def cut(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def steps(*list_):
    return {"type": "Sequence", "pretokenizers": list(list_)}


NFC = {"type": "NFC"}
# normalizer, pre-tokenizer, ignore_merges, and whether llama.cpp's pattern is the vendor's for all characters.
BYTE_LEVEL = {
    "gpt-2": (None, WORDS, False, True),
    "smollm": (None, steps(DIGITS, WORDS), False, True),
    "qwen2": (NFC, steps(cut(QWEN2), BYTES), False, True),
    "qwen35": (NFC, steps(cut(QWEN35), BYTES), False, True),
    "dbrx": (None, steps(cut(LLAMA3, "Removed", True), BYTES), False, True),
    "llama-bpe": (None, steps(cut(LLAMA3), BYTES), True, True),
    "gpt-4o": (None, steps(cut(GPT4O), BYTES), False, False),
    "tekken": (None, steps(cut(TEKKEN), BYTES), True, False),
}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SENTENCEPIECE = {
    "llama": ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACES]}, None),
    "mistral": (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}),
    "never": (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}),
    "gemma": (SPACES, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}),
}


# ---- Folders

def languages(n):
    return {p.name: p.read_text(errors="ignore")[:n] for p in sorted(TEXT.glob("languages/*.txt"))}


def added(content, id_, special=True):
    return {"id": id_, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special}


def document(normalizer, pre, **model):
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": {},
             "merges": []} | model
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": None, "decoder": None, "model": model}


def train(normalizer, pre, size, special, alphabet=()):
    tokenizer = Tokenizer.from_str(json.dumps(document(normalizer, pre)))
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=list(alphabet),
                                  show_progress=False)
    tokenizer.train_from_iterator(languages(20000).values(), trainer)
    return json.loads(tokenizer.to_str())


def convert(folder, rows, files):
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
    out = folder / "out.gguf"
    ran = subprocess.run([CONVERT, folder, str(rows), out], capture_output=True, text=True)
    for name in files:
        (folder / name).unlink()
    return out if ran.returncode == 0 else ran.stderr


def compare(name, path, tokenizer, texts, differ=lambda text: text):
    """differ: what of a text all three read alike."""
    with Filter(FILTER, path) as ours, Theirs(path) as theirs:
        for what, text in texts.items():
            ids, alike = ours.encode(text.encode()), differ(text)
            check(f"{name}: {what}", tokenizer.encode(alike, add_special_tokens=False).ids == ours.encode(alike.encode()))
            check(f"{name}: {what}, llama.cpp", ids == theirs.encode(text.encode()))


def without_marks(text):
    """llama.cpp's patterns of gpt-4o and tekken know no combining marks, and of letters' case that of ASCII."""
    text = "".join(c for c in text if unicodedata.category(c)[0] != "M")
    return text.casefold() if not text.isascii() else text


def byte_level(folder):
    texts = languages(15000) | {"mixture": mixture(21, 4000).decode()}
    texts = {name: unicodedata.normalize("NFC", text) for name, text in texts.items()}
    special = ["<|endoftext|>", "<|im_start|>", "<tool>"]
    for name, (normalizer, pre, whole, exact) in BYTE_LEVEL.items():
        json_ = train(normalizer, pre, 4000, special, pre_tokenizers.ByteLevel.alphabet())
        json_["model"]["ignore_merges"] = whole
        json_["added_tokens"][2]["special"] = False
        path = convert(folder, 4003, {"tokenizer.json": json_})
        tokenizer = Tokenizer.from_str(json.dumps(json_))
        compare(name, path, tokenizer, texts, (lambda text: text) if exact else without_marks)
        known = gguf.GGUFReader(path)
        check(f"{name}: pre", known.fields["tokenizer.ggml.pre"].contents() == name)
        check(f"{name}: tokens", known.fields["tokenizer.ggml.tokens"].contents() ==
              [tokenizer.id_to_token(i) for i in range(4000)] + ["[PAD4000]", "[PAD4001]", "[PAD4002]"])
        check(f"{name}: types", known.fields["tokenizer.ggml.token_type"].contents() == [3, 3, 4] + [1] * 3997 + [5] * 3)


# ---- SentencePiece

def as_converted(json_):
    """The merges that Hugging Face's converter gives a SentencePiece model: all ways to make a token, the best first."""
    vocab = json_["model"]["vocab"]
    score = {token: -id_ for token, id_ in vocab.items()} | {"▁" * n: -1e9 for n in range(2, 17)}
    merges = [(token[:i], token[i:]) for token in vocab for i in range(1, len(token))
              if token[:i] in vocab and token[i:] in vocab]
    merges.sort(key=lambda m: (vocab[m[0]], vocab[m[1]]))
    merges.sort(key=lambda m: (score[m[0] + m[1]], len(m[0]), len(m[1])), reverse=True)
    return merges


def sentencepiece_json():
    special = ["<unk>", "<s>", "</s>"]
    json_ = train(SENTENCEPIECE["llama"][0], None, 4000, special + [f"<0x{b:02X}>" for b in range(256)])
    vocab = json_["model"]["vocab"]
    for n in range(2, 17):
        vocab.setdefault("▁" * n, len(vocab))
    json_["added_tokens"] = [added(token, vocab[token]) for token in special] + [added("<|user|>", len(vocab)),
                                                                              added("<tool>", len(vocab) + 1, False)]
    json_["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "merges": as_converted(json_)}
    return json_


def sentencepiece(folder):
    texts = languages(15000) | {"mixture": "x" + mixture(22, 4000).decode(), "runs": "x" + " " * 301 + "=" * 99 + "  a" * 30}
    json_ = sentencepiece_json()
    for name, (normalizer, pre) in SENTENCEPIECE.items():
        json_ |= {"normalizer": normalizer, "pre_tokenizer": pre}
        path = convert(folder, len(json_["model"]["vocab"]) + 2, {"tokenizer.json": json_})
        compare(name, path, Tokenizer.from_str(json.dumps(json_)), texts)
        types = gguf.GGUFReader(path).fields["tokenizer.ggml.token_type"].contents()
        check(f"{name}: types", types[:4] == [3, 3, 3, 6] and types[-3:] == [1, 3, 4])


def wordpiece(folder):
    texts = languages(60000) | {"mixture": mixture(23, 6000).decode()}
    json_ = json.loads((MINILM / "tokenizer.json").read_text())
    for lower in (True, False):
        json_["normalizer"]["lowercase"] = lower
        path = convert(folder, 30522, {"tokenizer.json": json_})
        tokenizer = Tokenizer.from_str(json.dumps(json_))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        with Filter(FILTER, path) as ours:
            for what, text in texts.items():
                check(f"MiniLM, lower {lower}: {what}", ours.encode_whole(text.encode()) == tokenizer.encode(text).ids)


# ---- What goes with the tokens

def template(*single):
    parts = [{"Sequence": {"id": "A", "type_id": 0}} if s == "A" else {"SpecialToken": {"id": s, "type_id": 0}} for s in single]
    names = {s: {"id": s, "ids": [0], "tokens": [s]} for s in single if s != "A"}
    return {"type": "TemplateProcessing", "single": parts, "pair": parts + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": names}


def metadata(folder):
    """The same keys as python gguf, which llama.cpp's converter asks."""
    json_ = train(None, WORDS, 600, ["<s>", "</s>", "<end>", "<pad>"], pre_tokenizers.ByteLevel.alphabet())
    token = {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "eos_token": "</s>", "chat_template": "{{ 1 }}"}
    cases = {
        "plain": ({}, None, {}),
        "named": (token | {"add_bos_token": True, "add_eos_token": False, "pad_token": "<pad>"}, None, {}),
        "ids": ({"eos_token": "no such"}, None, {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 3}),
        "nested": ({}, None, {"text_config": {"bos_token_id": 0, "eos_token_id": 1}}),
        "before": (token | {"bos_token": "<s>"}, template("<s>", "A"), {}),
        "behind": (token | {"bos_token": "<s>"}, template("<s>", "A", "<end>"), {}),
        "roberta": ({"cls_token": "<s>", "sep_token": "</s>"}, {"type": "RobertaProcessing", "sep": ["</s>", 1],
                    "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": False}, {}),
    }
    for name, (tokenizer_config, post, config) in cases.items():
        files = {"tokenizer.json": json_ | {"post_processor": post}, "tokenizer_config.json": tokenizer_config,
                 "config.json": config}
        ours = gguf.GGUFReader(convert(folder, 600, files)).fields
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content))
        theirs = gguf.SpecialVocab(folder, load_merges=True, n_vocab=600)
        key = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
        wanted = {f"{key.get(k, k)}_token_id": v for k, v in theirs.special_token_ids.items() if k != "cls"}
        wanted |= {f"add_{k}_token": v for k, v in theirs.add_special_token.items()}
        wanted = {"add_bos_token": False, "add_eos_token": False} | wanted
        found = {k.removeprefix("tokenizer.ggml."): f.contents() for k, f in ours.items() if k.startswith("tokenizer.ggml.")}
        merges = found.pop("merges")
        for known in ("model", "pre", "tokens", "token_type"):
            del found[known]
        check(f"{name}: {found}, not {wanted}", found == wanted)
        check(f"{name}: merges", merges == theirs.merges)
        chat = ours.get("tokenizer.chat_template")
        check(f"{name}: template", (chat.contents() if chat else None) == theirs.chat_template)


def refusals(folder):
    bpe = train(None, WORDS, 300, ["<s>"], pre_tokenizers.ByteLevel.alphabet())
    piece = sentencepiece_json()
    word = json.loads((MINILM / "tokenizer.json").read_text())

    def changed(json_, **paths):
        json_ = copy.deepcopy(json_)
        for path, value in paths.items():
            *outer, last = path.split("__")
            inner = json_
            for key in outer:
                inner = inner[key]
            inner[last] = value
        return json_

    trained = train(None, None, 3000, ["<unk>"])["model"]
    cases = {
        "is of type \"Unigram\"": changed(bpe, model__type="Unigram"),
        "has its pre-tokenizer: Cut x+": changed(bpe, pre_tokenizer=cut("x+")),
        "ByteLevel yes yes": changed(bpe, pre_tokenizer=WORDS | {"add_prefix_space": True}),
        "with ignore_merges": changed(bpe, model__ignore_merges=True),
        "which has 299 rows": bpe,
        "id 0 has two tokens": changed(bpe, added_tokens=[added("<t>", 0)]),
        "have the same text": changed(bpe, added_tokens=[added("<s>", 299 - 1)], model__vocab={"<s>": 0}),
        "two tokens become": changed(bpe, added_tokens=[added("<t>", 290), added("<t>", 291)], model__vocab={}),
        "merge 0 names a token that is missing": changed(bpe, model__merges=[["no", "such"]]),
        "merge 0 makes a token that is missing": changed(bpe, model__merges=[["<s>", "<s>"]]),
        "merge 0 is no pair": changed(bpe, model__merges=["a b c"]),
        "has no merges": changed(bpe, model__merges=None),
        "has no vocabulary": changed(bpe, model__vocab=[]),
        "continuing_subword_prefix": changed(bpe, model__continuing_subword_prefix="@@"),
        "dropout": changed(bpe, model__dropout=0.5),
        "in an order that no scores": changed(piece, model__merges=trained["merges"], added_tokens=[],
                                              model__vocab=trained["vocab"]),
        "words of up to 7": changed(word, model__max_input_chars_per_word=7),
        "BertNormalizer no yes": changed(word, normalizer__clean_text=False),
        "is not a JSON object": "[]",
        "line 2": "{\n\"a\": }",
        "duplicate object key": '{"a": 1, "a": 2}',
        "most read": '{"a": [' + "{}," * (1 << 18) + "{}]}",
    }
    for words, json_ in cases.items():
        rows = 299 if "299" in words else 40000
        error = convert(folder, rows, {"tokenizer.json": json_})
        one = isinstance(error, str) and error.count("\n") == 1 and words in error
        check(f"{words}: {error}", one)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        byte_level(folder)
        sentencepiece(folder)
        wordpiece(folder)
        metadata(folder)
        refusals(folder)
    sys.exit(failures > 0)


main()
