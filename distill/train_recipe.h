// What a distillation makes, from JSON, which is anyone's:
//   {"layers": 6, "to": "F16", "tokens": 1000000, "length": 256, "batch": 1024, "rate": 1e-3,
//    "temperature": 1, "hard": 0.1, "adapter": {"rank": 8, "alpha": 16, "matrices": ["attn_q"]}}
// docs/rooms/distill.md says what each key means.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "distill/needs.h"
#include "distill/student.h"
#include "distill/train.h"
#include "engine/inputs.h"
#include "tensor/fail.h"

enum nb_train_layers { NB_LAYERS_BY_INFLUENCE, NB_LAYERS_EVENLY };
enum nb_train_scales { NB_SCALES_LEARNT, NB_SCALES_SPANNED }; // these span each group's weights
enum nb_train_precision { NB_TRAIN_FP32, NB_TRAIN_BF16 };
enum nb_train_moments { NB_MOMENTS_FP32, NB_MOMENTS_INT8 };
enum nb_train_start {
    NB_START_TEACHER,
    NB_START_RANDOM
}; // what the student's weights are at first

// What a student learns: a model that is made for vectors (engine/arch.h: for_vectors) these, any
// other logits.
enum nb_train_kind { NB_TRAIN_LOGITS, NB_TRAIN_VECTORS, NB_TRAIN_KINDS };

#define NB_TRAIN_DEVICE 12 // bytes of a device's name, with the NUL

struct nb_train_recipe {
    uint32_t layers;                  // of the student; 0: all of the teacher's
    uint32_t from[NB_STUDENT_LAYERS]; // those of the teacher, where n_from == layers
    uint32_t n_from;                  // 0: only their number is said
    enum nb_train_layers layers_by;   // which, where only their number is said
    uint32_t cut[NB_CUTS];            // how many of each the student has; 0: all
    double weights;                   // at most; up to 1: the share of the teacher's; 0: any number
    double size;                      // of the file, in bytes, at most; 0: any
    enum nb_needs_by cut_by;          // what of these goes
    double vocabulary;                // tokens at most; up to 1: the share of the model's; 0: all
    enum nb_train_start start;
    enum nb_train_precision precision; // of products
    enum nb_train_moments moments;     // of AdamW (grad/adam.h)
    char device[NB_TRAIN_DEVICE];      // where passes run: "vulkan0"; "": on the CPU
    char to[32];                       // the type of the student's matrices
    double tokens;                     // to train on
    uint32_t length;                   // tokens of a window
    uint32_t batch;                    // tokens of a step; 0 until it is settled
    uint32_t held_out;                 // windows on which it is judged
    // rate: below 0 until it is settled; warm: the share of steps that rise
    double rate, warm, decay, clip;
    double temperature, mix, own, hard, hidden, attention;
    double cosine, relation; // of vectors
    enum nb_schedule schedule;
    uint32_t seed;
    uint32_t states;                  // that a job keeps
    bool qat;                         // it computes with what it will be in the file
    enum nb_train_scales scales;      // with that, of types that have codes
    enum nb_input_scale activations;  // of the file: NB_INPUT_BLOCK, or NB_INPUT_ROW
    struct nb_adapter_choice adapter; // rank 0: none
    double alpha;                     // its
    // Of keys that only students of one kind have, one that was said, by NB_TRAIN_LOGITS and
    // NB_TRAIN_VECTORS; NULL: none.
    const char *only[NB_TRAIN_KINDS];
};

// -EINVAL with what is wrong in one line, by the key's name.
int nb_train_recipe_parse(const char *text, size_t len, struct nb_train_recipe *ret,
                          struct nb_error *ret_error);
// Once it is known what is learnt: what the recipe does not say of batch and rate becomes what is
// usual for it. `family`: the model's, for the line. -EINVAL as above: it has what students of this
// kind have not.
int nb_train_recipe_settle(struct nb_train_recipe *r, enum nb_train_kind kind, const char *family,
                           struct nb_error *ret_error);
