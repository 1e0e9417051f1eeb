"""NF4 with double quantization and INT8 by channels, as bitsandbytes and compressed-tensors document them, in numpy alone:
tensors of a Hugging Face folder to matrices, and matrices to tensors."""
import json
import pathlib
import struct

import numpy as np

# bitsandbytes' create_normal_map: normal quantiles, so that each of the 16 values is as likely; the ends are -1 and 1.
VALUES = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                   -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                   0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                   0.7229568362236023, 1.0], np.float32)
DTYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}
EACH, OUTER = 64, 256
STATE = ".quant_state.bitsandbytes__nf4"


def dynamic_map():
    """create_dynamic_map(signed=True, max_exponent_bits=7, total_bits=8)."""
    found = [0.0, 1.0]
    for i in range(7):
        boundaries = np.linspace(0.1, 1, 2 ** i + 1)
        means = (boundaries[:-1] + boundaries[1:]) / 2 * 10.0 ** (i - 6)
        found += [*means, *-means]
    return np.sort(np.array(found, np.float32))


def nearest(values, x):
    """The index of the nearest of ascending values; the lower one of two that are as near."""
    return np.searchsorted((values[:-1] + values[1:]) / np.float32(2), x, "left")


def blocks(x, n):
    """x flat, in rows of n; the last one is filled with zeros."""
    return np.pad(x.ravel(), (0, -x.size % n)).reshape(-1, n)


def scaled(x, most):
    return x * np.divide(np.float32(1), most, out=np.zeros_like(most), where=most > 0)


def encode_nf4(w):
    """The tensors of a matrix, by their suffixes, and how far its scales were off from their mean."""
    w = w.astype(np.float32)
    most = np.abs(blocks(w, EACH)).max(axis=1, keepdims=True)
    codes = nearest(VALUES, scaled(blocks(w, EACH), most)).astype(np.uint8).reshape(-1, 2)
    shift = np.float32(most.astype(np.float64).mean())
    off = blocks(most - shift, OUTER)
    outer = np.abs(off).max(axis=1, keepdims=True)
    nested = nearest(dynamic_map(), scaled(off, outer)).astype(np.uint8).ravel()[:most.size]
    state = {"quant_type": "nf4", "blocksize": EACH, "dtype": "float16", "shape": list(w.shape),
             "nested_blocksize": OUTER, "nested_dtype": "float32", "nested_offset": float(shift)}
    return {"": (codes[:, :1] << 4 | codes[:, 1:]).astype(np.uint8), ".absmax": nested, ".quant_map": VALUES,
            ".nested_absmax": outer.ravel(), ".nested_quant_map": dynamic_map(),
            STATE: np.frombuffer(json.dumps(state).encode(), np.uint8)}


def decode_nf4(tensors, name, values=VALUES):
    state = json.loads(tensors[name + STATE].tobytes())
    scales = tensors[name + ".absmax"]
    if "nested_offset" in state:
        outer = np.repeat(tensors[name + ".nested_absmax"], state["nested_blocksize"])[:scales.size]
        scales = tensors[name + ".nested_quant_map"][scales] * outer + np.float32(state["nested_offset"])
    bytes_ = tensors[name].ravel()
    codes = np.stack([bytes_ >> 4, bytes_ & 15], axis=1).reshape(-1, state["blocksize"])
    return (values[codes] * scales[:, None].astype(np.float32)).reshape(state["shape"])


def encode_int8(w):
    most = np.abs(w.astype(np.float32)).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return {"": np.rint(w.astype(np.float32) * inverse).astype(np.int8), "_scale": most / np.float32(127)}


def decode_int8(tensors, name):
    return tensors[name].astype(np.float32) * tensors[name + "_scale"].astype(np.float32)


def decode(tensors, name):
    """A matrix of any kind, as float32."""
    if name + STATE in tensors:
        return decode_nf4(tensors, name)
    return decode_int8(tensors, name) if name + "_scale" in tensors else tensors[name].astype(np.float32)


def read(folder):
    """{name: array} of model.safetensors, BF16 as float32; not a byte of the data may be left or taken twice."""
    data = (pathlib.Path(folder) / "model.safetensors").read_bytes()
    n, = struct.unpack_from("<Q", data)
    header, found, used = json.loads(data[8:8 + n]), {}, 0
    for name, t in header.items():
        if name == "__metadata__":
            continue
        first, end = t["data_offsets"]
        assert first % (2 if t["dtype"] == "BF16" else np.dtype(DTYPES[t["dtype"]]).itemsize) == 0, name
        raw, used = data[8 + n + first:8 + n + end], used + end - first
        if t["dtype"] == "BF16":
            x = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(raw, DTYPES[t["dtype"]])
        found[name] = x.reshape(t["shape"])
    assert used == len(data) - 8 - n
    return found


def write(folder, tensors):
    """The same back."""
    names, header, data = {np.dtype(v): k for k, v in DTYPES.items()}, {}, b""
    for name, x in tensors.items():
        header[name] = {"dtype": names[x.dtype], "shape": list(x.shape), "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    (pathlib.Path(folder) / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
