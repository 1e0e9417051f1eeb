// Who owns which KV block. A block is only ever taken from a sequence's end, so that what is left
// is still a prefix of its log, and nothing here can fail: a sequence without blocks waits, and a
// block that cannot be cleared fails the step that it was taken for.
#include "engine/model.h"

#include <errno.h>
#include <string.h>

int nb_kv_type_by_name(const char *name, enum nb_kv_type *ret)
{
    static const char *const names[NB_KV_TYPES] = {
        [NB_KV_F16] = "f16", [NB_KV_Q8_0] = "q8_0", [NB_KV_F32] = "f32"};
    for (int i = 0; i < NB_KV_TYPES; i++)
        if (!strcmp(*name ? name : "f16", names[i])) {
            *ret = (enum nb_kv_type)i;
            return 0;
        }
    return -EINVAL;
}

static void drop_last(struct nb_sequence *s)
{
    struct nb_model *m = s->model;
    m->free_block[m->n_free++] = s->block[--s->n_blocks];
    uint32_t left = s->n_blocks * NB_KV_POSITIONS;
    if (s->computed > left)
        s->computed = left;
}

static struct nb_sequence *victim_for(const struct nb_sequence *s)
{
    for (struct nb_sequence *v = s->model->first; v; v = v->next)
        if (!v->active && v->n_blocks && v != s)
            return v;
    for (struct nb_sequence *v = s->model->first; v; v = v->next)
        if (v->parked && v->n_blocks && v != s)
            return v;
    for (struct nb_sequence *v = s->model->last; v != s; v = v->prev)
        if (v->n_blocks)
            return v;
    return NULL;
}

static bool take_block(struct nb_sequence *s)
{
    struct nb_model *m = s->model;
    if (!m->n_free) {
        struct nb_sequence *v = victim_for(s);
        if (!v)
            return false;
        drop_last(v);
    }
    uint32_t block = m->free_block[--m->n_free];
    if (m->used[block] && m->uncleared == 0)
        m->uncleared = m->device->ops->kv_clear(m->dm, block);
    m->n_touched += !m->used[block];
    m->used[block] = true;
    s->block[s->n_blocks++] = block;
    return true;
}

uint32_t nb_kv_reserve(struct nb_sequence *s, uint32_t positions)
{
    while (s->n_blocks * NB_KV_POSITIONS < positions)
        if (!take_block(s))
            return s->n_blocks * NB_KV_POSITIONS;
    return positions;
}

void nb_kv_trim(struct nb_sequence *s, uint32_t positions)
{
    while (s->n_blocks > (positions + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS)
        drop_last(s);
    if (s->computed > positions)
        s->computed = positions;
}
