// An index of a token log's n-grams: where did the log's last tokens occur before, and what
// followed there? Hash chains over trigrams, as LZ77 compressors use them. An answer looks at a
// fixed number of places and compares a fixed number of tokens at each, so that no log makes it
// slow. Memory: 6 to 12 bytes a token.
#pragma once

#include <stdint.h>

#define NB_NGRAM_MIN 3  // tokens that must match
#define NB_NGRAM_MAX 16 // that are compared

struct nb_ngrams {
    uint32_t *head;           // [heads] the last place of each hash; 0: none
    uint32_t *before;         // [capacity + 1] the place with the same hash before this one
    uint32_t capacity, heads; // heads is a power of two
    uint32_t length;          // the n-grams that end in the log's first `length` tokens are in it
};

void nb_ngrams_finish(struct nb_ngrams *index); // all zeros again
// Forgets what ends after the log's first `length` tokens. Call it before these tokens change.
void nb_ngrams_cut(struct nb_ngrams *index, const int32_t *log, uint32_t length);
// Of the places where the last NB_NGRAM_MIN tokens of log[0..length) occurred before, takes the one
// before which the most tokens match, NB_NGRAM_MAX at most; the latest of equals. Writes the `most`
// tokens that followed there to ret_tokens, going on periodically where the log ends before them.
// Returns how many tokens matched; 0: there is no such place, or no memory, and nothing is written.
// Takes time for each token that was appended since the last call, once.
uint32_t nb_ngrams_find(struct nb_ngrams *index, const int32_t *log, uint32_t length,
                        int32_t *ret_tokens, uint32_t most);
