// How a function of tensor/ or engine/ reports a failure that a user must read.
#pragma once

struct nb_error {
    char text[512]; // one sentence, without a full stop
};

// Writes the sentence (NULL is fine) and returns `code`.
int nb_fail(struct nb_error *ret_error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
