// The types whose scales are fp32: INT8 and NF4, as Hugging Face folders have them. A block in
// memory is its scale, then its codes.
#include <math.h>

#include "tensor/block.h"

// bitsandbytes' documentation, create_normal_map.
const float nb_nf4_values[16] = {-1.0f,
                                 -0.6961928009986877f,
                                 -0.5250730514526367f,
                                 -0.39491748809814453f,
                                 -0.28444138169288635f,
                                 -0.18477343022823334f,
                                 -0.09105003625154495f,
                                 0.0f,
                                 0.07958029955625534f,
                                 0.16093020141124725f,
                                 0.24611230194568634f,
                                 0.33791524171829224f,
                                 0.44070982933044434f,
                                 0.5626170039176941f,
                                 0.7229568362236023f,
                                 1.0f};

#define BYTES 36 // of a block of either type
#define SCALE sizeof(float)

static float largest(const float *x, unsigned n)
{
    float most = 0;
    for (unsigned i = 0; i < n; i++)
        most = fmaxf(most, fabsf(x[i]));
    return most;
}

// ---- INT8: 32 signed codes

static void split_int8(const uint8_t *src, struct nb_block *b)
{
    memcpy(&b->single, src, SCALE);
    for (unsigned i = 0; i < 32; i++)
        b->code[i] = src[SCALE + i] ^ 0x80;
}

static void join_int8(const struct nb_block *b, uint8_t *dst)
{
    memcpy(dst, &b->single, SCALE);
    for (unsigned i = 0; i < 32; i++)
        dst[SCALE + i] = b->code[i] ^ 0x80;
}

void nb_quantize_int8(const float *src, void *dst, size_t n_blocks)
{
    uint8_t *out = dst;
    for (size_t b = 0; b < n_blocks; b++, src += 32, out += BYTES) {
        const float scale = largest(src, 32) / 127, inverse = scale > 0 ? 1 / scale : 0;
        memcpy(out, &scale, SCALE);
        for (unsigned i = 0; i < 32; i++)
            out[SCALE + i] = (uint8_t)(int8_t)rintf(src[i] * inverse);
    }
}

// ---- NF4: 64 codes, two in a byte, the earlier one high

static void split_nf4(const uint8_t *src, struct nb_block *b)
{
    memcpy(&b->single, src, SCALE);
    for (unsigned i = 0; i < 32; i++) {
        b->code[2 * i] = src[SCALE + i] >> 4;
        b->code[2 * i + 1] = src[SCALE + i] & 15;
    }
}

static void join_nf4(const struct nb_block *b, uint8_t *dst)
{
    memcpy(dst, &b->single, SCALE);
    for (unsigned i = 0; i < 32; i++)
        dst[SCALE + i] = (uint8_t)(b->code[2 * i] << 4 | (b->code[2 * i + 1] & 15));
}

// The nearest value, the lower one of two that are as near.
static uint8_t nearest_nf4(float x)
{
    uint8_t code = 0;
    while (code < 15 && x > (nb_nf4_values[code] + nb_nf4_values[code + 1]) / 2)
        code++;
    return code;
}

void nb_quantize_nf4(const float *src, void *dst, size_t n_blocks)
{
    struct nb_block b;
    uint8_t *out = dst;
    for (size_t n = 0; n < n_blocks; n++, src += 64, out += BYTES) {
        b.single = largest(src, 64);
        const float inverse = b.single > 0 ? 1 / b.single : 0;
        for (unsigned i = 0; i < 64; i++)
            b.code[i] = nearest_nf4(src[i] * inverse);
        join_nf4(&b, out);
    }
}

const struct nb_codec nb_codec_int8 = {split_int8, join_int8};
const struct nb_codec nb_codec_nf4 = {split_nf4, join_nf4};
