// The types of the KV cache: what the elements of keys and values are kept as (docs/numerics.md,
// Attention), and what that takes.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum nb_kv_type {
    NB_KV_F16,
    NB_KV_Q8_0, // a byte each, and an fp16 scale for a position's NB_KV_GROUP elements of a head
    NB_KV_F32,
    NB_KV_TYPES,
};

#define NB_KV_GROUP     32
#define NB_KV_POSITIONS 32 // of a block, and of a tile of attention

// Of one element of every position of a block.
static inline size_t nb_kv_bytes(enum nb_kv_type type)
{
    if (type == NB_KV_Q8_0)
        return NB_KV_POSITIONS / NB_KV_GROUP * (NB_KV_GROUP + 2);
    return NB_KV_POSITIONS * (type == NB_KV_F32 ? sizeof(float) : sizeof(uint16_t));
}

// "f16", "q8_0", "f32"; "": f16. -EINVAL for any other.
int nb_kv_type_by_name(const char *name, enum nb_kv_type *ret);
