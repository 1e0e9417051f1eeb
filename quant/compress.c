// A tensor is whole when the journal tells its place and hash: whoever goes on looks at the file's
// bytes there.
#include "quant/compress.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "machine/clock.h"
#include "quant/rows.h"
#include "tensor/convert.h"
#include "tensor/gguf_write.h"
#include "tensor/type.h"

#define CHUNK   (UINT64_C(1) << 21) // elements that are written at a time; at least one row
#define SYNC_NS 1000000000u         // between two syncs; the machine's stop loses no more
#define TENSOR  1                   // a journal's kinds: one is whole; all are to be done again
#define AGAIN   2
#define STR(s)  (int)(s).len, (s).data

struct told { // of a tensor that is in the file
    uint32_t index, type;
    uint64_t offset, bytes; // in the file
    uint64_t hash;
};

struct nb_compress {
    const struct nb_source *s;
    struct nb_recipe *recipe;
    struct nb_compress_options options;
    struct nb_journal *journal;
    struct nb_gguf_writer *w;
    struct nb_rows_encoder *rows;
    struct nb_choice *choices;      // of each tensor
    const struct nb_ranges *ranges; // of inputs; NULL: not yet, or never
    struct told *told;              // by the journal, of each tensor; without bytes: nothing
    bool *has;
    struct nb_source result; // without tensors: not yet
    uint64_t bytes, done;    // of all tensors
    uint64_t synced_ns;      // when
};

// ---- The plan

uint64_t nb_compress_bytes(const struct nb_compress *c, uint32_t tensor)
{
    const struct nb_source_tensor *t = &c->s->tensors[tensor];
    return nb_source_rows(t) * nb_type_row_bytes(c->choices[tensor].type, t->dims[0]);
}

static int add_tensor(const struct nb_compress *c, uint32_t i, struct nb_gguf_writer *w,
                      struct nb_error *ret_error)
{
    const struct nb_source_tensor *t = &c->s->tensors[i];
    const uint32_t type = c->choices[i].type;
    char name[NB_SOURCE_NAME];
    snprintf(name, sizeof(name), "%.*s", STR(t->name));
    if (nb_gguf_add_tensor(w, name, type, t->n_dims, t->dims) < 0)
        return nb_fail(ret_error, -EINVAL, "tensor %s does not fit a GGUF file as %s", name,
                       nb_type_name(type));
    return 0;
}

uint32_t nb_compress_type(const struct nb_compress *c)
{
    uint64_t weights[NB_TYPE_END] = {0};
    uint32_t most = NB_TYPE_F32;
    for (uint32_t i = 0; i < c->s->n_tensors; i++) {
        const uint32_t type = c->choices[i].type;
        weights[type] += nb_source_rows(&c->s->tensors[i]) * c->s->tensors[i].dims[0];
        most = weights[type] > weights[most] ? type : most;
    }
    return nb_recipe_target(c->recipe)->kind ? most : nb_recipe_to(c->recipe)->type;
}

// The ranges of a static scheme come once calibration has found them.
static int put_activations(const struct nb_compress *c, struct nb_gguf_writer *w)
{
    static const char *const schemes[] = {
        [NB_INPUT_ROW] = NB_ACTIVATIONS_DYNAMIC, [NB_INPUT_FIXED] = NB_ACTIVATIONS_STATIC};
    const struct nb_activations how = nb_recipe_activations(c->recipe);
    if (how.scale == NB_INPUT_BLOCK)
        return 0;
    int rc = nb_gguf_put_str(w, NB_KEY_ACTIVATIONS,
                             (struct nb_str){schemes[how.scale], strlen(schemes[how.scale])});
    return rc == 0 && c->ranges ? nb_ranges_put(c->ranges, &how, w) : rc;
}

static int check_activations(const struct nb_compress *c, struct nb_error *ret_error)
{
    struct nb_str scheme;
    if (nb_recipe_activations(c->recipe).scale == NB_INPUT_BLOCK ||
        nb_gguf_str(c->s->metadata, NB_KEY_ACTIVATIONS, &scheme) == -ENOENT)
        return 0;
    return nb_fail(ret_error, -EINVAL,
                   "the source has a scheme of activations already (%s): compress the original",
                   NB_KEY_ACTIVATIONS);
}

// The file as the present choices have it.
static int list(const struct nb_compress *c, struct nb_gguf_writer **ret,
                struct nb_error *ret_error)
{
    struct nb_gguf_writer *w = NULL;
    int rc = nb_gguf_writer_create(&w);
    if (rc == 0 && nb_recipe_folder(c->recipe))
        nb_gguf_writer_own(w);
    if (rc == 0)
        rc = nb_convert_put_type(w, nb_compress_type(c));
    if (rc == 0)
        rc = put_activations(c, w);
    if (rc == 0)
        rc = nb_gguf_copy_metadata(w, c->s->metadata);
    if (rc < 0)
        nb_fail(ret_error, rc, "no memory for the list of tensors");
    for (uint32_t i = 0; i < c->s->n_tensors && rc == 0; i++)
        rc = add_tensor(c, i, w, ret_error);
    if (rc < 0)
        nb_gguf_writer_destroy(w);
    else
        *ret = w;
    return rc;
}

static int measure(const struct nb_compress *c, uint64_t *ret, struct nb_error *ret_error)
{
    struct nb_gguf_writer *w = NULL;
    int rc = list(c, &w, ret_error);
    if (rc < 0)
        return rc;
    *ret = nb_gguf_size(w);
    nb_gguf_writer_destroy(w);
    return *ret ? 0 : nb_fail(ret_error, -ENOMEM, "no memory for the list of tensors");
}

uint64_t nb_compress_size(const struct nb_compress *c)
{
    uint64_t size = 0;
    struct nb_error error;
    return measure(c, &size, &error) == 0 ? size : 0;
}

static int choose_all(struct nb_compress *c, struct nb_error *ret_error)
{
    int rc = 0;
    for (uint32_t i = 0; i < c->s->n_tensors && rc == 0; i++) {
        rc = nb_convert_check_tensor(&c->s->tensors[i], ret_error);
        if (rc == 0)
            rc = nb_recipe_choose(c->recipe, &c->s->tensors[i], &c->choices[i], ret_error);
    }
    return rc;
}

int nb_compress_measure(const struct nb_source *s, struct nb_recipe *recipe, uint64_t *ret,
                        struct nb_error *ret_error)
{
    struct nb_compress c = {.s = s, .recipe = recipe};
    c.choices = calloc((size_t)s->n_tensors + 1, sizeof(*c.choices));
    int rc = c.choices ? choose_all(&c, ret_error)
                       : nb_fail(ret_error, -ENOMEM, "no memory for the list of tensors");
    if (rc == 0)
        rc = measure(&c, ret, ret_error);
    free(c.choices);
    return rc;
}

// ---- The journal

static int on_record(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct nb_compress *c = user;
    struct told told;
    if (kind >= NB_COMPRESS_RECORDS && c->options.visit)
        return c->options.visit(c->options.visit_user, kind, data, bytes);
    if (kind == AGAIN && bytes == 0) {
        memset(c->told, 0, c->s->n_tensors * sizeof(*c->told));
        return 0;
    }
    if (kind != TENSOR || bytes != sizeof(told))
        return 1;
    memcpy(&told, data, sizeof(told));
    if (told.index >= c->s->n_tensors || !told.bytes)
        return 1;
    c->told[told.index] = told;
    return 0;
}

static int create(struct nb_compress *c, struct nb_error *ret_error)
{
    const uint32_t n = c->s->n_tensors;
    c->choices = calloc(n + 1, sizeof(*c->choices));
    c->told = calloc(n + 1, sizeof(*c->told));
    c->has = calloc(n + 1, sizeof(*c->has));
    if (!c->choices || !c->told || !c->has)
        return nb_fail(ret_error, -ENOMEM, "no memory for the list of tensors");
    int rc = nb_rows_create(c->s, c->options.team, &c->rows, ret_error);
    if (rc == 0)
        rc = check_activations(c, ret_error);
    if (rc == 0)
        rc = choose_all(c, ret_error);
    if (rc == 0)
        rc = nb_convert_check_ends(c->s, ret_error);
    return rc == 0 ? nb_journal_open(c->options.journal, c->options.key, on_record, c, &c->journal,
                                     ret_error)
                   : rc;
}

int nb_compress_create(const struct nb_source *s, struct nb_recipe *recipe,
                       const struct nb_compress_options *options, struct nb_compress **ret,
                       struct nb_error *ret_error)
{
    struct nb_compress *c = calloc(1, sizeof(*c));
    if (!c)
        return nb_fail(ret_error, -ENOMEM, "no memory for the list of tensors");
    c->s = s;
    c->recipe = recipe;
    c->options = *options;
    int rc = create(c, ret_error);
    if (rc < 0)
        nb_compress_destroy(c);
    else
        *ret = c;
    return rc;
}

void nb_compress_destroy(struct nb_compress *c)
{
    if (!c)
        return;
    nb_journal_close(c->journal);
    nb_gguf_writer_destroy(c->w);
    nb_rows_destroy(c->rows);
    free(c->choices);
    free(c->told);
    free(c->has);
    free(c->result.tensors);
    free(c);
}

struct nb_journal *nb_compress_journal(struct nb_compress *c)
{
    return c->journal;
}

struct nb_choice *nb_compress_choices(struct nb_compress *c)
{
    return c->choices;
}

// ---- The file

static int fail_write(int rc, struct nb_error *ret_error)
{
    return nb_fail(ret_error, rc, "the result cannot be written: %s", strerror(-rc));
}

static int sync_now(struct nb_compress *c, struct nb_error *ret_error)
{
    int rc = nb_journal_sync(c->journal, &c->options.fd, 1);
    c->synced_ns = nb_now_ns();
    return rc < 0 ? fail_write(rc, ret_error) : 0;
}

// Whether the tensor that the journal tells of is the one that is wanted, and lies in the file.
static int find_told(struct nb_compress *c, uint32_t i)
{
    const struct told *told = &c->told[i];
    uint64_t hash = 0;
    if (told->type != c->choices[i].type || told->bytes != nb_compress_bytes(c, i) ||
        told->offset != nb_gguf_offset(c->w, i))
        return 0;
    const struct nb_journal_place place = {told->offset, told->bytes};
    int rc = nb_journal_hash(c->options.fd, &place, 1, &hash);
    c->has[i] = rc == 0 && hash == told->hash;
    c->done += c->has[i] ? told->bytes : 0;
    return rc == -ENOMEM ? rc : 0;
}

static int begin_file(struct nb_compress *c)
{
    const uint64_t size = nb_gguf_size(c->w);
    if (!size)
        return -ENOMEM;
    if (lseek(c->options.fd, 0, SEEK_SET) < 0)
        return -errno;
    int rc = nb_gguf_begin(c->w, c->options.fd);
    if (rc == 0 && ftruncate(c->options.fd, (off_t)size) < 0)
        rc = -errno;
    return rc;
}

void nb_compress_set_ranges(struct nb_compress *c, const struct nb_ranges *ranges)
{
    c->ranges = ranges;
}

int nb_compress_begin(struct nb_compress *c, struct nb_error *ret_error)
{
    const bool wants = nb_recipe_activations(c->recipe).scale == NB_INPUT_FIXED;
    if (wants && !(c->ranges && c->ranges->count))
        return nb_fail(ret_error, -EINVAL,
                       "static activations have ranges that calibration text shows "
                       "(--calibration); an importance matrix does not");
    int rc = list(c, &c->w, ret_error);
    if (rc < 0)
        return rc;
    rc = begin_file(c);
    for (uint32_t i = 0; i < c->s->n_tensors && rc == 0; i++) {
        c->bytes += nb_compress_bytes(c, i);
        rc = find_told(c, i);
    }
    c->synced_ns = nb_now_ns();
    return rc < 0 ? fail_write(rc, ret_error) : 0;
}

bool nb_compress_has(const struct nb_compress *c, uint32_t tensor)
{
    return c->has[tensor];
}

static int read_at(const struct nb_compress *c, uint8_t *ret, uint64_t bytes, uint64_t at,
                   struct nb_error *ret_error)
{
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pread(c->options.fd, ret + done, bytes - done, (off_t)(at + done));
        if (n <= 0)
            return nb_fail(ret_error, n < 0 ? -errno : -EIO, "the result cannot be read: %s",
                           n < 0 ? strerror(errno) : "it ends before");
        done += (uint64_t)n;
    }
    return 0;
}

int nb_compress_get(struct nb_compress *c, uint32_t tensor, void *ret, struct nb_error *ret_error)
{
    return read_at(c, ret, nb_compress_bytes(c, tensor), nb_gguf_offset(c->w, tensor), ret_error);
}

static int read_result(void *user, const struct nb_source_tensor *t, uint64_t first, uint64_t n,
                       void *dst, struct nb_error *ret_error)
{
    const struct nb_compress *c = user;
    const uint64_t each = nb_type_row_bytes(t->type, t->dims[0]);
    const uint32_t i = (uint32_t)(t - c->result.tensors);
    return read_at(c, dst, n * each, nb_gguf_offset(c->w, i) + first * each, ret_error);
}

const struct nb_source *nb_compress_result(struct nb_compress *c)
{
    const uint32_t n = c->s->n_tensors;
    if (c->result.tensors)
        return &c->result;
    c->result = *c->s;
    c->result.read = read_result;
    c->result.read_user = c;
    c->result.tensors = calloc(n + 1, sizeof(*c->result.tensors));
    if (!c->result.tensors)
        return NULL;
    memcpy(c->result.tensors, c->s->tensors, n * sizeof(*c->s->tensors));
    for (uint32_t i = 0; i < n; i++) {
        c->result.tensors[i].type = c->choices[i].type;
        c->result.tensors[i].bytes = nb_compress_bytes(c, i);
    }
    return &c->result;
}

// ---- Tensors

static int write_at(struct nb_compress *c, const uint8_t *data, uint64_t bytes, uint64_t at,
                    struct nb_error *ret_error)
{
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pwrite(c->options.fd, data + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return fail_write(n < 0 ? -errno : -ENOSPC, ret_error);
        done += (uint64_t)n;
    }
    return 0;
}

static int report(struct nb_compress *c, const struct nb_source_tensor *t, uint64_t bytes,
                  struct nb_error *ret_error)
{
    char name[NB_SOURCE_NAME];
    snprintf(name, sizeof(name), "%.*s", STR(t->name));
    c->done += bytes;
    int rc =
        c->options.progress ? c->options.progress(c->options.user, name, c->done, c->bytes) : 0;
    return rc < 0 ? nb_fail(ret_error, rc, "cancelled") : 0;
}

static int tell(struct nb_compress *c, uint32_t i, uint64_t hash, struct nb_error *ret_error)
{
    const struct told told = {.index = i,
                              .type = c->choices[i].type,
                              .offset = nb_gguf_offset(c->w, i),
                              .bytes = nb_compress_bytes(c, i),
                              .hash = hash};
    int rc = nb_journal_append(c->journal, TENSOR, &told, sizeof(told));
    if (rc < 0)
        return nb_fail(ret_error, rc, "the job's journal cannot be written: %s", strerror(-rc));
    c->has[i] = true;
    return nb_now_ns() - c->synced_ns < SYNC_NS ? 0 : sync_now(c, ret_error);
}

int nb_compress_put(struct nb_compress *c, uint32_t tensor, const void *bytes,
                    struct nb_error *ret_error)
{
    const uint64_t n = nb_compress_bytes(c, tensor);
    int rc = write_at(c, bytes, n, nb_gguf_offset(c->w, tensor), ret_error);
    if (rc == 0)
        rc = tell(c, tensor, XXH3_64bits(bytes, n), ret_error);
    return rc == 0 ? report(c, &c->s->tensors[tensor], n, ret_error) : rc;
}

int nb_compress_again(struct nb_compress *c, struct nb_error *ret_error)
{
    int rc = nb_journal_keep(c->journal, AGAIN, NULL, 0, &c->options.fd, 1, ret_error);
    if (rc < 0)
        return rc;
    memset(c->has, 0, c->s->n_tensors * sizeof(*c->has));
    c->done = 0;
    return 0;
}

// Chunk by chunk, so that a tensor of any size takes little memory.
static int round_tensor(struct nb_compress *c, uint32_t i, const struct nb_rows_type *how,
                        struct nb_error *ret_error)
{
    const struct nb_source_tensor *t = &c->s->tensors[i];
    const uint64_t n = nb_source_rows(t), each = nb_type_row_bytes(how->type, t->dims[0]);
    const uint64_t fit = CHUNK / t->dims[0], step = fit < 1 ? 1 : fit < n ? fit : n;
    uint64_t at = nb_gguf_offset(c->w, i);
    XXH3_state_t *hash = XXH3_createState();
    uint8_t *out = malloc(step * each);
    int rc = hash && out ? 0 : nb_fail(ret_error, -ENOMEM, "no memory for a part of a tensor");
    if (rc == 0)
        XXH3_64bits_reset(hash);
    for (uint64_t row = 0, some; row < n && rc == 0; row += some, at += some * each) {
        some = n - row < step ? n - row : step;
        rc = nb_rows_encode(c->rows, t, how, row, some, out, ret_error);
        if (rc == 0)
            rc = write_at(c, out, some * each, at, ret_error);
        if (rc == 0)
            rc = report(c, t, some * each, ret_error);
        if (rc == 0)
            XXH3_64bits_update(hash, out, some * each);
    }
    if (rc == 0)
        rc = tell(c, i, XXH3_64bits_digest(hash), ret_error);
    XXH3_freeState(hash);
    free(out);
    return rc;
}

// What a matrix's zeros are chosen by. *ret_cuts is malloc'ed, or stays.
static int prepare_zeros(struct nb_compress *c, uint32_t i, struct nb_rows_type *how,
                         struct nb_sparse_cut **ret_cuts, struct nb_error *ret_error)
{
    const struct nb_source_tensor *t = &c->s->tensors[i];
    const struct nb_sparsity *s = &c->choices[i].sparse;
    how->sparse = nb_sparsity_any(s) ? s : NULL;
    if (!how->sparse)
        return 0;
    if (s->by == NB_SPARSE_SPARSEGPT)
        return nb_fail(ret_error, -EINVAL,
                       "tensor %.*s: sparsegpt is of matrices that error feedback takes, which "
                       "have whole 16s of columns: exempt it by a rule (\"sparse\": 0)",
                       STR(t->name));
    if (s->by == NB_SPARSE_WANDA && !how->weights)
        return nb_fail(ret_error, -EINVAL,
                       "tensor %.*s: there is no importance of its columns for wanda: exempt it by "
                       "a rule (\"sparse\": 0)",
                       STR(t->name));
    if (s->of || s->by == NB_SPARSE_WANDA)
        return 0;
    *ret_cuts = calloc(nb_source_rows(t), sizeof(**ret_cuts));
    how->cuts = *ret_cuts;
    return how->cuts ? nb_rows_cuts(c->rows, t, s, *ret_cuts, ret_error)
                     : nb_fail(ret_error, -ENOMEM, "no memory for a tensor's zeros");
}

int nb_compress_round(struct nb_compress *c, uint32_t tensor,
                      const struct nb_importance *importance, struct nb_error *ret_error)
{
    float *weights = NULL;
    struct nb_sparse_cut *cuts = NULL;
    int rc = nb_importance_weights(importance, &c->s->tensors[tensor], &weights, ret_error);
    struct nb_rows_type how = {.type = c->choices[tensor].type,
                               .search = importance != NULL,
                               .weights = weights,
                               .scheme = nb_choice_scheme(&c->choices[tensor])};
    if (rc == 0)
        rc = prepare_zeros(c, tensor, &how, &cuts, ret_error);
    if (rc == 0 && how.scheme->group == NB_GROUP_TENSOR)
        rc = nb_rows_extent(c->rows, &c->s->tensors[tensor], &how.least, &how.most, ret_error);
    if (rc == 0)
        rc = round_tensor(c, tensor, &how, ret_error);
    free(cuts);
    free(weights);
    return rc;
}

static int count_zeros(const struct nb_compress *c, uint32_t tensor, uint64_t step, uint8_t *bytes,
                       float *floats, uint64_t *ret, struct nb_error *ret_error)
{
    const struct nb_source_tensor *t = &c->s->tensors[tensor];
    const struct nb_type_info *type = nb_type_info(c->choices[tensor].type);
    const uint64_t rows = nb_source_rows(t), each = nb_type_row_bytes(type->type, t->dims[0]);
    uint64_t at = nb_gguf_offset(c->w, tensor), zeros = 0;
    int rc = 0;
    for (uint64_t row = 0, some; row < rows && rc == 0; row += some, at += some * each) {
        some = rows - row < step ? rows - row : step;
        rc = read_at(c, bytes, some * each, at, ret_error);
        if (rc < 0)
            break;
        type->dequantize(bytes, floats, some * t->dims[0] / type->block);
        for (uint64_t i = 0; i < some * t->dims[0]; i++)
            zeros += floats[i] == 0;
    }
    if (rc == 0)
        *ret = zeros;
    return rc;
}

int nb_compress_zeros(const struct nb_compress *c, uint32_t tensor, uint64_t *ret,
                      struct nb_error *ret_error)
{
    const uint64_t cols = c->s->tensors[tensor].dims[0];
    const uint64_t step = CHUNK / cols < 1 ? 1 : CHUNK / cols;
    uint8_t *bytes = malloc(step * nb_type_row_bytes(c->choices[tensor].type, cols));
    float *floats = malloc(step * cols * sizeof(*floats));
    int rc = bytes && floats ? count_zeros(c, tensor, step, bytes, floats, ret, ret_error)
                             : nb_fail(ret_error, -ENOMEM, "no memory for a part of a tensor");
    free(bytes);
    free(floats);
    return rc;
}

int nb_compress_finish(struct nb_compress *c, const struct nb_importance *importance,
                       struct nb_error *ret_error)
{
    int rc = 0;
    for (uint32_t i = 0; i < c->s->n_tensors && rc == 0; i++)
        if (!c->has[i])
            rc = nb_compress_round(c, i, importance, ret_error);
    return rc == 0 ? sync_now(c, ret_error) : rc;
}
