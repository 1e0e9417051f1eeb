// A fold's joints: making, setting, asking. See fold.h.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/fold_room.h"

const char *const nb_joint_names[NB_JOINT_KINDS] = {
    [NB_JOINT_NORM] = "norm",
    [NB_JOINT_VALUES] = "values",
    [NB_JOINT_INNER] = "inner",
    [NB_JOINT_STREAM] = "stream",
};

int nb_fold_create(const struct nb_plan *plan, struct nb_fold **ret, struct nb_error *ret_error)
{
    if (!plan->begins || !plan->ends)
        return nb_fail(ret_error, -EINVAL, "a fold is of a whole model");
    struct nb_fold *f = calloc(1, sizeof(*f));
    int rc = f ? nb_fold_analyse(f, plan) : -ENOMEM;
    if (rc < 0) {
        nb_fold_destroy(f);
        return nb_fail(ret_error, rc, "no memory for the fold");
    }
    *ret = f;
    return 0;
}

void nb_fold_destroy(struct nb_fold *f)
{
    if (!f)
        return;
    for (uint32_t i = 0; i < f->n_joints; i++) {
        free(f->joints[i].scale);
        free(f->joints[i].order);
        free(f->joints[i].weight);
        nb_rotation_destroy(f->joints[i].rotation);
    }
    for (uint32_t i = 0; i < f->n_tensors; i++)
        free(f->tensors[i].name);
    free(f->joints);
    free(f->tensors);
    free(f);
}

const struct nb_joint *nb_fold_joints(const struct nb_fold *f, uint32_t *ret_n)
{
    *ret_n = f->n_joints;
    return f->joints;
}

const char *nb_fold_note(const struct nb_fold *f, uint32_t i, uint32_t *ret_places)
{
    if (i >= f->n_notes)
        return NULL;
    *ret_places = f->notes[i].places;
    return f->notes[i].text;
}

struct nb_fold_tensor *nb_fold_find(const struct nb_fold *f, struct nb_str name)
{
    for (uint32_t i = 0; i < f->n_tensors; i++)
        if (strlen(f->tensors[i].name) == name.len &&
            !memcmp(f->tensors[i].name, name.data, name.len))
            return &f->tensors[i];
    return NULL;
}

bool nb_fold_reads(const struct nb_fold *f, struct nb_str name, uint32_t joint)
{
    const struct nb_fold_tensor *t = nb_fold_find(f, name);
    return t && (t->columns[0] == joint || t->columns[1] == joint);
}

const struct nb_joint *nb_fold_stream(const struct nb_fold *f)
{
    for (uint32_t i = 0; i < f->n_joints; i++)
        if (f->joints[i].kind == NB_JOINT_STREAM && f->joints[i].rotation)
            return &f->joints[i];
    return NULL;
}

// ---- Setting

// Whether something else takes the place of the joint's scales or order.
static bool is_taken(const struct nb_fold *f, const struct nb_joint *j)
{
    return j->rotation || (j->kind == NB_JOINT_NORM && nb_fold_stream(f));
}

bool nb_fold_takes_scale(const struct nb_fold *f, uint32_t joint)
{
    return f->joints[joint].scales && !is_taken(f, &f->joints[joint]);
}

bool nb_fold_takes_order(const struct nb_fold *f, uint32_t joint)
{
    return f->joints[joint].permutes && !is_taken(f, &f->joints[joint]);
}

void nb_fold_tell(struct nb_fold *f, uint32_t joint, const struct nb_joint_gain *gain)
{
    f->joints[joint].gain = *gain;
}

int nb_fold_scale(struct nb_fold *f, uint32_t joint, uint32_t expert, const float *scale)
{
    struct nb_joint *j = &f->joints[joint];
    if (!j->scales)
        return -ENOTSUP;
    if (is_taken(f, j))
        return -EBUSY;
    for (uint32_t i = 0; i < j->n; i++)
        if (!(scale[i] > 0) || !isfinite(scale[i]) || !isfinite(1 / scale[i]))
            return -EINVAL;
    const size_t n = (size_t)j->experts * j->n;
    if (!j->scale) {
        j->scale = calloc(n + 1, sizeof(*j->scale));
        if (!j->scale)
            return -ENOMEM;
        for (size_t i = 0; i < n; i++)
            j->scale[i] = 1;
    }
    memcpy(j->scale + (size_t)expert * j->n, scale, j->n * sizeof(*scale));
    return 0;
}

static int check_order(const uint32_t *order, uint32_t n)
{
    bool *seen = calloc(n, sizeof(*seen));
    int rc = seen ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        if (order[i] >= n || seen[order[i]])
            rc = -EINVAL;
        else
            seen[order[i]] = true;
    }
    free(seen);
    return rc;
}

int nb_fold_order(struct nb_fold *f, uint32_t joint, uint32_t expert, const uint32_t *order)
{
    struct nb_joint *j = &f->joints[joint];
    if (!j->permutes)
        return -ENOTSUP;
    if (is_taken(f, j))
        return -EBUSY;
    int rc = check_order(order, j->n);
    if (rc < 0)
        return rc;
    const size_t n = (size_t)j->experts * j->n;
    if (!j->order) {
        j->order = calloc(n + 1, sizeof(*j->order));
        if (!j->order)
            return -ENOMEM;
        for (size_t i = 0; i < n; i++)
            j->order[i] = (uint32_t)(i % j->n);
    }
    memcpy(j->order + (size_t)expert * j->n, order, j->n * sizeof(*order));
    return 0;
}

int nb_fold_rotate(struct nb_fold *f, uint32_t joint, uint64_t seed)
{
    struct nb_joint *j = &f->joints[joint];
    struct nb_rotation *rotation = NULL;
    if (!j->rotates)
        return -ENOTSUP;
    for (uint32_t i = 0; i < f->n_joints; i++) {
        const struct nb_joint *other = &f->joints[i];
        const bool bears =
            i == joint || (j->kind == NB_JOINT_STREAM && other->kind == NB_JOINT_NORM);
        if (bears && (other->scale || other->order))
            return -EBUSY;
    }
    int rc = nb_rotation_create(j->head, seed, &rotation);
    if (rc < 0)
        return rc;
    nb_rotation_destroy(j->rotation);
    j->rotation = rotation;
    j->seed = seed;
    return 0;
}
