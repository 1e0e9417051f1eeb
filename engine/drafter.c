// A second model that proposes tokens: a smaller one with the same tokens, as `nibble distill
// --draft-for` makes them. Each sequence has a shadow among the drafter's, whose log is set to the
// sequence's before each proposal, so that whatever was accepted, rolled back or replaced since is
// no case of its own: the drafter computes what differs. It chooses as the sequence's request does,
// with the same seed at the same position, so that a sampled token is proposed as well as a likely
// one.
#include "engine/model.h"

#include <errno.h>
#include <string.h>

#include "tensor/gguf.h"
#include "tensor/image.h"

// Rows of a sequence that the drafter computes for one step of the model, so that no prompt holds
// the others up.
#define CATCH_UP 128

static void drop_shadows(struct nb_model *m)
{
    for (struct nb_sequence *s = m->first; s; s = s->next) {
        nb_sequence_destroy(s->shadow);
        s->shadow = NULL;
    }
}

static bool have_same_tokens(const struct nb_model *a, const struct nb_model *b)
{
    return a->plan->hp.vocab == b->plan->hp.vocab &&
           nb_gguf_same_strings(nb_image_metadata(a->image), nb_image_metadata(b->image),
                                "tokenizer.ggml.tokens");
}

int nb_model_draft_with(struct nb_model *m, struct nb_model *drafter, struct nb_error *ret_error)
{
    if (!drafter)
        drop_shadows(m);
    else if (m->drafter)
        return nb_fail(ret_error, -EBUSY, "the model has a drafter: unload that first");
    else if (!nb_model_generates(m) || !nb_model_generates(drafter))
        return nb_fail(ret_error, -EINVAL, "drafts are of models that generate, for such models");
    else if (!have_same_tokens(m, drafter))
        return nb_fail(ret_error, -EINVAL,
                       "it has other tokens than the model that it should draft for: distil one "
                       "from that model (nibble distill --draft-for)");
    m->drafter = drafter;
    return 0;
}

static uint32_t count_same(const struct nb_sequence *a, const struct nb_sequence *b)
{
    const uint32_t most = min_u32(a->length, b->length);
    uint32_t n = 0;
    while (n < most && a->log[n] == b->log[n])
        n++;
    return n;
}

// The shadow's log becomes the sequence's, or as much of it as it may compute now: then it proposes
// nothing yet.
static int follow(struct nb_sequence *s)
{
    struct nb_sequence *f = s->shadow;
    const uint32_t same = min_u32(count_same(s, f), f->computed);
    const uint32_t end = min_u32(s->length, same + CATCH_UP);
    struct nb_request q = {.sampling = NB_SAMPLING_GREEDY};
    if (end == s->length) {
        q.max_tokens = s->draft.asked;
        q.sampling = s->request.sampling;
        q.sampling.logprobs = false;
        q.ignore_eos = true;
    }
    int rc = nb_sequence_set(f, same, s->log + same, end - same);
    return rc < 0 ? rc : nb_sequence_start(f, &q);
}

// What cannot be followed, for want of memory or room in the drafter's context, has no draft.
static void begin(struct nb_sequence *s)
{
    int rc = s->shadow ? 0 : nb_sequence_create(s->model->drafter, NULL, &s->shadow);
    if (rc < 0 || follow(s) < 0)
        s->draft.asked = 0;
}

static void take(struct nb_sequence *s)
{
    struct nb_sequence *f = s->shadow;
    nb_sequence_stop(f);
    if (f->length <= s->length)
        return;
    s->draft.n = f->length - s->length;
    s->draft.kind = NB_DRAFT_MODEL;
    memcpy(s->draft.token, f->log + s->length, s->draft.n * sizeof(*s->draft.token));
}

int nb_drafter_propose(struct nb_model *m)
{
    int rc = 1;
    for (struct nb_sequence *s = m->first; s; s = s->next)
        if (s->draft.asked)
            begin(s);
    while (rc > 0 && nb_model_has_work(m->drafter))
        rc = nb_model_step(m->drafter, NULL);
    for (struct nb_sequence *s = m->first; s; s = s->next) {
        if (s->draft.asked)
            take(s);
        s->draft.asked = 0;
    }
    return rc < 0 ? rc : 0;
}
