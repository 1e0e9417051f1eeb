// Calibration text as windows of tokens: what a model is run on.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/text/tokenizer.h"
#include "quant/texts.h"

#define NB_WINDOWS_MAX    65536
#define NB_WINDOWS_LEAST  8 // tokens of one
#define NB_WINDOWS_LENGTH 8192

struct nb_windows {
    uint32_t n, length;
    int32_t *tokens; // [n][length]; of lines one behind the other, none over `length`
    uint32_t *end;   // [n]: where each line ends in `tokens`; NULL: all windows are of `length`
    bool *answers;   // [tokens]: whether each is of an answer, as labels are; NULL: all are labels
    uint64_t left;   // windows of the text that were more than NB_WINDOWS_MAX
};
// Window i, and how many tokens it has.
const int32_t *nb_window(const struct nb_windows *w, uint32_t i, uint32_t *ret_n);
const bool *nb_window_answers(const struct nb_windows *w, uint32_t i); // or NULL
uint64_t nb_windows_tokens(const struct nb_windows *w);                // of all together

// The texts' tokens, one text after the other, cut into n windows (0: as many as there are, up to
// NB_WINDOWS_MAX) that lie evenly over them and do not overlap. Each begins and ends with the
// special tokens that the model asks for. -EINVAL, with how many tokens there are and are needed,
// where there are too few.
int nb_windows_create(const struct nb_tokenizer *t, const struct nb_source_file *files,
                      uint32_t n_files, uint32_t n, uint32_t length, struct nb_windows *ret,
                      struct nb_error *ret_error);
// A text a line, for models that make a vector of a whole text: each line with more than spaces is
// a window of its own, with the special tokens that the model asks for, cut at `length` tokens so
// that the one behind it stays. Of more than NB_WINDOWS_MAX lines so many, evenly over them.
// -EINVAL: there is none; with its line.
int nb_windows_lines(const struct nb_tokenizer *t, const struct nb_source_file *files,
                     uint32_t n_files, uint32_t length, struct nb_windows *ret,
                     struct nb_error *ret_error);
// A conversation a line (nb_texts_chats), each a window of its own as the model's template renders
// it and as ids, cut at `length` tokens. Answers are what the template makes of the messages of the
// "assistant", with what ends them. Conversations of which no answer is left are left out. A
// template that asks for the date gets 1 January 2026. -EINVAL: there is none, or one that cannot
// be rendered, by its number; with its line.
struct nb_chat_template;
int nb_windows_chats(const struct nb_tokenizer *t, const struct nb_chat_template *template,
                     const struct nb_source_file *files, uint32_t n_files, uint32_t length,
                     struct nb_windows *ret, struct nb_error *ret_error);
// Takes `n` of the windows, evenly over them, out of `w`: those on which a result is judged, which
// nothing may be tuned on. n < w->n. -ENOMEM.
int nb_windows_hold_out(struct nb_windows *w, uint32_t n, struct nb_windows *ret);
// A copy of n of the windows, evenly over them. n <= w->n. -ENOMEM.
int nb_windows_spread(const struct nb_windows *w, uint32_t n, struct nb_windows *ret);
// The order of n windows in an epoch, which depends on the seed and the epoch's number alone.
void nb_windows_order(uint64_t seed, uint32_t epoch, uint32_t n, uint32_t *ret);
// -EINVAL: windows are longer than the context, or have tokens outside of the vocabulary, of the
// "model" (`whose`) that is to run on them.
int nb_windows_check(const struct nb_windows *w, uint32_t context, uint32_t vocab,
                     const char *whose, struct nb_error *ret_error);
void nb_windows_finish(struct nb_windows *w); // all zero is fine
