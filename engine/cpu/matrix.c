// Products and dequantization for clients on the CPU: the kernels of a step, on matrices and rows
// that are no model's.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/device.h"

struct nb_device_matrix {
    struct nb_cpu_device *device;
    const struct nb_packed *w;
};

// A piece of work of the whole team.
struct work {
    struct nb_device_matrix *m;
    const struct nb_product *product;
    const struct nb_dequantize *dequantize;
    struct nb_act act;
    uint8_t *scratch; // each thread's, one after the other
    size_t scratch_bytes;
};

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

int nb_cpu_matrix_open(struct nb_device *d, struct nb_device_model *dm, const struct nb_packed *w,
                       struct nb_device_matrix **ret)
{
    struct nb_device_matrix *m = malloc(sizeof(*m));
    if (!m)
        return -ENOMEM;
    *m = (struct nb_device_matrix){(struct nb_cpu_device *)d, w};
    *ret = m;
    return 0;
}

void nb_cpu_matrix_close(struct nb_device_matrix *m)
{
    free(m);
}

static int reserve(struct nb_cpu_device *d, size_t bytes)
{
    if (bytes <= d->scratch_bytes)
        return 0;
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes))
        return -ENOMEM;
    free(d->scratch);
    d->scratch = p;
    d->scratch_bytes = bytes;
    return 0;
}

// The calling thread's part of [0, units), once.
static bool take(struct work *w, uint32_t thread, const struct nb_share *share, uint32_t *first,
                 uint32_t *end)
{
    uint32_t n = nb_team_take(w->m->device->team, thread, share, first);
    *end = *first + n;
    return n > 0;
}

// --- Products

// Rows of x in private memory, with zeros to the width of the act.
static void load_rows(struct work *w, uint32_t t0, uint32_t t1)
{
    const struct nb_product *p = w->product;
    for (uint32_t t = t0; t < t1; t++) {
        float *x = w->act.x + (size_t)t * w->act.k;
        memcpy(x, p->x + (size_t)t * p->cols, p->cols * sizeof(float));
        memset(x + p->cols, 0, (w->act.k - p->cols) * sizeof(float));
    }
    if (!nb_is_float(w->m->w))
        w->m->device->kernels->quantize(&w->act, t0, t1);
}

static void gemm_thread(void *arg, uint32_t thread)
{
    struct work *w = arg;
    const struct nb_cpu_device *d = w->m->device;
    const struct nb_product *p = w->product;
    struct nb_share rows = {d->share_id + 1, p->n, 32},
                    groups = {d->share_id + 2, p->groups, UINT32_MAX};
    uint32_t first, end;
    while (take(w, thread, &rows, &first, &end))
        load_rows(w, first, end);
    nb_team_barrier(d->team);
    while (take(w, thread, &groups, &first, &end))
        d->kernels->gemm(w->m->w, &w->act, p->group0 + first, p->group0 + end, NULL, false, p->y,
                         p->ldy, w->scratch + thread * w->scratch_bytes);
}

int nb_cpu_gemm(struct nb_device_matrix *m, const struct nb_product *p)
{
    struct nb_cpu_device *d = m->device;
    uint32_t k = (m->w->cols + NB_ACT_BLOCK - 1) / NB_ACT_BLOCK * NB_ACT_BLOCK;
    size_t act = align64(nb_act_bytes(p->n, k));
    struct work w = {
        .m = m, .product = p, .scratch_bytes = align64(d->kernels->gemm_scratch(m->w, p->n))};
    int rc = reserve(d, act + nb_team_size(d->team) * w.scratch_bytes);
    if (rc < 0)
        return rc;
    nb_act_init(&w.act, d->scratch, p->n, k, p->terms);
    w.scratch = (uint8_t *)d->scratch + act;
    nb_team_run(d->team, gemm_thread, &w);
    d->share_id += 2;
    return 0;
}

// --- Rows as numbers

static void to_half(const float *x, uint32_t n, uint8_t *out)
{
    for (uint32_t i = 0; i < n; i++) {
        uint16_t h = nb_f32_to_f16(x[i]);
        memcpy(out + 2 * (size_t)i, &h, sizeof(h));
    }
}

// As activations are quantized, with a whole row for a block.
static float to_int8(const float *x, uint32_t n, uint8_t *out)
{
    float amax = 0.0f;
    bool finite = true;
    for (uint32_t i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        amax = fmaxf(amax, fabsf(x[i]));
    }
    if (!finite || amax < 1e-30f) {
        memset(out, 0, n);
        return 0.0f;
    }
    float inv = 127.0f / amax;
    for (uint32_t i = 0; i < n; i++)
        out[i] = (uint8_t)(int8_t)rintf(x[i] * inv);
    return amax / 127.0f;
}

static void decode_row(struct work *w, uint32_t i, float *row)
{
    const struct nb_dequantize *p = w->dequantize;
    const size_t size[] = {[NB_NUMBER_F32] = 4, [NB_NUMBER_F16] = 2, [NB_NUMBER_INT8] = 1};
    uint8_t *out = (uint8_t *)p->out + (size_t)i * p->cols * size[p->to];
    w->m->device->kernels->decode_row(w->m->w, p->row0 + i, row);
    if (p->to == NB_NUMBER_F32)
        memcpy(out, row, p->cols * sizeof(float));
    else if (p->to == NB_NUMBER_F16)
        to_half(row, p->cols, out);
    else
        p->scales[i] = to_int8(row, p->cols, out);
}

static void decode_thread(void *arg, uint32_t thread)
{
    struct work *w = arg;
    struct nb_share rows = {w->m->device->share_id + 1, w->dequantize->rows, UINT32_MAX};
    float *row = (float *)(void *)(w->scratch + thread * w->scratch_bytes);
    for (uint32_t i, end; take(w, thread, &rows, &i, &end);)
        for (; i < end; i++)
            decode_row(w, i, row);
}

int nb_cpu_dequantize(struct nb_device_matrix *m, const struct nb_dequantize *p)
{
    struct nb_cpu_device *d = m->device;
    // decode_row writes whole registers.
    struct work w = {
        .m = m, .dequantize = p, .scratch_bytes = align64((m->w->cols + 16) * sizeof(float))};
    int rc = reserve(d, nb_team_size(d->team) * w.scratch_bytes);
    if (rc < 0)
        return rc;
    w.scratch = d->scratch;
    nb_team_run(d->team, decode_thread, &w);
    d->share_id++;
    return 0;
}
