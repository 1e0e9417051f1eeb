// See written.h. A group of windows is written at a time, a token of each in every step.
#include "quant/written.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kv.h"
#include "engine/plan.h"
#include "engine/sampler.h"

#define LANES 32 // windows of a group

struct writer {
    const struct nb_writing *how;
    struct nb_plan *plan;
    struct nb_device *device;
    struct nb_device_model *model;
    uint32_t lanes, window_blocks;
    struct nb_windows windows;
    // Of a step
    int32_t *token;
    uint32_t *position, *sequence, *wanted, *block_numbers;
    const uint32_t **blocks;
};

static int open_model(struct writer *w, struct nb_error *e)
{
    const struct nb_plan_options plan = {
        .precision = NB_PRECISION_BALANCED, .kv_type = NB_KV_F16, .max_context = w->how->length};
    const struct nb_device_options device = {.allowed = w->how->allowed};
    const struct nb_device_model_options model = {.kv_blocks = w->lanes * w->window_blocks,
                                                  .max_rows = w->lanes};
    int rc = nb_plan_create(w->how->image, &plan, &w->plan, e);
    if (rc == 0 && !w->plan->width[NB_VALUE_LOGITS])
        rc = nb_fail(e, -ENOTSUP,
                     "a model that only embeds writes no calibration text by itself: give some "
                     "(--calibration FILE)");
    if (rc == 0)
        rc = nb_device_create("cpu", &device, &w->device, e);
    return rc == 0 ? w->device->ops->model_open(w->device, w->plan, &model, &w->model, e) : rc;
}

static int make_rows(struct writer *w, struct nb_error *e)
{
    const uint32_t n = w->lanes, blocks = n * w->window_blocks;
    w->token = calloc(n, sizeof(*w->token));
    w->position = calloc(n, sizeof(*w->position));
    w->sequence = calloc(n, sizeof(*w->sequence));
    w->wanted = calloc(n, sizeof(*w->wanted));
    w->block_numbers = calloc(blocks, sizeof(*w->block_numbers));
    w->blocks = calloc(n, sizeof(*w->blocks)); // NOLINT(bugprone-sizeof-expression)
    w->windows.tokens = calloc((size_t)w->how->n * w->how->length, sizeof(*w->windows.tokens));
    if (!w->token || !w->position || !w->sequence || !w->wanted || !w->block_numbers ||
        !w->blocks || !w->windows.tokens)
        return nb_fail(e, -ENOMEM, "no memory for the calibration text");
    for (uint32_t i = 0; i < n; i++) {
        w->sequence[i] = w->wanted[i] = i;
        w->blocks[i] = w->block_numbers + (size_t)i * w->window_blocks;
    }
    for (uint32_t i = 0; i < blocks; i++)
        w->block_numbers[i] = i;
    return 0;
}

// A token that may begin a text: uniformly random, but none that has no letters.
static int32_t begin_text(const struct writer *w, uint32_t window, uint32_t at)
{
    const uint32_t vocab = w->plan->hp.vocab;
    const uint64_t counter = ((uint64_t)window * w->how->length + at) << 16;
    for (uint64_t i = 0; i < 1u << 16; i++) {
        const int32_t id = (int32_t)(nb_random(~w->how->seed, counter + i) % vocab);
        if ((uint32_t)id < nb_tokenizer_vocab(w->how->tokenizer) &&
            !nb_tokenizer_is_control(w->how->tokenizer, id))
            return id;
    }
    return 0;
}

static int step(struct writer *w, uint32_t lanes, uint32_t at, float **ret_logits)
{
    for (uint32_t i = 0; i < lanes; i++)
        w->position[i] = at;
    const struct nb_rows rows = {.n = lanes,
                                 .token = w->token,
                                 .position = w->position,
                                 .sequence = w->sequence,
                                 .blocks = w->blocks,
                                 .n_logits = lanes,
                                 .logits_row = w->wanted};
    return w->device->ops->step(w->model, &rows, ret_logits);
}

// The token behind position `at` of a window.
static int choose(const struct writer *w, uint32_t window, uint32_t at, float *logits, int32_t last,
                  int32_t *ret)
{
    struct nb_sampling s = NB_SAMPLING_GREEDY;
    float logprob;
    if (nb_tokenizer_is_eog(w->how->tokenizer, last)) {
        *ret = begin_text(w, window, at + 1);
        return 0;
    }
    s.temperature = 1;
    s.seed = nb_random(w->how->seed, window);
    return nb_sample(&s, logits, w->plan->hp.vocab, &last, 1, at + 1, ret, &logprob);
}

static int write_group(struct writer *w, uint32_t first, uint32_t lanes)
{
    const uint32_t length = w->how->length;
    const bool bos = nb_tokenizer_add_bos(w->how->tokenizer);
    float *logits = NULL;
    int rc = 0;
    for (uint32_t i = 0; i < lanes; i++)
        w->token[i] = bos ? nb_tokenizer_bos(w->how->tokenizer) : begin_text(w, first + i, 0);
    for (uint32_t at = 0; at < length && rc == 0; at++) {
        for (uint32_t i = 0; i < lanes; i++)
            w->windows.tokens[(size_t)(first + i) * length + at] = w->token[i];
        if (at + 1 < length)
            rc = step(w, lanes, at, &logits);
        for (uint32_t i = 0; i < lanes && at + 1 < length && rc == 0; i++)
            rc = choose(w, first + i, at, logits + (size_t)i * w->plan->hp.vocab, w->token[i],
                        &w->token[i]);
        if (rc == 0 && w->how->progress)
            w->how->progress(w->how->user, (uint64_t)first * length + (uint64_t)lanes * (at + 1),
                             (uint64_t)w->how->n * length);
    }
    return rc;
}

static int write_all(struct writer *w, struct nb_error *e)
{
    int rc = open_model(w, e);
    if (rc == 0)
        rc = make_rows(w, e);
    for (uint32_t i = 0; i < w->how->n && rc == 0; i += w->lanes) {
        const uint32_t left = w->how->n - i;
        rc = write_group(w, i, left < w->lanes ? left : w->lanes);
        if (rc < 0)
            nb_fail(e, rc, "the model cannot write its calibration text: %s", strerror(-rc));
    }
    return rc;
}

int nb_windows_write(const struct nb_writing *how, struct nb_windows *ret,
                     struct nb_error *ret_error)
{
    struct writer w = {.how = how,
                       .lanes = how->n < LANES ? how->n : LANES,
                       .window_blocks = (how->length + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS,
                       .windows = {.n = how->n, .length = how->length}};
    int rc = write_all(&w, ret_error);
    if (w.model)
        w.device->ops->model_close(w.model);
    if (w.device)
        w.device->ops->destroy(w.device);
    nb_plan_destroy(w.plan);
    free(w.token);
    free(w.position);
    free(w.sequence);
    free(w.wanted);
    free(w.block_numbers);
    free(w.blocks); // NOLINT(bugprone-multi-level-implicit-pointer-conversion)
    if (rc < 0)
        nb_windows_finish(&w.windows);
    else
        *ret = w.windows;
    return rc;
}
