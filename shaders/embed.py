"""Writes SPIR-V modules as C arrays: embed.py OUT.c MODULE.spv ..."""
import pathlib
import struct
import sys

out, *modules = sys.argv[1:]
lines = ["// SPIR-V of the shaders, made by shaders/embed.py.", '#include "engine/vulkan/shaders.h"', ""]
for path in map(pathlib.Path, modules):
    data = path.read_bytes()
    words = struct.unpack(f"<{len(data) // 4}I", data)
    name = path.name.removesuffix(".spv")
    lines.append(f"static const uint32_t {name}[] = {{")
    lines += ["    " + " ".join(f"{w:#x}," for w in words[i:i + 10]) for i in range(0, len(words), 10)]
    lines.append("};")
lines.append("const struct nb_shader_code nb_shader_code[NB_MODULES] = {")
for path in map(pathlib.Path, modules):
    name = path.name.removesuffix(".spv")
    lines.append(f"    [NB_MODULE_{name.upper()}] = {{{name}, sizeof({name})}},")
lines.append("};")
pathlib.Path(out).write_text("\n".join(lines) + "\n")
