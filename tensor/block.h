// A quantized block taken apart. Each family's file knows only where a type keeps its bits (split,
// join); what the parts mean (decode), and where the packed layout puts them, is written once for
// all types and driven by nb_layout. For tensor/ and quant/ alone.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tensor/layout.h"

#define NB_BLOCK_MAX 256 // weights
#define NB_SUB_MAX   16  // bytes of sub-scales

struct nb_block {
    uint8_t code[NB_BLOCK_MAX]; // in the order of k, unsigned
    uint8_t sub[NB_SUB_MAX];    // a row's sub-scales, as enum nb_sub orders them
    uint16_t scale, min;        // fp16 as stored
    float single;               // the scale in their place, where it is fp32 (NB_SUB_F32)
};

// Every bit of the file's block is in the parts and back: join(split(x)) == x for any x.
struct nb_codec {
    void (*split)(const uint8_t *src, struct nb_block *b);
    void (*join)(const struct nb_block *b, uint8_t *dst);
};

extern const struct nb_codec nb_codec_q4_0, nb_codec_q4_1, nb_codec_q5_0, nb_codec_q5_1,
    nb_codec_q8_0, nb_codec_q2_0;
extern const struct nb_codec nb_codec_q2_k, nb_codec_q3_k, nb_codec_q4_k, nb_codec_q5_k,
    nb_codec_q6_k;
extern const struct nb_codec nb_codec_iq4_nl, nb_codec_iq4_xs;
extern const struct nb_codec nb_codec_int8, nb_codec_nf4;

// NULL for float types and for types that Nibble does not load.
const struct nb_codec *nb_codec_of(uint32_t type);

// The integer sub-scale and sub-minimum of group g, and back; the setter takes values that the
// type can hold.
void nb_block_sub(enum nb_sub kind, const uint8_t *sub, unsigned g, int *ret_scale, int *ret_min);
void nb_block_set_sub(enum nb_sub kind, uint8_t *sub, unsigned g, int scale, int min);

extern const int8_t nb_iq4_values[16]; // ascending
extern const float nb_nf4_values[16];  // ascending

// The parts to scale_block floats: w = ws * (code - offset) + wm, docs/numerics.md.
void nb_block_dequantize(const struct nb_layout *l, const struct nb_block *b, float *dst);

void nb_quantize_q4_0(const float *src, void *dst, size_t n_blocks);
void nb_quantize_q4_1(const float *src, void *dst, size_t n_blocks);
void nb_quantize_q5_0(const float *src, void *dst, size_t n_blocks);
void nb_quantize_q5_1(const float *src, void *dst, size_t n_blocks);
void nb_quantize_q8_0(const float *src, void *dst, size_t n_blocks);
void nb_quantize_int8(const float *src, void *dst, size_t n_blocks);
void nb_quantize_nf4(const float *src, void *dst, size_t n_blocks);

void nb_dequantize_f32(const void *src, float *dst, size_t n);
void nb_dequantize_f16(const void *src, float *dst, size_t n);
void nb_dequantize_bf16(const void *src, float *dst, size_t n);
void nb_quantize_f32(const float *src, void *dst, size_t n);
void nb_quantize_f16(const float *src, void *dst, size_t n);
void nb_quantize_bf16(const float *src, void *dst, size_t n);

// Model files are little-endian, and so is every machine that this code is for.
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "Nibble needs a little-endian machine");

static inline uint16_t nb_load16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint32_t nb_load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void nb_store16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, sizeof(v));
}

static inline void nb_store32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, sizeof(v));
}

// n bytes of two 4-bit codes: the low ones are codes 0..n-1, the high ones n..2n-1.
static inline void nb_split_nibbles(const uint8_t *src, uint8_t *code, unsigned n)
{
    for (unsigned l = 0; l < n; l++) {
        code[l] = src[l] & 15;
        code[n + l] = src[l] >> 4;
    }
}

static inline void nb_join_nibbles(const uint8_t *code, uint8_t *dst, unsigned n)
{
    for (unsigned l = 0; l < n; l++)
        dst[l] = (uint8_t)((code[l] & 15) | code[n + l] << 4);
}

// A plane of `bits` (8, 4, 2 or 1) holds a cell in `bits` words of four bytes for each row; word j
// has, 8 / bits deep, the codes 4j..4j+3 and those that follow them at distances of 4 * bits.
// `shift`: the code's lowest bit in here.
static inline __attribute__((always_inline)) void nb_put_cell(uint8_t *cell, const uint8_t *code,
                                                              unsigned bits, unsigned shift)
{
    uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
    for (unsigned j = 0; j < bits; j++) {
        uint32_t word = 0;
        for (unsigned part = 0; part < 8 / bits; part++)
            word |= (nb_load32(code + 4 * (bits * part + j)) >> shift & mask) << (bits * part);
        nb_store32(cell + j * 4 * NB_GROUP_ROWS, word);
    }
}
