// What a compression makes of a model: the type of each tensor. Read from JSON, which is anyone's:
//   {"to": "Q4_0", "tensors": [{"match": "ffn_down", "to": "Q8_0", "sparse": 0}],
//    "embedding": "Q8_0", "output": "Q8_0", "else": "F16",
//    "calibration": {"samples": 128, "length": 256, "seed": 1},
//    "method": "gptq", "gptq": {"damping": 0.03, "mismatch": 0.7, "passes": 2},
//    "fold": ["awq", "permute"], "sparse": {"share": 0.5, "by": "wanda"},
//    "tune": {"tokens": 98304, "batch": 1024, "layer_steps": 0,
//             "code": 0, "scale": 0.0002, "vector": 0.0002},
//    "activations": {"scheme": "static", "range": "mse", "spread": 6}}
// or, where an allocation chooses the types (allocation.h), with a target in the place of "to":
//   {"target": {"size": 92000000}, "types": ["Q4_0", "Q8_0"], "effort": "normal"}
// docs/rooms/quant.md says what each key means.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "engine/inputs.h"
#include "quant/scheme.h"
#include "quant/sparse.h"
#include "tensor/source.h"

#define NB_RECIPE_MAX   (64u << 10) // bytes of the text
#define NB_RECIPE_RULES 256         // of "tensors"
#define NB_RECIPE_MATCH 256         // bytes of a regular expression
#define NB_RECIPE_TYPES 32          // of "types"

struct nb_recipe;

// folder: of what is written as a Hugging Face folder, which has NF4 too. -EINVAL with what is
// wrong in one line, by the key's name; -ENOMEM.
int nb_recipe_parse(const char *text, size_t len, bool folder, struct nb_recipe **ret,
                    struct nb_error *ret_error);
void nb_recipe_free(struct nb_recipe *recipe); // NULL is fine

bool nb_recipe_folder(const struct nb_recipe *recipe);

// "calibration": windows of text, where the job has one.
struct nb_sampling_plan {
    uint32_t samples, length; // tokens of each
    uint32_t seed;            // of what the model writes by itself
    uint32_t held_out;        // windows beside them, on which a target, tune and auto judge
};
struct nb_sampling_plan nb_recipe_calibration(const struct nb_recipe *recipe);

// "method" and "gptq": how the weights of a calibrated model are rounded. The method "tune" begins
// with gptq; "auto" does too, and keeps of each what held-out text shows a gain of.
struct nb_feedback_plan {
    bool on;                 // by error feedback (quant/layerwise.h); else by searched scales
    float damping, mismatch; // as there
    uint32_t passes;
};
struct nb_feedback_plan nb_recipe_feedback(const struct nb_recipe *recipe);
bool nb_recipe_automatic(const struct nb_recipe *recipe);

// "tune": what is moved afterwards towards the float model's logits (quant/tune.h). Without a
// number of "tokens" the effort decides.
struct nb_tuning_plan {
    bool on;
    uint32_t tokens, batch; // in all, and of a step
    uint32_t layer_steps;   // of each layer by itself before
    float code_rate, scale_rate, vector_rate;
};
struct nb_tuning_plan nb_recipe_tuning(const struct nb_recipe *recipe);

// "fold": bits of quant/fold_search.h, 0 without it.
uint32_t nb_recipe_folds(const struct nb_recipe *recipe);

// "sparse": of the layers' matrices that no rule names. NULL: it is not there.
const struct nb_sparsity *nb_recipe_sparsity(const struct nb_recipe *recipe);

// "to": of most tensors; with a target, what is written where no type can be chosen.
const struct nb_scheme *nb_recipe_to(const struct nb_recipe *recipe);

// "target": what the types are to be chosen for.
enum nb_target {
    NB_TARGET_NONE,
    NB_TARGET_SIZE, // bytes of the file, at most
    NB_TARGET_BITS, // a weight, of all tensors together, at most
    NB_TARGET_KLD,  // held-out divergence, at most
    NB_TARGET_FIT,  // bytes of memory that serving takes, at most
};
// "effort": how long is spent on it.
enum nb_pace { NB_PACE_FAST, NB_PACE_NORMAL, NB_PACE_BEST };

struct nb_recipe_target {
    enum nb_target kind;
    double value;     // of KLD and BITS
    uint64_t bytes;   // of SIZE and FIT
    uint32_t context; // of FIT: tokens that are served; 0: the model's context
    enum nb_pace effort;
    uint32_t types[NB_RECIPE_TYPES]; // to choose among; none: whatever there is
    uint32_t n_types;
};
const struct nb_recipe_target *nb_recipe_target(const struct nb_recipe *recipe);

// "activations": how inputs of matrices become int8 codes (engine/inputs.h), and how calibration
// finds a fixed range.
enum nb_range { NB_RANGE_MINMAX, NB_RANGE_PERCENTILE, NB_RANGE_MSE };
struct nb_activations {
    enum nb_input_scale scale;
    enum nb_range range;
    double percentile; // of magnitudes that the range holds
    // A matrix stays dynamic when its inputs' largest magnitude is more than so many times the one
    // that 99.9 % of them do not exceed: no single scale fits both. 0: none does.
    double spread;
};
struct nb_activations nb_recipe_activations(const struct nb_recipe *recipe);

struct nb_choice {
    uint32_t type;
    uint32_t wanted; // another one where its blocks do not divide the rows
    bool fixed;      // a target does not choose it: the recipe names it, or it is always F32
    const struct nb_scheme *scheme; // that the type is, or holds; NULL, or of another type: itself
    struct nb_sparsity sparse;      // of matrices of layers
};

// Whoever changes a choice's type alone gets that type.
static inline const struct nb_scheme *nb_choice_scheme(const struct nb_choice *c)
{
    return c->scheme && c->scheme->type == c->type ? c->scheme : nb_scheme_of_type(c->type);
}

// What one tensor becomes. -EINVAL: its rows are no whole blocks of the type, and the recipe names
// no other; it is to be sparse and the type has no zero, or its rows are no whole patterns; or a
// rule's expression takes too many steps.
int nb_recipe_choose(struct nb_recipe *recipe, const struct nb_source_tensor *t,
                     struct nb_choice *ret, struct nb_error *ret_error);
// The next rule, from `*at` on, whose expression matched no tensor so far; NULL: there is none.
const char *nb_recipe_idle(const struct nb_recipe *recipe, uint32_t *at);
