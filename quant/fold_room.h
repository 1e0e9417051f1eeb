// A fold from the inside: fold_plan.c finds joints, fold.c sets them, fold_apply.c computes,
// fold_bytes.c stores, fold_inputs.c looks at inputs. Nobody else includes it.
#pragma once

#include "quant/fold.h"
#include "quant/rotation.h"

#define NB_FOLD_NONE  UINT32_MAX
#define NB_FOLD_PARTS 3  // of a tensor's rows: q, k and v; gate and up
#define NB_FOLD_NOTES 32 // sentences; more are counted with the last

// Rows that write the channels of a joint.
struct nb_fold_rows {
    uint32_t joint, at, n;
    float power; // of the scale that they are divided by; 0: it does not reach them
};

// A vector has rows of one column.
struct nb_fold_tensor {
    char *name;
    uint32_t experts, rows, cols;
    bool vector;
    uint32_t columns[2]; // joints, in the order in which they are applied, or NONE
    struct nb_fold_rows parts[NB_FOLD_PARTS];
    uint32_t n_parts;
};

struct nb_fold_note {
    char text[NB_FOLD_NOTE];
    uint32_t places;
};

struct nb_fold {
    struct nb_joint *joints;
    struct nb_fold_tensor *tensors;
    uint32_t n_joints, n_tensors, n_notes;
    struct nb_fold_note notes[NB_FOLD_NOTES];
};

struct nb_fold_tensor *nb_fold_find(const struct nb_fold *f, struct nb_str name); // or NULL
int nb_fold_analyse(struct nb_fold *f, const struct nb_plan *plan);               // -ENOMEM
// The rotated stream's joint, or NULL.
const struct nb_joint *nb_fold_stream(const struct nb_fold *f);
