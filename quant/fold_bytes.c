// A fold's choices as bytes: how many joints there are, and of each what was chosen.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "quant/fold_room.h"

// Bits of what follows.
enum { SCALE = 1, ORDER = 2, ROTATION = 4 };

struct head {
    uint32_t joints, pad;
};

// Numbers of [experts][n] follow, scales before the order.
struct chosen {
    uint32_t kind, what;
    uint32_t experts, n;
    uint64_t seed;
    struct nb_joint_gain gain;
};

static size_t numbers(const struct nb_joint *j)
{
    return (size_t)j->experts * j->n;
}

static struct chosen chosen_of(const struct nb_joint *j)
{
    return (struct chosen){.kind = j->kind,
                           .what = (j->scale ? SCALE : 0) | (j->order ? ORDER : 0) |
                                   (j->rotation ? ROTATION : 0),
                           .experts = j->experts,
                           .n = j->n,
                           .seed = j->seed,
                           .gain = j->gain};
}

static uint8_t *put(uint8_t *to, const void *data, size_t n)
{
    if (n)
        memcpy(to, data, n);
    return to + n;
}

int nb_fold_store(const struct nb_fold *f, void **ret, size_t *ret_len)
{
    const struct head head = {.joints = f->n_joints};
    size_t len = sizeof(head);
    for (uint32_t i = 0; i < f->n_joints; i++)
        len += sizeof(struct chosen) +
               4 * numbers(&f->joints[i]) * (!!f->joints[i].scale + !!f->joints[i].order);
    uint8_t *bytes = malloc(len);
    if (!bytes)
        return -ENOMEM;
    uint8_t *at = put(bytes, &head, sizeof(head));
    for (uint32_t i = 0; i < f->n_joints; i++) {
        const struct nb_joint *j = &f->joints[i];
        const struct chosen c = chosen_of(j);
        at = put(at, &c, sizeof(c));
        at = put(at, j->scale, j->scale ? 4 * numbers(j) : 0);
        at = put(at, j->order, j->order ? 4 * numbers(j) : 0);
    }
    *ret = bytes;
    *ret_len = len;
    return 0;
}

struct reading {
    const uint8_t *at;
    size_t left;
};

static bool take(struct reading *r, void *to, size_t n)
{
    if (r->left < n)
        return false;
    memcpy(to, r->at, n);
    r->at += n;
    r->left -= n;
    return true;
}

// One expert after the other, as who chooses sets them.
static int restore_numbers(struct nb_fold *f, uint32_t joint, const struct chosen *c,
                           struct reading *r)
{
    const size_t n = f->joints[joint].n;
    uint32_t *some = malloc(n * sizeof(*some)); // or floats, which are as large
    int rc = some ? 0 : -ENOMEM;
    for (uint32_t e = 0; rc == 0 && (c->what & SCALE) && e < c->experts; e++)
        rc = take(r, some, 4 * n) ? nb_fold_scale(f, joint, e, (float *)some) : -EINVAL;
    for (uint32_t e = 0; rc == 0 && (c->what & ORDER) && e < c->experts; e++)
        rc = take(r, some, 4 * n) ? nb_fold_order(f, joint, e, some) : -EINVAL;
    free(some);
    return rc;
}

static int restore_joint(struct nb_fold *f, uint32_t joint, struct reading *r)
{
    struct chosen c;
    const struct nb_joint *j = &f->joints[joint];
    if (!take(r, &c, sizeof(c)) || c.kind != j->kind || c.experts != j->experts || c.n != j->n)
        return -EINVAL;
    nb_fold_tell(f, joint, &c.gain);
    int rc = restore_numbers(f, joint, &c, r);
    return rc == 0 && (c.what & ROTATION) ? nb_fold_rotate(f, joint, c.seed) : rc;
}

int nb_fold_restore(struct nb_fold *f, const void *data, size_t len)
{
    struct head head;
    struct reading r = {data, len};
    int rc = take(&r, &head, sizeof(head)) && head.joints == f->n_joints ? 0 : -EINVAL;
    for (uint32_t i = 0; i < f->n_joints && rc == 0; i++)
        rc = restore_joint(f, i, &r);
    if (rc == 0 && r.left)
        rc = -EINVAL;
    return rc == -ENOMEM ? rc : rc < 0 ? -EINVAL : 0;
}
