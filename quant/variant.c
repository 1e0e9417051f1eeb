// See variant.h.
#include "quant/variant.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "quant/rows.h"
#include "tensor/layout.h"
#include "tensor/type.h"

#define ALIGN  64
#define STR(s) (int)(s).len, (s).data

// A tensor in a type, packed.
struct copy {
    TAILQ_ENTRY(copy) link; // the one that was used last is the first
    uint32_t tensor, type;
    struct nb_packed packed;
    size_t apart;
    uint64_t bytes;
    uint8_t *data;
};
TAILQ_HEAD(copies, copy);

struct nb_variant {
    struct nb_varying how;
    struct nb_rows_encoder *rows;
    struct copies copies;
    struct copy **now; // of each tensor; NULL: the source's own
    uint64_t bytes;    // of copies that the plan does not have
};

int nb_variant_create(const struct nb_varying *how, struct nb_variant **ret)
{
    struct nb_error error;
    struct nb_variant *v = calloc(1, sizeof(*v));
    if (!v)
        return -ENOMEM;
    TAILQ_INIT(&v->copies);
    v->how = *how;
    v->now = calloc(how->source->n_tensors + 1, sizeof(struct copy *));
    if (!v->now || nb_rows_create(how->source, how->team, &v->rows, &error) < 0) {
        nb_variant_destroy(v);
        return -ENOMEM;
    }
    *ret = v;
    return 0;
}

static void free_copy(struct copy *c)
{
    if (c)
        free(c->data);
    free(c);
}

void nb_variant_destroy(struct nb_variant *v)
{
    if (!v)
        return;
    for (struct copy *c; (c = TAILQ_FIRST(&v->copies));) {
        TAILQ_REMOVE(&v->copies, c, link);
        free_copy(c);
    }
    nb_rows_destroy(v->rows);
    free(v->now);
    free(v);
}

// ---- Encoding

struct encoded {
    const struct nb_source_tensor *t;
    uint32_t type;
    uint64_t rows, row_bytes;
    uint8_t *out; // [rows][row_bytes]
};

static int encode(struct nb_variant *v, struct encoded *e, struct nb_error *error)
{
    float *weights = NULL;
    int rc = nb_importance_weights(v->how.importance, e->t, &weights, error);
    const struct nb_rows_type how = {.type = e->type, .search = true, .weights = weights};
    e->out = rc == 0 ? malloc(e->rows * e->row_bytes) : NULL;
    if (rc == 0 && !e->out)
        rc = nb_fail(error, -ENOMEM, "no memory for a compressed tensor");
    if (rc == 0)
        rc = nb_rows_encode(v->rows, e->t, &how, 0, e->rows, e->out, error);
    free(weights);
    return rc;
}

static int pack(const struct encoded *e, struct copy *c)
{
    const uint64_t experts = e->t->n_dims > 2 ? e->rows / e->t->dims[1] : 1;
    const uint64_t rows = e->rows / experts;
    int rc = nb_packed_init(&c->packed, e->type, rows, e->t->dims[0]);
    if (rc < 0)
        return rc;
    c->apart = nb_packed_bytes(&c->packed);
    c->bytes = experts * c->apart;
    c->data = aligned_alloc(ALIGN, (c->bytes + 2 * ALIGN - 1) / ALIGN * ALIGN);
    if (!c->data)
        return -ENOMEM;
    const uint32_t groups = (uint32_t)((rows + NB_GROUP_ROWS - 1) / NB_GROUP_ROWS);
    for (uint64_t i = 0; i < experts; i++)
        nb_layout_pack(&c->packed, e->out + i * rows * e->row_bytes, c->data + i * c->apart, 0,
                       groups);
    c->packed.data = c->data;
    return 0;
}

static int make_copy(struct nb_variant *v, uint32_t tensor, uint32_t type, struct copy **ret,
                     struct nb_error *error)
{
    const struct nb_source_tensor *t = &v->how.source->tensors[tensor];
    struct encoded e = {.t = t,
                        .type = type,
                        .rows = nb_source_rows(t),
                        .row_bytes = nb_type_row_bytes(type, t->dims[0])};
    struct copy *c = calloc(1, sizeof(*c));
    if (!c)
        return nb_fail(error, -ENOMEM, "no memory for a compressed tensor");
    int rc = encode(v, &e, error);
    if (rc == 0 && (rc = pack(&e, c)) < 0)
        nb_fail(error, rc, "no memory for a compressed tensor");
    free(e.out);
    if (rc < 0) {
        free_copy(c);
        return rc;
    }
    c->tensor = tensor;
    c->type = type;
    *ret = c;
    return 0;
}

// ---- Copies

static struct copy *find(const struct nb_variant *v, uint32_t tensor, uint32_t type)
{
    struct copy *c;
    TAILQ_FOREACH(c, &v->copies, link)
        if (c->tensor == tensor && c->type == type)
            return c;
    return NULL;
}

// Of those that the plan does not have, the ones that were not used for longest go.
static void make_room(struct nb_variant *v)
{
    for (struct copy *c = TAILQ_LAST(&v->copies, copies), *before; c && v->bytes > v->how.bytes;
         c = before) {
        before = TAILQ_PREV(c, copies, link);
        if (v->now[c->tensor] == c)
            continue;
        v->bytes -= c->bytes;
        TAILQ_REMOVE(&v->copies, c, link);
        free_copy(c);
    }
}

int nb_variant_set(struct nb_variant *v, uint32_t tensor, uint32_t type, struct nb_error *ret_error)
{
    struct copy *c = find(v, tensor, type), *old = v->now[tensor];
    if (c && c == old)
        return 0;
    if (c) {
        TAILQ_REMOVE(&v->copies, c, link);
        v->bytes -= c->bytes;
    } else {
        int rc = make_copy(v, tensor, type, &c, ret_error);
        if (rc < 0)
            return rc;
    }
    TAILQ_INSERT_HEAD(&v->copies, c, link);
    const struct nb_str name = v->how.source->tensors[tensor].name;
    int rc = nb_plan_replace(v->how.plan, name, &c->packed, c->apart);
    v->bytes += rc < 0 ? c->bytes : old ? old->bytes : 0;
    v->now[tensor] = rc < 0 ? old : c;
    make_room(v);
    return rc < 0 ? nb_fail(ret_error, rc, "tensor %.*s is none that the model computes with",
                            STR(name))
                  : 0;
}
