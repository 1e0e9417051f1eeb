"""What libnibble promises to those who link it: its names, its needs, its header in C and in C++, its manual.

    test_abi.py LIBRARY HEADER MANUAL LINKS EXAMPLE COMPILER...
"""
import pathlib
import re
import subprocess
import sys

library, header, manual, links, example_file, *compilers = sys.argv[1:]
text = open(header).read()
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
