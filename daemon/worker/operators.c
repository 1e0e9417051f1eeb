// Operators' jobs: checking a descriptor (a private copy), finding its matrix, and running turns.
#include "daemon/worker/operators.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/ops.h"
#include "daemon/worker/serve.h"
#include "daemon/worker/worker.h"
#include "engine/operand.h"

#define PLACES 5 // of the client's memory, that an operator uses at most

struct nb_work {
    struct nb_work *next; // of the channel
    struct nb_job *job;
    struct nb_operand *operand;
    struct nb_kept *kept; // whose the operand is; NULL: its own
    uint64_t rows, cols;
    uint32_t region[PLACES];
    union {
        struct nb_multiply multiply;
        struct nb_unpack unpack;
    };
    int (*turn)(struct nb_work *work);
};

// --- Matrices that are packed once

struct nb_kept {
    struct nb_kept *next;
    struct nb_desc_matrix desc;
    struct nb_operand *operand;
    uint32_t users;
};

static void drop_kept(struct nb_kept **at)
{
    struct nb_kept *k = *at;
    *at = k->next;
    nb_operand_destroy(k->operand);
    free(k);
}

static bool lies_in(const struct nb_desc_matrix *d, uint32_t region)
{
    return d->codes.region == region || d->scales.region == region || d->zeros.region == region;
}

void nb_kept_drop(struct nb_channel *c, uint32_t region)
{
    for (struct nb_kept **at = &c->kept; *at;)
        if (!region || lies_in(&(*at)->desc, region))
            drop_kept(at);
        else
            at = &(*at)->next;
}

// Whether so much more may be kept, once the oldest that nobody uses are dropped.
static bool make_room(struct nb_channel *c, uint64_t bytes)
{
    uint64_t allowed = 0, used = bytes;
    for (uint32_t i = 0; i < NB_MEMORIES_MAX; i++)
        allowed += c->regions[i].keep;
    for (struct nb_kept *k = c->kept; k; k = k->next)
        used += nb_operand_kept_bytes(k->operand);
    for (struct nb_kept **at = &c->kept; *at && used > allowed;)
        if ((*at)->users) {
            at = &(*at)->next;
        } else {
            used -= nb_operand_kept_bytes((*at)->operand);
            drop_kept(at);
        }
    return used <= allowed;
}

static struct nb_kept *find_kept(struct nb_channel *c, const struct nb_desc_matrix *d)
{
    struct nb_kept *k = c->kept;
    while (k && memcmp(&k->desc, d, sizeof(*d)) != 0)
        k = k->next;
    return k;
}

static struct nb_kept *keep(struct nb_channel *c, const struct nb_desc_matrix *d,
                            const struct nb_groupwise *g)
{
    struct nb_operand *operand;
    if (nb_operand_groupwise(c->model->model, g, true, &operand) < 0)
        return NULL;
    struct nb_kept *k = calloc(1, sizeof(*k));
    if (!k || !make_room(c, nb_operand_kept_bytes(operand))) {
        free(k);
        nb_operand_destroy(operand);
        return NULL;
    }
    struct nb_kept **end = &c->kept;
    while (*end)
        end = &(*end)->next;
    *k = (struct nb_kept){.desc = *d, .operand = operand};
    *end = k;
    return k;
}

// --- The matrix of a descriptor

static bool is_constant(struct nb_channel *c, const struct nb_place *p)
{
    const struct nb_region *r = nb_region_find(c, p->region);
    return r && r->constant;
}

static int find_tensor(struct nb_channel *c, const struct nb_desc_matrix *d,
                       struct nb_operand **ret)
{
    const struct nb_desc_matrix alone = {.tensor = d->tensor};
    return memcmp(d, &alone, sizeof(alone)) != 0
               ? -EINVAL
               : nb_operand_tensor(c->model->model, d->tensor, ret);
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
        return -EINVAL;
    int r = nb_groupwise_init(&g.shape, &layout, &packed, &bytes);
    if (r < 0)
        return r;
    g.codes = nb_region_range(c, &d->codes, bytes.codes, 1, false);
    g.scales = nb_region_range(c, &d->scales, bytes.scales, g.shape.half_scales ? 2 : 4, false);
    if (g.shape.has_zeros)
        g.zeros = nb_region_range(c, &d->zeros, bytes.zeros, 1, false);
    else if (memcmp(&d->zeros, &nowhere, sizeof(nowhere)) != 0)
        return -EINVAL;
    if (!g.codes || !g.scales || (g.shape.has_zeros && !g.zeros))
        return -EFAULT;
    *ret = g;
    return 0;
}

static int find_matrix(struct nb_channel *c, const struct nb_desc_matrix *d, struct nb_work *work)
{
    struct nb_groupwise g;
    if (d->tensor != NB_NO_TENSOR)
        return find_tensor(c, d, &work->operand);
    int r = locate(c, d, &g);
    if (r < 0)
        return r;
    bool constant = is_constant(c, &d->codes) && is_constant(c, &d->scales) &&
                    (!g.shape.has_zeros || is_constant(c, &d->zeros));
    work->kept = constant ? find_kept(c, d) : NULL;
    if (constant && !work->kept)
        work->kept = keep(c, d, &g);
    if (!work->kept)
        return nb_operand_groupwise(c->model->model, &g, false, &work->operand);
    work->operand = work->kept->operand;
    work->kept->users++;
    return 0;
}

// --- Jobs

static void unlink_work(struct nb_work *work)
{
    struct nb_work **at = &work->job->channel->first_work;
    while (*at && *at != work)
        at = &(*at)->next;
    if (*at)
        *at = work->next;
}

void nb_work_destroy(struct nb_work *work)
{
    if (!work)
        return;
    unlink_work(work);
    if (work->kept)
        work->kept->users--;
    else
        nb_operand_destroy(work->operand);
    free(work);
}

// The job's work, with its matrix; from here on the job's end destroys it.
static int create_work(struct nb_job *job, const struct nb_desc_matrix *d, struct nb_work **ret)
{
    struct nb_work *work = calloc(1, sizeof(*work));
    if (!work)
        return -ENOMEM;
    work->job = job;
    job->work = work;
    int r = find_matrix(job->channel, d, work);
    if (r == 0)
        nb_operand_shape(work->operand, &work->rows, &work->cols);
    work->region[0] = d->codes.region;
    work->region[1] = d->scales.region;
    work->region[2] = d->zeros.region;
    *ret = work;
    return r;
}

static void queue(struct nb_work *work)
{
    struct nb_work **end = &work->job->channel->first_work;
    while (*end)
        end = &(*end)->next;
    *end = work;
}

static int multiply_turn(struct nb_work *work)
{
    return nb_multiply_turn(&work->multiply);
}

static int unpack_turn(struct nb_work *work)
{
    return nb_unpack_turn(&work->unpack);
}

int nb_op_gemm(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_gemm *d = desc;
    struct nb_work *work;
    int r = create_work(job, &d->w, &work);
    if (r < 0)
        return r;
    if (!d->n || d->n > NB_GEMM_ROWS || d->terms < 1 || d->terms > 2)
        return -EINVAL;
    if (!nb_operand_multiplies(work->operand))
        return NIBBLE_E_UNSUPPORTED;
    const float *x = nb_region_range(job->channel, &d->x, d->n * work->cols * sizeof(float),
                                     alignof(float), false);
    float *y = nb_region_range(job->channel, &d->y, d->n * work->rows * sizeof(float),
                               alignof(float), true);
    if (!x || !y)
        return -EFAULT;
    work->region[3] = d->x.region;
    work->region[4] = d->y.region;
    work->turn = multiply_turn;
    work->multiply =
        (struct nb_multiply){.w = work->operand, .x = x, .y = y, .n = d->n, .terms = d->terms};
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

int nb_op_dequantize(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    static const struct nb_place nowhere;
    const struct nb_desc_dequantize *d = desc;
    struct nb_work *work;
    int r = create_work(job, &d->w, &work);
    if (r < 0)
        return r;
    if (d->number > NB_NUMBER_IS_INT8 || d->pad || !d->count || d->first > work->rows ||
        d->count > work->rows - d->first)
        return -EINVAL;
    uint32_t size = numbers[d->number].bytes;
    bool scaled = d->number == NB_NUMBER_IS_INT8;
    if (!scaled && memcmp(&d->scales, &nowhere, sizeof(nowhere)) != 0)
        return -EINVAL;
    uint8_t *out = nb_region_range(job->channel, &d->out, d->count * work->cols * size, size, true);
    float *scales = !scaled ? NULL
                            : nb_region_range(job->channel, &d->scales, d->count * sizeof(float),
                                              alignof(float), true);
    if (!out || (scaled && !scales))
        return -EFAULT;
    work->region[3] = d->out.region;
    work->region[4] = d->scales.region;
    work->turn = unpack_turn;
    work->unpack = (struct nb_unpack){.w = work->operand,
                                      .row = d->first,
                                      .end = (uint64_t)d->first + d->count,
                                      .to = numbers[d->number].number,
                                      .out = out,
                                      .scales = scales};
    queue(work);
    return 0;
}

int nb_op_tensor(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_tensor *d = desc;
    struct nb_channel *c = job->channel;
    struct nb_tensor_info info;
    void *name, *out = nb_channel_range(c, d->out, sizeof(struct nb_tensor), alignof(uint64_t));
    if (!out || d->pad || !d->name_len || d->name_len > NB_TENSOR_NAME)
        return -EINVAL;
    int r = nb_channel_copy(c, d->name, d->name_len, 1, &name);
    if (r < 0)
        return r;
    r = nb_operand_find(c->model->model, name, &info);
    free(name);
    if (r < 0)
        return r;
    struct nb_tensor tensor = {.index = info.index, .rows = info.rows, .cols = info.cols};
    snprintf(tensor.type, sizeof(tensor.type), "%s", info.type);
    memcpy(out, &tensor, sizeof(tensor));
    nb_job_done(job, 0, NIBBLE_FINISH_NONE, 0, 0);
    return 0;
}

// --- Turns

static bool uses(const struct nb_work *work, uint32_t region)
{
    for (uint32_t i = 0; i < PLACES; i++)
        if (work->region[i] == region)
            return true;
    return false;
}

void nb_operators_forget(struct nb_channel *c, uint32_t region)
{
    struct nb_region *r = nb_region_find(c, region);
    if (!r)
        return;
    for (struct nb_work *work = c->first_work, *next; work; work = next) {
        next = work->next;
        if (uses(work, region))
            nb_job_cancel(work->job);
    }
    nb_kept_drop(c, region);
    nb_region_close(r);
}

static int run(struct nb_serve *s, struct nb_channel *c)
{
    struct nb_work *work = c->first_work;
    uint64_t now = nb_now_ns();
    nb_job_started(work->job, now);
    atomic_store_explicit(&s->page->running[0], c->key, memory_order_relaxed);
    atomic_store(&s->page->n_running, 1);
    atomic_store(&s->page->step_started_ns, now);
    int r = work->turn(work);
    atomic_store(&s->page->step_started_ns, 0);
    atomic_store(&s->page->n_running, 0);
    atomic_fetch_add(&s->page->beat, 1);
    if (r == 0 || r == -ENOMEM)
        nb_job_done(work->job, r, r ? NIBBLE_FINISH_ERROR : NIBBLE_FINISH_NONE, 0, 0);
    return r == -ENOMEM || r >= 0 ? 1 : r;
}

int nb_operators_turn(struct nb_serve *s)
{
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++) {
        struct nb_channel *c = s->channels[s->work_turn];
        s->work_turn = (s->work_turn + 1) % NB_WORKER_CHANNELS;
        if (c && c->first_work)
            return run(s, c);
    }
    return 0;
}
