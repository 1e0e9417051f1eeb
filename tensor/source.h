// What a model is packed or converted from: GGUF metadata, and tensors whose rows lie in one file
// or several, perhaps in another order or type than the model needs. A GGUF file is a source, and
// so are a GGUF that was split and a Hugging Face folder.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/gguf.h"
#include "tensor/fail.h"

#define NB_SOURCE_FILES 256 // of a model, at most
#define NB_SOURCE_NAME  256 // bytes of a file's name, with the NUL

// Progress of what reads a source: `done` of `total` bytes. A return below 0 cancels it with that
// errno.
typedef int (*nb_progress)(void *user, uint64_t done, uint64_t total);

// A file of the source. `name`: as in its folder, without control characters ("config.json",
// "1_Pooling/config.json"). The fd is borrowed and read by pread.
struct nb_source_file {
    const char *name;
    int fd;
};

// Where a folder has the scales of a piece's codes, row by row, each of so many elements. Nested
// ones
// ("double quantization" of QLoRA, as bitsandbytes writes it) are bytes, each of which stands for
// map[byte] * its block's scale + shift.
struct nb_scales {
    uint32_t file, nested_file;
    uint64_t offset, nested_offset;
    uint64_t each, nested_each;
    uint32_t type; // F32, F16, BF16; of nested ones F32
    bool nested;
    float shift, map[256];
};

// Rows that lie one behind the other.
struct nb_piece {
    struct nb_str name; // of the tensor as its file has it
    uint32_t tensor;    // whose it is
    const void *data;   // where they are in memory; NULL: in a file
    uint32_t file;
    uint64_t offset;
    struct nb_scales *scales; // of a type that a folder keeps apart from its scales; else NULL
};

// A tensor as the model has it. A row is dims[0] elements; the others count rows, and each piece
// has as many of them as any other.
struct nb_source_tensor {
    struct nb_str name;
    uint32_t type; // one of GGUF's; perhaps one we do not load
    uint32_t n_dims;
    uint64_t dims[4]; // as GGUF; 1 past n_dims
    uint64_t bytes;   // 0 when the type is unknown to us
    const struct nb_piece *pieces;
    uint32_t n_pieces;
    uint32_t stored; // the type in the file: `type`, or one that is read as F32
    // Not 0: the rows (of a vector the elements) of so many heads, each with the two of a rotary
    // pair half a head apart, are read with them side by side.
    uint32_t heads;
    float add; // to each element, of F32
};

struct nb_source {
    struct nb_source_file *files; // a copy; the names are borrowed
    uint32_t n_files;
    struct nb_gguf *metadata;
    struct nb_source_tensor *tensors;
    uint32_t n_tensors;
    struct nb_piece
        *pieces; // of all tensors, one tensor after the other; their scales are malloc'ed
    uint32_t n_pieces;
    void *kept; // what names and pieces lie in
    void (*free_kept)(void *kept);
    // Gives rows in the files' place, from any thread; as nb_source_read. NULL: the files are read.
    int (*read)(void *user, const struct nb_source_tensor *t, uint64_t first, uint64_t n, void *dst,
                struct nb_error *ret_error);
    void *read_user;
};

// One GGUF, or the parts of one in their order. On failure `ret_error` says in one line what is
// wrong, and in which file where there are several. Errors as nb_gguf_open's. (hf/folder.h opens
// sources of every kind.)
int nb_source_open_gguf(const struct nb_source_file *files, uint32_t n_files,
                        struct nb_source **ret, struct nb_error *ret_error);
void nb_source_close(struct nb_source *s); // NULL is fine
// For who opens a kind of source: all but the files is empty. -EINVAL of their number, -ENOMEM.
int nb_source_create(const struct nb_source_file *files, uint32_t n_files, struct nb_source **ret,
                     struct nb_error *ret_error);

// One more tensor, at the end: `name` (not copied) with the numbers of tensor `of`. -EEXIST: there
// is one of this name; -ENOENT: there is no `of`; -ENOMEM.
int nb_source_repeat(struct nb_source *s, const char *of, const char *name);

// Rows [first, first + n) of the tensor (of a vector its only one), as it has them in `type`, which
// must be one that we load.
// -errno with its line.
int nb_source_read(const struct nb_source *s, const struct nb_source_tensor *t, uint64_t first,
                   uint64_t n, void *dst, struct nb_error *ret_error);
// Bytes of a row in its file, without scales that lie elsewhere.
uint64_t nb_source_stored_bytes(const struct nb_source_tensor *t);
// Bytes of a row as it is read.
uint64_t nb_source_row_bytes(const struct nb_source_tensor *t);
uint64_t nb_source_rows(const struct nb_source_tensor *t);
// The place of the tensor of this name; n_tensors: there is none.
uint32_t nb_source_find(const struct nb_source *s, struct nb_str name);

// The piece that has this row (of the tensor as it is read).
const struct nb_piece *nb_source_piece(const struct nb_source_tensor *t, uint64_t row);

// scaled.c: rows of a piece whose scales lie apart, as blocks of the tensor's type.
int nb_source_read_scaled(const struct nb_source *s, const struct nb_source_tensor *t,
                          const struct nb_piece *piece, uint64_t first, uint64_t n, void *dst,
                          struct nb_error *ret_error);
// `len` bytes of a file; `what` is whose they are.
int nb_source_read_bytes(const struct nb_source *s, uint32_t file, uint64_t at, size_t len,
                         struct nb_str what, void *dst, struct nb_error *ret_error);

// "FILE: " where the source has several files, else "": what an error begins with.
const char *nb_source_prefix(const struct nb_source *s, const struct nb_piece *piece,
                             char ret[NB_SOURCE_NAME + 2]);
