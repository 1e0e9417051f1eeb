#!/usr/bin/env python3
"""Every pre-tokenizer, SentencePiece and WordPiece against llama-cpp-python; WordPiece against `tokenizers` as well.

The vocabularies are small and trained here, across all boundaries between words, so that a piece cut in another place
changes ids; WordPiece's is MiniLM's, and one of all characters. Usage: test_vocabularies.py FILTER [NAME], the program built from tokens.c, and one pre-tokenizer alone.
"""
import pathlib
import sys
import tempfile
import unicodedata

import gguf
import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers as pre_steps

from tokens_filter import MINILM, TEXT, Filter
from tokens_text import broken, canonical, characters, mixture
from tokens_theirs import Theirs
from tokens_trained import alphabet, train

FAMILIES = """default gpt-2 smollm llama-bpe dbrx chatglm-bpe glm4 qwen2 qwen35 ufakzeka laguna minicpm5 deepseek-llm
deepseek-coder deepseek-v3 spark2_5 falcon poro-chat viking tekken gpt-4o granite-embed-multi-97m bailingmoe seed-coder
exaone-moe chameleon""".split()
SYNONYMS = """phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais trillion
granite-docling exaone4 starcoder refact command-r codeshell exaone minerva-7b mellum2 llama3 llama-v3 falcon3 falcon-h1
pixtral midm-2.0 lfm2 smaug-bpe glm5 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2
hunyuan-dense joyai-llm hy_v4 bloom gpt3-finnish llama4 kanana2 talkie minimax-m2 bailingmoe2 llada-moe""".split()
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
failures = 0


def check(what, good):
    global failures
    if not good:
        failures += 1
        print(f"FAILED: {what}")


def training_text():
    return mixture(11, 6000) + b"".join(p.read_bytes()[:600] for p in sorted(TEXT.glob("languages/*.txt")))


def samples():
    languages = b"".join(p.read_bytes()[2000:4500] for p in sorted(TEXT.glob("languages/*.txt")))
    return {"mixture": mixture(12, 6000), "languages": languages, "broken": broken(13, 4000),
            "digits": b" ".join(b"%d" % (7 ** i) for i in range(1, 60)), "quotes": b"I'LL don'T we'Ve 'S''s x'd\r\n'RE " * 20}


def write(path, model, tokens, types, scores=None, merges=None, pre=None, **bools):
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model(model)
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    if scores is not None:
        w.add_token_scores(scores)
    if merges is not None:
        w.add_token_merges(merges)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    for key, value in bools.items():
        w.add_bool(f"tokenizer.ggml.{key}", value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def compare(program, path, name, texts):
    with Filter(program, path) as ours, Theirs(path) as theirs:
        for what, text in texts.items():
            for special in (False, True):
                check(f"{name}: {what}, special {special}", ours.encode(text, special) == theirs.encode(text, special))
        check(f"{name}: add_bos", ours.info()["add_bos"] == theirs.add_bos())


def pre_tokenizers(program, folder, only):
    letter = alphabet()
    merges = train([letter[b] for b in training_text()], 1500)
    special = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<|a|>": CONTROL, "<u>": USER, "    \n": USER}
    tokens = dict.fromkeys([*special, *letter.values(), *(a + b for a, b in merges)])
    types = [special.get(t, NORMAL) for t in tokens]
    texts = samples()
    texts["special"] = b"x <s><u>  <|a|> </s>y    \n<u><<u>>    \n\n<s"
    for name in [only] if only else FAMILIES + SYNONYMS:
        path = folder / "bpe.gguf"
        write(path, "gpt2", list(tokens), types, merges=[f"{a} {b}" for a, b in merges], pre=name)
        compare(program, path, name, texts if name in FAMILIES else {"mixture": mixture(14, 1500)})


def sentencepiece(program, folder):
    text = training_text().decode(errors="replace").replace(" ", "▁")
    merges = train(list(text), 1200)
    special = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<|a|>": CONTROL, "<u>": USER, "▁▁▁▁": USER, "    ": USER}
    special |= {f"<0x{b:02X}>": BYTE for b in range(256)}
    letters = sorted(set(text))[::2] + list("abcdefghijklmnopqrstuvwxyz▁")
    tokens = dict.fromkeys([*special, *letters, *(a + b for a, b in merges)])
    types = [special.get(t, NORMAL) for t in tokens]
    texts = samples() | {"special": b"x <s><u>  <|a|> </s>y    <u><<u>>     <s", "blank": b"   ", "empty": b""}
    # Scores as they are trained, and few different ones: then the place decides.
    for kind, scores in (("ranks", [-float(i) for i in range(len(tokens))]),
                         ("ties", [float(-(i * 7919 % 5)) for i in range(len(tokens))])):
        for prefix in (True, False):
            path = folder / "spm.gguf"
            write(path, "llama", list(tokens), types, scores=scores, add_space_prefix=prefix)
            compare(program, path, f"sentencepiece, {kind}, prefix {prefix}", texts)


# ---- WordPiece. Where llama.cpp and the original, `tokenizers`, disagree, we go with the original.

MARKS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
# Categories that changed since Unicode 8, which the original knows, and the space of vocabularies.
SINGLE = {0x166D, 0x1734, 0x1885, 0x1886, 0xA9BD, 0x111C9, 0x2581}


def dispute(c):
    """What llama.cpp and the original disagree about in a character, or None."""
    category, decomposed = unicodedata.category(chr(c)), unicodedata.decomposition(chr(c))
    if 0xAC00 <= c < 0xD7A4:
        return "Hangul: llama.cpp keeps the first consonant of a syllable"
    if c in (0xB, 0xC, 0x85):
        return "controls that are white space: they vanish; in llama.cpp they end a word"
    if c in SINGLE:
        return "single characters"
    if category in ("Mc", "Me"):
        return "marks that are no accents: llama.cpp drops them"
    if unicodedata.ucd_3_2_0.category(chr(c)) == "Cn" and category in ("Mn", "Cf", "Cn") or category[0] == "P" and c > 0x60C:
        return "what came after Unicode 8, by category or lower case"
    if decomposed and not decomposed.startswith("<"):
        return "decompositions: llama.cpp keeps the first character; and the dot of U+0130"
    return None


class Original:
    def __init__(self, vocab, lower, strip):
        self.tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
        self.tokenizer.normalizer = normalizers.BertNormalizer(True, True, strip, lower)
        self.tokenizer.pre_tokenizer = pre_steps.BertPreTokenizer()

    def encode(self, text):
        return self.tokenizer.encode(text.decode(), add_special_tokens=False).ids


def write_wordpiece(path, vocab, lower, strip):
    """The file and the original's tokenizer of a list of tokens. lower, strip: as the file says, or None."""
    tokens = [t if t in MARKS else t[2:] if t.startswith("##") else "▁" + t for t in vocab]
    bools = {"normalizer.lowercase": lower, "normalizer.strip_accents": strip}
    w = gguf.GGUFWriter(path, "bert")
    w.add_tokenizer_model("bert")
    w.add_token_list(tokens)
    w.add_token_types([CONTROL if t in MARKS else NORMAL for t in vocab])
    for key, mark in zip(("unknown", "bos", "seperator", "padding", "mask"), MARKS):
        w.add_uint32(f"tokenizer.ggml.{key}_token_id", vocab.index(mark))
    for key, value in bools.items():
        if value is not None:
            w.add_bool(f"tokenizer.ggml.{key}", value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return Original({t: i for i, t in enumerate(vocab)}, lower is not False, strip)


def between(ids, end):
    """The stretches of ids before each `end`."""
    stretches, start = [], 0
    for i, token in enumerate(ids):
        if token == end:
            stretches.append(ids[start:i])
            start = i + 1
    return stretches


def every_character(program, path):
    """Each character inside of a word, with a vocabulary in which every character is two tokens."""
    codes = [c for c in [*range(1, 0xD800), *range(0xE000, 0x33480), *range(0xE0000, 0xE0200)] if c not in (0x7E, 0x2581)]
    vocab = [*MARKS, "▁", *(p + chr(c) for c in [*codes, 0x7E] for p in ("", "##"))]
    text = "".join(f"a{chr(c)}b~" for c in codes + [0x2581]).encode()
    for lower, strip in ((None, None), (False, None), (True, False), (False, True)):
        original = write_wordpiece(path, vocab, lower, strip)
        with Filter(program, path) as ours, Theirs(path) as theirs:
            mine, end = ours.encode(text), vocab.index("~")
            check(f"every character, lower {lower}, strip {strip}", mine == original.encode(text))
            pairs = zip(codes + [0x2581], between(mine, end), between(theirs.encode(text), end))
            disputed = {c: dispute(c) for c, a, b in pairs if a != b}
        unnamed = [hex(c) for c, why in disputed.items() if not why]
        check(f"llama.cpp differs in {unnamed}, lower {lower}, strip {strip}", not unnamed)
        if lower is None:
            print(*sorted(set(disputed.values())), sep="\n")
            check("six reasons", len(set(disputed.values())) == 6)


def wordpiece(program, folder):
    path = folder / "wordpiece.gguf"
    vocab = (MINILM / "vocab.txt").read_text().splitlines()
    files = {p.name: p.read_bytes()[:60000].decode(errors="ignore") for p in sorted(TEXT.glob("languages/*.txt"))}
    texts = files | {"mixture": mixture(15, 6000).decode(), "characters": characters().decode(),
                     "long": " ".join("x" * n for n in range(95, 106)), "empty": "", "blank": " \n"}
    for lower, strip in ((None, None), (False, None), (True, False)):
        original = write_wordpiece(path, vocab, lower, strip)
        with Filter(program, path) as ours, Theirs(path) as theirs:
            for what, text in texts.items():
                name, data = f"wordpiece, lower {lower}, strip {strip}: {what}", text.encode()
                check(name, ours.encode(data) == original.encode(data))
                plain = "".join(c for c in text if not dispute(ord(c))).encode()
                check(name + ", llama.cpp", what == "long" or ours.encode(plain) == theirs.encode(plain))
            data = broken(16, 4000)
            text = "".join(c for c in canonical(data).decode("utf-8", "surrogatepass") if not "\ud800" <= c <= "\udfff")
            check("wordpiece: broken", ours.encode(data) == original.encode(text.encode()))
            data = b"x [CLS]y [MASK]. [SEP"
            check("wordpiece: special", ours.encode(data, True) == theirs.encode(data, True))
            check("wordpiece: whole", ours.encode_whole(b"hello") == theirs.encode(b"hello", ends=True) == [101, 7592, 102])
            ids = range(len(vocab))
            for special in (False, True):
                check("wordpiece: pieces", all(ours.decode([i], special) == theirs.piece(i, special) for i in ids))
            ids = [i for i in ours.encode(files["en-US.txt"].encode()) if vocab[i] != "[UNK]"]
            check("wordpiece: text again", ours.decode(ids)[1:] == original.tokenizer.decode(ids).replace(" ##", "").encode())
    every_character(program, path)


def main():
    program, only = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as folder:
        pre_tokenizers(program, pathlib.Path(folder), only)
        if not only:
            sentencepiece(program, pathlib.Path(folder))
            wordpiece(program, pathlib.Path(folder))
    sys.exit(failures > 0)


main()
