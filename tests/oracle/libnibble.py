"""libnibble's operators from Python, as a client would call them: ctypes on the shared library and numpy arrays in
registered memory."""
import ctypes as c
import fcntl
import mmap
import os

import numpy as np

F_SEAL_WRITE = 0x0008
FAST, EXACT = 1, 2
F32, F16, INT8 = range(3)
DTYPES = {F32: np.float32, F16: np.float16, INT8: np.int8}


class Place(c.Structure):
    _fields_ = [("memory", c.c_void_p), ("offset", c.c_uint64), ("data", c.c_void_p)]


class Tensor(c.Structure):
    _fields_ = [("index", c.c_uint32), ("rows", c.c_uint64), ("cols", c.c_uint64), ("type", c.c_char * 16)]


class Matrix(c.Structure):
    _fields_ = [("tensor", c.POINTER(Tensor)), ("bits", c.c_uint), ("group", c.c_uint), ("half_scales", c.c_int),
                ("has_zeros", c.c_int), ("rows", c.c_uint64), ("cols", c.c_uint64), ("codes", Place),
                ("scales", Place), ("zeros", Place)]


class Failure(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


class Memory:
    """Registered memory that arrays are laid in, each at a multiple of 64 bytes."""

    def __init__(self, session, size):
        self.session, self.size, self.used = session, (size + 4095) // 4096 * 4096, 0
        self.fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.map, self.handle = mmap.mmap(self.fd, self.size), None

    def put(self, array):
        place = self.room(array.nbytes)
        self.map[place:place + array.nbytes] = array.tobytes()
        return place

    def room(self, size):
        place, self.used = self.used, (self.used + size + 63) // 64 * 64
        assert self.used <= self.size
        return place

    def get(self, place, shape, dtype):
        return np.frombuffer(self.map, dtype, int(np.prod(shape)), place).reshape(shape).copy()

    def seal(self):
        """Constant from now on."""
        self.map.close()
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, F_SEAL_WRITE)

    def register(self):
        self.handle = self.session.register(self.fd, 0, self.size)
        return self

    def place(self, offset):
        return Place(self.handle, offset, None)

    def close(self):
        self.session.lib.nibble_memory_unregister(self.handle)
        os.close(self.fd)


class Session:
    def __init__(self, path, socket, model):
        lib = self.lib = c.CDLL(path)
        lib.nibble_error.restype = c.c_char_p
        lib.nibble_memory_unregister.argtypes = [c.c_void_p]
        lib.nibble_job_wait.argtypes = lib.nibble_job_free.argtypes = [c.c_void_p]
        self.connection, self.session = c.c_void_p(), c.c_void_p()
        self.check(lib.nibble_connect(str(socket).encode(), c.byref(self.connection)))
        self.check(lib.nibble_session_open(self.connection, model.encode(), None, c.byref(self.session)))

    def check(self, code):
        if code < 0:
            raise Failure(code, self.lib.nibble_error(self.connection).decode())
        return code

    def close(self):
        self.lib.nibble_close(self.connection)

    def register(self, fd, offset, size, flags=0):
        memory = c.c_void_p()
        self.check(self.lib.nibble_memory_register(self.session, fd, c.c_uint64(offset), c.c_uint64(size), flags,
                                                   c.byref(memory)))
        return memory.value

    def tensor(self, name):
        tensor = Tensor()
        self.check(self.lib.nibble_tensor_find(self.session, name.encode(), c.byref(tensor)))
        return tensor

    def wait(self, code, job):
        self.check(code)
        code = self.lib.nibble_job_wait(job)
        self.lib.nibble_job_free(job)
        self.check(code)

    def gemm_at(self, matrix, x, n, y, precision):
        job = c.c_void_p()
        code = self.lib.nibble_gemm(self.session, c.byref(matrix), c.byref(x), c.c_size_t(n), c.byref(y), precision,
                                    None, None, c.byref(job))
        self.wait(code, job)

    def gemm(self, matrix, x, precision):
        """With x and y in the caller's memory, through the arena."""
        rows = matrix.tensor.contents.rows if matrix.tensor else matrix.rows
        x, y = np.ascontiguousarray(x, np.float32), np.full((len(x), rows), np.nan, np.float32)
        self.gemm_at(matrix, Place(None, 0, x.ctypes.data), len(x), Place(None, 0, y.ctypes.data), precision)
        return y

    def dequantize(self, matrix, first, count, number):
        cols = matrix.tensor.contents.cols if matrix.tensor else matrix.cols
        out, scales = np.zeros((count, cols), DTYPES[number]), np.zeros(count, np.float32)
        job, scaled = c.c_void_p(), Place(None, 0, scales.ctypes.data)
        code = self.lib.nibble_dequantize(
            self.session, c.byref(matrix), c.c_uint64(first), c.c_uint64(count), number,
            c.byref(Place(None, 0, out.ctypes.data)), c.byref(scaled) if number == INT8 else None, None, None,
            c.byref(job))
        self.wait(code, job)
        return (out, scales) if number == INT8 else out


def of_tensor(tensor):
    return Matrix(tensor=c.pointer(tensor))
