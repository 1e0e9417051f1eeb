// The simple types: one fp16 scale, and for the _1 types one fp16 minimum, over 32 weights; Q2_0
// over 64.
//
// Encoders give the bytes of python gguf's quants.py for every block whose scale's inverse is
// finite. Beyond: a block that holds a NaN or an infinity gets a NaN scale (and minimum) and zero
// codes, so that it decodes to NaN throughout and never to a plausible number; where arithmetic on
// finite weights overflows, a code that is not a number is 0 and one past the end is the last.
#include "tensor/block.h"

#include <math.h>
#include <stdbool.h>

#define QUIET_NAN_F16 0x7e00

static const uint8_t *split_head(const uint8_t *src, bool has_min, struct nb_block *b)
{
    b->scale = nb_load16(src);
    if (has_min)
        b->min = nb_load16(src + 2);
    return src + (has_min ? 4 : 2);
}

static uint8_t *join_head(const struct nb_block *b, bool has_min, uint8_t *dst)
{
    nb_store16(dst, b->scale);
    if (has_min)
        nb_store16(dst + 2, b->min);
    return dst + (has_min ? 4 : 2);
}

static void split_4(const uint8_t *src, bool has_min, struct nb_block *b)
{
    nb_split_nibbles(split_head(src, has_min, b), b->code, 16);
}

static void join_4(const struct nb_block *b, bool has_min, uint8_t *dst)
{
    nb_join_nibbles(b->code, join_head(b, has_min, dst), 16);
}

static void split_5(const uint8_t *src, bool has_min, struct nb_block *b)
{
    src = split_head(src, has_min, b);
    uint32_t high = nb_load32(src);
    nb_split_nibbles(src + 4, b->code, 16);
    for (unsigned j = 0; j < 32; j += 4) {
        // The product puts bit i of the four at bit 8 i.
        uint32_t four = (high >> j & 15) * 0x00204081u & 0x01010101u;
        nb_store32(b->code + j, nb_load32(b->code + j) | four << 4);
    }
}

static void join_5(const struct nb_block *b, bool has_min, uint8_t *dst)
{
    uint32_t high = 0;
    for (unsigned j = 0; j < 32; j++)
        high |= (uint32_t)(b->code[j] >> 4 & 1) << j;
    dst = join_head(b, has_min, dst);
    nb_store32(dst, high);
    nb_join_nibbles(b->code, dst + 4, 16);
}

static void split_q4_0(const uint8_t *src, struct nb_block *b)
{
    split_4(src, false, b);
}

static void join_q4_0(const struct nb_block *b, uint8_t *dst)
{
    join_4(b, false, dst);
}

static void split_q4_1(const uint8_t *src, struct nb_block *b)
{
    split_4(src, true, b);
}

static void join_q4_1(const struct nb_block *b, uint8_t *dst)
{
    join_4(b, true, dst);
}

static void split_q5_0(const uint8_t *src, struct nb_block *b)
{
    split_5(src, false, b);
}

static void join_q5_0(const struct nb_block *b, uint8_t *dst)
{
    join_5(b, false, dst);
}

static void split_q5_1(const uint8_t *src, struct nb_block *b)
{
    split_5(src, true, b);
}

static void join_q5_1(const struct nb_block *b, uint8_t *dst)
{
    join_5(b, true, dst);
}

static void split_q8_0(const uint8_t *src, struct nb_block *b)
{
    src = split_head(src, false, b);
    for (unsigned j = 0; j < 32; j++)
        b->code[j] = src[j] ^ 0x80;
}

static void join_q8_0(const struct nb_block *b, uint8_t *dst)
{
    dst = join_head(b, false, dst);
    for (unsigned j = 0; j < 32; j++)
        dst[j] = b->code[j] ^ 0x80;
}

// Weight j in byte j / 4, bits 2 (j % 4).
static void split_q2_0(const uint8_t *src, struct nb_block *b)
{
    src = split_head(src, false, b);
    for (unsigned j = 0; j < 16; j++) {
        uint32_t four = src[j]; // spread by shifts to a byte each
        nb_store32(b->code + 4 * j, (four | four << 6 | four << 12 | four << 18) & 0x03030303);
    }
}

static void join_q2_0(const struct nb_block *b, uint8_t *dst)
{
    dst = join_head(b, false, dst);
    for (unsigned j = 0; j < 16; j++) {
        const uint8_t *c = b->code + 4 * j;
        dst[j] = (uint8_t)((c[0] & 3) | (c[1] & 3) << 2 | (c[2] & 3) << 4 | c[3] << 6);
    }
}

const struct nb_codec nb_codec_q4_0 = {split_q4_0, join_q4_0};
const struct nb_codec nb_codec_q4_1 = {split_q4_1, join_q4_1};
const struct nb_codec nb_codec_q5_0 = {split_q5_0, join_q5_0};
const struct nb_codec nb_codec_q5_1 = {split_q5_1, join_q5_1};
const struct nb_codec nb_codec_q8_0 = {split_q8_0, join_q8_0};
const struct nb_codec nb_codec_q2_0 = {split_q2_0, join_q2_0};

static bool all_finite(const float *x)
{
    bool finite = true;
    for (unsigned j = 0; j < 32; j++)
        finite &= isfinite(x[j]) != 0;
    return finite;
}

static void poison(struct nb_block *b)
{
    memset(b, 0, sizeof(*b));
    b->scale = b->min = QUIET_NAN_F16;
}

// Truncates; what is not finite is 0.
static uint8_t code_of(float v, unsigned last)
{
    if (!(v >= 1) || isinf(v))
        return 0;
    return v >= (float)last ? (uint8_t)last : (uint8_t)v;
}

static float inverse(float d)
{
    return d == 0 ? 0 : 1 / d;
}

// The weight of largest magnitude, the first of equals, becomes code 0: `half` steps below zero.
static void parts_symmetric(const float *x, unsigned half, struct nb_block *b)
{
    if (!all_finite(x)) {
        poison(b);
        return;
    }
    float extreme = x[0];
    for (unsigned j = 1; j < 32; j++)
        if (fabsf(x[j]) > fabsf(extreme))
            extreme = x[j];
    float d = extreme / -(float)half, id = inverse(d);
    b->scale = nb_f32_to_f16(d);
    for (unsigned j = 0; j < 32; j++)
        b->code[j] = code_of(x[j] * id + ((float)half + 0.5f), 2 * half - 1);
}

static void parts_affine(const float *x, unsigned last, struct nb_block *b)
{
    if (!all_finite(x)) {
        poison(b);
        return;
    }
    float min = x[0], max = x[0];
    for (unsigned j = 1; j < 32; j++) {
        min = x[j] < min ? x[j] : min;
        max = x[j] > max ? x[j] : max;
    }
    float d = (max - min) / (float)last, id = inverse(d);
    b->scale = nb_f32_to_f16(d);
    b->min = nb_f32_to_f16(min);
    for (unsigned j = 0; j < 32; j++)
        b->code[j] = code_of((x[j] - min) * id + 0.5f, last);
}

static void parts_q8_0(const float *x, struct nb_block *b)
{
    if (!all_finite(x)) {
        poison(b);
        return;
    }
    float amax = 0;
    for (unsigned j = 0; j < 32; j++)
        amax = fabsf(x[j]) > amax ? fabsf(x[j]) : amax;
    float d = amax / 127, id = inverse(d);
    b->scale = nb_f32_to_f16(d);
    for (unsigned j = 0; j < 32; j++) {
        float v = roundf(x[j] * id); // halves away from zero
        b->code[j] = (uint8_t)((v >= -127 && v <= 127 ? (int)v : 0) + 128);
    }
}

void nb_quantize_q4_0(const float *src, void *dst, size_t n_blocks)
{
    struct nb_block b;
    for (size_t i = 0; i < n_blocks; i++) {
        parts_symmetric(src + 32 * i, 8, &b);
        join_q4_0(&b, (uint8_t *)dst + 18 * i);
    }
}

void nb_quantize_q4_1(const float *src, void *dst, size_t n_blocks)
{
    struct nb_block b;
    for (size_t i = 0; i < n_blocks; i++) {
        parts_affine(src + 32 * i, 15, &b);
        join_q4_1(&b, (uint8_t *)dst + 20 * i);
    }
}

void nb_quantize_q5_0(const float *src, void *dst, size_t n_blocks)
{
    struct nb_block b;
    for (size_t i = 0; i < n_blocks; i++) {
        parts_symmetric(src + 32 * i, 16, &b);
        join_q5_0(&b, (uint8_t *)dst + 22 * i);
    }
}

void nb_quantize_q5_1(const float *src, void *dst, size_t n_blocks)
{
    struct nb_block b;
    for (size_t i = 0; i < n_blocks; i++) {
        parts_affine(src + 32 * i, 31, &b);
        join_q5_1(&b, (uint8_t *)dst + 24 * i);
    }
}

void nb_quantize_q8_0(const float *src, void *dst, size_t n_blocks)
{
    struct nb_block b;
    for (size_t i = 0; i < n_blocks; i++) {
        parts_q8_0(src + 32 * i, &b);
        join_q8_0(&b, (uint8_t *)dst + 34 * i);
    }
}
