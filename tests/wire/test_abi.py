"""What libnibble promises to those who link it: its names, its needs, its header in C and in C++, its manual.

    test_abi.py LIBRARY HEADER MANUAL COMPILER...
"""
import re
import subprocess
import sys

library, header, manual, *compilers = sys.argv[1:]
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
missing = sorted(name for name in declared if f".Fo {name}" not in page and f".Ft " in page and f" {name} " not in page)
assert not missing, f"not in the manual: {missing}"
codes = set(re.findall(r"\b(NIBBLE_E_\w+) =", text))
assert codes <= set(re.findall(r"NIBBLE_E_\w+", page)), "a code that the manual does not name"
