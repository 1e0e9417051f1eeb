// See cut.h.
#include "distill/cut.h"

const char *const nb_cut_names[NB_CUTS] = {
    [NB_CUT_HEADS] = "heads",
    [NB_CUT_FEED_FORWARD] = "feed_forward",
    [NB_CUT_WIDTH] = "width",
};

uint32_t nb_cut_all(const struct nb_hparams *hp, enum nb_cut cut)
{
    const uint32_t all[NB_CUTS] = {
        [NB_CUT_HEADS] = hp->n_kv_heads,
        [NB_CUT_FEED_FORWARD] = hp->ffn,
        [NB_CUT_WIDTH] = hp->embedding,
    };
    return all[cut];
}

bool nb_axis_of(const struct nb_hparams *hp, enum nb_dim dim, struct nb_axis *ret)
{
    const uint32_t shared = hp->n_heads / hp->n_kv_heads; // queries of a key-value head
    const uint32_t q = shared * hp->k_dim, k = hp->k_dim, v = hp->v_dim;
    const struct nb_axis axes[NB_DIM_COUNT] = {
        [NB_DIM_EMBEDDING] = {NB_CUT_WIDTH, 1, {1}},
        [NB_DIM_Q] = {NB_CUT_HEADS, 1, {q}},
        [NB_DIM_K] = {NB_CUT_HEADS, 1, {k}},
        [NB_DIM_V] = {NB_CUT_HEADS, 1, {v}},
        [NB_DIM_QKV] = {NB_CUT_HEADS, 3, {q, k, v}},
        [NB_DIM_ATTN] = {NB_CUT_HEADS, 1, {shared * v}},
        [NB_DIM_FFN] = {NB_CUT_FEED_FORWARD, 1, {1}},
        [NB_DIM_FFN_TWICE] = {NB_CUT_FEED_FORWARD, 2, {1, 1}},
    };
    *ret = axes[dim];
    return ret->parts > 0;
}

uint32_t nb_axis_units(const struct nb_axis *axis)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < axis->parts; i++)
        n += axis->unit[i];
    return n;
}
