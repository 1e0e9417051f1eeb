"""Keeps the house: floors import only from below, and files stay short and say what they are for.

Reads the tree alone (docs/architecture.md has the table of floors); run from anywhere.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGEST = 600

# What a floor may include, beside itself. tests/ may include anything.
FLOORS = {
    "libclient": [],
    "tensor": [],
    "engine": ["tensor/"],
    "quant": ["tensor/", "engine/"],
    "distill": ["tensor/", "engine/", "quant/"],
    "daemon/worker": ["libclient/", "daemon/", "tensor/", "engine/", "quant/", "distill/"],
    "daemon": ["libclient/"],
    "tools": ["libclient/include/nibble.h", "nibble.h"],
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


def complaints(name, text):
    lines = text.count("\n")
    if lines > LONGEST:
        yield f"{lines} lines, more than {LONGEST}: look for the second idea"
    if not text.lstrip().startswith(("//", "/*")):
        yield "does not open with a comment that says what it is for"
    floor = floor_of(name)
    for include in included(text) if floor else []:
        path = resolve(name, include)
        allowed = [floor + "/", *FLOORS[floor]]
        if "/" in path and not path.startswith(tuple(allowed)):
            yield f'includes "{include}": {floor}/ may import {" ".join(FLOORS[floor]) or "libc"}'


def main():
    found = 0
    sources = [name for name in files() if name.endswith((".c", ".h"))]
    for name in sources:
        for complaint in complaints(name, (ROOT / name).read_text()):
            print(f"{name}: {complaint}")
            found += 1
    print(f"{len(sources)} files, {found} complaints")
    sys.exit(1 if found or not sources else 0)


if __name__ == "__main__":
    main()
