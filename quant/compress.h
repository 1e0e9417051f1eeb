// A source written as a GGUF, tensor by tensor, each in a type of its own and in any order. It may
// be killed at any instant and gone on with by another process: what the journal tells of is looked
// up in the file, the rest is done again, and the file's bytes are the same.
//
//     create (opens the journal) ─▶ choose ─▶ begin (the file) ─▶ put, tensor by tensor ─▶ finish
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/cpu/threads.h"
#include "quant/importance.h"
#include "quant/journal.h"
#include "quant/ranges.h"
#include "quant/recipe.h"
#include "tensor/source.h"

struct nb_compress;

#define NB_COMPRESS_RECORDS 16 // kinds of records below this are a compression's own

struct nb_compress_options {
    int fd;      // of the result, for reading and writing, perhaps with a part of it
    int journal; // fd
    const uint8_t *key;
    struct nb_team *team;
    // Records of other kinds: as of nb_journal_open. NULL: there are none.
    nb_journal_visit visit;
    void *visit_user;
    // Of the result's bytes, often; `what` is the tensor. A negative return ends the work.
    int (*progress)(void *user, const char *what, uint64_t done, uint64_t total);
    void *user;
};

// Opens the journal, and chooses each tensor's type by the recipe. All are borrowed. -ESTALE as of
// nb_journal_open, -errno with its line.
int nb_compress_create(const struct nb_source *s, struct nb_recipe *recipe,
                       const struct nb_compress_options *options, struct nb_compress **ret,
                       struct nb_error *ret_error);
void nb_compress_destroy(struct nb_compress *c); // NULL is fine

// For records of other kinds: at NB_COMPRESS_RECORDS and above.
struct nb_journal *nb_compress_journal(struct nb_compress *c);

// Each tensor's type; it may be changed before nb_compress_begin.
struct nb_choice *nb_compress_choices(struct nb_compress *c);

// "to" of the recipe; with a target the type of most weights.
uint32_t nb_compress_type(const struct nb_compress *c);

uint64_t nb_compress_size(const struct nb_compress *c); // of the file; 0 without memory
// The same of a source by a recipe, before there is a file. -errno with its line.
int nb_compress_measure(const struct nb_source *s, struct nb_recipe *recipe, uint64_t *ret,
                        struct nb_error *ret_error);

// Of static activations: what calibration has seen, before nb_compress_begin, where it is read.
void nb_compress_set_ranges(struct nb_compress *c, const struct nb_ranges *ranges);

// Writes all before the tensors, and finds those that are in the file already.
int nb_compress_begin(struct nb_compress *c, struct nb_error *ret_error);

// Of a tensor, by its place in the source's list: its bytes in the file.
uint64_t nb_compress_bytes(const struct nb_compress *c, uint32_t tensor);
bool nb_compress_has(const struct nb_compress *c, uint32_t tensor); // it is in the file
// Reads one that is there. -errno with its line.
int nb_compress_get(struct nb_compress *c, uint32_t tensor, void *ret, struct nb_error *ret_error);
// How many of its weights are zeros, in the file. Blocks; -errno with its line.
int nb_compress_zeros(const struct nb_compress *c, uint32_t tensor, uint64_t *ret,
                      struct nb_error *ret_error);
// The file, once it is whole, as a source of the same tensors in the types that they have there.
// Valid as long as `c`. NULL without memory.
const struct nb_source *nb_compress_result(struct nb_compress *c);
// Writes one that somebody has encoded; the journal tells of it. -errno with its line.
int nb_compress_put(struct nb_compress *c, uint32_t tensor, const void *bytes,
                    struct nb_error *ret_error);

// From now on none is there, as the journal tells whoever goes on. -errno with its line.
int nb_compress_again(struct nb_compress *c, struct nb_error *ret_error);

// Rounds one that is not there: to nearest, or with scales searched under its columns' importance;
// of a sparse one the zeros are made before. What is refused: a NaN or an infinity (by tensor and
// row); zeros by what is not there. -errno with its line.
int nb_compress_round(struct nb_compress *c, uint32_t tensor,
                      const struct nb_importance *importance, struct nb_error *ret_error);
// Rounds all that are not there. Then the file is whole and durable. -errno with its line; what was
// put stays.
int nb_compress_finish(struct nb_compress *c, const struct nb_importance *importance,
                       struct nb_error *ret_error);
