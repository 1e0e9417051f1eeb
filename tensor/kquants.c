// The k-quants: super-blocks of 256 with fp16 scales over integer sub-scales of 16 or 32 weights.
// Split and join alone; these types have no encoder here (a good one searches its scales: that is
// quant/'s).
#include "tensor/block.h"

// 32 bytes of four 2-bit codes: bits 2s of byte l are code 32 s + l.
static void split_pairs(const uint8_t *src, uint8_t *code, unsigned shift)
{
    for (unsigned s = 0; s < 4; s++)
        for (unsigned l = 0; l < 32; l++)
            code[32 * s + l] |= (uint8_t)((src[l] >> (2 * s) & 3) << shift);
}

static void join_pairs(const uint8_t *code, uint8_t *dst, unsigned shift)
{
    for (unsigned l = 0; l < 32; l++) {
        unsigned byte = 0;
        for (unsigned s = 0; s < 4; s++)
            byte |= (code[32 * s + l] >> shift & 3u) << (2 * s);
        dst[l] = (uint8_t)byte;
    }
}

// 32 bytes of eight single bits: bit g of byte l belongs to code 32 g + l.
static void split_bits(const uint8_t *src, uint8_t *code, unsigned shift)
{
    for (unsigned g = 0; g < 8; g++)
        for (unsigned l = 0; l < 32; l++)
            code[32 * g + l] |= (uint8_t)((src[l] >> g & 1) << shift);
}

static void join_bits(const uint8_t *code, uint8_t *dst, unsigned shift)
{
    for (unsigned l = 0; l < 32; l++) {
        unsigned byte = 0;
        for (unsigned g = 0; g < 8; g++)
            byte |= (code[32 * g + l] >> shift & 1u) << g;
        dst[l] = (uint8_t)byte;
    }
}

// Q2_K: sub 16, codes 64, d, dmin.
static void split_q2_k(const uint8_t *src, struct nb_block *b)
{
    memcpy(b->sub, src, 16);
    memset(b->code, 0, 256);
    split_pairs(src + 16, b->code, 0);
    split_pairs(src + 48, b->code + 128, 0);
    b->scale = nb_load16(src + 80);
    b->min = nb_load16(src + 82);
}

static void join_q2_k(const struct nb_block *b, uint8_t *dst)
{
    memcpy(dst, b->sub, 16);
    join_pairs(b->code, dst + 16, 0);
    join_pairs(b->code + 128, dst + 48, 0);
    nb_store16(dst + 80, b->scale);
    nb_store16(dst + 82, b->min);
}

// Q3_K: high bits 32, low pairs 64, sub 12, d. A set high bit means "do not subtract 4": it is
// code's bit 2 as it is.
static void split_q3_k(const uint8_t *src, struct nb_block *b)
{
    memset(b->code, 0, 256);
    split_bits(src, b->code, 2);
    split_pairs(src + 32, b->code, 0);
    split_pairs(src + 64, b->code + 128, 0);
    memcpy(b->sub, src + 96, 12);
    b->scale = nb_load16(src + 108);
}

static void join_q3_k(const struct nb_block *b, uint8_t *dst)
{
    join_bits(b->code, dst, 2);
    join_pairs(b->code, dst + 32, 0);
    join_pairs(b->code + 128, dst + 64, 0);
    memcpy(dst + 96, b->sub, 12);
    nb_store16(dst + 108, b->scale);
}

// The 12 bytes of 6-bit scales and minima of Q4_K and Q5_K. Groups 0-3 keep theirs whole in bytes
// 0-3 and 4-7; groups 4-7 keep four bits in bytes 8-11 and the other two on top of those.
static void split_scales(const uint8_t *src, uint8_t *sub)
{
    for (unsigned g = 0; g < 4; g++) {
        sub[g] = src[g] & 63;
        sub[8 + g] = src[4 + g] & 63;
        sub[4 + g] = (uint8_t)((src[8 + g] & 15) | src[g] >> 6 << 4);
        sub[12 + g] = (uint8_t)(src[8 + g] >> 4 | src[4 + g] >> 6 << 4);
    }
}

static void join_scales(const uint8_t *sub, uint8_t *dst)
{
    for (unsigned g = 0; g < 4; g++) {
        dst[g] = (uint8_t)((sub[g] & 63) | sub[4 + g] >> 4 << 6);
        dst[4 + g] = (uint8_t)((sub[8 + g] & 63) | sub[12 + g] >> 4 << 6);
        dst[8 + g] = (uint8_t)((sub[4 + g] & 15) | sub[12 + g] << 4);
    }
}

// Q4_K: d, dmin, sub 12, then nibbles, 64 weights to each 32 bytes.
static void split_q4_k(const uint8_t *src, struct nb_block *b)
{
    b->scale = nb_load16(src);
    b->min = nb_load16(src + 2);
    split_scales(src + 4, b->sub);
    for (unsigned c = 0; c < 4; c++)
        nb_split_nibbles(src + 16 + 32 * c, b->code + 64 * c, 32);
}

static void join_q4_k(const struct nb_block *b, uint8_t *dst)
{
    nb_store16(dst, b->scale);
    nb_store16(dst + 2, b->min);
    join_scales(b->sub, dst + 4);
    for (unsigned c = 0; c < 4; c++)
        nb_join_nibbles(b->code + 64 * c, dst + 16 + 32 * c, 32);
}

// Q5_K: as Q4_K, with 32 bytes of high bits before the nibbles.
static void split_q5_k(const uint8_t *src, struct nb_block *b)
{
    b->scale = nb_load16(src);
    b->min = nb_load16(src + 2);
    split_scales(src + 4, b->sub);
    for (unsigned c = 0; c < 4; c++)
        nb_split_nibbles(src + 48 + 32 * c, b->code + 64 * c, 32);
    split_bits(src + 16, b->code, 4);
}

static void join_q5_k(const struct nb_block *b, uint8_t *dst)
{
    nb_store16(dst, b->scale);
    nb_store16(dst + 2, b->min);
    join_scales(b->sub, dst + 4);
    join_bits(b->code, dst + 16, 4);
    for (unsigned c = 0; c < 4; c++)
        nb_join_nibbles(b->code + 64 * c, dst + 48 + 32 * c, 32);
}

// Q6_K: nibbles 128 (128 weights to each 64 bytes), high pairs 64, sub 16, d.
static void split_q6_k(const uint8_t *src, struct nb_block *b)
{
    for (unsigned c = 0; c < 2; c++) {
        nb_split_nibbles(src + 64 * c, b->code + 128 * c, 64);
        split_pairs(src + 128 + 32 * c, b->code + 128 * c, 4);
    }
    memcpy(b->sub, src + 192, 16);
    b->scale = nb_load16(src + 208);
}

static void join_q6_k(const struct nb_block *b, uint8_t *dst)
{
    for (unsigned c = 0; c < 2; c++) {
        nb_join_nibbles(b->code + 128 * c, dst + 64 * c, 64);
        join_pairs(b->code + 128 * c, dst + 128 + 32 * c, 4);
    }
    memcpy(dst + 192, b->sub, 16);
    nb_store16(dst + 208, b->scale);
}

const struct nb_codec nb_codec_q2_k = {split_q2_k, join_q2_k};
const struct nb_codec nb_codec_q3_k = {split_q3_k, join_q3_k};
const struct nb_codec nb_codec_q4_k = {split_q4_k, join_q4_k};
const struct nb_codec nb_codec_q5_k = {split_q5_k, join_q5_k};
const struct nb_codec nb_codec_q6_k = {split_q6_k, join_q6_k};
