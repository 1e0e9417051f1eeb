// A source written as a GGUF in the types of a recipe, one tensor after the other, rounded to
// nearest or with scales searched under what calibration has learnt. It may be killed at any
// instant and gone on with by another process: the file's bytes are the same, and no more than one
// tensor is computed again.
#pragma once

#include <stdint.h>

#include "engine/cpu/threads.h"
#include "quant/importance.h"
#include "quant/journal.h"
#include "quant/recipe.h"
#include "tensor/source.h"

struct nb_compress;

// Chooses each tensor's type. Both are borrowed. -errno with its line.
int nb_compress_create(const struct nb_source *s, struct nb_recipe *recipe,
                       struct nb_compress **ret, struct nb_error *ret_error);
void nb_compress_destroy(struct nb_compress *c); // NULL is fine

uint64_t nb_compress_size(const struct nb_compress *c); // of the file; 0 without memory

#define NB_COMPRESS_RECORDS 16 // kinds of records below this are a compression's own

// What comes before the first tensor, and tells its own records in the same journal.
struct nb_compress_prelude {
    nb_journal_visit visit; // a record of its own: as of nb_journal_open
    // Once the journal is read. With *ret scales are searched, by
    // the columns' importance where a matrix is in it; it stays until the run's end.
    int (*run)(void *user, struct nb_journal *journal, const struct nb_importance **ret,
               struct nb_error *ret_error);
    void *user;
};

struct nb_compress_run {
    int fd;      // of the result, for reading and writing, perhaps with a part of it
    int journal; // fd
    const uint8_t *key;
    struct nb_team *team;
    const struct nb_compress_prelude *prelude; // may be NULL
    // Of the result's bytes, often; `what` is the tensor. A negative return ends the work.
    int (*progress)(void *user, const char *what, uint64_t done, uint64_t total);
    void *user;
};
// Blocks. What is refused: a NaN or an infinity (by tensor and row), a file that ends in zeros, a
// full disk. -errno with its line; what was finished stays finished.
int nb_compress_run(struct nb_compress *c, const struct nb_compress_run *how,
                    struct nb_error *ret_error);

const struct nb_choice *nb_compress_choices(const struct nb_compress *c); // of each tensor
