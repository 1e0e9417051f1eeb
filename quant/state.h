// Numbers that a long computation moves, as bytes and back: a head, the numbers, and a hash over
// both. They are read and written where they lie, in pieces.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Writes or reads all of a piece, or returns -errno, which is what comes back then.
typedef int (*nb_state_io)(void *user, void *data, size_t bytes);

struct nb_state_part {
    void *data;
    uint64_t bytes;
};

struct nb_state {
    char magic[8];  // whose it is
    uint64_t key;   // of the arguments that the computation depends on
    uint32_t *done; // how far it is
    uint32_t all;   // where it ends
    const struct nb_state_part *parts;
    uint32_t n_parts;
};

int nb_state_write(const struct nb_state *s, nb_state_io write, void *user);
// -ESTALE: it is of other arguments, or of something else; -EBADMSG: it is damaged, and the parts
// are of no use then.
int nb_state_read(const struct nb_state *s, nb_state_io read, void *user);
uint64_t nb_state_bytes(const struct nb_state *s);
