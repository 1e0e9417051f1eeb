// The ops that take a row each.
#include <string.h>

#include "engine/cpu/device.h"
#include "engine/route.h"

void nb_cpu_norm(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t head, const float *x,
                 float *out)
{
    const struct nb_hparams *hp = &w->plan->hp;
    const size_t at = op->each ? (size_t)head * op->dim : 0;
    const float *weight = op->weight ? op->weight + at : NULL;
    if (hp->arch->norm == NB_NORM_RMS)
        w->k->rmsnorm(x, weight, hp->norm_eps, op->dim, out);
    else
        w->k->layernorm(x, weight, op->bias, hp->norm_eps, op->dim, out);
}

static void write_kv(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t head, uint32_t n,
                     uint32_t row)
{
    const struct nb_device_model *m = w->m;
    const struct nb_kv_form *form = &m->kv_form;
    const size_t bytes = nb_kv_bytes(form->type);
    const uint32_t position = m->rows->position[row];
    const uint32_t block = m->rows->blocks[m->rows->sequence[row]][position / NB_KV_POSITIONS];
    uint8_t *kv = nb_cpu_kv(m, op->layer, block);
    w->k->kv_write(
        form, kv + head * form->k_dim * bytes, kv + m->kv_v_offset + head * form->v_dim * bytes,
        nb_cpu_row(m, &op->in, row) + (size_t)head * form->k_dim,
        nb_cpu_row(m, &op->other, row) + (size_t)head * form->v_dim, n, position % NB_KV_POSITIONS);
}

// The n heads from `head` on.
static void rope(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t head, uint32_t n,
                 uint32_t row)
{
    const struct nb_hparams *hp = &w->plan->hp;
    const float *angles = w->m->rope + ((size_t)row * hp->n_ropes + op->rope) * hp->rope_dims;
    w->k->rope(nb_cpu_row(w->m, &op->out, row) + (size_t)head * op->dim, n, op->dim, hp->rope_dims,
               angles, hp->arch->rope_neox);
}

void nb_cpu_head_op(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t head,
                    uint32_t row)
{
    const size_t at = (size_t)head * op->dim;
    if (op->kind == NB_OP_NORM)
        nb_cpu_norm(w, op, head, nb_cpu_row(w->m, &op->in, row) + at,
                    nb_cpu_row(w->m, &op->out, row) + at);
    else if (op->kind == NB_OP_ROPE)
        rope(w, op, head, 1, row);
    else
        write_kv(w, op, head, 1, row);
}

static void embed(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t row)
{
    const struct nb_hparams *hp = &w->plan->hp;
    const struct nb_rows *rows = w->m->rows;
    const uint32_t of[] = {[NB_LOOKUP_TOKEN] = (uint32_t)rows->token[row],
                           [NB_LOOKUP_POSITION] = rows->position[row],
                           [NB_LOOKUP_FIRST] = 0};
    float *out = nb_cpu_row(w->m, &op->out, row);
    if (op->lookup == NB_LOOKUP_TOKEN)
        nb_cpu_turn_row(w->m, row);
    if (op->add) {
        float *x = w->s->act;
        w->k->decode_row(&op->w->packed, of[op->lookup], x);
        w->k->add(out, x, op->scale, hp->embedding);
        return;
    }
    w->k->decode_row(&op->w->packed, of[op->lookup], out);
    if (op->scale != 1.0f)
        w->k->cap(out, op->scale, 0.0f, hp->embedding);
}

static void combine(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t row)
{
    const uint32_t k = w->plan->hp.n_chosen;
    for (uint32_t c = 0; c < k; c++) {
        const uint32_t i = row * k + c;
        w->k->add(nb_cpu_row(w->m, &op->out, row), nb_cpu_row(w->m, &op->in, w->s->groups.place[i]),
                  w->m->expert_weight[i] * op->scale, op->out.width);
    }
}

void nb_cpu_row_op(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t row)
{
    const struct nb_device_model *m = w->m;
    const struct nb_hparams *hp = &w->plan->hp;
    const float *in = op->in.value ? nb_cpu_row(m, &op->in, row) : NULL;
    const float *other = op->other.value ? nb_cpu_row(m, &op->other, row) : NULL;
    float *out = op->out.value ? nb_cpu_row(m, &op->out, row) : NULL;
    switch (op->kind) {
    case NB_OP_EMBED:
        embed(w, op, row);
        break;
    case NB_OP_NORM:
        for (uint32_t h = 0; h < op->heads; h++)
            nb_cpu_norm(w, op, h, in + (size_t)h * op->dim, out + (size_t)h * op->dim);
        break;
    case NB_OP_ROPE:
        rope(w, op, 0, op->heads, row);
        break;
    case NB_OP_KV:
        write_kv(w, op, 0, hp->n_kv_heads, row);
        break;
    case NB_OP_ACTIVATE:
        w->k->activate(hp->arch->activation, in, other, op->out.width, out);
        break;
    case NB_OP_ADD:
        w->k->add(out, in, op->scale, op->out.width);
        break;
    case NB_OP_CAP:
        w->k->cap(out, op->scale, op->cap, op->out.width);
        break;
    case NB_OP_ROUTE:
        nb_route(hp, op->bias, in, m->expert + (size_t)row * hp->n_chosen,
                 m->expert_weight + (size_t)row * hp->n_chosen);
        break;
    case NB_OP_COMBINE:
        combine(w, op, row);
        break;
    case NB_OP_LINEAR:
    case NB_OP_ATTENTION:
    case NB_OP_KINDS:
        break; // stages of their own
    }
}

void nb_cpu_run_rows(struct nb_cpu_walk *w, const struct nb_cpu_stage *s)
{
    const struct nb_op *ops = &w->plan->ops[s->first];
    const uint32_t n = nb_plan_rows(w->plan, ops->out.value, w->n);
    struct nb_share share = nb_cpu_share(w, n, UINT32_MAX);
    for (uint32_t t, end; nb_cpu_take(w, &share, &t, &end);)
        for (; t < end; t++)
            for (uint32_t i = 0; i < s->n; i++)
                nb_cpu_row_op(w, &ops[i], t);
}
