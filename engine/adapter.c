// Opening an adapter: what its image says is held against the model's plan.
#include "engine/adapter.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"
#include "tensor/adapter_file.h"
#include "tensor/image.h"

struct opening {
    const struct nb_model *m;
    struct nb_adapter *adapter;
    const char *name; // for errors
    struct nb_error *error;
};

#define STR(s)        (int)(s).len, (s).data
#define FAIL(rc, ...) nb_adapter_fail(o->name, o->error, rc, __VA_ARGS__)

static struct nb_shape shape_of(const struct nb_image_tensor *t)
{
    return (struct nb_shape){t->name, t->n_dims, t->dims};
}

static bool find_matrix(void *user, struct nb_str matrix, struct nb_shape *ret)
{
    const struct opening *o = user;
    char name[256];
    snprintf(name, sizeof(name), "%.*s", STR(matrix));
    const struct nb_image_tensor *t = nb_image_find(o->m->image, name);
    if (t)
        *ret = shape_of(t);
    return t != NULL;
}

// The matrix of that name, if nothing but LINEAR ops has it; else n_matrices.
static uint32_t find_linear(const struct nb_plan *plan, struct nb_str name)
{
    uint32_t found = plan->n_matrices;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        if (!op->w || op->w->name.len != name.len || memcmp(op->w->name.data, name.data, name.len))
            continue;
        if (op->kind != NB_OP_LINEAR)
            return plan->n_matrices;
        found = (uint32_t)(op->w - plan->matrices);
    }
    return found;
}

static int take_factor(const struct opening *o, uint32_t i, struct nb_packed *ret)
{
    const struct nb_image_tensor *t = nb_image_tensor(o->adapter->image, i);
    *ret = t->packed;
    if (t->packed.layout->planes <= NB_PLANES_BF16)
        return 0;
    return FAIL(-ENOTSUP,
                ": its tensor %.*s is of type %s, and factors are F32, F16 or BF16 where sessions "
                "have them: merge it (nibble load --adapter)",
                STR(t->name), nb_type_name(t->type));
}

static int take_pair(void *user, struct nb_str matrix, uint32_t a, uint32_t b, float by)
{
    const struct opening *o = user;
    const struct nb_plan *plan = o->m->plan;
    const uint32_t place = find_linear(plan, matrix);
    if (place == plan->n_matrices)
        return FAIL(-ENOTSUP, " changes %.*s, which is no plain matrix: such are not adapted",
                    STR(matrix));
    struct nb_adapter_pair *p = &o->adapter->pairs[place];
    int rc = take_factor(o, a, &p->a);
    if (rc == 0)
        rc = take_factor(o, b, &p->b);
    if (rc < 0)
        return rc;
    p->by = by;
    if (p->a.rows > NB_ADAPTER_RANK)
        return FAIL(-ENOTSUP,
                    " has rank %u for %.*s, and %d is the most where sessions have it: merge it "
                    "(nibble load --adapter)",
                    p->a.rows, STR(matrix), NB_ADAPTER_RANK);
    if (p->a.rows > o->adapter->rank)
        o->adapter->rank = p->a.rows;
    return 0;
}

static int check(struct opening *o, double scale)
{
    const struct nb_image *image = o->adapter->image;
    const uint32_t n = nb_image_n_tensors(image);
    struct nb_shape *shapes = calloc(n + 1, sizeof(*shapes));
    if (!shapes)
        return FAIL(-ENOMEM, ": no memory for it");
    for (uint32_t i = 0; i < n; i++)
        shapes[i] = shape_of(nb_image_tensor(image, i));
    const struct nb_adapter_file file = {.name = o->name,
                                         .metadata = nb_image_metadata(image),
                                         .base = nb_image_metadata(o->m->image),
                                         .tensors = shapes,
                                         .n = n,
                                         .scale = scale,
                                         .find = find_matrix,
                                         .pair = take_pair,
                                         .user = o,
                                         .error = o->error};
    int rc = nb_adapter_check(&file);
    free(shapes);
    return rc;
}

// Steps are others where adapters have come or gone, and may be made faster anew.
static int open_on_device(const struct opening *o)
{
    struct nb_model *m = o->adapter->model;
    const struct nb_device_ops *ops = m->device->ops;
    struct nb_error why = {""};
    int rc = ops->adapter_open ? ops->adapter_open(m->dm, o->adapter, &why) : 0;
    m->prepared = m->prepared && !ops->prepare;
    return rc < 0 ? FAIL(rc, ": %s", why.text) : 0;
}

int nb_adapter_create(struct nb_model *m, struct nb_image *image, const char *name, double scale,
                      struct nb_adapter **ret, struct nb_error *ret_error)
{
    struct opening opening = {.m = m, .name = name, .error = ret_error}, *o = &opening;
    o->adapter =
        calloc(1, sizeof(*o->adapter) + m->plan->n_matrices * sizeof(o->adapter->pairs[0]));
    if (!o->adapter)
        return FAIL(-ENOMEM, ": no memory for it");
    o->adapter->model = m;
    o->adapter->image = image;
    int rc = check(o, scale);
    if (rc == 0)
        rc = open_on_device(o);
    if (rc < 0)
        free(o->adapter);
    else
        *ret = o->adapter;
    return rc;
}

void nb_adapter_destroy(struct nb_adapter *adapter)
{
    if (!adapter)
        return;
    struct nb_model *m = adapter->model;
    const struct nb_device_ops *ops = m->device->ops;
    if (ops->adapter_close)
        ops->adapter_close(m->dm, adapter);
    m->prepared = m->prepared && !ops->prepare;
    nb_image_unmap(adapter->image);
    free(adapter);
}
