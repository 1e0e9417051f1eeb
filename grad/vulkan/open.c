// Opening a device for the float engine, what it cannot do, and batches that are too large for it.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "grad/vulkan/room.h"

#define OPERATIONS 4e9
#define DEPTH      2048
#define HEAD_ROWS  512 // as trainers give a head at once (distill/train_room.h)

static int check_device(const struct nb_device *device, const char *name, struct nb_error *error)
{
    const struct nb_vulkan_device *d = (const struct nb_vulkan_device *)device;
    if (device->ops != &nb_vulkan_ops)
        return nb_fail(error, -ENOTSUP, "%s is no device to train on", name);
    if (d->max_local < TRAIN_TEAM || d->max_shared < TRAIN_SHARED)
        return nb_fail(error, -ENOTSUP,
                       "workgroups of %s have %u invocations and share %u bytes, and training asks "
                       "for %u and %u: train on the CPU",
                       name, d->max_local, d->max_shared, TRAIN_TEAM, TRAIN_SHARED);
    return 0;
}

// All that it has no dispatches for is of experts.
static int check_model(const struct nb_grad *g, const char *device, struct nb_error *error)
{
    for (uint32_t i = 0; i < g->n_spans; i++)
        for (uint32_t j = 0; j < g->spans[i].n_steps; j++)
            if (!nb_vulkan_has_kind(&g->spans[i].steps[j]))
                return nb_fail(error, -ENOTSUP,
                               "%s does not train models with experts, as this %s one: train it on "
                               "the CPU",
                               device, g->plan->hp.arch->name);
    return 0;
}

static bool learns(const struct nb_grad *g)
{
    for (uint32_t i = 0; i < g->n_tensors; i++)
        if (g->tensors[i].gradient)
            return true;
    return false;
}

// All that passes of so many rows will want, so that what there is no room for is refused before
// they begin.
static int make_room(struct nb_grad *g, uint32_t rows, struct nb_error *error)
{
    struct nb_grad_vulkan *v = g->device;
    size_t weights = 0, most = 0, values = 0;
    int rc = 0;
    for (uint32_t i = 0; i < g->n_spans && rc == 0; i++) {
        struct nb_resident *r = &v->resident[i];
        const uint32_t of = i + 1 < g->n_spans ? rows : nb_least(rows, HEAD_ROWS);
        const size_t floats = nb_values_lay(g, &g->spans[i], of, NULL, NULL);
        weights += r->floats;
        most = r->floats > most ? r->floats : most;
        values = floats > values ? floats : values;
        rc = nb_vulkan_fit(v, r->floats, NB_VULKAN_DEVICE, &r->buffer);
    }
    const size_t range = v->device->max_range / sizeof(float);
    values = values < range ? values : range; // a head takes rows in parts
    if (rc == 0)
        rc = nb_vulkan_fit(v, values, NB_VULKAN_DEVICE, &v->values);
    if (rc == 0 && learns(g))
        rc = nb_vulkan_fit(v, values, NB_VULKAN_DEVICE, &v->gradients);
    if (rc == 0 && learns(g))
        rc = nb_vulkan_fit(v, most, NB_VULKAN_DEVICE, &v->sums);
    return rc < 0
               ? nb_fail(error, rc,
                         "%s has no memory to train: %zu MB for the tensors as floats, and up to "
                         "%zu MB for what a layer makes of %u tokens: train on the CPU, or with "
                         "fewer at once (--batch, --length)",
                         v->name, weights * sizeof(float) >> 20, 2 * values * sizeof(float) >> 20,
                         rows)
               : 0;
}

static int make_batch(struct nb_grad *g, const struct nb_batch *b, struct nb_error *error)
{
    const struct nb_grad_vulkan *v = g->device;
    for (uint32_t i = 0; i + 1 < g->n_spans; i++) { // the last takes rows in parts
        const size_t bytes = nb_values_lay(g, &g->spans[i], b->rows, NULL, NULL) * sizeof(float);
        if (bytes > v->device->max_range)
            return nb_fail(
                error, -E2BIG,
                "a batch of %u tokens needs %zu MB for what a layer makes of it, and a "
                "shader of %s sees %llu MB at once: give fewer at once (--batch, --length)",
                b->rows, bytes >> 20, v->name, (unsigned long long)v->device->max_range >> 20);
    }
    int rc = make_room(g, b->rows, error);
    return rc == 0 ? nb_tables_make(g, b, error) : rc;
}

static void close_device(struct nb_grad *g)
{
    struct nb_grad_vulkan *v = g->device;
    struct nb_vulkan_buffer *const all[] = {&v->tables, &v->values, &v->gradients, &v->sums,
                                            &v->staging};
    if (!v->device->hangs) { // nothing that it was given may be freed
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
            nb_vulkan_buffer_finish(v->device, all[i]);
        nb_resident_destroy(g);
        nb_vulkan_pipelines_finish(&v->pipelines);
    }
    nb_tables_finish(v);
    free(v->at);
    free(v);
    g->device = NULL;
}

static const struct nb_backend backend = {.batch = make_batch,
                                          .forward = nb_vulkan_forward,
                                          .backward = nb_vulkan_backward,
                                          .close = close_device};

static int make(struct nb_grad *g, struct nb_error *error)
{
    uint32_t most = 1;
    for (uint32_t i = 0; i < g->n_spans; i++)
        most = g->spans[i].n_buffers > most ? g->spans[i].n_buffers : most;
    g->device->at = calloc(most, sizeof(*g->device->at));
    int rc = g->device->at ? nb_record_open(g->device) : -ENOMEM;
    return rc < 0 ? nb_fail(error, rc, "%s: no memory for its shaders", g->device->name)
                  : nb_resident_create(g, error);
}

int nb_grad_vulkan_open(struct nb_grad *g, struct nb_device *device, struct nb_error *error)
{
    struct nb_device_info info;
    device->ops->info(device, &info);
    int rc = check_device(device, info.name, error);
    if (rc == 0)
        rc = check_model(g, info.name, error);
    if (rc < 0)
        return rc;
    struct nb_grad_vulkan *v = calloc(1, sizeof(*v));
    if (!v)
        return nb_fail(error, -ENOMEM, "out of memory");
    v->device = (struct nb_vulkan_device *)device;
    snprintf(v->name, sizeof(v->name), "%s", info.name);
    v->operations = OPERATIONS;
    v->depth = DEPTH;
    g->device = v;
    g->backend = &backend;
    return make(g, error);
}
