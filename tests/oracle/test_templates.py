#!/usr/bin/env python3
"""Chat templates against jinja2: the same text, or both refuse, and a template's own sentence is the same.

Vendors' templates (tools/fetch-templates) and those of ../shared/cases, each on many conversations, and a table of small
templates. In every rendering no byte of the client's may be the template's own. Usage: test_templates.py FILTER [NAME],
the program built from templates.c, and one template's file alone.
"""
import json
import os
import pathlib
import sys
import tempfile

import gguf

from templates_cases import CONTEXT, CONVERSATIONS, SNIPPETS
from templates_python import TOKENS, Ours, one_line, theirs
from tokens_filter import CACHE

TEMPLATES = pathlib.Path(os.environ.get("NIBBLE_TEMPLATES") or CACHE / "templates")
SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "cases" / "templates.json"
MARK = "Ж"  # stands in every text of the marked conversations; in no template
equal = failures = 0


def check(what, good, counts=False):
    """counts: it is a rendering that is compared."""
    global equal, failures
    equal += good and counts
    if not good:
        failures += 1
        print(f"FAILED: {what}")


def write_model(path):
    names = list(dict.fromkeys([*TOKENS.values(), *(chr(c) for c in range(0x21, 0x7f))]))
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(names)
    w.add_token_types([3 if n in TOKENS.values() else 1 for n in names])
    w.add_token_merges(["a b"])
    for key in ("bos", "eos", "unk", "pad"):
        getattr(w, f"add_{key}_token_id")(names.index(TOKENS[f"{key}_token"]))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def compare(ours, name, template, conversation):
    kind, want = theirs(template, conversation)
    status, parts = ours.render(conversation | {"template": template})
    got = "".join(text for _, text in parts)
    if kind == "text":
        check(f"{name}\n    want {want!r}\n    got  {status} {got!r}", status == 0 and got == want, True)
    elif kind == "raised":
        check(f"{name}: raises {want!r}, not {status} {got!r}", status < 0 and got == one_line(want), True)
    else:
        check(f"{name}: refused by Python ({want}), rendered here: {got!r}", status < 0, True)
    return kind


def vendors(ours, only):
    """Every template on every conversation."""
    files = sorted(TEMPLATES.glob("*.jinja"))
    check("some seventy templates (run tools/fetch-templates)", len(files) >= 60)
    kinds = {"text": 0, "raised": 0, "error": 0}
    for path in files:
        if only and path.name != only:
            continue
        template = path.read_text()
        for name, conversation in CONVERSATIONS.items():
            kinds[compare(ours, f"{path.name}, {name}", template, conversation)] += 1
            tainted(ours, f"{path.name}, {name}", template, conversation)
    return len(files), kinds


def marked(value, key=None):
    """The same conversation with a mark in all its texts, but for those that templates compare."""
    if isinstance(value, dict):
        return {k: marked(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [marked(v, key) for v in value]
    if isinstance(value, str) and key not in ("role", "type"):
        return "".join(MARK + c for c in value) + MARK
    return value


def tainted(ours, name, template, conversation):
    """No text of the client's is the template's own."""
    status, parts = ours.render(marked(conversation) | {"template": template})
    own = "".join(text for literal, text in parts if literal)
    check(f"{name}: the client's text is the template's own in {own!r}", status < 0 or MARK not in own.upper())


def shared(ours):
    cases = json.loads(SHARED.read_text())
    for case in cases:
        for i, c in enumerate(case["conversations"]):
            variables = {k: case[k] for k in TOKENS if k in case}
            status, parts = ours.render({"messages": c["messages"], "template": case["template"], "variables": variables})
            got = "".join(text for _, text in parts)
            good = got == c["want"] if c["error"] is None else status < 0 and got == one_line(c["error"])
            check(f"{case['name']} {i}: {got!r} is not {c['want'] or c['error']!r}", good, True)
    return len(cases)


def snippets(ours):
    for template in SNIPPETS:
        compare(ours, template, template, CONTEXT)
        tainted(ours, template, template, CONTEXT)
    return len(SNIPPETS)


def main():
    program, only = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as folder:
        model = str(pathlib.Path(folder) / "model.gguf")
        write_model(model)
        with Ours(program, model) as ours:
            n, kinds = vendors(ours, only)
            print(f"vendors: {n} templates, {len(CONVERSATIONS)} conversations each: {equal} of {equal + failures} equal "
                  f"({kinds['text']} texts, {kinds['raised']} raised, {kinds['error']} refused)")
            if not only:
                print(f"shared: {shared(ours)} templates")
                print(f"snippets: {snippets(ours)}")
    print(f"{equal} equal, {failures} not")
    sys.exit(failures > 0)


main()
