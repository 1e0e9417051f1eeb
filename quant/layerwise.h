// Error feedback through a whole model, layer by layer: each matrix is encoded by nb_gptq_encode
// for the inputs that the model has when all matrices before it are quantized, towards what the
// float model makes of its own inputs.
//
// Two streams of rows go through the model side by side, the float model's and the quantized one's.
// At each site (matrices that read the same rows: q, k and v; o; gate and up; down) the sums are
// taken, the site's matrices are encoded, written and put in their place in the quantized stream,
// and both streams go on to the next site.
//
// Methods: GPTQ (Frantar et al., arXiv 2210.17323) for the columns; the targets' correction by the
// inputs' mismatch as in GPTAQ (Li et al., arXiv 2504.02692) and Qronos (Zhang et al., arXiv
// 2505.11695); the residual stream's difference is added to the targets of what is added to it.
#pragma once

#include "quant/calibrate.h"
#include "quant/compress.h"

struct nb_layerwise {
    const struct nb_source *source;
    struct nb_calibration *calibration;
    struct nb_compress *compress;     // begun
    struct nb_importance *importance; // an embedding's is read: that is rounded first
    bool learns;                      // the importance is empty, and is measured by the way
    struct nb_team *team;
    float damping;  // as of nb_factor_options
    float mismatch; // as of nb_gptq; below 0: by how many tokens there are for a matrix's columns
    uint32_t passes;
    // A site is done; `done` of `total` sites. A negative return ends the work.
    int (*progress)(void *user, uint32_t done, uint32_t total);
    void *user;
};

// Puts the embedding and the matrices of all layers and the head, but for those whose type is a
// float: the rest is for nb_compress_finish. Goes on behind what is there. Blocks; -errno with its
// line.
//
// Memory: two streams of calibration rows with what a layer keeps of them, and the sums of the
// widest matrix.
int nb_layerwise_run(const struct nb_layerwise *how, struct nb_error *ret_error);
