// Dictionaries in order of insertion, found by hash once they have more than a few entries.
#include <errno.h>
#include <math.h>
#include <string.h>
#include <xxhash.h>

#include "engine/text/jinja/value.h"

#define SMALL 8 // up to here looking through all is as fast

struct nb_jdict *nb_jdict_new(struct nb_jmem *m)
{
    return nb_jalloc(m, sizeof(struct nb_jdict));
}

bool nb_jv_hashable(struct nb_jmem *m, struct nb_jv v)
{
    if (v.kind == NB_J_TUPLE) {
        nb_jstep(m, v.list->n);
        for (size_t i = 0; i < v.list->n; i++)
            if (v.list->v[i].kind == NB_J_TUPLE || !nb_jv_hashable(m, v.list->v[i]))
                return false; // tuples in tuples are keys of no template
        return true;
    }
    return v.kind != NB_J_LIST && v.kind != NB_J_DICT && v.kind != NB_J_VIEW;
}

// Numbers that are equal hash alike, whatever their type.
static uint64_t hash(struct nb_jmem *m, struct nb_jv v)
{
    uint64_t h = v.kind;

    nb_jstep(m, v.kind == NB_J_STR ? v.s->len / 64 : 1);
    if (v.kind == NB_J_STR)
        return XXH3_64bits(v.s->data, v.s->len);
    if (nb_jv_is_number(v)) {
        double f = nb_jv_as_float(v) + 0.0;
        return XXH3_64bits(&f, sizeof(f));
    }
    if (v.kind == NB_J_TUPLE)
        for (size_t i = 0; i < v.list->n; i++)
            h = h * 31 + hash(m, v.list->v[i]);
    return h;
}

// The slot of the key, or the free one where it would stand. Every probe is a step, so keys made to
// collide cost whoever made them.
static size_t probe(struct nb_jmem *m, const struct nb_jdict *d, struct nb_jv key)
{
    size_t at = hash(m, key) & (d->n_slots - 1);

    for (; d->slot[at]; at = (at + 1) & (d->n_slots - 1)) {
        nb_jstep(m, 1);
        if (nb_jv_eq(m, d->key[d->slot[at] - 1], key))
            break;
    }
    return at;
}

static void rehash(struct nb_jmem *m, struct nb_jdict *d)
{
    d->n_slots = d->n_slots ? d->n_slots * 4 : (size_t)SMALL * 8;
    d->slot = nb_jarray(m, d->n_slots, sizeof(*d->slot));
    for (size_t i = 0; i < d->n; i++)
        d->slot[probe(m, d, d->key[i])] = (uint32_t)i + 1;
}

struct nb_jv *nb_jdict_get(struct nb_jmem *m, const struct nb_jdict *d, struct nb_jv key)
{
    if (d->slot) {
        uint32_t found = d->slot[probe(m, d, key)];
        return found ? &d->value[found - 1] : NULL;
    }
    for (size_t i = 0; i < d->n; i++)
        if (nb_jv_eq(m, d->key[i], key))
            return &d->value[i];
    return NULL;
}

struct nb_jv *nb_jdict_find(struct nb_jmem *m, const struct nb_jdict *d, const char *key)
{
    const struct nb_jstr s = {.data = key, .len = strlen(key), .chars = SIZE_MAX};

    return nb_jdict_get(m, d, nb_jv_str(&s));
}

void nb_jdict_set(struct nb_jmem *m, struct nb_jdict *d, struct nb_jv key, struct nb_jv value)
{
    if (!nb_jv_hashable(m, key))
        nb_jfail(m, -EINVAL, "unhashable type: '%s'", nb_jv_type(key));
    struct nb_jv *there = nb_jdict_get(m, d, key);
    if (there) {
        *there = value;
        return;
    }
    nb_jstep(m, 1);
    if (d->n == d->capacity || !d->value) {
        size_t capacity = d->capacity;
        d->key = nb_jgrow(m, d->key, d->n, &capacity, sizeof(*d->key));
        d->value = nb_jgrow(m, d->value, d->n, &d->capacity, sizeof(*d->value));
    }
    d->key[d->n] = key;
    d->value[d->n++] = value;
    if (d->slot)
        d->slot[probe(m, d, key)] = (uint32_t)d->n;
    if (d->n > SMALL && d->n * 2 > d->n_slots)
        rehash(m, d);
}
