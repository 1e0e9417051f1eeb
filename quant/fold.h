// Folds: other weights for the same model. Where one op's channels feed matrices alone, each may be
// scaled, reordered or rotated before them and back inside of them, and no logit changes; but the
// weights are rounded with another error then. Joints, where that can be done, are found in a
// plan's list of ops, never by a family's name.
//
//     x' = (x / scale)[order] R      on the side of who writes the channels: a norm's weight, rows
//     W' = (W * scale)[order] R      on that of who reads them: columns
//
// Scales before a norm's readers and between v and the output matrix: SmoothQuant (Xiao and others,
// 2022), AWQ (Lin and others, 2023). Rotations: QuaRot (Ashkboos and others, 2024). A fold is made
// by one thread; afterwards any number may read it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/threads.h"
#include "engine/plan.h"
#include "tensor/fail.h"

enum nb_joint_kind {
    NB_JOINT_NORM,   // a norm's weight and bias, before the matrices that read its result
    NB_JOINT_VALUES, // rows of v, before the columns of the output matrix
    NB_JOINT_INNER,  // rows of up (and gate), before the columns of down; of each expert
    NB_JOINT_STREAM, // what writes the residual stream, before all that reads it
    NB_JOINT_KINDS,
};
extern const char *const nb_joint_names[NB_JOINT_KINDS];

#define NB_FOLD_OUTSIDE UINT32_MAX // of the layers
#define NB_FOLD_NOTE    160        // bytes of a note, with its NUL

struct nb_joint {
    enum nb_joint_kind kind;
    uint32_t layer;      // or NB_FOLD_OUTSIDE
    uint32_t experts, n; // channels: [experts][n]
    // Its readers have repeats * n columns: of queries that share keys and values, each head of
    // `head` channels comes so often. Column c has channel nb_joint_channel().
    uint32_t head, repeats;
    bool scales, permutes, rotates; // what goes through the ops between
    // What was chosen.
    float *scale;                 // [experts][n]; NULL: ones
    uint32_t *order;              // [experts][n]; NULL: as they are
    struct nb_rotation *rotation; // of each head, or of the stream; NULL: none
    uint64_t seed;                // its
    struct nb_joint_gain {
        uint32_t searched, taken; // experts; for how many of them it is less
        float exponent;           // of the scales, on average
        float before, after;      // errors of its readers' outputs, on average
    } gain;
    float *weight; // a norm's, [n]: its readers take it where the stream is rotated
};

static inline uint32_t nb_joint_channel(const struct nb_joint *j, uint32_t column)
{
    return column / j->head / j->repeats * j->head + column % j->head;
}

struct nb_fold;

// A fold that changes nothing yet. The plan is not needed afterwards; it is of the whole model,
// with the source's weights. -EINVAL for a part of a plan, -ENOMEM.
int nb_fold_create(const struct nb_plan *plan, struct nb_fold **ret, struct nb_error *ret_error);
void nb_fold_destroy(struct nb_fold *f); // NULL is fine

const struct nb_joint *nb_fold_joints(const struct nb_fold *f, uint32_t *ret_n);
// Why a fold has no joint at some place, a sentence without a full stop, and at how many places;
// NULL past the last.
const char *nb_fold_note(const struct nb_fold *f, uint32_t i, uint32_t *ret_places);

// Sets what one joint does, `expert` below its experts; what was set before is replaced. -ENOTSUP:
// it does not go through what lies between; -EBUSY: another choice is in the way (a rotated stream
// takes the norms' scales, and a joint either rotates or has scales and an order); -EINVAL: no
// positive finite numbers, or no order; -ENOMEM.
int nb_fold_scale(struct nb_fold *f, uint32_t joint, uint32_t expert, const float *scale);
int nb_fold_order(struct nb_fold *f, uint32_t joint, uint32_t expert, const uint32_t *order);
int nb_fold_rotate(struct nb_fold *f, uint32_t joint, uint64_t seed);
// Whether nb_fold_scale, or nb_fold_order, may be.
bool nb_fold_takes_scale(const struct nb_fold *f, uint32_t joint);
bool nb_fold_takes_order(const struct nb_fold *f, uint32_t joint);
// Keeps what a search has found, for reports.
void nb_fold_tell(struct nb_fold *f, uint32_t joint, const struct nb_joint_gain *gain);

// Whether the columns of a tensor go through this joint. Of a matrix that reads the rotated stream
// there are two.
bool nb_fold_reads(const struct nb_fold *f, struct nb_str name, uint32_t joint);

// The fewest elements of a tensor that nb_fold_tensor takes at once: a row's, those of all rows (of
// one expert), or of a vector all. 0: the fold leaves the tensor as it is.
uint64_t nb_fold_unit(const struct nb_fold *f, struct nb_str name);
// Folds elements [at, at + n) of a tensor in place, whole units. They are as the file has them,
// [experts][rows][cols]. Blocks; on the team, whose caller is thread 0. The bits do not depend on
// its size nor on `n`. -EINVAL: no whole units of this tensor; -ENOMEM.
int nb_fold_tensor(const struct nb_fold *f, struct nb_team *team, struct nb_str name, uint64_t at,
                   uint64_t n, float *values);

// What was chosen, as bytes for a journal: malloc'ed; -ENOMEM.
int nb_fold_store(const struct nb_fold *f, void **ret, size_t *ret_len);
// Into a fold of the same plan that changes nothing yet. -EINVAL: they are of another one.
int nb_fold_restore(struct nb_fold *f, const void *data, size_t len);
