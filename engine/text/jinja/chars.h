// Characters as Python's str sees them: classes that its methods test, and their cases.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum nb_jcase { NB_JCASE_UPPER, NB_JCASE_LOWER, NB_JCASE_TITLE };

bool nb_jchar_is_space(uint32_t c);
bool nb_jchar_is_word(uint32_t c); // \w: letters, numbers, marks, the underscore
bool nb_jchar_is_alpha(uint32_t c);
bool nb_jchar_is_number(uint32_t c);
bool nb_jchar_is_upper(uint32_t c);
bool nb_jchar_is_lower(uint32_t c);
bool nb_jchar_is_line_end(uint32_t c); // of str.splitlines
int nb_jchar_digit(char c);            // of base 36, or 99
// The bytes of [p, p + len) without the white space at its end.
size_t nb_jchar_rstrip(const char *p, size_t len);
// The first byte that is not UTF-8, or the length. Surrogates and overlong forms are none.
size_t nb_jchars_valid(const char *data, size_t len);
// Writes 1 to 3 code points.
size_t nb_jchar_case(uint32_t c, enum nb_jcase to, uint32_t out[3]);

// Generated: a run of characters whose other case is `delta` away; every second one where stride
// is 2. And those that become several.
struct nb_jcase_run {
    uint32_t first, last;
    int32_t delta;
    uint8_t stride;
};
struct nb_jcase_special {
    uint32_t from, to[3];
};
struct nb_jcase_table {
    const struct nb_jcase_run *run;
    size_t n_runs;
    const struct nb_jcase_special *special;
    size_t n_special;
};
extern const struct nb_jcase_table nb_jcase_tables[3];
