// The file of lessons: what a teacher makes of a text. `nibble teach` writes it, and a distillation
// reads it (distill/lessons.h).
//
// Little-endian: a header; a piece of the text, padded with zeros to a multiple of 4, and its
// int32_t tokens, by which a student's tokenizer is told from the teacher's; int32_t
// tokens[windows][length]; for each of them a struct nb_lesson, of what comes behind it, and
// struct nb_kept_logit[kept], ids ascending.
#pragma once

#include <stdint.h>

#define NB_LESSONS_MAGIC   "nblesson"
#define NB_LESSONS_WINDOWS 65536
#define NB_LESSONS_LEAST   8 // tokens of a window
#define NB_LESSONS_LENGTH  8192
#define NB_LESSONS_KEPT    1024
#define NB_LESSONS_SAMPLE  4096 // bytes of the piece of text; it has no more tokens
struct nb_lessons_header {
    char magic[8];
    uint32_t version; // 1
    uint32_t vocab, length, windows, kept;
    float temperature;
    uint32_t sample_bytes, sample_tokens;
    uint32_t reserved[6]; // 0
};

// log_sum: the logarithm of the sum of exp(logit) over the vocabulary, and of exp(logit /
// temperature).
struct nb_lesson {
    float log_sum, warm_log_sum;
};

// One of the likeliest tokens.
struct nb_kept_logit {
    uint32_t id;
    float logit;
};
