"""llama.cpp with GELU computed in double: on a CPU it looks it up in a table of halves, which is off by more than the rest
of its graph together. The graph runs node by node, and GELU's results are replaced.

Nothing here knows of Nibble. The structure of a node is ggml.h's of llama-cpp-python 0.3.36.
"""
import ctypes as c
import math

import llama_cpp as ll
import numpy as np


class Node(c.Structure):
    pass


Node._fields_ = [("type", c.c_int), ("buffer", c.c_void_p), ("ne", c.c_int64 * 4), ("nb", c.c_size_t * 4), ("op", c.c_int),
                 ("op_params", c.c_int32 * 16), ("flags", c.c_int32), ("src", c.POINTER(Node) * 10), ("view_src", c.c_void_p),
                 ("view_offs", c.c_size_t), ("data", c.c_void_p), ("name", c.c_char * 64)]


def floats(node):
    """A node's memory, as an array of its shape, whose last dimension is ggml's first."""
    assert node.type == 0  # F32
    size = sum((n - 1) * step for n, step in zip(node.ne, node.nb)) + 4
    memory = (c.c_char * size).from_address(node.data)
    return np.ndarray(node.ne[::-1], np.float32, memory, strides=node.nb[::-1])


erf = np.vectorize(math.erf, otypes=[np.float64])
GELU = {
    "tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))),
    "erf": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
}


class ExactGelu:
    """llama.Context(..., cb_eval=gelu.callback); it must live as long."""

    def __init__(self, form):
        self.gelu = GELU[form]
        self.replaced = 0
        self.callback = ll.ggml_backend_sched_eval_callback(self.visit)

    def visit(self, node, before, _user):
        """llama.cpp asks of each node whether to stop behind it and to call again: yes of a feed-forward's, so that each finds
        its inputs computed."""
        node = c.cast(node, c.POINTER(Node)).contents
        if not node.name.startswith(b"ffn_"):
            return False
        try:
            if node.name.startswith((b"ffn_gelu-", b"ffn_geglu-")):
                self.keep(node) if before else self.replace(node)
        except Exception as e:  # ctypes would go on
            print(f"{node.name.decode()}: {e!r}")
            return False
        return True

    def keep(self, node):
        """The result may be written where an input was."""
        self.inputs = [floats(source.contents).astype(np.float64) for source in node.src[:2] if source]

    def replace(self, node):
        theirs, (x, *up) = floats(node), self.inputs
        up = up[0] if up else np.ones_like(x)
        exact = self.gelu(x) * up
        # The table's halves have 11 bits; erf's form and tanh's differ by 5e-4 at most.
        assert (np.abs(theirs - exact) <= (1.2e-3 * np.abs(x) + 1e-3) * np.abs(up)).all(), "no GELU of its inputs"
        theirs[...] = exact
        self.replaced += 1
