// See windows.h.
#include "quant/windows.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

struct taking {
    const struct nb_tokenizer *tokenizer;
    struct nb_tokens tokens;
    struct nb_error *error;
};

static int take_piece(void *user, const char *text, size_t len)
{
    struct taking *t = user;
    int rc = nb_tokenizer_encode(t->tokenizer, text, len, false, false, &t->tokens);
    return rc < 0 ? nb_fail(t->error, rc, "the calibration text cannot be tokenized: %s",
                            strerror(-rc))
                  : 0;
}

// The special tokens that go around a text: before it, and behind it.
struct frame {
    struct nb_tokens tokens;
    size_t before;
};

static int make_frame(const struct nb_tokenizer *t, struct frame *ret)
{
    int rc = nb_tokenizer_encode(t, "", 0, false, true, &ret->tokens);
    ret->before = nb_tokenizer_add_bos(t) && ret->tokens.n > 0;
    return rc;
}

static void fill(const struct taking *t, const struct frame *f, struct nb_windows *w)
{
    const size_t body = w->length - f->tokens.n, room = t->tokens.n - body;
    const size_t behind = f->tokens.n - f->before;
    for (uint32_t i = 0; i < w->n; i++) {
        int32_t *to = w->tokens + (size_t)i * w->length;
        const size_t first = w->n > 1 ? (size_t)i * room / (w->n - 1) : 0;
        if (f->before)
            *to++ = f->tokens.id[0];
        memcpy(to, t->tokens.id + first, body * sizeof(*to));
        if (behind)
            memcpy(to + body, f->tokens.id + f->before, behind * sizeof(*to));
    }
}

static int cut(const struct taking *t, const struct frame *f, struct nb_windows *w)
{
    const uint64_t body = w->length - f->tokens.n, whole = t->tokens.n / body;
    if (!w->n) {
        w->n = whole < 1 ? 1 : whole < NB_WINDOWS_MAX ? (uint32_t)whole : NB_WINDOWS_MAX;
        w->left = whole > w->n ? whole - w->n : 0;
    }
    const uint64_t needed = (uint64_t)w->n * body;
    if (t->tokens.n < needed)
        return nb_fail(t->error, -EINVAL,
                       "the text has %zu tokens, and %u window%s of %u need%s %" PRIu64
                       ": give more text, or %sshorter windows (%s--length)",
                       t->tokens.n, w->n, w->n > 1 ? "s" : "", w->length, w->n > 1 ? "" : "s",
                       needed, w->n > 1 ? "fewer or " : "", w->n > 1 ? "--samples, " : "");
    w->tokens = calloc((size_t)w->n * w->length, sizeof(*w->tokens));
    if (!w->tokens)
        return nb_fail(t->error, -ENOMEM, "no memory for the calibration text");
    fill(t, f, w);
    return 0;
}

int nb_windows_create(const struct nb_tokenizer *tokenizer, const struct nb_source_file *files,
                      uint32_t n_files, uint32_t n, uint32_t length, struct nb_windows *ret,
                      struct nb_error *ret_error)
{
    struct taking t = {.tokenizer = tokenizer, .error = ret_error};
    struct frame f = {0};
    struct nb_windows w = {.n = n, .length = length};
    int rc = make_frame(tokenizer, &f);
    if (rc < 0)
        nb_fail(ret_error, rc, "the calibration text cannot be tokenized: %s", strerror(-rc));
    if (rc == 0)
        rc = nb_texts_read(files, n_files, take_piece, &t, ret_error);
    if (rc == 0)
        rc = cut(&t, &f, &w);
    nb_tokens_finish(&t.tokens);
    nb_tokens_finish(&f.tokens);
    if (rc == 0)
        *ret = w;
    return rc;
}

// ---- Some of them

static size_t first_of(const struct nb_windows *w, uint32_t i)
{
    return !w->end ? (size_t)i * w->length : i ? w->end[i - 1] : 0;
}

const int32_t *nb_window(const struct nb_windows *w, uint32_t i, uint32_t *ret_n)
{
    *ret_n = (uint32_t)(first_of(w, i + 1) - first_of(w, i));
    return w->tokens + first_of(w, i);
}

const bool *nb_window_answers(const struct nb_windows *w, uint32_t i)
{
    return w->answers ? w->answers + first_of(w, i) : NULL;
}

uint64_t nb_windows_tokens(const struct nb_windows *w)
{
    return first_of(w, w->n);
}

// The i-th of n that lie evenly over all windows.
static uint32_t evenly(const struct nb_windows *w, uint32_t n, uint32_t i)
{
    return (uint32_t)((2 * i + 1) * (uint64_t)w->n / (2 * n));
}

static int make_room(const struct nb_windows *of, uint32_t n, struct nb_windows *ret)
{
    const uint64_t most = (uint64_t)n * of->length, all = nb_windows_tokens(of);
    const size_t tokens = (most < all ? most : all) + 1;
    *ret = (struct nb_windows){.length = of->length};
    ret->tokens = malloc(tokens * sizeof(*ret->tokens));
    ret->end = of->end ? malloc(((size_t)n + 1) * sizeof(*ret->end)) : NULL;
    ret->answers = of->answers ? malloc(tokens * sizeof(*ret->answers)) : NULL;
    if (ret->tokens && (ret->end || !of->end) && (ret->answers || !of->answers))
        return 0;
    nb_windows_finish(ret);
    return -ENOMEM;
}

// `to` may be `w` as it was with fewer windows.
static void append(struct nb_windows *to, const struct nb_windows *w, uint32_t i)
{
    uint32_t n;
    const int32_t *from = nb_window(w, i, &n);
    const size_t at = first_of(to, to->n);
    memmove(to->tokens + at, from, n * sizeof(*from));
    if (to->answers)
        memmove(to->answers + at, nb_window_answers(w, i), n * sizeof(*to->answers));
    if (to->end)
        to->end[to->n] = (uint32_t)(at + n);
    to->n++;
}

int nb_windows_spread(const struct nb_windows *w, uint32_t n, struct nb_windows *ret)
{
    struct nb_windows out;
    if (make_room(w, n, &out) < 0)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        append(&out, w, evenly(w, n, i));
    *ret = out;
    return 0;
}

int nb_windows_hold_out(struct nb_windows *w, uint32_t n, struct nb_windows *ret)
{
    struct nb_windows out, kept = *w;
    if (make_room(w, n, &out) < 0)
        return -ENOMEM;
    kept.n = 0;
    for (uint32_t i = 0; i < w->n; i++)
        append(out.n < n && i == evenly(w, n, out.n) ? &out : &kept, w, i);
    *w = kept;
    *ret = out;
    return 0;
}

// By Fisher and Yates.
void nb_windows_order(uint64_t seed, uint32_t epoch, uint32_t n, uint32_t *ret)
{
    for (uint32_t i = 0; i < n; i++)
        ret[i] = i;
    for (uint32_t i = n ? n - 1 : 0; i > 0; i--) {
        const uint64_t random = nb_random(seed, ((uint64_t)epoch << 32) + i);
        const uint32_t j = (uint32_t)(random % (i + 1)), kept = ret[i];
        ret[i] = ret[j];
        ret[j] = kept;
    }
}

int nb_windows_check(const struct nb_windows *w, uint32_t context, uint32_t vocab,
                     const char *whose, struct nb_error *ret_error)
{
    if (w->length > context)
        return nb_fail(ret_error, -EINVAL,
                       "windows of %u tokens are longer than the %s's context of %u", w->length,
                       whose, context);
    for (size_t i = 0; i < nb_windows_tokens(w); i++)
        if (w->tokens[i] < 0 || (uint32_t)w->tokens[i] >= vocab)
            return nb_fail(ret_error, -EINVAL,
                           "token %d of the text is outside the %s's vocabulary", w->tokens[i],
                           whose);
    return 0;
}

void nb_windows_finish(struct nb_windows *w)
{
    free(w->tokens);
    free(w->end);
    free(w->answers);
    *w = (struct nb_windows){.length = w->length};
}
