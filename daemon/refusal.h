// Why a request failed, in one sentence for the user.
#pragma once

struct nb_refusal {
    char text[240];
};

// Formats the sentence, cleaned as a text from outside, and returns `status`.
int nb_refuse(struct nb_refusal *refusal, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
