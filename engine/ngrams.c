// See ngrams.h. A place is where an n-gram ends: place p follows the tokens log[p - 3] to
// log[p - 1].
#include "engine/ngrams.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PLACES 16 // that an answer looks at

static uint32_t *head_of(const struct nb_ngrams *index, const int32_t *log, uint32_t place)
{
    uint64_t h = 0;
    for (uint32_t i = 0; i < NB_NGRAM_MIN; i++)
        h = (h ^ (uint32_t)log[place - NB_NGRAM_MIN + i]) * UINT64_C(0x9e3779b97f4a7c15);
    return &index->head[h >> 32 & (index->heads - 1)];
}

void nb_ngrams_finish(struct nb_ngrams *index)
{
    free(index->head);
    free(index->before);
    *index = (struct nb_ngrams){0};
}

void nb_ngrams_cut(struct nb_ngrams *index, const int32_t *log, uint32_t length)
{
    // Backwards, so that each chain's head is the place that is taken out.
    for (; index->length > length; index->length--)
        if (index->length >= NB_NGRAM_MIN)
            *head_of(index, log, index->length) = index->before[index->length];
}

// Room for places up to `length`. More heads mean other chains, so all is put in anew.
static int grow(struct nb_ngrams *index, uint32_t length)
{
    if (length <= index->capacity)
        return 0;
    uint32_t capacity = length + length / 2 + 64, heads = index->heads ? index->heads : 64;
    while (heads < capacity)
        heads *= 2;
    uint32_t *before = reallocarray(index->before, (size_t)capacity + 1, sizeof(*before));
    if (!before)
        return -ENOMEM;
    index->before = before;
    uint32_t *head = calloc(heads, sizeof(*head));
    if (!head)
        return -ENOMEM;
    free(index->head);
    index->head = head;
    index->heads = heads;
    index->capacity = capacity;
    index->length = 0;
    return 0;
}

static void add(struct nb_ngrams *index, const int32_t *log, uint32_t length)
{
    while (index->length < length) {
        uint32_t place = ++index->length;
        if (place < NB_NGRAM_MIN)
            continue;
        uint32_t *head = head_of(index, log, place);
        index->before[place] = *head;
        *head = place;
    }
}

static uint32_t matching(const int32_t *log, uint32_t place, uint32_t length)
{
    uint32_t n = 0;
    while (n < NB_NGRAM_MAX && n < place && log[place - 1 - n] == log[length - 1 - n])
        n++;
    return n;
}

uint32_t nb_ngrams_find(struct nb_ngrams *index, const int32_t *log, uint32_t length,
                        int32_t *ret_tokens, uint32_t most)
{
    if (length < NB_NGRAM_MIN || grow(index, length) < 0)
        return 0;
    // Nothing follows the last tokens' own place.
    nb_ngrams_cut(index, log, length - 1);
    add(index, log, length - 1);
    uint32_t best = NB_NGRAM_MIN - 1, at = 0, place = *head_of(index, log, length);
    for (uint32_t i = 0; i < PLACES && place; i++, place = index->before[place]) {
        uint32_t n = matching(log, place, length);
        if (n > best) {
            best = n;
            at = place;
        }
    }
    for (uint32_t i = 0; at && i < most; i++)
        ret_tokens[i] = at + i < length ? log[at + i] : ret_tokens[at + i - length];
    return at ? best : 0;
}
