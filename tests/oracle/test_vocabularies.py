#!/usr/bin/env python3
"""Every pre-tokenizer, SentencePiece and every family of chat templates against llama-cpp-python, on small vocabularies.

The vocabularies are trained here, across all boundaries between words, so that a piece cut in another place changes
ids. Usage: test_vocabularies.py FILTER [NAME], the program built from tokens.c, and one pre-tokenizer alone.
"""
import ctypes
import pathlib
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

from tokens_filter import TEXT, Filter
from tokens_text import broken, mixture

FAMILIES = """default gpt-2 smollm llama-bpe dbrx chatglm-bpe glm4 qwen2 qwen35 ufakzeka laguna minicpm5 deepseek-llm
deepseek-coder deepseek-v3 spark2_5 falcon poro-chat viking tekken gpt-4o granite-embed-multi-97m bailingmoe seed-coder
exaone-moe chameleon""".split()
SYNONYMS = """phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais trillion
granite-docling exaone4 starcoder refact command-r codeshell exaone minerva-7b mellum2 llama3 llama-v3 falcon3 falcon-h1
pixtral midm-2.0 lfm2 smaug-bpe glm5 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2
hunyuan-dense joyai-llm hy_v4 bloom gpt3-finnish llama4 kanana2 talkie minimax-m2 bailingmoe2 llada-moe""".split()
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
TEMPLATES = {
    "chatml": "<|im_start|>", "phi-4": "<|im_start|><|im_sep|>", "llama-2": "[INST] <<SYS>>", "mistral": "[INST]",
    "mistral-v1": "' [INST] ' + system_message", "mistral-v3": "'[INST]' [AVAILABLE_TOOLS]",
    "mistral-v3-tekken": "\"[INST]\" [AVAILABLE_TOOLS]", "mistral-v7": "[INST] [SYSTEM_PROMPT]",
    "phi-3": "<|assistant|> <|end|>", "glm-4": "[gMASK]<sop>", "zephyr": "<|user|> <|endoftext|>",
    "gemma": "<start_of_turn>", "openchat": "GPT4 Correct ", "command-r": "<|START_OF_TURN_TOKEN|> <|USER_TOKEN|>",
    "llama-3": "<|start_header_id|> <|end_header_id|>", "llama-4": "<|header_start|> <|header_end|>",
    "deepseek-v3": "<｜Assistant｜> <｜User｜> <｜end▁of▁sentence｜>",
    "deepseek-v2": "'Assistant: ' + message['content'] + eos_token", "granite": "<|start_of_role|> <|end_of_role|>",
    "falcon-3": "<|assistant|> <|user|> </s>",
}
CHAT = [("system", "Be brief. "), ("user", " Hello\n"), ("assistant", "Hi, you!"), ("user", "What?")]
failures = 0


def check(what, good):
    global failures
    if not good:
        failures += 1
        print(f"FAILED: {what}")


def train(symbols, n):
    """Merges of the most frequent neighbours in a list of strings: (left, right), in order."""
    names = sorted(set(symbols))
    number = {name: i for i, name in enumerate(names)}
    ids = np.array([number[s] for s in symbols], dtype=np.int64)
    merges = []
    while len(merges) < n:
        pairs, counts = np.unique(ids[:-1] << 32 | ids[1:], return_counts=True)
        used = set()
        for pair in pairs[np.argsort(-counts, kind="stable")][:60]:
            left, right = int(pair >> 32), int(pair & 0xffffffff)
            joined = names[left] + names[right]
            if joined in number or left in used or right in used or len(joined) > 40:
                continue
            used |= {left, right}
            number[joined] = len(names)
            names.append(joined)
            merges.append((names[left], names[right]))
            at = np.flatnonzero((ids[:-1] == left) & (ids[1:] == right))
            at = at[np.concatenate(([True], np.diff(at) > 1))] if len(at) else at
            ids[at] = number[joined]
            ids = np.delete(ids, at + 1)
    return merges[:n]


def alphabet():
    plain = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def training_text():
    return mixture(11, 6000) + b"".join(p.read_bytes()[:600] for p in sorted(TEXT.glob("languages/*.txt")))


def samples():
    languages = b"".join(p.read_bytes()[2000:4500] for p in sorted(TEXT.glob("languages/*.txt")))
    return {"mixture": mixture(12, 6000), "languages": languages, "broken": broken(13, 4000),
            "digits": b" ".join(b"%d" % (7 ** i) for i in range(1, 60)), "quotes": b"I'LL don'T we'Ve 'S''s x'd\r\n'RE " * 20}


def write(path, model, tokens, types, scores=None, merges=None, pre=None, template=None, **bools):
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
    if template:
        w.add_chat_template(template)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    for key, value in bools.items():
        w.add_bool(f"tokenizer.ggml.{key}", value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


class Theirs:
    def __init__(self, path):
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text, special=False):
        ids = (llama_cpp.llama_token * (3 * len(text) + 16))() # a replacement is three bytes
        n = llama_cpp.llama_tokenize(self.vocab, text, len(text), ids, len(ids), False, special)
        return ids[:n]

    def add_bos(self):
        return llama_cpp.llama_vocab_get_add_bos(self.vocab)

    def close(self):
        llama_cpp.llama_model_free(self.model)


def compare(program, path, name, texts):
    theirs = Theirs(path)
    with Filter(program, path) as ours:
        for what, text in texts.items():
            for special in (False, True):
                check(f"{name}: {what}, special {special}", ours.encode(text, special) == theirs.encode(text, special))
        check(f"{name}: add_bos", ours.info()["add_bos"] == theirs.add_bos())
    theirs.close()


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


def their_text(template):
    chat = (llama_cpp.llama_chat_message * len(CHAT))()
    for i, (role, content) in enumerate(CHAT):
        chat[i] = llama_cpp.llama_chat_message(role=role.encode(), content=content.encode())
    buffer = ctypes.create_string_buffer(4096)
    n = llama_cpp.llama_chat_apply_template(template.encode(), chat, len(CHAT), True, buffer, len(buffer))
    return buffer.raw[:n]


def templates(program, folder):
    letters = alphabet().values()
    tokens = ["<unk>", "<s>", "</s>", *letters]
    types = [UNKNOWN, CONTROL, CONTROL] + [NORMAL] * len(letters)
    for name, template in TEMPLATES.items():
        path = folder / "chat.gguf"
        write(path, "gpt2", tokens, types, merges=["a b"], pre="gpt-2", template=template)
        expected = their_text(template)
        if name == "deepseek-v2":  # llama.cpp writes one model's EOS token; we write the model's own
            expected = expected.replace("<｜end▁of▁sentence｜>".encode(), b"</s>")
        with Filter(program, path) as ours:
            check(f"chat template {name}: {ours.render(CHAT)} != {expected}", ours.render(CHAT) == expected)


def main():
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    program, only = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as folder:
        pre_tokenizers(program, pathlib.Path(folder), only)
        if not only:
            sentencepiece(program, pathlib.Path(folder))
            templates(program, pathlib.Path(folder))
    sys.exit(failures > 0)


main()
