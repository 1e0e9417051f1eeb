// A sorted index of names (metadata keys, tensors) out of a file: finds by binary search, tells
// duplicates. Sorted rather than hashed: a hostile file cannot make it slow. Private to tensor/.
#pragma once

#include <stdint.h>

#include "tensor/gguf.h"

struct nb_names {
    struct nb_name {
        struct nb_str str;
        uint32_t index;
    } * items;
    uint32_t n;
};

// Room for n names; the caller fills items[i].str of each. -ENOMEM.
int nb_names_init(struct nb_names *names, uint32_t n);
void nb_names_finish(struct nb_names *names);
// Sorts. -EEXIST, with the name, when two are the same.
int nb_names_sort(struct nb_names *names, struct nb_str *ret_duplicate);
// The index that `name` was filled at, or -1.
int64_t nb_names_find(const struct nb_names *names, const char *name);
// Whether `s` may stand in an error line or a listing: not empty, no control characters.
int nb_name_ok(struct nb_str s);
