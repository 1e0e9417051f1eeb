"""Makes a module of GL_NV_cooperative_matrix, which glslang has long known, one of
VK_KHR_cooperative_matrix, which it has not: coopmat.py IN.spv OUT.spv abi.h, which has the ids of the
specialisation constants that tell the shapes of the operands apart. All integers are signed."""
import pathlib
import re
import struct
import sys

source, target, abi = sys.argv[1:4]
spec_ids = [int(re.search(rf"CONST_FRAGMENT_{axis} +(\d+)", pathlib.Path(abi).read_text()).group(1)) for axis in "MNK"]

CAPABILITY, EXTENSION, DECORATE = 17, 10, 71
TYPE_INT, CONSTANT_TRUE, CONSTANT, SPEC_CONSTANT_OP, BITCAST = 21, 41, 43, 52, 124
NV_CAPABILITY, NV_TYPE, NV_LOAD, NV_STORE, NV_MUL_ADD, NV_LENGTH = 5357, 5358, 5359, 5360, 5361, 5362
KHR_CAPABILITY, KHR_TYPE, KHR_LOAD, KHR_STORE, KHR_MUL_ADD, KHR_LENGTH = 6022, 4456, 4457, 4458, 4459, 4460
SPEC_ID, ALL_SIGNED = 1, 15


def instructions(words):
    at = 5
    while at < len(words):
        size = words[at] >> 16
        yield words[at] & 0xffff, list(words[at + 1:at + size])
        at += size


def extension(name):
    data = name.encode() + b"\0" * (4 - len(name) % 4)
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def uses(code):
    """Which operand a matrix is, by the constants of its rows and columns."""
    ids = {a[2]: a[0] for op, a in code if op == DECORATE and a[1] == SPEC_ID}
    rows, columns, depth = (ids[i] for i in spec_ids)
    return {(rows, depth): 0, (depth, columns): 1, (rows, columns): 2}


def rewrite(code, bound):
    use = uses(code)
    column_major = {a[1] for op, a in code if op == CONSTANT_TRUE}
    uint = next(a[0] for op, a in code if op == TYPE_INT and a[1:] == [32, 0])
    length = {}  # of a matrix, by the ids of its constants: its type
    number = None  # constants 0, 1 and 2: the uses A, B and accumulator, the layouts by row and column
    for op, a in code:
        if op == CAPABILITY and a == [NV_CAPABILITY]:
            a = [KHR_CAPABILITY]
        elif op == EXTENSION and a == extension("SPV_NV_cooperative_matrix"):
            a = extension("SPV_KHR_cooperative_matrix")
        elif op == NV_TYPE:
            if not number:
                number = [bound, bound + 1, bound + 2]
                for value, constant in enumerate(number):
                    yield CONSTANT, [uint, constant, value]
            op, a = KHR_TYPE, [*a, number[use[a[3], a[4]]]]
        elif op == NV_LOAD:  # type, result, pointer, stride, column major, memory
            op, a = KHR_LOAD, [*a[:3], number[a[4] in column_major], a[3], *a[5:]]
        elif op == NV_STORE:  # pointer, object, stride, column major, memory
            op, a = KHR_STORE, [*a[:2], number[a[3] in column_major], a[2], *a[4:]]
        elif op == NV_MUL_ADD:
            op, a = KHR_MUL_ADD, [*a, ALL_SIGNED]
        elif op == SPEC_CONSTANT_OP and (a[2] == NV_LENGTH or a[3] in length):
            # A constant of a type's components, plus 0 to make it an int: drivers know an
            # instruction in its place, where the function makes it a uint again.
            length[a[1]] = a[3] if a[2] == NV_LENGTH else length[a[3]]
            continue
        elif op == BITCAST and a[2] in length:
            op, a = KHR_LENGTH, [*a[:2], length[a[2]]]
        yield op, a


with open(source, "rb") as f:
    data = f.read()
words = struct.unpack(f"<{len(data) // 4}I", data)
out = [*words[:3], words[3] + 3, words[4]]
for op, a in rewrite(list(instructions(words)), words[3]):
    out += [len(a) + 1 << 16 | op, *a]
with open(target, "wb") as f:
    f.write(struct.pack(f"<{len(out)}I", *out))
