"""llama.cpp's tokenizers, through llama-cpp-python, on a GGUF file that may have no tensors."""
import ctypes

import llama_cpp

SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(SILENT, None)


class Theirs:
    def __init__(self, path):
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama_cpp.llama_model_free(self.model)

    def encode(self, text, special=False, ends=False):
        ids = (llama_cpp.llama_token * (3 * len(text) + 16))() # a replacement is three bytes
        n = llama_cpp.llama_tokenize(self.vocab, text, len(text), ids, len(ids), ends, special)
        return ids[:n]

    def add_bos(self):
        return llama_cpp.llama_vocab_get_add_bos(self.vocab)

    def piece(self, token, special=False):
        buffer = ctypes.create_string_buffer(4096)
        n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]
