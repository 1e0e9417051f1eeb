// A safetensors file: a u64 with the length of a JSON header, the header, the tensors' bytes
// without holes between them. Hostile like any file: every count, shape and offset is checked
// against the file's size. Private to tensor/hf.
#pragma once

#include "tensor/hf/json.h"
#include "tensor/fail.h"
#include "tensor/names.h"
#include "tensor/type.h"

#define NB_SAFETENSORS_DIMS 8

struct nb_safetensor {
    struct nb_str name;
    const char *dtype; // as the file names it
    uint32_t type;     // of GGUF's, where `loadable`
    bool loadable;     // F32, F16 or BF16
    uint32_t n_dims;
    uint64_t shape[NB_SAFETENSORS_DIMS]; // the last one is contiguous
    uint64_t offset, bytes;              // in the file
};

struct nb_safetensors {
    struct nb_safetensor *tensors; // in the order of their bytes
    uint32_t n;
    json_t *header; // what the names lie in
};

// Reads the header of `fd` by pread; `file` names it in `ret_error`. -EINVAL malformed, -ENOTSUP
// for a dtype that nobody knows, -EFBIG over a limit, -ENOMEM, or an errno of pread.
int nb_safetensors_open(int fd, const char *file, struct nb_safetensors *ret,
                        struct nb_error *ret_error);
void nb_safetensors_finish(struct nb_safetensors *s); // all zero is fine
