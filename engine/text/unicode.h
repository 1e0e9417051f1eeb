// Code points and their classes, as tokenizers' patterns see them (Unicode 15.1). Not for checking
// text: decoding here is lenient, because token ids depend on how the model's own tokenizer read
// its training text.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum nb_unicode_class {
    NB_UNICODE_OTHER,
    NB_UNICODE_LETTER,
    NB_UNICODE_NUMBER,
    NB_UNICODE_MARK,
    NB_UNICODE_PUNCTUATION,
    NB_UNICODE_SYMBOL,
    NB_UNICODE_SPACE, // the property White_Space, whatever the category
};

#define NB_UNICODE_REPLACEMENT 0xfffdu

// The code point at s[0] of n >= 1 bytes, and the bytes it took. A byte that starts no complete
// sequence is one U+FFFD; surrogates and overlong forms are taken at their value.
uint32_t nb_unicode_decode(const char *s, size_t n, size_t *ret_used);
// Writes 1 to 4 bytes; returns their number.
size_t nb_unicode_encode(uint32_t cpt, char out[4]);
enum nb_unicode_class nb_unicode_class(uint32_t cpt);

extern const uint32_t nb_unicode_run_count;
extern const uint32_t nb_unicode_runs[];
