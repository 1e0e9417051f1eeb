// Attention's stage: units are the heads of a chunk of queries.
#include <string.h>

#include "engine/cpu/device.h"

static void attend(struct nb_cpu_walk *w, const struct nb_op *op, const struct nb_cpu_chunk *c,
                   uint32_t head, uint32_t n)
{
    const struct nb_device_model *m = w->m;
    const struct nb_hparams *hp = &w->plan->hp;
    const uint32_t position = m->rows->position[c->row], sequence = m->rows->sequence[c->row];
    const uint32_t *blocks = m->rows->blocks[sequence];
    const struct nb_attention p = {
        .scale = hp->attn_scale, .softcap = hp->attn_softcap, .window = op->window, .end = c->end};
    const uint32_t end = c->end ? c->end : position + c->n;
    for (uint32_t b = 0; b <= (end - 1) / NB_KV_POSITIONS; b++)
        w->s->kv[b] = nb_cpu_kv(m, op->layer, blocks[b]);
    // The kernel finds a head at kv_head * n + i: shift the rows so that `n` heads from `head` on
    // lie there.
    uint32_t kv_head = head / (hp->n_heads / hp->n_kv_heads), shift = head - kv_head * n;
    w->k->attention(&m->kv_form, nb_cpu_row(m, &op->in, c->row) + (size_t)shift * hp->k_dim,
                    op->in.stride, w->s->kv, m->kv_v_offset, c->n, position, kv_head, n, &p,
                    nb_cpu_row(m, &op->out, c->out_row) + (size_t)shift * hp->v_dim, op->out.stride,
                    w->s->kernel);
}

// The rows whose result is wanted, side by side: nothing but them is read from here on.
static void gather_tail(struct nb_cpu_walk *w)
{
    const struct nb_device_model *m = w->m;
    w->in_tail = true;
    w->n = m->rows->n_logits;
    for (uint32_t v = 0; v < NB_VALUES && w->thread == 0; v++)
        for (uint32_t i = 0; m->tail_values >> v & 1 && i < w->n; i++)
            memmove(m->value[v] + (size_t)i * w->plan->width[v],
                    m->value[v] + (size_t)m->rows->logits_row[i] * w->plan->width[v],
                    w->plan->width[v] * sizeof(float));
}

void nb_cpu_run_attention(struct nb_cpu_walk *w, const struct nb_cpu_stage *s)
{
    const struct nb_hparams *hp = &w->plan->hp;
    const struct nb_op *op = &w->plan->ops[s->first];
    const bool tail = s->first >= w->plan->tail;
    const struct nb_cpu_chunks *chunks = tail ? &w->m->wanted : &w->m->all;
    const uint32_t sharing = hp->n_heads / hp->n_kv_heads;
    struct nb_share share = nb_cpu_share(w, chunks->n * hp->n_heads, UINT32_MAX);
    for (uint32_t u, end; nb_cpu_take(w, &share, &u, &end);)
        while (u < end) {
            uint32_t head = u % hp->n_heads, n = nb_cpu_min(sharing - head % sharing, end - u);
            attend(w, op, &chunks->chunk[u / hp->n_heads], head, n);
            u += n;
        }
    // Attention reads of the rows nothing but queries, so they may move meanwhile.
    if (tail && !w->in_tail)
        gather_tail(w);
}
