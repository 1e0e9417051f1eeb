"""Matrix jobs beside numpy in float64: products with groupwise matrices and with a model's tensors of every
type, and their rows as numbers, through libnibble and the service.

usage: test_matrices.py LIBNIBBLE DEVICE...    (NIBBLE_TEST_* name the service's programs, as in tests/service)
"""
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "service"))

import harness  # noqa: E402
import libnibble as nb  # noqa: E402

TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS Q2_0".split()
# rows, cols, rows of x
SHAPES = [(1, 1, 1), (3, 33, 2), (16, 32, 5), (17, 100, 1), (50, 257, 9), (130, 640, 33), (300, 1024, 140)]
GROUPS = [32, 64, 128, 0]
EPS = 2.0 ** -24
rng = np.random.default_rng(20261122)
failures, checked = [], 0
thorough = True  # not where a driver takes its time for each of the shaders' variants


def expect(ok, what):
    global checked
    checked += 1
    if not ok:
        failures.append(what)


# ---- Groupwise matrices

class Groupwise:
    """Random codes (all of them, extremes included), scales and zero points; `w` is what they mean, in float64."""

    def __init__(self, rows, cols, bits, group, half, zeros, extreme):
        self.rows, self.cols, self.bits, self.group = rows, cols, bits, group
        self.half, self.has_zeros = half, zeros
        size = group or cols
        groups = (cols + size - 1) // size
        low, high = (-128, 127) if bits == 8 else (0, 15)
        codes = rng.choice([low, high], (rows, cols)) if extreme else rng.integers(low, high + 1, (rows, cols))
        self.scales = (rng.standard_normal((rows, groups)) * 0.02).astype(np.float16 if half else np.float32)
        zero = rng.integers(low, high + 1, (rows, groups)) if zeros else np.full((rows, groups), 0 if bits == 8 else 8)
        scale = np.repeat(self.scales.astype(np.float64), size, axis=1)[:, :cols]
        at = np.repeat(zero, size, axis=1)[:, :cols]
        self.w = scale * (codes - at)
        # The packed form has codes from 0 on and a minimum: what rounding is relative to.
        self.magnitude = np.abs(scale) * (np.abs(codes - low) + np.abs(at - low) if zeros else np.abs(codes - at))
        self.codes, self.zeros = self.pack(codes), self.pack(zero) if zeros else np.zeros(0, np.uint8)

    def pack(self, values):
        if self.bits == 8:
            return values.astype(np.int8)
        padded = np.pad(values, ((0, 0), (0, values.shape[1] % 2))).astype(np.uint8)
        return padded[:, 0::2] | padded[:, 1::2] << 4

    def into(self, memory):
        self.memory = memory
        self.places = [memory.put(part) for part in (self.codes, self.scales, self.zeros)]

    def matrix(self):
        codes, scales, zeros = (self.memory.place(at) for at in self.places)
        return nb.Matrix(bits=self.bits, group=self.group, half_scales=self.half, has_zeros=self.has_zeros,
                         rows=self.rows, cols=self.cols, codes=codes, scales=scales,
                         zeros=zeros if self.has_zeros else nb.Place())

    def __str__(self):
        return (f"int{self.bits} {self.rows}x{self.cols} by {self.group or 'row'}, {'fp16' if self.half else 'fp32'}"
                f"{', zeros' if self.has_zeros else ''}")


# ---- What is right

def quantization_error(x, precision):
    """Of each x, at most: half a step of its block of 32 (a step is the largest / 127, or / 127 / 254)."""
    n, k = x.shape
    blocks = np.abs(np.pad(x, ((0, 0), (0, -k % 32))).reshape(n, -1, 32)).max(axis=2)
    step = blocks / (127 if precision == nb.FAST else 127 * 254)
    return np.repeat(step, 32, axis=1)[:, :k] * 0.501


def check_gemm(got, x, w, magnitude, error, what):
    x = x.astype(np.float64)
    # Beside x's quantization, a rounding or two of each block's part and of the sum so far.
    room = error @ np.abs(w).T + (np.abs(x) + error) @ magnitude.T * EPS * (6 + x.shape[1] / 8) + 1e-30
    with np.errstate(invalid="ignore"):
        far = np.abs(got - x @ w.T) / room
    expect(np.isfinite(got).all() and far.max() <= 1, f"gemm {what}: {np.nanmax(far):.3g} times the bound")


def check_numbers(session, matrix, w, room, what):
    rows = len(w)
    first = int(rng.integers(0, rows))
    count = int(rng.integers(1, rows - first + 1))
    part, room = w[first:first + count], np.broadcast_to(room, w.shape)[first:first + count]
    if not thorough and rng.integers(0, 3):
        return
    f32 = session.dequantize(matrix, first, count, nb.F32)
    expect((np.abs(f32 - part) <= room).all(), f"fp32 of {what} rows {first}+{count}")
    f16 = session.dequantize(matrix, first, count, nb.F16)
    expect((f16.view(np.uint16) == f32.astype(np.float16).view(np.uint16)).all(), f"fp16 of {what}")
    codes, scales = session.dequantize(matrix, first, count, nb.INT8)
    expect(np.allclose(scales, np.abs(f32).max(axis=1) / 127, rtol=1e-6, atol=0), f"int8 scales of {what}")
    half = scales[:, None] * 0.5001 + 1e-30
    expect((np.abs(codes * scales[:, None].astype(np.float64) - f32) <= half).all(), f"int8 of {what}")


# ---- Cases

def precisions():
    return (nb.FAST, nb.EXACT) if thorough else (int(rng.integers(nb.FAST, nb.EXACT + 1)),)


def check_groupwise(session):
    cases = []
    for i, (rows, cols, n) in enumerate(SHAPES * (8 if thorough else 2)):
        bits, half, zeros, extreme = 4 << (i & 1), i >> 1 & 1, i >> 2 & 1, i % 5 == 4
        cases.append((Groupwise(rows, cols, bits, GROUPS[i // 3 % 4], half, zeros, extreme), n))
    size = sum(m.codes.nbytes + m.scales.nbytes + m.zeros.nbytes + 256 for m, _ in cases)
    changing, constant = nb.Memory(session, size), nb.Memory(session, size)
    for i, (m, _) in enumerate(cases):
        m.into(constant if i // 7 % 2 else changing)
    constant.seal()
    changing.register(), constant.register()
    for i, (m, n) in enumerate(cases):
        x = rng.standard_normal((n, m.cols)).astype(np.float32)
        for precision in precisions():
            got = session.gemm(m.matrix(), x, precision)
            check_gemm(got, x, m.w, m.magnitude, quantization_error(x, precision), f"{m}, n {n}, {precision}")
            again = session.gemm(m.matrix(), x[n // 2:], precision)
            expect((again == got[n // 2:]).all(), f"{m}: a row's result depends on the others")
        check_numbers(session, m.matrix(), m.w, m.magnitude * 2 * EPS + 1e-45, str(m))
    changing.close(), constant.close()


def check_wide(session):
    """Rows as long as some drivers' loops do not run: right, or refused."""
    m, x = Groupwise(5, 1 << 17, 4, 128, 0, 0, False), rng.standard_normal((1, 1 << 17)).astype(np.float32)
    memory = nb.Memory(session, m.codes.nbytes + m.scales.nbytes + 512)
    m.into(memory)
    memory.register()
    try:
        got = session.gemm(m.matrix(), x, nb.EXACT)
        check_gemm(got, x, m.w, m.magnitude, quantization_error(x, nb.EXACT), f"{m}")
    except nb.Failure as failure:
        expect(failure.code == -5007 and "longer than the driver" in str(failure), f"{m}: {failure}")
    memory.close()


def check_registered(session):
    """X and Y in registered memory."""
    m, n = Groupwise(70, 96, 4, 32, 1, 1, False), 6
    memory = nb.Memory(session, 1 << 20)
    x = rng.standard_normal((n, m.cols)).astype(np.float32)
    m.into(memory)
    x_at, y_at = memory.put(x), memory.room(n * m.rows * 4)
    memory.register()
    session.gemm_at(m.matrix(), memory.place(x_at), n, memory.place(y_at), nb.EXACT)
    got = memory.get(y_at, (n, m.rows), np.float32)
    check_gemm(got, x, m.w, m.magnitude, quantization_error(x, nb.EXACT), f"{m} in registered memory")
    expect((got == session.gemm(m.matrix(), x, nb.EXACT)).all(), "the same through the arena")
    memory.close()


def know_q2_0():
    """gguf does not know the type: 64 weights, fp16 d and 2-bit codes for (code - 1) * d."""
    q2_0 = int.__new__(GGMLQuantizationType, 42)
    q2_0._name_, q2_0._value_ = "Q2_0", 42
    GGMLQuantizationType._value2member_map_[42] = q2_0
    GGML_QUANT_SIZES[q2_0] = (64, 18)


def decode(data, kind):
    if kind.name != "Q2_0":
        return np.asarray(quants.dequantize(data, kind), np.float32)
    blocks = data.reshape(-1, 18)
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return d * (codes.reshape(len(blocks), 64).astype(np.float32) - 1)


def tensors_of(path):
    """Name and float32 values of the file's matrices."""
    for t in GGUFReader(path).tensors:
        if len(t.shape) != 2:
            continue
        shape = (int(t.shape[1]), int(t.shape[0]))
        yield t.name, t.tensor_type.name, decode(t.data, t.tensor_type).reshape(shape)


def check_tensor(session, name, kind, w):
    tensor = session.tensor(name)
    expect((tensor.rows, tensor.cols, tensor.type.decode()) == (*w.shape, kind), f"shape of {name}")
    matrix, n = nb.of_tensor(tensor), int(rng.integers(1, 20))
    x = rng.standard_normal((n, tensor.cols)).astype(np.float32)
    # A minimum's part is no larger than the row's largest weight by much.
    most = np.broadcast_to(np.abs(w).max(axis=1, keepdims=True) * 3, w.shape)
    for precision in precisions():
        error = 0 * x if kind in ("F32", "F16", "BF16") else quantization_error(x, precision)
        check_gemm(session.gemm(matrix, x, precision), x, w.astype(np.float64), most, error, f"{kind} {name}, n {n}")
    check_numbers(session, matrix, w, most * 2 * EPS, f"{kind} {name}")


def random_model(daemon, kind):
    path = daemon.file(f"{kind}.gguf", b"")
    subprocess.run([os.environ["NIBBLE_TEST_MAKE_GGUF"], "random", path, kind, "5"], check=True)
    return path


class Writer(GGUFWriter):
    """One that can write an empty list of strings, as the merges of a small vocabulary are."""

    def _pack_val(self, val, vtype, add_vtype, sub_type=None):
        if val == [] and vtype == GGUFValueType.ARRAY:
            return struct.pack("<IIQ", vtype, GGUFValueType.STRING, 0)
        return super()._pack_val(val, vtype, add_vtype, sub_type)


def model_of_all_types(daemon):
    """A small model with a matrix of each type: the first that no other type has taken; at last a head of its own."""
    base, path = GGUFReader(random_model(daemon, "Q4_0")), daemon.file("all.gguf", b"")
    writer = Writer(path, "llama")
    for field in base.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0],
                                 field.types[-1] if len(field.types) > 1 else None)
    taken = {}
    for kind in TYPES:
        found = {t.name: t for t in GGUFReader(random_model(daemon, kind)).tensors
                 if len(t.shape) == 2 and t.tensor_type.name == kind}
        found["output.weight"] = found["token_embd.weight"]
        name = next(name for name in found if name not in taken)
        taken[name] = found[name]
    for name, t in {**{t.name: t for t in base.tensors}, **taken}.items():
        writer.add_tensor(name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def check_device(daemon, library, device):
    path = model_of_all_types(daemon)
    with daemon.admin() as admin:
        admin.sock.settimeout(120)
        admin.load("all", path, device="" if device == "cpu" else device)
        session = nb.Session(library, daemon.runtime / "nibble.sock", "all")
        seen = set()
        for name, kind, w in tensors_of(path):
            if kind not in seen or thorough:
                check_tensor(session, name, kind, w)
            seen.add(kind)
        expect(seen == set(TYPES), f"the model's types: {seen}")
        check_groupwise(session)
        check_registered(session)
        check_wide(session)
        session.close()


def main():
    global thorough
    library, devices = sys.argv[1], sys.argv[2:]
    know_q2_0()
    for device in devices:
        thorough = device == "cpu"
        daemon = harness.Daemon("[limits]\nchannel-bytes-per-user = 1000000000\n", os.environ["NIBBLE_TEST_WORKER"])
        check_device(daemon, library, device)
        status, log = daemon.finish()
        expect(status == 0, f"nibbled ended with {status}: {log}")
    for line in failures[:40]:
        print(line)
    print(f"{checked} checks on {', '.join(devices)}: {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
