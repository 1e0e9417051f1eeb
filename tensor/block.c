// What the parts of a quantized block mean, for all types at once; and which codec takes which type
// apart.
#include "tensor/block.h"

const int8_t nb_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};

static const struct nb_codec *const codecs[] = {
    [NB_TYPE_Q4_0] = &nb_codec_q4_0,     [NB_TYPE_Q4_1] = &nb_codec_q4_1,
    [NB_TYPE_Q5_0] = &nb_codec_q5_0,     [NB_TYPE_Q5_1] = &nb_codec_q5_1,
    [NB_TYPE_Q8_0] = &nb_codec_q8_0,     [NB_TYPE_Q2_K] = &nb_codec_q2_k,
    [NB_TYPE_Q3_K] = &nb_codec_q3_k,     [NB_TYPE_Q4_K] = &nb_codec_q4_k,
    [NB_TYPE_Q5_K] = &nb_codec_q5_k,     [NB_TYPE_Q6_K] = &nb_codec_q6_k,
    [NB_TYPE_IQ4_NL] = &nb_codec_iq4_nl, [NB_TYPE_IQ4_XS] = &nb_codec_iq4_xs,
    [NB_TYPE_Q2_0] = &nb_codec_q2_0,     [NB_TYPE_INT8] = &nb_codec_int8,
    [NB_TYPE_NF4] = &nb_codec_nf4,
};

const struct nb_codec *nb_codec_of(uint32_t type)
{
    return type < sizeof(codecs) / sizeof(codecs[0]) ? codecs[type] : NULL;
}

void nb_block_sub(enum nb_sub kind, const uint8_t *sub, unsigned g, int *ret_scale, int *ret_min)
{
    *ret_scale = *ret_min = 1;
    switch (kind) {
    case NB_SUB_NONE:
    case NB_SUB_F32:
        break;
    case NB_SUB_SM8:
        *ret_scale = sub[g];
        *ret_min = sub[8 + g];
        break;
    case NB_SUB_SM4:
        *ret_scale = sub[g] & 15;
        *ret_min = sub[g] >> 4;
        break;
    case NB_SUB_S6:
        *ret_scale =
            ((sub[g % 8] >> (g / 8 * 4) & 15) | (sub[8 + g % 4] >> (g / 4 * 2) & 3) << 4) - 32;
        break;
    case NB_SUB_S8:
    case NB_SUB_S6X8:
        *ret_scale = (int8_t)sub[g];
        break;
    }
}

static void put_bits(uint8_t *byte, unsigned shift, unsigned mask, unsigned value)
{
    *byte = (uint8_t)((*byte & ~(mask << shift)) | (value & mask) << shift);
}

void nb_block_set_sub(enum nb_sub kind, uint8_t *sub, unsigned g, int scale, int min)
{
    switch (kind) {
    case NB_SUB_NONE:
    case NB_SUB_F32:
        break;
    case NB_SUB_SM8:
        sub[g] = (uint8_t)scale;
        sub[8 + g] = (uint8_t)min;
        break;
    case NB_SUB_SM4:
        sub[g] = (uint8_t)(scale | min << 4);
        break;
    case NB_SUB_S6:
        put_bits(&sub[g % 8], g / 8 * 4, 15, (unsigned)(scale + 32));
        put_bits(&sub[8 + g % 4], g / 4 * 2, 3, (unsigned)(scale + 32) >> 4);
        break;
    case NB_SUB_S8:
    case NB_SUB_S6X8:
        sub[g] = (uint8_t)scale;
        break;
    }
}

static float value_of(const struct nb_layout *l, uint8_t code)
{
    return l->codebook == NB_CODEBOOK_NF4   ? nb_nf4_values[code]
           : l->codebook == NB_CODEBOOK_IQ4 ? (float)nb_iq4_values[code]
                                            : (float)(code - (int)l->offset);
}

void nb_block_dequantize(const struct nb_layout *l, const struct nb_block *b, float *dst)
{
    float d = l->sub == NB_SUB_F32 ? b->single : nb_f16_to_f32(b->scale);
    float m = l->has_min ? nb_f16_to_f32(b->min) : 0;
    for (unsigned g = 0; g < l->scale_block / l->group; g++) {
        int scale, min;
        nb_block_sub(l->sub, b->sub, g, &scale, &min);
        float ws = d * (float)scale, wm = l->sub == NB_SUB_NONE ? m : -(m * (float)min);
        const uint8_t *code = b->code + g * l->group;
        for (unsigned i = 0; i < l->group; i++) {
            float w = ws * value_of(l, code[i]);
            // Adding a zero minimum would turn -0 into +0 where the type has none.
            *dst++ = l->has_min ? w + wm : w;
        }
    }
}
