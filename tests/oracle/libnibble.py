"""libnibble's matrix jobs from Python, as a client would call them: ctypes on the shared library and numpy arrays in
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
    _fields_ = [("size", c.c_uint32), ("bits", c.c_uint), ("tensor", c.POINTER(Tensor)), ("group", c.c_uint),
                ("half_scales", c.c_int), ("has_zeros", c.c_int), ("rows", c.c_uint64), ("cols", c.c_uint64),
                ("codes", Place), ("scales", Place), ("zeros", Place)]

    def __init__(self, **members):
        super().__init__(size=c.sizeof(Matrix), **members)


class Text(c.Structure):
    _fields_ = [("text", c.c_char_p), ("text_len", c.c_size_t), ("tokens", c.POINTER(c.c_int32)), ("n_tokens", c.c_size_t)]


class EmbedOptions(c.Structure):
    _fields_ = [("size", c.c_uint32), ("no_normalise", c.c_int), ("truncate", c.c_int), ("progress", c.c_void_p),
                ("user", c.c_void_p)]


class SessionOptions(c.Structure):
    _fields_ = [("size", c.c_uint32), ("arena_bytes", c.c_uint64), ("drafts", c.c_uint64), ("adapter", c.c_char_p)]


class Model(c.Structure):
    """As far as it is looked at."""
    _fields_ = [("names", c.c_char * 176), ("sizes", c.c_uint64 * 3), ("vocab", c.c_uint32), ("context", c.c_uint32),
                ("layers", c.c_uint32), ("embedding", c.c_uint32)]


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
    def __init__(self, path, socket, model, adapter=None):
        lib = self.lib = c.CDLL(path)
        lib.nibble_error.restype = c.c_char_p
        lib.nibble_memory_unregister.argtypes = [c.c_void_p]
        lib.nibble_job_wait.argtypes = lib.nibble_job_free.argtypes = [c.c_void_p]
        self.connection, self.session = c.c_void_p(), c.c_void_p()
        self.check(lib.nibble_connect(str(socket).encode(), c.byref(self.connection)))
        options = SessionOptions(c.sizeof(SessionOptions), 0, 0, adapter.encode() if adapter else None)
        self.check(lib.nibble_session_open(self.connection, model.encode(), c.byref(options), c.byref(self.session)))

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

    def embed_to(self, texts, place, **options):
        """Of texts, or of lists of ids; how many tokens each has."""
        kept = [text.encode() if isinstance(text, str) else (c.c_int32 * len(text))(*text) for text in texts]
        rows = [Text(text=k, text_len=len(k)) if isinstance(k, bytes) else Text(tokens=k, n_tokens=len(k)) for k in kept]
        counts = (c.c_uint32 * len(texts))()
        given = EmbedOptions(size=c.sizeof(EmbedOptions), **options)
        self.check(self.lib.nibble_embed(self.session, (Text * len(texts))(*rows), c.c_size_t(len(texts)), c.byref(given),
                                         c.byref(place), counts))
        return list(counts)

    def embed(self, texts, **options):
        """The vectors and how many tokens each text has."""
        self.lib.nibble_session_model.restype = c.POINTER(Model)
        width = self.lib.nibble_session_model(self.session).contents.embedding
        vectors = np.full((len(texts), width), np.nan, np.float32)
        counts = self.embed_to(texts, Place(None, 0, vectors.ctypes.data), **options)
        return vectors, counts


def of_tensor(tensor):
    return Matrix(tensor=c.pointer(tensor))


# ---- Generation

TOKEN, PREFILL, MOVED, DONE = range(4)


class Prompt(c.Structure):
    _fields_ = [("size", c.c_uint32), ("append", c.c_int), ("text", c.c_char_p), ("text_len", c.c_size_t),
                ("messages", c.c_void_p), ("n_messages", c.c_size_t), ("tokens", c.POINTER(c.c_int32)),
                ("n_tokens", c.c_size_t), ("chat", c.c_void_p)]


class GenerateOptions(c.Structure):
    _fields_ = [("size", c.c_uint32), ("max_tokens", c.c_uint32), ("temperature", c.c_float), ("top_k", c.c_uint32),
                ("top_p", c.c_float), ("min_p", c.c_float), ("repeat_penalty", c.c_float), ("repeat_window", c.c_uint32),
                ("seed", c.c_uint64), ("stop", c.c_void_p), ("n_stop", c.c_size_t), ("ignore_eos", c.c_int),
                ("logprobs", c.c_int)]


class Event(c.Structure):
    _fields_ = [("type", c.c_int), ("token", c.c_int32), ("logprob", c.c_float), ("text", c.c_void_p),
                ("text_len", c.c_size_t), ("done", c.c_uint32), ("total", c.c_uint32), ("device", c.c_char_p),
                ("finish", c.c_int), ("error", c.c_int), ("timings", c.c_uint64 * 5), ("reasoning", c.c_int),
                ("reason", c.c_char_p)]


class Stream:
    """A session's generation from token ids: what has come of it, as far as it was asked for."""

    def __init__(self, session, ids, n, **options):
        lib, self.session = session.lib, session
        given = GenerateOptions()
        lib.nibble_generate_options_init(c.byref(given), c.c_size_t(c.sizeof(given)))
        given.max_tokens, given.ignore_eos, given.logprobs = n, 1, 1
        for name, value in options.items():
            setattr(given, name, value)
        self.job, self.answer, self.moves = c.c_void_p(), [], 0
        prompt = Prompt(size=c.sizeof(Prompt), tokens=(c.c_int32 * len(ids))(*ids), n_tokens=len(ids))
        session.check(lib.nibble_generate(session.session, c.byref(prompt), c.byref(given), None, None, c.byref(self.job)))

    def read(self, n=None):
        """To `n` tokens with their log-probabilities in all, or to the end."""
        event = Event()
        while n is None or len(self.answer) < n:
            self.session.check(self.session.lib.nibble_job_next(self.job, c.byref(event), -1))
            if event.type == TOKEN and event.token >= 0:
                self.answer.append((event.token, event.logprob))
            self.moves += event.type == MOVED
            if event.type == DONE:
                if event.error:
                    raise Failure(event.error, (event.reason or b"").decode())
                break
        return self

    def free(self):
        self.session.lib.nibble_job_free(self.job)
