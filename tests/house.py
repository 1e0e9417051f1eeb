"""Keeps the house: floors import only from below, files stay short and say what they are for, words are the glossary's.

Reads the tree alone (docs/architecture.md has the table of floors, docs/glossary.md the words); run from anywhere.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGEST = 600

# What a floor may include, beside itself. tests/ may include anything.
FLOORS = {
    "machine": [],
    "libclient": ["machine/"],
    "tensor/hf": ["tensor/"],
    "tensor": [],
    "tensor/hf": ["tensor/"],
    "engine/text": ["tensor/"],
    "engine": ["machine/", "tensor/", "shaders/abi.h"],
    "grad": ["machine/", "tensor/", "engine/", "shaders/train.h"],
    "quant": ["machine/", "tensor/", "engine/", "grad/"],
    "distill": ["machine/", "tensor/", "engine/", "grad/", "quant/"],
    "daemon/worker": ["machine/", "libclient/", "daemon/", "tensor/", "engine/", "grad/", "quant/", "distill/"],
    "daemon": ["machine/", "libclient/"],
    "tools/report": [],  # figures and charts, of whatever
    "tools": ["libclient/include/nibble.h", "nibble.h",
              "libclient/files.h", "tensor/convert.h", "tensor/fail.h", "tensor/hf/folder.h", "tensor/hf/write.h", "tensor/lessons.h",
              "tensor/type.h"],  # `nibble convert`
}


def files():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


def floor_of(name):
    """The innermost floor that a path lies on, or None."""
    found = [floor for floor in FLOORS if name.startswith(floor + "/")]
    return max(found, key=len, default=None)


def included(text):
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)


def resolve(name, include):
    """An include as a path from the root, where it names one of ours."""
    beside = (ROOT / name).parent / include
    if beside.is_file():
        return str(beside.resolve().relative_to(ROOT))
    return include


def loop_macros():
    """The loop macros that .clang-format knows; it misindents the bodies of others."""
    text = (ROOT / ".clang-format").read_text()
    return set(re.findall(r"^  - (\w+)$", text, re.MULTILINE))


# Rooms where a word of the glossary may still mean something else: Jinja has operators, ONNX an op MatMul, and so on.
UNCLEAN = ("engine/", "shaders/", "quant/onnx/", "tests/", "docs/glossary.md", "docs/numbers.md")


def refused_words():
    """The words in `code` of the glossary's columns *not*, each with the word to use instead."""
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    words = {}
    for right, wrong in rows:
        for word in re.findall(r"`([^`]+)`", wrong):
            words[word] = f"{words[word]} or {right}" if word in words else right
    return words


def wrong_words(name, text):
    if name.startswith(UNCLEAN):
        return
    for word, right in refused_words().items():
        if re.search(rf"(?<![a-z]){word}s?(?![a-z])", text, re.IGNORECASE):
            yield f'says "{word}": docs/glossary.md calls it {right}'


def broken_links(name, text):
    for link in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in link and not (ROOT / name).parent.joinpath(link).exists():
            yield f"links to {link}, which is not there"


def complaints(name, text):
    lines = text.count("\n")
    if lines > LONGEST:
        yield f"{lines} lines, more than {LONGEST}: look for the second idea"
    if not text.lstrip().startswith(("//", "/*")):
        yield "does not open with a comment that says what it is for"
    loops = re.findall(r"^\s+(\w*(?:FOREACH|_EACH|_foreach)\w*)\(", text, re.MULTILINE)
    for macro in sorted(set(loops) - loop_macros()):
        yield f"loops by {macro}, which ForEachMacros of .clang-format lacks"
    floor = floor_of(name)
    for include in included(text) if floor else []:
        path = resolve(name, include)
        allowed = [floor + "/", *FLOORS[floor]]
        if "/" in path and not path.startswith(tuple(allowed)):
            yield f'includes "{include}": {floor}/ may import {" ".join(FLOORS[floor]) or "libc"}'


def main():
    found = 0
    assert refused_words(), "docs/glossary.md refuses no word"
    sources = [name for name in files() if name.endswith((".c", ".h"))]
    pages = [name for name in files() if name.endswith((".md", ".1", ".3", ".8"))]
    for name in sources + pages:
        text = (ROOT / name).read_text()
        own = complaints if name in sources else broken_links
        for complaint in [*own(name, text), *wrong_words(name, text)]:
            print(f"{name}: {complaint}")
            found += 1
    print(f"{len(sources)} files, {found} complaints")
    sys.exit(1 if found or not sources else 0)


if __name__ == "__main__":
    main()
