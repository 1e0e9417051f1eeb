// Calibration text that the model writes by itself, where its user has none: sampled from its own
// distribution (temperature 1) on the CPU, many sequences at once. Method: LLM-QAT's data-free
// calibration (Liu et al., arXiv 2305.17888), whose first tokens are uniformly random here too.
#pragma once

#include "engine/device.h"
#include "engine/text/tokenizer.h"
#include "quant/windows.h"
#include "tensor/image.h"

struct nb_writing {
    const struct nb_image *image;
    const struct nb_tokenizer *tokenizer;
    const struct nb_cpu_allowed *allowed; // as of struct nb_device_options
    uint32_t n, length;                   // windows, and tokens of each
    uint64_t seed;
    // So many tokens of so many; may be NULL.
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
};

// The same tokens for the same model and seed, whatever the threads. Each window begins with the
// model's BOS token where it asks for one, and after the end of a text another begins. Blocks.
// -ENOTSUP for a model that writes no text, -EBADMSG where its logits are not finite, -ENOMEM; with
// its line.
int nb_windows_write(const struct nb_writing *how, struct nb_windows *ret,
                     struct nb_error *ret_error);
