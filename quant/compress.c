// The order of things here is what makes a resumed file the same: header, then tensors in the
// source's order, each told in the journal with its hash when its last byte is written.
#include "quant/compress.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "quant/encode.h"
#include "quant/rounding.h"
#include "tensor/convert.h"
#include "tensor/gguf_write.h"
#include "tensor/type.h"

#define CHUNK   (UINT64_C(1) << 21) // elements that are written at a time; at least one row
#define UNIT    (UINT64_C(1) << 14) // elements that a thread takes at a time; at least one row
#define SYNC_NS 1000000000u         // between two syncs; the machine's stop loses no more
#define TENSOR  1                   // a journal's kind
#define STR(s)  (int)(s).len, (s).data

struct nb_compress {
    const struct nb_source *s;
    struct nb_recipe *recipe;
    struct nb_gguf_writer *w;
    struct nb_choice *choices; // of each tensor
    uint64_t bytes;            // of all tensors
};

// ---- The plan

static uint64_t bytes_of(const struct nb_source_tensor *t, uint32_t type)
{
    const struct nb_type_info *info = nb_type_info(type);
    return nb_source_rows(t) * (t->dims[0] / info->block * info->bytes);
}

static int add_tensor(struct nb_compress *c, uint32_t i, struct nb_error *ret_error)
{
    const struct nb_source_tensor *t = &c->s->tensors[i];
    char name[NB_SOURCE_NAME];
    int rc = nb_convert_check_tensor(t, ret_error);
    if (rc == 0)
        rc = nb_recipe_choose(c->recipe, t, &c->choices[i], ret_error);
    if (rc < 0)
        return rc;
    const uint32_t type = c->choices[i].type;
    snprintf(name, sizeof(name), "%.*s", STR(t->name));
    if (nb_gguf_add_tensor(c->w, name, type, t->n_dims, t->dims) < 0)
        return nb_fail(ret_error, -EINVAL, "tensor %s does not fit a GGUF file as %s", name,
                       nb_type_name(type));
    c->bytes += bytes_of(t, type);
    return 0;
}

static int plan(struct nb_compress *c, struct nb_error *ret_error)
{
    c->choices = calloc(c->s->n_tensors + 1, sizeof(*c->choices));
    int rc = c->choices ? nb_gguf_writer_create(&c->w) : -ENOMEM;
    if (rc == 0)
        rc = nb_convert_put_type(c->w, nb_recipe_to(c->recipe));
    if (rc == 0)
        rc = nb_gguf_copy_metadata(c->w, c->s->metadata);
    if (rc < 0)
        return nb_fail(ret_error, rc, "no memory for the list of tensors");
    for (uint32_t i = 0; i < c->s->n_tensors && rc == 0; i++)
        rc = add_tensor(c, i, ret_error);
    return rc;
}

int nb_compress_create(const struct nb_source *s, struct nb_recipe *recipe,
                       struct nb_compress **ret, struct nb_error *ret_error)
{
    struct nb_compress *c = calloc(1, sizeof(*c));
    if (!c)
        return nb_fail(ret_error, -ENOMEM, "no memory for the list of tensors");
    c->s = s;
    c->recipe = recipe;
    int rc = plan(c, ret_error);
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
    nb_gguf_writer_destroy(c->w);
    free(c->choices);
    free(c);
}

const struct nb_choice *nb_compress_choices(const struct nb_compress *c)
{
    return c->choices;
}

uint64_t nb_compress_size(const struct nb_compress *c)
{
    return nb_gguf_size(c->w);
}

// ---- A chunk of rows, by all threads

struct worker {
    uint8_t *in;
    float *floats;
    uint64_t failed; // the first row that could not be done; UINT64_MAX: none
    int rc;
    struct nb_error error;
};

struct running {
    const struct nb_compress *c;
    const struct nb_compress_run *how;
    struct nb_journal *journal;
    struct worker *workers; // one for each thread
    uint8_t *out;           // of a chunk
    uint64_t room_out, room_in;
    // The chunk
    const struct nb_source_tensor *t;
    uint32_t type;
    uint64_t first, n, unit; // rows
    struct nb_share share;
    // So far
    uint32_t n_done;                        // tensors that the journal tells of
    uint64_t done;                          // bytes of tensors
    uint64_t synced_ns;                     // when
    const struct nb_importance *importance; // NULL: rounding to nearest
    float *weights;                         // [experts][cols] of the tensor; NULL: all alike
    struct nb_error *ret_error;
};

#define FAIL(r, code, ...) nb_fail((r)->ret_error, code, __VA_ARGS__)

static uint64_t row_bytes(const struct running *r)
{
    const struct nb_type_info *info = nb_type_info(r->type);
    return r->t->dims[0] / info->block * info->bytes;
}

// What is so large that it becomes an infinity, or a scale that is one, is no weight any more.
static int check_range(const struct running *r, struct worker *w, const void *out, uint64_t first,
                       uint64_t n)
{
    const struct nb_type_info *to = nb_type_info(r->type);
    const uint64_t cols = r->t->dims[0], elements = n * cols;
    if (!nb_rounding_is_risky(r->type, w->floats, elements))
        return 0;
    to->dequantize(out, w->floats, elements / to->block);
    for (uint64_t i = 0; i < elements; i++)
        if (!isfinite(w->floats[i]))
            return nb_fail(&w->error, -ERANGE,
                           "tensor %.*s has numbers in row %" PRIu64
                           " that are too large for %s: name another type for it in a recipe",
                           STR(r->t->name), first + i / cols, to->name);
    return 0;
}

// The rows from `row` on that have the same importance: of a stack, those of one expert.
static uint64_t alike(const struct running *r, uint64_t row, uint64_t n)
{
    const uint64_t each = r->t->n_dims > 2 ? r->t->dims[1] : nb_source_rows(r->t);
    const uint64_t left = each - row % each;
    return left < n ? left : n;
}

static int search_rows(const struct running *r, struct worker *w, uint64_t first, uint64_t n,
                       uint8_t *out)
{
    const uint64_t cols = r->t->dims[0];
    const float *x = w->floats;
    int rc = 0;
    for (uint64_t some; n > 0 && rc == 0; first += some, n -= some, x += some * cols) {
        some = alike(r, first, n);
        const uint64_t expert = r->t->n_dims > 2 ? first / r->t->dims[1] : 0;
        const struct nb_encode how = {.type = r->type,
                                      .effort = NB_EFFORT_SEARCH,
                                      .by_size = true,
                                      .importance = r->weights ? r->weights + expert * cols : NULL};
        rc = nb_encode_rows(&how, x, some, cols, out);
        out += some * row_bytes(r);
    }
    return rc;
}

static int round_rows(const struct running *r, struct worker *w, uint64_t first, uint64_t n)
{
    const struct nb_type_info *from = nb_type_info(r->t->type);
    const uint64_t cols = r->t->dims[0];
    uint8_t *out = r->out + (first - r->first) * row_bytes(r);
    int rc = nb_source_read(r->c->s, r->t, first, n, w->in, &w->error);
    if (rc < 0)
        return rc;
    from->dequantize(w->in, w->floats, n * cols / from->block);
    rc = nb_convert_check_numbers(r->c->s, r->t, w->floats, first, n, &w->error);
    if (rc < 0)
        return rc;
    if (from->type == r->type) {
        memcpy(out, w->in, n * row_bytes(r));
        return 0;
    }
    if (r->importance)
        rc = search_rows(r, w, first, n, out);
    else
        rc = nb_rounding_rows(r->type, w->floats, n, cols, out);
    if (rc < 0)
        return nb_fail(&w->error, rc,
                       "tensor %.*s has numbers in rows from %" PRIu64
                       " on that are too large for %s: name another type for it in a recipe",
                       STR(r->t->name), first, nb_type_name(r->type));
    return check_range(r, w, out, first, n);
}

static void round_share(void *arg, uint32_t thread)
{
    struct running *r = arg;
    struct worker *w = &r->workers[thread];
    uint32_t unit, n;
    while ((n = nb_team_take(r->how->team, thread, &r->share, &unit)))
        for (uint32_t i = 0; i < n; i++) {
            const uint64_t at = (uint64_t)(unit + i) * r->unit;
            const uint64_t rows = r->n - at < r->unit ? r->n - at : r->unit;
            if (r->first + at >= w->failed)
                continue;
            int rc = round_rows(r, w, r->first + at, rows);
            if (rc < 0) {
                w->failed = r->first + at;
                w->rc = rc;
            }
        }
}

// The failure of the first row that has one, whichever thread met it.
static int worst(struct running *r)
{
    const struct worker *first = &r->workers[0];
    for (uint32_t i = 1; i < nb_team_size(r->how->team); i++)
        if (r->workers[i].failed < first->failed)
            first = &r->workers[i];
    if (first->failed == UINT64_MAX)
        return 0;
    return FAIL(r, first->rc, "%s", first->error.text);
}

static int round_chunk(struct running *r, uint64_t first, uint64_t n)
{
    r->first = first;
    r->n = n;
    r->share.id++;
    r->share.units = (uint32_t)((n + r->unit - 1) / r->unit);
    nb_team_run(r->how->team, round_share, r);
    return worst(r);
}

// ---- A tensor

static int reserve(struct running *r, uint64_t step)
{
    const uint64_t out = step * row_bytes(r), in = r->unit * r->t->dims[0];
    if (out > r->room_out) {
        free(r->out);
        r->out = malloc(out);
        r->room_out = r->out ? out : 0;
    }
    for (uint32_t i = 0; i < nb_team_size(r->how->team) && in > r->room_in; i++) {
        struct worker *w = &r->workers[i];
        free(w->in);
        free(w->floats);
        w->in = malloc(in * 4); // no type has more bytes an element
        w->floats = malloc(in * sizeof(float));
        if (!w->in || !w->floats)
            return FAIL(r, -ENOMEM, "no memory for a part of a tensor");
    }
    r->room_in = in > r->room_in ? in : r->room_in;
    return r->out ? 0 : FAIL(r, -ENOMEM, "no memory for a part of a tensor");
}

// The importance of the tensor's columns, where calibration has seen it. An expert that no token
// took has columns that are all alike.
static int find_weights(struct running *r, const char *name)
{
    const struct nb_source_tensor *t = r->t;
    const uint64_t experts = t->n_dims > 2 ? nb_source_rows(t) / t->dims[1] : 1;
    const struct nb_column_stats *m =
        r->importance ? nb_importance_find(r->importance, t->name) : NULL;
    free(r->weights);
    r->weights = NULL;
    if (!m)
        return 0;
    if (m->cols != t->dims[0] || m->n != experts)
        return FAIL(r, -EINVAL,
                    "the importance matrix is of another model: its %s has %u columns of %u "
                    "experts, the tensor %" PRIu64 " of %" PRIu64,
                    name, m->cols, m->n, t->dims[0], experts);
    r->weights = calloc(experts * m->cols, sizeof(*r->weights));
    if (!r->weights)
        return FAIL(r, -ENOMEM, "no memory for a tensor's importance");
    for (uint32_t e = 0; e < m->n; e++) {
        float *mean = r->weights + (size_t)e * m->cols;
        const bool seen = nb_column_stats_mean(m, e, mean);
        for (uint32_t i = 0; !seen && i < m->cols; i++)
            mean[i] = 1;
    }
    return 0;
}

static int write_chunk(struct running *r, uint64_t bytes, const char *name)
{
    int rc = nb_gguf_write(r->c->w, r->out, bytes);
    if (rc < 0)
        return FAIL(r, rc, "the result cannot be written: %s", strerror(-rc));
    r->done += bytes;
    rc = r->how->progress ? r->how->progress(r->how->user, name, r->done, r->c->bytes) : 0;
    return rc < 0 ? FAIL(r, rc, "cancelled") : 0;
}

static uint64_t rows_of(const struct nb_source_tensor *t, uint64_t elements)
{
    const uint64_t rows = nb_source_rows(t), some = elements / t->dims[0];
    return some < 1 ? 1 : some < rows ? some : rows;
}

static int write_tensor(struct running *r, uint32_t i, uint64_t *ret_hash)
{
    const struct nb_source_tensor *t = r->t = &r->c->s->tensors[i];
    const uint64_t rows = nb_source_rows(t), step = rows_of(t, CHUNK);
    char name[NB_SOURCE_NAME];
    XXH3_state_t *hash = XXH3_createState();
    if (!hash)
        return FAIL(r, -ENOMEM, "no memory for a hash");
    XXH3_64bits_reset(hash);
    snprintf(name, sizeof(name), "%.*s", STR(t->name));
    r->type = r->c->choices[i].type;
    r->unit = rows_of(t, UNIT);
    int rc = reserve(r, step);
    if (rc == 0)
        rc = find_weights(r, name);
    for (uint64_t row = 0; row < rows && rc == 0; row += step) {
        const uint64_t n = rows - row < step ? rows - row : step;
        rc = round_chunk(r, row, n);
        if (rc == 0)
            rc = write_chunk(r, n * row_bytes(r), name);
        if (rc == 0)
            XXH3_64bits_update(hash, r->out, n * row_bytes(r));
    }
    *ret_hash = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    return rc;
}

// ---- The journal

struct told { // of a tensor that is written
    uint32_t index, type;
    uint64_t offset, bytes; // in the file
    uint64_t hash;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int hash_file(int fd, uint64_t offset, uint64_t bytes, uint64_t *ret)
{
    XXH3_state_t *hash = XXH3_createState();
    uint8_t *some = malloc(1u << 20);
    int rc = hash && some ? 0 : -ENOMEM;
    if (rc == 0)
        XXH3_64bits_reset(hash);
    for (ssize_t n; bytes && rc == 0; offset += (uint64_t)n, bytes -= (uint64_t)n) {
        n = pread(fd, some, bytes < 1u << 20 ? bytes : 1u << 20, (off_t)offset);
        if (n <= 0) {
            rc = n < 0 ? -errno : -EIO; // -EIO: the file ends before
            break;
        }
        XXH3_64bits_update(hash, some, (size_t)n);
    }
    if (rc == 0)
        *ret = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    free(some);
    return rc;
}

// Whether the tensor that a record tells of is the next one and lies in the file.
static int on_record(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct running *r = user;
    struct told told;
    uint64_t hash = 0;
    if (kind >= NB_COMPRESS_RECORDS && r->how->prelude && r->n_done == 0)
        return r->how->prelude->visit(r->how->prelude->user, kind, data, bytes);
    if (kind != TENSOR || bytes != sizeof(told))
        return 1;
    memcpy(&told, data, sizeof(told));
    if (told.index != r->n_done || told.index >= r->c->s->n_tensors ||
        told.type != r->c->choices[told.index].type ||
        told.bytes != bytes_of(&r->c->s->tensors[told.index], told.type))
        return 1;
    int rc = hash_file(r->how->fd, told.offset, told.bytes, &hash);
    if (rc == -ENOMEM)
        return rc;
    if (rc < 0 || hash != told.hash)
        return 1;
    r->n_done++;
    r->done += told.bytes;
    return 0;
}

static int sync_now(struct running *r)
{
    int rc = nb_journal_sync(r->journal, &r->how->fd, 1);
    r->synced_ns = now_ns();
    return rc < 0 ? FAIL(r, rc, "the result cannot be written: %s", strerror(-rc)) : 0;
}

static int tell(struct running *r, const struct told *told)
{
    int rc = nb_journal_append(r->journal, TENSOR, told, sizeof(*told));
    if (rc < 0)
        return FAIL(r, rc, "the job's journal cannot be written: %s", strerror(-rc));
    return now_ns() - r->synced_ns < SYNC_NS ? 0 : sync_now(r);
}

static int do_tensor(struct running *r, uint32_t i)
{
    const off_t at = lseek(r->how->fd, 0, SEEK_CUR);
    struct told told = {.index = i,
                        .type = r->c->choices[i].type,
                        .offset = (uint64_t)at,
                        .bytes = bytes_of(&r->c->s->tensors[i], r->c->choices[i].type)};
    int rc = at < 0 ? FAIL(r, -errno, "the result cannot be written: %s", strerror(errno)) : 0;
    if (rc == 0)
        rc = write_tensor(r, i, &told.hash);
    return rc == 0 ? tell(r, &told) : rc;
}

// ---- The run

static int begin_file(struct running *r)
{
    int rc = lseek(r->how->fd, 0, SEEK_SET) < 0 ? -errno : 0;
    if (rc == 0)
        rc = nb_gguf_begin(r->c->w, r->how->fd);
    for (uint32_t i = 0; i < r->n_done && rc == 0; i++)
        rc = nb_gguf_skip(r->c->w);
    return rc < 0 ? FAIL(r, rc, "the result cannot be written: %s", strerror(-rc)) : 0;
}

static int end_file(struct running *r)
{
    const off_t end = lseek(r->how->fd, 0, SEEK_CUR);
    int rc = nb_gguf_end(r->c->w);
    if (rc == 0 && (end < 0 || ftruncate(r->how->fd, end) < 0))
        rc = -errno;
    return rc < 0 ? FAIL(r, rc, "the result cannot be written: %s", strerror(-rc)) : sync_now(r);
}

static int run_all(struct running *r)
{
    int rc = nb_convert_check_ends(r->c->s, r->ret_error);
    if (rc == 0)
        rc = nb_journal_open(r->how->journal, r->how->key, on_record, r, &r->journal, r->ret_error);
    if (rc == 0 && r->how->prelude)
        rc = r->how->prelude->run(r->how->prelude->user, r->journal, &r->importance, r->ret_error);
    if (rc == 0)
        rc = begin_file(r);
    r->synced_ns = now_ns();
    for (uint32_t i = r->n_done; i < r->c->s->n_tensors && rc == 0; i++)
        rc = do_tensor(r, i);
    return rc == 0 ? end_file(r) : rc;
}

int nb_compress_run(struct nb_compress *c, const struct nb_compress_run *how,
                    struct nb_error *ret_error)
{
    const uint32_t n = nb_team_size(how->team);
    struct running r = {.c = c, .how = how, .share = {.most = UINT32_MAX}};
    r.ret_error = ret_error;
    r.workers = calloc(n, sizeof(*r.workers));
    for (uint32_t i = 0; r.workers && i < n; i++)
        r.workers[i].failed = UINT64_MAX;
    int rc = r.workers ? run_all(&r) : FAIL(&r, -ENOMEM, "no memory for the threads");
    nb_journal_close(r.journal);
    for (uint32_t i = 0; r.workers && i < n; i++) {
        free(r.workers[i].in);
        free(r.workers[i].floats);
    }
    free(r.workers);
    free(r.weights);
    free(r.out);
    return rc;
}
