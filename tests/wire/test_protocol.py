"""docs/protocol.md is what others implement from: each of its tables of a struct, and its codes, must be what the headers say.

    test_protocol.py ROOT COMPILER
"""
import pathlib
import re
import subprocess
import sys

root, compiler = pathlib.Path(sys.argv[1]), sys.argv[2]
page = (root / "docs/protocol.md").read_text()
TYPES = {"u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t", "i32": "int32_t", "f32": "float", "f64": "double", "char": "char"}
checks, structs = [], []
current, in_rows = None, False
for line in page.splitlines():
    head = re.match(r"### `struct (\w+)` \((\d+) bytes\)", line)
    row = re.match(r"\| (\d+) \| (\w*)(?:\[(\d+)\])? \| (\w+) \|", line)
    if head:
        current, in_rows = head[1], False
        structs.append(current)
        checks.append(f'_Static_assert(sizeof(struct {current}) == {head[2]}, "size of {current}");')
    elif row and current:
        in_rows = True
        offset, kind, count, field = row.groups()
        checks.append(f'_Static_assert(offsetof(struct {current}, {field}) == {offset}, "{current}.{field}");')
        if kind:
            size = f"{count or 1} * sizeof({TYPES[kind]})"
            checks.append(f'_Static_assert(sizeof(((struct {current} *)0)->{field}) == {size}, "{current}.{field}");')
    elif not line and in_rows:
        current = None
table = page[page.index("| op | | descriptor |"):]
ops = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", table[:table.index("\n\n")], re.MULTILINE)
checks += [f'_Static_assert(NB_SUBMIT_{name} == {number}, "{name}");' for number, name in ops]
codes = re.findall(r"\| −(\d+) \| (NIBBLE_E_\w+) \|", page)
checks += [f'_Static_assert({name} == -{code}, "{name}");' for code, name in codes]
for name, value in {"NB_CHANNEL_CQ_OFFSET": 20480, "NB_CHANNEL_ARENA_OFFSET": 282624, "NB_WIRE_MAX": 4096,
                    "NB_TEXT_MAX": 4 << 20, "NB_TOKEN_TEXT_MAX": 64 << 10, "NB_WIRE_VERSION": 1}.items():
    checks.append(f'_Static_assert({name} == {value}, "{name}");')

source = '#include "libclient/include/nibble.h"\n#include "libclient/wire.h"\n#include "libclient/ring.h"\n' + "\n".join(checks)
subprocess.run([compiler, "-std=gnu17", f"-I{root}", "-fsyntax-only", "-xc", "-"], input=source, text=True, check=True)

# And the other way: no struct of the wire or the rings is left out.
headers = "".join((root / name).read_text() for name in ("libclient/wire.h", "libclient/ring.h"))
there = set(re.findall(r"^struct (\w+) \{", headers, re.MULTILINE)) - {"nb_wire_message", "nb_wire_empty"}
assert there <= set(structs), f"not on the page: {there - set(structs)}"
names = set(re.findall(r"\bNB_SUBMIT_(\w+)", re.search(r"enum nb_submission_op \{.*?\}", headers, re.DOTALL)[0]))
assert names - {"COUNT"} == {name for _, name in ops}, names
names = set(re.findall(r"\b(NIBBLE_E_\w+) =", (root / "libclient/include/nibble.h").read_text()))
assert names == {name for _, name in codes}, names
print(len(structs), "structs,", len(checks), "checks")
