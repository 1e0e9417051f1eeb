"""llama.cpp as an oracle: a thin, explicit way to its low-level API, and the files it makes for us.

Nothing here knows of Nibble. Derived model files lie in the cache folder beside the packaged one.
"""
import ctypes
import os
import pathlib

import llama_cpp as ll
import numpy as np

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nibble"
PACKAGED = pathlib.Path(os.environ.get("NIBBLE_MODEL")
                        or CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")


@ll.llama_log_callback
def _only_errors(level, text, _user):
    if level == 4:  # GGML_LOG_LEVEL_ERROR; 5 goes on with a line, of progress too
        os.write(2, text)


ll.llama_log_set(_only_errors, ctypes.c_void_p())
ll.llama_backend_init()


class Model:
    def __init__(self, path):
        params = ll.llama_model_default_params()
        self.handle = ll.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = ll.llama_model_get_vocab(self.handle)
        self.vocab_size = ll.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text):
        """The ids of bytes or str, as plain text: no special tokens, nothing added."""
        data = text if isinstance(text, bytes) else text.encode()
        ids = (ll.llama_token * (len(data) + 1))()
        n = ll.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        if n < 0:
            raise RuntimeError(f"llama_tokenize: {n}")
        return np.array(ids[:n], dtype=np.int32)

    def close(self):
        ll.llama_model_free(self.handle)


class Context:
    def __init__(self, model, n_ctx, sequences=1, threads=2, float_kv=False, **others):
        params = ll.llama_context_default_params()
        params.n_ctx = n_ctx * sequences
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        if float_kv:
            params.type_k = params.type_v = 0  # GGML_TYPE_F32
            params.flash_attn_type = 0  # its accumulators are half precision in places
        for name, value in others.items():
            setattr(params, name, value)
        self.model = model
        self.handle = ll.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise RuntimeError("llama_init_from_model failed")
        self.batch = ll.llama_batch_init(512, 0, 1)

    def clear(self):
        ll.llama_memory_clear(ll.llama_get_memory(self.handle), True)

    def decode(self, tokens, positions, sequences, wanted):
        """One batch: row i is a token at a position of a sequence; wanted says whose logits."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, row in enumerate(zip(tokens, positions, sequences, wanted)):
            batch.token[i], batch.pos[i], batch.seq_id[i][0], batch.logits[i] = map(int, row)
            batch.n_seq_id[i] = 1
        status = ll.llama_decode(self.handle, batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        ll.llama_synchronize(self.handle)

    def logits(self, rows):
        """The wanted rows' logits of the last decode, [rows][vocabulary], copied."""
        flat = ll.llama_get_logits(self.handle)
        shape = (rows, self.model.vocab_size)
        return np.ctypeslib.as_array(flat, shape=(shape[0] * shape[1],)).reshape(shape).copy()

    def vector(self, n):
        """What the last decode's rows of sequence 0 are pooled to, [1][n], copied."""
        return np.ctypeslib.as_array(ll.llama_get_embeddings_seq(self.handle, 0), shape=(1, n)).copy()

    def close(self):
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.handle)


def tokens_of(path, text):
    model = Model(path)
    tokens = model.tokenize(text)
    model.close()
    return tokens


def logits_of(path, tokens, threads=2, adapter=None):
    """Of a file's model, at every one of these tokens (128 at most), with F32 KV; `adapter`: a LoRA's path and its scale."""
    model = Model(path)
    context = Context(model, 128, threads=threads, float_kv=True)
    if adapter:
        handle = ll.llama_adapter_lora_init(model.handle, str(adapter[0]).encode())
        if not handle:
            raise RuntimeError(f"llama.cpp cannot load the adapter {adapter[0]}")
        if ll.llama_set_adapters_lora(context.handle, (ll.llama_adapter_lora_p_ctypes * 1)(handle), 1,
                                      (ctypes.c_float * 1)(adapter[1])):
            raise RuntimeError("llama_set_adapters_lora")
    context.decode(tokens, range(len(tokens)), [0] * len(tokens), [True] * len(tokens))
    found = context.logits(len(tokens))
    context.close()
    model.close()
    return found


def derived(name, ftype, source=None):
    """The path of the packaged model written in another type by llama.cpp, made when missing."""
    path = CACHE / "models" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part{os.getpid()}")
        quantize(source or PACKAGED, part, ftype)
        part.rename(path)
    return path


def quantize(source, to, ftype, importance=None):
    """A file that llama.cpp quantizes, with the importance of each matrix's columns, by name, where it is given."""
    params = ll.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = ftype, 2, True
    importance = importance or {}
    kept = [np.ascontiguousarray(x, dtype=np.float32) for x in importance.values()]
    data = (ll.llama_model_imatrix_data * (len(kept) + 1))()  # the last one is empty, which ends the list
    for i, (name, x) in enumerate(zip(importance, kept)):
        data[i].name, data[i].size = name.encode(), x.size
        data[i].data = x.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params.imatrix = data if importance else None
    if ll.llama_model_quantize(str(source).encode(), str(to).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp cannot write {to}")


def f32_model():
    """The packaged model with its weights as float32: the same numbers, nothing rounded again."""
    return derived("SmolLM2-135M-Instruct.F32.gguf", 0)


def q4_0_model():
    return derived("SmolLM2-135M-Instruct.Q4_0.gguf", 2, f32_model())
