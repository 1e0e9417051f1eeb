// Makes the plan from the architecture's table of tensors: every shape is checked against the
// hyperparameters here, so that a device may index without asking again.
#include "engine/plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/image.h"

struct builder {
    const struct nb_image *image;
    struct nb_plan *plan;
    char *error;
    size_t error_size;
};

// Which inputs get two terms. `balanced` spends them where they buy most (docs/numbers.md has the
// measurement): the head, which prefill hardly computes, q/k/v but for the first quarter of the
// layers, and the whole of the last layers (one in 30).
static uint32_t terms_of(enum nb_precision precision, enum nb_op_kind kind, uint32_t layer,
                         uint32_t n_layers)
{
    if (precision != NB_PRECISION_BALANCED)
        return precision == NB_PRECISION_EXACT ? 2 : 1;
    uint32_t last = (n_layers + 29) / 30;
    bool qkv = kind == NB_OP_QKV && layer >= n_layers / 4;
    return kind == NB_OP_HEAD || qkv || layer + last >= n_layers ? 2 : 1;
}

static bool in_layer(enum nb_op_kind kind)
{
    return kind != NB_OP_EMBED && kind != NB_OP_HEAD;
}

static struct nb_op *op_of(struct nb_plan *plan, enum nb_op_kind kind, uint32_t layer)
{
    if (kind == NB_OP_EMBED)
        return &plan->ops[0];
    if (kind == NB_OP_HEAD)
        return &plan->ops[plan->n_ops - 1];
    return &plan->ops[1 + layer * (NB_OP_HEAD - NB_OP_QKV) + (kind - NB_OP_QKV)];
}

static int bind_vector(const struct builder *b, const char *name, uint32_t n, const float **ret)
{
    const struct nb_image_tensor *t = nb_image_find(b->image, name);
    if (!t)
        return -ENOENT;
    if (!t->f32 || t->dims[0] != n)
        return nb_fail(b->error, b->error_size, -EINVAL, "tensor %s must be a vector of %u", name,
                       n);
    *ret = t->f32;
    return 0;
}

static int bind_matrix(const struct builder *b, const char *name, uint32_t rows, uint32_t cols,
                       const struct nb_packed **ret)
{
    const struct nb_image_tensor *t = nb_image_find(b->image, name);
    if (!t)
        return -ENOENT;
    if (t->n_dims != 2 || t->packed.rows != rows || t->packed.cols != cols)
        return nb_fail(b->error, b->error_size, -EINVAL,
                       "tensor %s is %llu x %llu, but the metadata asks for %u x %u", name,
                       (unsigned long long)t->dims[1], (unsigned long long)t->dims[0], rows, cols);
    *ret = &t->packed;
    return 0;
}

static void name_of(const struct nb_arch_tensor *t, uint32_t layer, const char *base,
                    const char *suffix, char name[96])
{
    if (in_layer(t->op))
        snprintf(name, 96, "blk.%u.%s.%s", layer, base, suffix);
    else
        snprintf(name, 96, "%s.%s", base, suffix);
}

static int bind(const struct builder *b, const struct nb_arch_tensor *t, uint32_t layer)
{
    const struct nb_hparams *hp = &b->plan->hp;
    struct nb_op *op = op_of(b->plan, t->op, layer);
    uint32_t rows = hp->dim[t->rows], cols = hp->dim[t->cols];
    char name[96];
    name_of(t, layer, t->name, "weight", name);
    int rc;
    if (t->matrix < 0) {
        rc = bind_vector(b, name, rows, &op->norm);
    } else {
        struct nb_matrix *m = &op->m[t->matrix];
        rc = bind_matrix(b, name, rows, cols, &m->w);
        if (rc == -ENOENT && t->tied) {
            char tied[96];
            name_of(t, layer, t->tied, "weight", tied);
            rc = bind_matrix(b, tied, rows, cols, &m->w);
        }
        char bias[96];
        name_of(t, layer, t->name, "bias", bias);
        if (rc == 0 && (rc = bind_vector(b, bias, rows, &m->bias)) == -ENOENT)
            rc = 0;
    }
    return rc == -ENOENT ? nb_fail(b->error, b->error_size, -EINVAL, "tensor %s is missing", name)
                         : rc;
}

static int bind_all(const struct builder *b)
{
    const struct nb_arch *arch = b->plan->hp.arch;
    for (uint32_t i = 0; i < arch->n_tensors; i++) {
        uint32_t n = in_layer(arch->tensors[i].op) ? b->plan->hp.n_layers : 1;
        for (uint32_t layer = 0; layer < n; layer++) {
            int rc = bind(b, &arch->tensors[i], layer);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

static int lay_out(struct nb_plan *plan, enum nb_precision precision)
{
    uint32_t layers = plan->hp.n_layers;
    plan->n_layers = layers;
    plan->n_ops = 2 + layers * (NB_OP_HEAD - NB_OP_QKV);
    plan->ops = calloc(plan->n_ops, sizeof(*plan->ops));
    if (!plan->ops)
        return -ENOMEM;
    for (uint32_t layer = 0; layer < layers; layer++)
        for (enum nb_op_kind kind = NB_OP_EMBED; kind < NB_OP_KINDS; kind++)
            *op_of(plan, kind, layer) =
                (struct nb_op){.kind = kind,
                               .layer = in_layer(kind) ? layer : 0,
                               .terms = terms_of(precision, kind, layer, layers)};
    return 0;
}

static int check_kv(const struct nb_plan *plan, char *error, size_t size)
{
    const struct nb_hparams *hp = &plan->hp;
    if (plan->kv_type == NB_KV_F16 ||
        (hp->k_dim % NB_KV_GROUP == 0 && hp->v_dim % NB_KV_GROUP == 0))
        return 0;
    return nb_fail(error, size, -ENOTSUP,
                   "heads of %u by %u: a KV cache of type q8_0 wants multiples of %d; use f16",
                   hp->k_dim, hp->v_dim, NB_KV_GROUP);
}

int nb_plan_create(const struct nb_image *image, enum nb_precision precision,
                   enum nb_kv_type kv_type, struct nb_plan **ret, char *ret_error,
                   size_t error_size)
{
    struct nb_plan *plan = calloc(1, sizeof(*plan));
    if (!plan)
        return nb_fail(ret_error, error_size, -ENOMEM, "out of memory");
    struct builder b = {image, plan, ret_error, error_size};
    plan->kv_type = kv_type;
    int rc = nb_hparams_read(image, &plan->hp, ret_error, error_size);
    if (rc == 0)
        rc = check_kv(plan, ret_error, error_size);
    if (rc == 0)
        rc = lay_out(plan, precision);
    if (rc == 0)
        rc = bind_all(&b);
    if (rc < 0) {
        nb_plan_destroy(plan);
        return rc;
    }
    *ret = plan;
    return 0;
}

struct nb_plan nb_plan_part(const struct nb_plan *plan, uint32_t first, uint32_t end, bool embed,
                            bool head)
{
    struct nb_plan part = *plan;
    part.first_layer = first;
    part.n_layers = end - first;
    part.n_ops = embed + part.n_layers * (NB_OP_HEAD - NB_OP_QKV) + head;
    part.ops = op_of(&part, NB_OP_QKV, first) - embed;
    return part;
}

uint64_t nb_plan_weight_bytes(const struct nb_plan *plan)
{
    const struct nb_packed *first = plan->ops[0].m[0].w, *last = plan->ops[plan->n_ops - 1].m[0].w;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < plan->n_ops; i++)
        for (int j = 0; j < 3; j++)
            bytes += plan->ops[i].m[j].w ? nb_packed_bytes(plan->ops[i].m[j].w) : 0;
    bool tied = plan->n_ops > 1 && first && last && first->data == last->data;
    return bytes - (tied ? nb_packed_bytes(last) : 0);
}

void nb_plan_destroy(struct nb_plan *plan)
{
    if (!plan)
        return;
    nb_hparams_finish(&plan->hp);
    free(plan->ops);
    free(plan);
}
