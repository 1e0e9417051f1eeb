// The table of types: what a weight may be in a file, and the names of those that it may not be.
#include "tensor/type.h"

#include <strings.h>

#include "tensor/block.h"

static void dequantize_blocks(uint32_t type, const uint8_t *src, float *dst, size_t n_blocks)
{
    const struct nb_type_info *info = nb_type_info(type);
    const struct nb_layout *layout = nb_layout_of(type);
    const struct nb_codec *codec = nb_codec_of(type);
    struct nb_block b;
    for (size_t i = 0; i < n_blocks; i++) {
        codec->split(src + i * info->bytes, &b);
        nb_block_dequantize(layout, &b, dst + i * info->block);
    }
}

#define DEQUANTIZER(T)                                                                             \
    static void dequantize_##T(const void *src, float *dst, size_t n_blocks)                       \
    {                                                                                              \
        dequantize_blocks(NB_TYPE_##T, src, dst, n_blocks);                                        \
    }

DEQUANTIZER(Q4_0)
DEQUANTIZER(Q4_1)
DEQUANTIZER(Q5_0)
DEQUANTIZER(Q5_1)
DEQUANTIZER(Q8_0)
DEQUANTIZER(Q2_K)
DEQUANTIZER(Q3_K)
DEQUANTIZER(Q4_K)
DEQUANTIZER(Q5_K)
DEQUANTIZER(Q6_K)
DEQUANTIZER(IQ4_NL)
DEQUANTIZER(IQ4_XS)
DEQUANTIZER(Q2_0)
DEQUANTIZER(INT8)
DEQUANTIZER(NF4)

#define TYPE(T, block, bytes, dequantize, quantize)                                                \
    [NB_TYPE_##T] = {#T, NB_TYPE_##T, block, bytes, dequantize, quantize}

static const struct nb_type_info types[] = {
    TYPE(F32, 1, 4, nb_dequantize_f32, nb_quantize_f32),
    TYPE(F16, 1, 2, nb_dequantize_f16, nb_quantize_f16),
    TYPE(BF16, 1, 2, nb_dequantize_bf16, nb_quantize_bf16),
    TYPE(Q4_0, 32, 18, dequantize_Q4_0, nb_quantize_q4_0),
    TYPE(Q4_1, 32, 20, dequantize_Q4_1, nb_quantize_q4_1),
    TYPE(Q5_0, 32, 22, dequantize_Q5_0, nb_quantize_q5_0),
    TYPE(Q5_1, 32, 24, dequantize_Q5_1, nb_quantize_q5_1),
    TYPE(Q8_0, 32, 34, dequantize_Q8_0, nb_quantize_q8_0),
    TYPE(Q2_K, 256, 84, dequantize_Q2_K, NULL),
    TYPE(Q3_K, 256, 110, dequantize_Q3_K, NULL),
    TYPE(Q4_K, 256, 144, dequantize_Q4_K, NULL),
    TYPE(Q5_K, 256, 176, dequantize_Q5_K, NULL),
    TYPE(Q6_K, 256, 210, dequantize_Q6_K, NULL),
    TYPE(IQ4_NL, 32, 18, dequantize_IQ4_NL, NULL),
    TYPE(IQ4_XS, 256, 136, dequantize_IQ4_XS, NULL),
    TYPE(Q2_0, 64, 18, dequantize_Q2_0, NULL),
    TYPE(INT8, 32, 36, dequantize_INT8, nb_quantize_int8),
    TYPE(NF4, 64, 36, dequantize_NF4, nb_quantize_nf4),
};

// Every type that GGUF has defined, those withdrawn included.
static const char *const names[] = {
    "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
    "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
    "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
    "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
    "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
    "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4",    "NVFP4",    "Q1_0",
    "Q2_0",
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

const struct nb_type_info *nb_type_info(uint32_t type)
{
    return type < COUNT(types) && types[type].name ? &types[type] : NULL;
}

const struct nb_type_info *nb_type_by_name(const char *name)
{
    for (uint32_t t = 0; t < COUNT(types); t++)
        if (types[t].name && strcasecmp(types[t].name, name) == 0)
            return &types[t];
    return NULL;
}

const char *nb_type_name(uint32_t type)
{
    const struct nb_type_info *info = nb_type_info(type);
    return type < COUNT(names) ? names[type] : info ? info->name : "unknown";
}

uint64_t nb_type_row_bytes(uint32_t type, uint64_t cols)
{
    const struct nb_type_info *info = nb_type_info(type);
    return cols / info->block * info->bytes;
}

double nb_type_bits(uint32_t type)
{
    const struct nb_type_info *info = nb_type_info(type);
    return 8.0 * info->bytes / info->block;
}
