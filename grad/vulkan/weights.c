// Tensors on the device: each span has a buffer of its own, which is filled when what it was filled
// from has changed; and what the device has summed for their gradients.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "grad/vulkan/room.h"

#define ALIGN 16 // floats

static size_t size_of(const struct nb_grad_tensor *t)
{
    return (size_t)t->rows * t->cols;
}

static bool multiplies(const struct nb_step *s)
{
    return s->kind == &nb_step_kinds[NB_OP_LINEAR];
}

// --- Places

static uint32_t place(const struct nb_grad_tensor *t, size_t *at)
{
    const size_t here = *at;
    if (!t)
        return NONE;
    *at += (size_of(t) + ALIGN - 1) / ALIGN * ALIGN;
    return (uint32_t)here;
}

static int lay(const struct nb_grad *g, const struct nb_span *s, struct nb_resident *r,
               struct nb_error *error)
{
    const struct nb_vulkan_device *d = g->device->device;
    size_t floats = 0;
    r->steps = calloc(s->n_steps + 1, sizeof(*r->steps));
    if (!r->steps)
        return nb_fail(error, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < s->n_steps; i++)
        r->steps[i] = (struct nb_placed){
            place(multiplies(&s->steps[i]) ? s->steps[i].w : NULL, &floats),
            place(s->steps[i].weight, &floats), place(s->steps[i].bias, &floats)};
    if (floats * sizeof(float) > d->max_range)
        return nb_fail(error, -E2BIG,
                       "the model has %zu MB of tensors as floats in one part, and a shader of %s "
                       "sees %llu MB at once: train it on the CPU",
                       floats * sizeof(float) >> 20, g->device->name,
                       (unsigned long long)d->max_range >> 20);
    r->floats = (uint32_t)floats;
    return 0;
}

int nb_resident_create(struct nb_grad *g, struct nb_error *error)
{
    g->device->resident = calloc(g->n_spans, sizeof(*g->device->resident));
    if (!g->device->resident)
        return nb_fail(error, -ENOMEM, "out of memory");
    int rc = 0;
    for (uint32_t i = 0; i < g->n_spans && rc == 0; i++)
        rc = lay(g, &g->spans[i], &g->device->resident[i], error);
    return rc;
}

void nb_resident_destroy(struct nb_grad *g)
{
    struct nb_grad_vulkan *v = g->device;
    for (uint32_t i = 0; v->resident && i < g->n_spans; i++) {
        free(v->resident[i].steps);
        nb_vulkan_buffer_finish(v->device, &v->resident[i].buffer);
    }
    free(v->resident);
}

// --- Sending

// What a tensor is now: whose floats, and how often they have changed.
static uint64_t hash_of(const struct nb_grad *g, const struct nb_grad_tensor *t, uint64_t seed)
{
    if (!t)
        return seed;
    const uint64_t now[] = {(uint64_t)(uintptr_t)t->values, t->matrix ? t->matrix->replaced : 0,
                            t->values ? g->changed : 0};
    return XXH3_64bits_withSeed(now, sizeof(now), seed);
}

static uint64_t hash_of_span(const struct nb_grad *g, const struct nb_span *s)
{
    uint64_t hash = 1;
    for (uint32_t i = 0; i < s->n_steps; i++) {
        hash = hash_of(g, multiplies(&s->steps[i]) ? s->steps[i].w : NULL, hash);
        hash = hash_of(g, s->steps[i].weight, hash);
        hash = hash_of(g, s->steps[i].bias, hash);
    }
    return hash | 1; // 0 says that nothing was sent
}

static int send(struct nb_grad *g, const struct nb_grad_tensor *t, uint32_t at,
                const struct nb_resident *r)
{
    if (at == NONE)
        return 0;
    if (t->values || t->vector)
        return nb_vulkan_send(g->device, nb_vector_of(t), size_of(t), &r->buffer, at);
    float *x = nb_grad_floats(size_of(t));
    if (!x)
        return -ENOMEM;
    nb_grad_dequantize(g, t, x);
    int rc = nb_vulkan_send(g->device, x, size_of(t), &r->buffer, at);
    free(x);
    return rc;
}

int nb_resident_send(struct nb_grad *g, const struct nb_span *s)
{
    struct nb_resident *r = &g->device->resident[nb_span_number(g, s)];
    const uint64_t now = hash_of_span(g, s);
    if (r->floats == 0 || r->sent == now)
        return 0;
    int rc = nb_vulkan_fit(g->device, r->floats, NB_VULKAN_DEVICE, &r->buffer);
    r->sent = 0;
    for (uint32_t i = 0; i < s->n_steps && rc == 0; i++) {
        rc = send(g, s->steps[i].w, r->steps[i].matrix, r);
        if (rc == 0)
            rc = send(g, s->steps[i].weight, r->steps[i].weight, r);
        if (rc == 0)
            rc = send(g, s->steps[i].bias, r->steps[i].bias, r);
    }
    if (rc == 0)
        r->sent = now;
    return rc;
}

// --- Gradients

static bool learns(const struct nb_grad_tensor *t)
{
    return t && t->gradient;
}

bool nb_resident_learns(const struct nb_span *s)
{
    for (uint32_t i = 0; i < s->n_steps; i++)
        if ((learns(s->steps[i].w) && multiplies(&s->steps[i])) || learns(s->steps[i].weight) ||
            learns(s->steps[i].bias))
            return true;
    return false;
}

static int bring(struct nb_grad *g, const struct nb_grad_tensor *t, uint32_t at)
{
    return at == NONE || !t->gradient
               ? 0
               : nb_vulkan_add(g->device, &g->device->sums, at, size_of(t), t->gradient);
}

int nb_resident_bring(struct nb_grad *g, const struct nb_span *s)
{
    const struct nb_resident *r = &g->device->resident[nb_span_number(g, s)];
    int rc = 0;
    for (uint32_t i = 0; i < s->n_steps && rc == 0; i++) {
        rc = bring(g, s->steps[i].w, r->steps[i].matrix);
        if (rc == 0)
            rc = bring(g, s->steps[i].weight, r->steps[i].weight);
        if (rc == 0)
            rc = bring(g, s->steps[i].bias, r->steps[i].bias);
    }
    return rc;
}
