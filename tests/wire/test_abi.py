"""What libnibble promises to those who link it: its names, its needs, its header in C and in C++, its manual.

    test_abi.py LIBRARY HEADER MANUAL LINKS EXAMPLE COMPILER...
"""
import pathlib
import re
import subprocess
import sys

library, header, manual, links, example_file, *compilers = sys.argv[1:]
text = open(header).read()
for part in re.findall(r'^#include "(\w+\.h)"', text, re.MULTILINE):
    text += (pathlib.Path(header).parent / part).read_text()
declared = set(re.findall(r"NIBBLE_API[^;]*?\b(nibble_\w+)\(", text))
assert len(declared) > 20, declared


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def exported():
    lines = [line.split() for line in run("nm", "-D", "--defined-only", library).splitlines()]
    return {name.split("@")[0] for _, kind, name in lines if kind != "A"}


assert exported() == declared, f"exported, not declared: {exported() - declared}; declared, not exported: {declared - exported()}"

dynamic = run("readelf", "-d", library)
needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
assert all(re.match(r"(libc\.so|ld-linux)", name) for name in needed), needed
assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == ["libnibble.so.0"]
print("needs", needed)

for compiler in compilers:
    for arguments in (["-xc", "-std=c99"], ["-xc", "-std=c17"], ["-xc++", "-std=c++11"], ["-xc++", "-std=c++20"]):
        subprocess.run([compiler, *arguments, "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                        "-include", header, "/dev/null"], check=True)

# Structs that a caller fills begin with their size, so that they can grow; these never do.
FIXED = {"nibble_place", "nibble_tensor", "nibble_message", "nibble_sampling", "nibble_text"}
functions = re.findall(r"NIBBLE_API[^;]*;", text)
taken = {name for function in functions for name in re.findall(r"const struct (\w+) \*(?!\()", function)}
taken -= {name for function in functions for name in re.findall(r"const struct (\w+) \*nibble_", function)}
taken -= {"nibble_event"} | FIXED
sized = {}
for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL):
    members = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL).split(";")[:-1]
    if members[0].split() == ["uint32_t", "size"]:
        sized[name] = re.search(r"(\w+)\W*$", re.sub(r"\)\(.*", "", members[-1], flags=re.DOTALL))[1]
assert taken and taken <= set(sized), f"without a size: {taken - set(sized)}"
# A member that is added must not lie in what was padding, which older callers leave unset.
checks = [f'_Static_assert(offsetof(struct {name}, {last}) + sizeof ((struct {name} *)0)->{last} == sizeof(struct {name}), '
          f'"padding at the end of {name}");' for name, last in sized.items()]
subprocess.run([compilers[0], "-std=c17", "-fsyntax-only", "-include", header, "-xc", "-"],
               input="\n".join(checks), text=True, check=True)
print("grow", sized)

page = open(manual).read()
described = set(re.findall(r"^\.Fo (\w+)$", page, re.MULTILINE))
named = set(re.findall(r"^\.Nm (nibble_\w+)", page, re.MULTILINE))
links = {path.stem for path in pathlib.Path(links).glob("nibble_*.3")}
assert declared == described == named == links, (declared ^ described, declared ^ named, declared ^ links)
codes = set(re.findall(r"\b(NIBBLE_E_\w+) =", text))
assert codes == set(re.findall(r"^\.It Dv (NIBBLE_E_\w+)", page, re.MULTILINE))
example = re.search(r"^\.Bd -literal\n(.*?)^\.Ed", page, re.MULTILINE | re.DOTALL)[1].replace("\\e", "\\")
assert example == open(example_file).read(), "the manual's example is not examples/hello.c"
readme = (pathlib.Path(example_file).parent.parent / "README.md").read_text()
for file in pathlib.Path(example_file).parent.glob("*.c"):
    assert f"```c\n{file.read_text()}```" in readme, f"README.md's example is not {file.name}"
