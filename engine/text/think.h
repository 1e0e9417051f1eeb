// Reasoning told from the answer: the marks that models write around it, found in the stream of all
// bytes that a model generates, control tokens' among them. Which marks a model knows, its own chat
// template says.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/gguf.h"

#define NB_THINK_MARK_MAX 64  // bytes of a mark
#define NB_THINK_TAIL     256 // bytes of a prompt's end that are looked at, at most

struct nb_think;

// The pairs of marks that the file's templates name, a bit for each; 0: none.
uint32_t nb_think_pairs(const struct nb_gguf *meta);

// A stream that follows `tail`, the prompt's last bytes, control tokens written out: where they end
// with an opening mark (and perhaps spaces), it begins inside. -ENOMEM.
int nb_think_create(uint32_t pairs, struct nb_str tail, struct nb_think **ret);
void nb_think_destroy(struct nb_think *t); // NULL is fine

bool nb_think_inside(const struct nb_think *t);
// How many of the last bytes are an opening mark if the right ones follow: undecided.
size_t nb_think_undecided(const struct nb_think *t);
// One more byte. Returns how many of the last bytes are the opening mark that it completes, else 0.
// What follows a closing mark is outside again.
size_t nb_think_push(struct nb_think *t, char byte);
