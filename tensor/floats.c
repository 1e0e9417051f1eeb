// The float types: conversions that round once, to nearest even, and keep every NaN a NaN.
#include "tensor/block.h"

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

float nb_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude >= 0x7c00) // infinity or NaN: widen the payload, quiet it
        return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13 |
                        (magnitude > 0x7c00 ? 0x400000 : 0));
    if (magnitude < 0x400) { // zero or subnormal: an exact count of 2^-24
        float f = (float)magnitude * 0x1p-24f;
        return float_of(sign | bits_of(f));
    }
    return float_of(sign | (magnitude + ((127 - 15) << 10)) << 13);
}

uint16_t nb_f32_to_f16(float f)
{
    uint32_t u = bits_of(f), magnitude = u & 0x7fffffff;
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) // 65520, half way to 2^16, and beyond
        return sign | 0x7c00;
    if (magnitude < 0x38800000) {
        // Below 2^-14 the result is a count of 2^-24; adding 0.5 makes the adder round to it, ties
        // to even.
        float shifted = float_of(magnitude) + 0.5f;
        return (uint16_t)(sign | (bits_of(shifted) - 0x3f000000));
    }
    uint32_t even = magnitude >> 13 & 1;
    return (uint16_t)(sign | ((magnitude - ((127u - 15) << 23) + 0xfff + even) >> 13));
}

float nb_bf16_to_f32(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

uint16_t nb_f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

void nb_dequantize_f32(const void *src, float *dst, size_t n)
{
    memcpy(dst, src, n * sizeof(float));
}

void nb_quantize_f32(const float *src, void *dst, size_t n)
{
    memcpy(dst, src, n * sizeof(float));
}

void nb_dequantize_f16(const void *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = nb_f16_to_f32(nb_load16((const uint8_t *)src + 2 * i));
}

void nb_quantize_f16(const float *src, void *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        nb_store16((uint8_t *)dst + 2 * i, nb_f32_to_f16(src[i]));
}

void nb_dequantize_bf16(const void *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = nb_bf16_to_f32(nb_load16((const uint8_t *)src + 2 * i));
}

void nb_quantize_bf16(const float *src, void *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        nb_store16((uint8_t *)dst + 2 * i, nb_f32_to_bf16(src[i]));
}
