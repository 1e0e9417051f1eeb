// A source as a GGUF file that stock llama.cpp loads: vectors, routers and positions in F32, the
// other matrices as they are or in one type.
#pragma once

#include <stdbool.h>

#include "tensor/fail.h"
#include "tensor/gguf_write.h"
#include "tensor/source.h"

#define NB_CONVERT_KEEP UINT32_MAX

struct nb_convert_options {
    uint32_t to;          // F32, F16, BF16 or Q8_0 of enum nb_type, or NB_CONVERT_KEEP
    nb_progress progress; // of the written bytes; may be NULL
    void *user;
};

struct nb_converted {
    uint64_t bytes; // of tensors
    uint32_t n_tensors;
    // Matrices whose rows are no whole blocks of `to`, which are F16 instead; the first one's name.
    uint32_t n_unfit;
    char unfit[NB_SOURCE_NAME];
};

// Writes to `fd`, from its present position (0), a part of a tensor at a time. Refuses what is no
// number and files that end in zeros, as packing does. -errno with its line; the file is incomplete
// then.
int nb_convert(const struct nb_source *s, const struct nb_convert_options *options, int fd,
               struct nb_converted *ret, struct nb_error *ret_error);

// ---- For whoever else writes a source as GGUF

// What llama.cpp computes with in F32 alone: vectors, norms, routers, positions.
bool nb_convert_is_single(const struct nb_source_tensor *t);
// Puts what a file says of the type of most of its matrices. 0 or -ENOMEM.
int nb_convert_put_type(struct nb_gguf_writer *w, uint32_t type);
// Refuses a tensor that Nibble cannot read, or whose rows are too long.
int nb_convert_check_tensor(const struct nb_source_tensor *t, struct nb_error *ret_error);
// Refuses a NaN or an infinity in x, `rows` rows of `t` from `first` on, by tensor, row and
// element.
int nb_convert_check_numbers(const struct nb_source *s, const struct nb_source_tensor *t,
                             const float *x, uint64_t first, uint64_t rows,
                             struct nb_error *ret_error);
// Refuses a file that is zero from some tensor to its end.
int nb_convert_check_ends(const struct nb_source *s, struct nb_error *ret_error);
