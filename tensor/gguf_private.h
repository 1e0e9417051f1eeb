// What an open GGUF file is inside: filled by gguf_read.c, asked by gguf.c. Private to tensor/.
#pragma once

#include "tensor/gguf.h"
#include "tensor/names.h"

// Limits that no real file comes near: a vocabulary of 262k tokens with its merges takes about 12
// MiB.
#define NB_GGUF_MAX_METADATA  ((uint64_t)256 << 20) // bytes of header, metadata and directory
#define NB_GGUF_MAX_KEYS      65536
#define NB_GGUF_MAX_TENSORS   65536
#define NB_GGUF_MAX_KEY       1024 // bytes of a key
#define NB_GGUF_MAX_NAME      255  // bytes of a tensor's name
#define NB_GGUF_MAX_ALIGNMENT ((uint64_t)1 << 20)
#define NB_GGUF_MAX_DIMS      4
#define NB_GGUF_ALIGNMENT     32 // where general.alignment is absent

#define NB_GGUF_MAGIC 0x46554747u // "GGUF"

// A metadata pair. A scalar is one element of its own type.
struct nb_gguf_pair {
    struct nb_str key;
    enum nb_gguf_type type;    // NB_GGUF_ARRAY for arrays
    enum nb_gguf_type element; // of the array; else the same as type
    uint64_t n;
    const uint8_t *data; // the first element
    uint32_t *strings;   // arrays of strings: where each one's length lies, from `data`
    const uint8_t *raw;  // the whole pair as in the file, and its end
    const uint8_t *raw_end;
};

struct nb_gguf {
    uint8_t *bytes; // a private mapping: it grows in place while being read, so views stay good
    size_t mapped, filled;
    size_t metadata_len;
    struct nb_gguf_pair *pairs;
    uint32_t n_pairs;
    struct nb_gguf_tensor *tensors;
    uint32_t n_tensors;
    struct nb_names keys, names;
};

// Bytes of an element; 0 for strings, arrays and what is no type.
size_t nb_gguf_element_bytes(uint32_t type);
