// See sparse.h.
#include "quant/sparse.h"

#include <string.h>

const char *const nb_sparse_names[] = {[NB_SPARSE_MAGNITUDE] = "magnitude",
                                       [NB_SPARSE_WANDA] = "wanda",
                                       [NB_SPARSE_SPARSEGPT] = "sparsegpt",
                                       NULL};

// Floats that are not negative are in the order of their bits.
static uint32_t bits_of(float score)
{
    uint32_t bits;
    memcpy(&bits, &score, sizeof(bits));
    return bits;
}

struct nb_sparse_search nb_sparse_begin(uint64_t k)
{
    return (struct nb_sparse_search){.left = k, .shift = 24};
}

void nb_sparse_count(const struct nb_sparse_search *s, const float *scores, size_t n,
                     uint64_t bins[NB_SPARSE_BINS])
{
    const uint64_t known = (uint64_t)s->bits >> (s->shift + 8);
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = bits_of(scores[i]);
        if ((uint64_t)bits >> (s->shift + 8) == known)
            bins[bits >> s->shift & 0xff]++;
    }
}

void nb_sparse_narrow(struct nb_sparse_search *s, const uint64_t bins[NB_SPARSE_BINS])
{
    uint32_t i = 0;
    while (i < NB_SPARSE_BINS - 1 && s->left >= bins[i])
        s->left -= bins[i++];
    s->bits |= i << s->shift;
    s->shift -= 8;
}

struct nb_sparse_cut nb_sparse_found(const struct nb_sparse_search *s)
{
    struct nb_sparse_cut cut = {.ties = s->left};
    memcpy(&cut.at, &s->bits, sizeof(cut.at));
    return cut;
}

struct nb_sparse_cut nb_sparse_cut_of(const float *scores, size_t n, uint64_t k)
{
    struct nb_sparse_search s = nb_sparse_begin(k);
    while (s.shift >= 0) {
        uint64_t bins[NB_SPARSE_BINS] = {0};
        nb_sparse_count(&s, scores, n, bins);
        nb_sparse_narrow(&s, bins);
    }
    return nb_sparse_found(&s);
}

void nb_sparse_keep(struct nb_sparse_cut cut, float *scores, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const bool tie = scores[i] == cut.at && cut.ties > 0;
        cut.ties -= tie;
        scores[i] = tie || scores[i] < cut.at ? 0 : 1;
    }
}

void nb_sparse_pattern(uint32_t keep, uint32_t of, float *scores, size_t n)
{
    for (size_t first = 0; first < n; first += of) {
        float *some = scores + first, kept[NB_SPARSE_OF] = {0};
        for (uint32_t i = 0; i < of; i++) {
            uint32_t less = 0; // than this one
            for (uint32_t j = 0; j < of; j++)
                less += some[j] < some[i] || (j < i && some[j] == some[i]);
            kept[i] = less < of - keep ? 0 : 1;
        }
        memcpy(some, kept, of * sizeof(*some));
    }
}
