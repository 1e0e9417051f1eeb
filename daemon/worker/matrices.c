// Matrix jobs: checks a descriptor (a private copy), finds its matrix, and runs a slice of the job.
#include "daemon/worker/matrices.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/embed.h"
#include "daemon/worker/submissions.h"
#include "daemon/worker/serve.h"
#include "daemon/worker/worker.h"
#include "engine/operand.h"

#define PLACES 5 // in the client's memory, that a job uses at most

struct nb_matrix_job {
    struct nb_matrix_job *next; // of the channel
    struct nb_job *job;
    struct nb_operand *operand;
    struct nb_packed_matrix *packed; // whose the operand is; NULL: its own
    uint64_t rows, cols;
    uint32_t region[PLACES];
    union {
        struct nb_gemm_job gemm;
        struct nb_dequantize_job dequantize;
    };
    int (*run)(struct nb_matrix_job *work);
};

// --- Matrices that are packed once

struct nb_packed_matrix {
    struct nb_packed_matrix *next;
    struct nb_desc_matrix desc;
    struct nb_operand *operand;
    uint32_t users;
};

static void drop_packed(struct nb_packed_matrix **at)
{
    struct nb_packed_matrix *k = *at;
    *at = k->next;
    nb_operand_destroy(k->operand);
    free(k);
}

static bool lies_in(const struct nb_desc_matrix *d, uint32_t region)
{
    return d->codes.region == region || d->scales.region == region || d->zeros.region == region;
}

void nb_packed_matrices_drop(struct nb_channel *c, uint32_t region)
{
    for (struct nb_packed_matrix **at = &c->packed; *at;)
        if (!region || lies_in(&(*at)->desc, region))
            drop_packed(at);
        else
            at = &(*at)->next;
}

// Whether so much more may be packed. Drops the oldest that nobody uses, if need be.
static bool make_room(struct nb_channel *c, uint64_t bytes)
{
    uint64_t allowed = 0, used = bytes;
    for (uint32_t i = 0; i < NB_MEMORIES_MAX; i++)
        allowed += c->regions[i].packed_bytes;
    for (struct nb_packed_matrix *k = c->packed; k; k = k->next)
        used += nb_operand_packed_bytes(k->operand);
    for (struct nb_packed_matrix **at = &c->packed; *at && used > allowed;)
        if ((*at)->users) {
            at = &(*at)->next;
        } else {
            used -= nb_operand_packed_bytes((*at)->operand);
            drop_packed(at);
        }
    return used <= allowed;
}

static struct nb_packed_matrix *find_packed(struct nb_channel *c, const struct nb_desc_matrix *d)
{
    struct nb_packed_matrix *k = c->packed;
    while (k && memcmp(&k->desc, d, sizeof(*d)) != 0)
        k = k->next;
    return k;
}

static struct nb_packed_matrix *pack(struct nb_channel *c, const struct nb_desc_matrix *d,
                                     const struct nb_groupwise *g)
{
    struct nb_operand *operand;
    if (nb_operand_groupwise(c->model->model, g, true, &operand) < 0)
        return NULL;
    struct nb_packed_matrix *k = calloc(1, sizeof(*k));
    if (!k || !make_room(c, nb_operand_packed_bytes(operand))) {
        free(k);
        nb_operand_destroy(operand);
        return NULL;
    }
    struct nb_packed_matrix **end = &c->packed;
    while (*end)
        end = &(*end)->next;
    *k = (struct nb_packed_matrix){.desc = *d, .operand = operand};
    *end = k;
    return k;
}

// --- The matrix of a descriptor

static bool is_constant(struct nb_channel *c, const struct nb_place *p)
{
    const struct nb_region *r = nb_region_find(c, p->region);
    return r && r->constant;
}

// What the engine says of a matrix, for whoever asked for it.
static int explain(struct nb_channel *c, int status, const char *name)
{
    switch (status) {
    case -ENOENT:
        return nb_refuse(c, status, "the model has no tensor %s", name);
    case -EINVAL:
        return nb_refuse(c, status, "tensor %s is a vector, no matrix", name);
    case -EOPNOTSUPP:
        return nb_refuse(c, status, "the device %s has no products for clients",
                         c->serve->device_name);
    default:
        return status;
    }
}

static int find_tensor(struct nb_channel *c, const struct nb_desc_matrix *d,
                       struct nb_operand **ret)
{
    const struct nb_desc_matrix alone = {.tensor = d->tensor};
    char name[16];
    if (memcmp(d, &alone, sizeof(alone)) != 0)
        return nb_refuse(c, -EINVAL,
                         "a matrix is tensor %u, and then its other fields are 0, or %u", d->tensor,
                         NB_NO_TENSOR);
    snprintf(name, sizeof(name), "%u", d->tensor);
    return explain(c, nb_operand_tensor(c->model->model, d->tensor, ret), name);
}

// nb_region_range, refused with `what` lies there.
static void *place(struct nb_channel *c, const char *what, const struct nb_place *p, uint64_t len,
                   size_t align, bool write)
{
    void *at = nb_region_range(c, p, len, align, write);
    if (!at)
        nb_reason(c,
                  "%s: %" PRIu64 " bytes at %" PRIu64
                  " are not all within region %u, aligned to %zu%s",
                  what, len, p->offset, p->region, align, write ? " and to be written" : "");
    return at;
}

static int locate(struct nb_channel *c, const struct nb_desc_matrix *d, struct nb_groupwise *ret)
{
    static const struct nb_place nowhere;
    struct nb_groupwise g = {.shape = {.bits = d->bits,
                                       .rows = d->rows,
                                       .cols = d->cols,
                                       .group = d->group,
                                       .half_scales = d->flags & NB_SCALES_F16,
                                       .has_zeros = d->flags & NB_ZEROS}};
    struct nb_groupwise_bytes bytes;
    struct nb_layout layout;
    struct nb_packed packed;
    if (d->flags & ~(NB_SCALES_F16 | NB_ZEROS))
        return nb_refuse(c, -EINVAL, "a matrix's flags are %#x: at most %#x", d->flags,
                         NB_SCALES_F16 | NB_ZEROS);
    if (nb_groupwise_init(&g.shape, &layout, &packed, &bytes) < 0)
        return nb_refuse(
            c, -EINVAL,
            "a groupwise matrix of %u by %u with %u bits in groups of %u: bits are 8 or "
            "4, groups 32, 64, 128 or 0, columns at most 2^20",
            d->rows, d->cols, d->bits, d->group);
    g.codes = place(c, "codes", &d->codes, bytes.codes, 1, false);
    g.scales = place(c, "scales", &d->scales, bytes.scales, g.shape.half_scales ? 2 : 4, false);
    if (g.shape.has_zeros)
        g.zeros = place(c, "zeros", &d->zeros, bytes.zeros, 1, false);
    else if (memcmp(&d->zeros, &nowhere, sizeof(nowhere)) != 0)
        return nb_refuse(c, -EINVAL, "a matrix without zero points has no place for them");
    if (!g.codes || !g.scales || (g.shape.has_zeros && !g.zeros))
        return -EFAULT;
    *ret = g;
    return 0;
}

static int find_matrix(struct nb_channel *c, const struct nb_desc_matrix *d,
                       struct nb_matrix_job *work)
{
    struct nb_groupwise g;
    if (d->tensor != NB_NO_TENSOR)
        return find_tensor(c, d, &work->operand);
    int rc = locate(c, d, &g);
    if (rc < 0)
        return rc;
    bool constant = is_constant(c, &d->codes) && is_constant(c, &d->scales) &&
                    (!g.shape.has_zeros || is_constant(c, &d->zeros));
    work->packed = constant ? find_packed(c, d) : NULL;
    if (constant && !work->packed)
        work->packed = pack(c, d, &g);
    if (!work->packed)
        return explain(c, nb_operand_groupwise(c->model->model, &g, false, &work->operand), "");
    work->operand = work->packed->operand;
    work->packed->users++;
    return 0;
}

// --- Jobs

static void unlink_job(struct nb_matrix_job *work)
{
    struct nb_matrix_job **at = &work->job->channel->first_matrix_job;
    while (*at && *at != work)
        at = &(*at)->next;
    if (*at)
        *at = work->next;
}

void nb_matrix_job_destroy(struct nb_matrix_job *work)
{
    if (!work)
        return;
    unlink_job(work);
    if (work->packed)
        work->packed->users--;
    else
        nb_operand_destroy(work->operand);
    free(work);
}

// What the job has to do, with its matrix. From here on the end of the job destroys it.
static int create_job(struct nb_job *job, const struct nb_desc_matrix *d,
                      struct nb_matrix_job **ret)
{
    struct nb_matrix_job *work = calloc(1, sizeof(*work));
    if (!work)
        return -ENOMEM;
    work->job = job;
    job->matrix_job = work;
    int rc = find_matrix(job->channel, d, work);
    if (rc == 0)
        nb_operand_shape(work->operand, &work->rows, &work->cols);
    work->region[0] = d->codes.region;
    work->region[1] = d->scales.region;
    work->region[2] = d->zeros.region;
    *ret = work;
    return rc;
}

static void queue(struct nb_matrix_job *work)
{
    struct nb_matrix_job **end = &work->job->channel->first_matrix_job;
    while (*end)
        end = &(*end)->next;
    *end = work;
}

static int gemm(struct nb_matrix_job *work)
{
    return nb_gemm_slice(&work->gemm);
}

static int dequantize(struct nb_matrix_job *work)
{
    return nb_dequantize_slice(&work->dequantize);
}

int nb_on_gemm(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_gemm *d = desc;
    struct nb_matrix_job *work;
    int rc = create_job(job, &d->w, &work);
    if (rc < 0)
        return rc;
    if (!d->n || d->n > NB_GEMM_ROWS)
        return nb_refuse(job->channel, -EINVAL, "n is %u: 1 to %u", d->n, NB_GEMM_ROWS);
    if (d->terms < 1 || d->terms > 2)
        return nb_refuse(job->channel, -EINVAL, "terms is %u: 1 or 2", d->terms);
    if (!nb_operand_has_gemm(work->operand))
        return nb_refuse(job->channel, NIBBLE_E_UNSUPPORTED,
                         "rows of %" PRIu64 " columns are longer than the driver of %s runs a loop",
                         work->cols, job->channel->serve->device_name);
    const float *x =
        place(job->channel, "x", &d->x, d->n * work->cols * sizeof(float), alignof(float), false);
    float *y =
        place(job->channel, "y", &d->y, d->n * work->rows * sizeof(float), alignof(float), true);
    if (!x || !y)
        return -EFAULT;
    work->region[3] = d->x.region;
    work->region[4] = d->y.region;
    work->run = gemm;
    work->gemm =
        (struct nb_gemm_job){.w = work->operand, .x = x, .y = y, .n = d->n, .terms = d->terms};
    queue(work);
    return 0;
}

static const struct {
    enum nb_number number;
    uint32_t bytes;
} numbers[] = {
    [NB_NUMBER_IS_F32] = {NB_NUMBER_F32, 4},
    [NB_NUMBER_IS_F16] = {NB_NUMBER_F16, 2},
    [NB_NUMBER_IS_INT8] = {NB_NUMBER_INT8, 1},
};

int nb_on_dequantize(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    static const struct nb_place nowhere;
    const struct nb_desc_dequantize *d = desc;
    struct nb_matrix_job *work;
    int rc = create_job(job, &d->w, &work);
    if (rc < 0)
        return rc;
    if (d->number > NB_NUMBER_IS_INT8 || d->pad)
        return nb_refuse(job->channel, -EINVAL, "number is %u: at most %u, and pad is 0", d->number,
                         NB_NUMBER_IS_INT8);
    if (!d->count || d->first > work->rows || d->count > work->rows - d->first)
        return nb_refuse(job->channel, -EINVAL, "%u rows from %u on: the matrix has %" PRIu64,
                         d->count, d->first, work->rows);
    uint32_t size = numbers[d->number].bytes;
    bool scaled = d->number == NB_NUMBER_IS_INT8;
    if (!scaled && memcmp(&d->scales, &nowhere, sizeof(nowhere)) != 0)
        return nb_refuse(job->channel, -EINVAL, "only int8 has scales");
    uint8_t *out = place(job->channel, "out", &d->out, d->count * work->cols * size, size, true);
    float *scales = !scaled ? NULL
                            : place(job->channel, "scales", &d->scales, d->count * sizeof(float),
                                    alignof(float), true);
    if (!out || (scaled && !scales))
        return -EFAULT;
    work->region[3] = d->out.region;
    work->region[4] = d->scales.region;
    work->run = dequantize;
    work->dequantize = (struct nb_dequantize_job){.w = work->operand,
                                                  .row = d->first,
                                                  .end = (uint64_t)d->first + d->count,
                                                  .to = numbers[d->number].number,
                                                  .out = out,
                                                  .scales = scales};
    queue(work);
    return 0;
}

int nb_on_tensor(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_tensor *d = desc;
    struct nb_channel *c = job->channel;
    struct nb_tensor_info info;
    void *name, *out = nb_channel_range(c, d->out, sizeof(struct nb_tensor), alignof(uint64_t));
    if (!d->name_len || d->name_len > NB_TENSOR_NAME)
        return nb_refuse(c, -EINVAL, "a tensor's name has %u bytes: 1 to %u", d->name_len,
                         NB_TENSOR_NAME);
    if (!out || d->pad)
        return nb_refuse(c, -EINVAL, "out is not all within the arena, aligned to 8, and pad 0");
    int rc = nb_channel_copy(c, "name", d->name, d->name_len, 1, &name);
    if (rc < 0)
        return rc;
    rc = explain(c, nb_operand_find(c->model->model, name, &info), name);
    free(name);
    if (rc < 0)
        return rc;
    struct nb_tensor tensor = {.index = info.index, .rows = info.rows, .cols = info.cols};
    snprintf(tensor.type, sizeof(tensor.type), "%s", info.type);
    memcpy(out, &tensor, sizeof(tensor));
    nb_job_done(job, 0, NIBBLE_FINISH_NONE, 0, 0);
    return 0;
}

// --- Slices

static bool uses(const struct nb_matrix_job *work, uint32_t region)
{
    for (uint32_t i = 0; i < PLACES; i++)
        if (work->region[i] == region)
            return true;
    return false;
}

void nb_matrices_forget(struct nb_channel *c, uint32_t region)
{
    struct nb_region *r = nb_region_find(c, region);
    if (!r)
        return;
    for (struct nb_matrix_job *work = c->first_matrix_job, *next; work; work = next) {
        next = work->next;
        if (uses(work, region))
            nb_job_cancel(work->job);
    }
    nb_embed_forget(c, region);
    nb_packed_matrices_drop(c, region);
    nb_region_close(r);
}

static int run(struct nb_serve *s, struct nb_channel *c)
{
    struct nb_matrix_job *work = c->first_matrix_job;
    uint64_t now = nb_now_ns();
    nb_job_started(work->job, now);
    atomic_store_explicit(&s->page->running[0], c->key, memory_order_relaxed);
    atomic_store(&s->page->n_running, 1);
    atomic_store(&s->page->step_started_ns, now);
    int rc = work->run(work);
    atomic_store(&s->page->step_started_ns, 0);
    atomic_store(&s->page->n_running, 0);
    atomic_fetch_add(&s->page->beat, 1);
    if (rc == -ENOMEM)
        nb_reason(c, "the worker is out of memory");
    if (rc == 0 || rc == -ENOMEM)
        nb_job_done(work->job, rc, rc ? NIBBLE_FINISH_ERROR : NIBBLE_FINISH_NONE, 0, 0);
    return rc == -ENOMEM || rc >= 0 ? 1 : rc;
}

int nb_matrices_run(struct nb_serve *s)
{
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++) {
        struct nb_channel *c = s->channels[s->next_matrix_job];
        s->next_matrix_job = (s->next_matrix_job + 1) % NB_WORKER_CHANNELS;
        if (c && c->first_matrix_job)
            return run(s, c);
    }
    return 0;
}
