// WordPiece: the tokenizer of BERT and its kin. A text becomes words of lower case without accents;
// a word becomes the longest token that begins it, then the longest that goes on with it, or else
// the unknown token. For tokenizer*.c alone.
//
// Ids are those of the original, the `tokenizers` package. llama.cpp has others for these:
//   - A word of more than 100 characters: unknown here.
//   - Decompositions: all characters of one count here; in llama.cpp the first, so that of a Hangul
//     syllable its first consonant is left.
//   - Marks that are no accents (categories Mc and Me): kept here.
//   - What came after Unicode 8, which the original has for categories: no punctuation, format or
//     accent, whatever it is. Decompositions are those of Unicode 12, lower case that of 17.
//   - U+000B, U+000C and U+0085: they vanish here and bound words in llama.cpp.
//   - U+0130 in lower case where accents stay: two characters here.
//   - U+2581 in a text: a character like others here, although vocabularies mark words with it.
#pragma once

#include "engine/text/tokenizer_vocab.h"

enum nb_wordpiece_class {
    NB_WORDPIECE_PART,    // of a word
    NB_WORDPIECE_DROPPED, // controls and formats
    NB_WORDPIECE_SPACE,
    NB_WORDPIECE_ALONE,     // punctuation: a word of its own
    NB_WORDPIECE_IDEOGRAPH, // likewise
    NB_WORDPIECE_ACCENT,
};

// wordpiece_data.c. The first code point of each run, shifted left by 3, with the run's class.
extern const uint32_t nb_wordpiece_run_count;
extern const uint32_t nb_wordpiece_runs[];
// Decompositions without accents: a code point and the one or two (else 0) that it becomes, 21 bits
// each from above, sorted. The first of the two may have a decomposition again. Hangul has rules
// instead.
extern const uint32_t nb_wordpiece_base_count;
extern const uint64_t nb_wordpiece_bases[];
// Upper case from `first` to `last` by `step`, sorted; lower case lies `distance` behind it.
struct nb_wordpiece_lower {
    uint32_t first, last, step;
    int32_t distance;
};
extern const uint32_t nb_wordpiece_lower_count;
extern const struct nb_wordpiece_lower nb_wordpiece_lowers[];

// Appends the ids of a text without special tokens. -ENOMEM; -EILSEQ where the vocabulary lacks a
// word and has no unknown token.
int nb_wordpiece_encode(const struct nb_tokenizer *t, const char *text, size_t len,
                        struct nb_tokens *out);
