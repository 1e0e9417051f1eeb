// Lines as windows (windows.h): texts of unequal lengths, each of which a vector is made of.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "quant/windows.h"

struct taking {
    const struct nb_tokenizer *tokenizer;
    uint32_t length;
    struct nb_tokens tokens;
    uint32_t *end; // [room]
    uint32_t n, room;
    uint32_t longest;
    struct nb_error *error;
};

static int make_room(struct taking *t)
{
    if (t->n < t->room)
        return 0;
    const uint32_t room = t->room ? 2 * t->room : 1024;
    uint32_t *end = realloc(t->end, room * sizeof(*end));
    if (!end)
        return -ENOMEM;
    t->end = end;
    t->room = room;
    return 0;
}

// What is too long is cut as `nibble embed --truncate` does.
static void cut(struct taking *t, size_t first)
{
    struct nb_tokens *all = &t->tokens;
    if (all->n - first <= t->length)
        return;
    if (nb_tokenizer_add_eos(t->tokenizer))
        all->id[first + t->length - 1] = all->id[all->n - 1];
    all->n = first + t->length;
}

static int take_line(struct taking *t, const char *line, size_t len)
{
    const size_t first = t->tokens.n;
    if (strspn(line, " \t\r") >= len)
        return 0;
    int rc = make_room(t);
    if (rc == 0)
        rc = nb_tokenizer_encode(t->tokenizer, line, len, false, true, &t->tokens);
    if (rc < 0)
        return nb_fail(t->error, rc, "the text cannot be tokenized: %s", strerror(-rc));
    cut(t, first);
    const size_t n = t->tokens.n - first;
    if (n)
        t->end[t->n++] = (uint32_t)t->tokens.n;
    t->longest = n > t->longest ? (uint32_t)n : t->longest;
    return 0;
}

static int take_piece(void *user, const char *text, size_t len)
{
    const char *end = text + len;
    int rc = 0;
    for (const char *at = text, *stop; at < end && rc == 0; at = stop + 1) {
        stop = memchr(at, '\n', (size_t)(end - at));
        stop = stop ? stop : end;
        rc = take_line(user, at, (size_t)(stop - at));
    }
    return rc;
}

int nb_windows_lines(const struct nb_tokenizer *tokenizer, const struct nb_source_file *files,
                     uint32_t n_files, uint32_t length, struct nb_windows *ret,
                     struct nb_error *ret_error)
{
    struct taking t = {.tokenizer = tokenizer, .length = length, .error = ret_error};
    int rc = nb_texts_read(files, n_files, take_piece, &t, ret_error);
    if (rc == 0 && t.n == 0)
        rc = nb_fail(ret_error, -EINVAL, "the text has no line to learn from: a text a line");
    struct nb_windows all = {t.n, t.longest, t.tokens.id, t.end};
    if (rc == 0 && t.n > NB_WINDOWS_MAX && nb_windows_spread(&all, NB_WINDOWS_MAX, ret) < 0)
        rc = nb_fail(ret_error, -ENOMEM, "no memory for the text");
    if (rc == 0 && t.n <= NB_WINDOWS_MAX) {
        *ret = all;
        return 0;
    }
    nb_tokens_finish(&t.tokens);
    free(t.end);
    return rc;
}
