// The tokens that a token is made of on its way through merging: what a smaller vocabulary has to
// keep beside it.
#include <errno.h>

#include "engine/text/tokenizer_vocab.h"
#include "engine/text/unicode.h"

#define CHARACTERS 256 // of a token; longer ones are told alone

struct part {
    uint32_t start, len, symbol;
};

// Its characters; 0: it has too many.
static uint32_t split(const struct nb_tokenizer *t, struct nb_str text, struct part *ret)
{
    uint32_t n = 0;
    for (size_t at = 0, used; at < text.len; at += used) {
        if (n == CHARACTERS)
            return 0;
        nb_unicode_decode(text.data + at, text.len - at, &used);
        ret[n++] = (struct part){(uint32_t)at, (uint32_t)used,
                                 nb_symbols_find(&t->symbols, text.data + at, used)};
    }
    return n;
}

// The neighbours that merge first; n: none do.
static uint32_t find_best(const struct nb_tokenizer *t, const char *text, const struct part *p,
                          uint32_t n, uint32_t *ret_result)
{
    uint32_t best = n, least = 0, rank, result;
    for (uint32_t i = 0; i + 1 < n; i++) {
        const struct nb_str both = {text + p[i].start, p[i].len + p[i + 1].len};
        if (!nb_tokenizer_joins(t, p[i].symbol, p[i + 1].symbol, both, &rank, &result) ||
            (best < n && rank >= least))
            continue;
        best = i;
        least = rank;
        *ret_result = result;
    }
    return best;
}

static int push_token(const struct nb_tokenizer *t, uint32_t symbol, struct nb_tokens *out)
{
    return symbol < t->n_vocab ? nb_tokens_push(out, (int32_t)symbol) : 0;
}

int nb_tokenizer_parts(const struct nb_tokenizer *t, int32_t id, struct nb_tokens *out)
{
    struct part part[CHARACTERS];
    const struct nb_str text = nb_tokenizer_text(t, id);
    uint32_t n = t->kind == NB_TOKENIZER_WORDPIECE ? 0 : split(t, text, part), at, result = 0;
    int rc = nb_tokens_push(out, id);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = push_token(t, part[i].symbol, out);
    while (rc == 0 && (at = find_best(t, text.data, part, n, &result)) < n) {
        part[at].len += part[at + 1].len;
        part[at].symbol = result;
        n--;
        for (uint32_t i = at + 1; i < n; i++)
            part[i] = part[i + 1];
        rc = push_token(t, result, out);
    }
    return rc;
}
