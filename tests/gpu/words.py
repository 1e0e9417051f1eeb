"""A SPIR-V module as an array of C: words.py IN.spv OUT.h, named by the file as glslangValidator --vn names it."""
import pathlib
import struct
import sys

source, target = map(pathlib.Path, sys.argv[1:3])
data = source.read_bytes()
words = struct.unpack(f"<{len(data) // 4}I", data)
target.write_text(f"static const uint32_t {source.stem}_spv[] = {{\n"
                  + "\n".join(f"    0x{w:08x}," for w in words) + "\n};\n")
