// Derives what an encoder must know from a type's layout. No arithmetic on weights here.
#include "quant/shape.h"

#include <errno.h>

static const uint8_t code_bits[] = {
    [NB_PLANES_8] = 8,   [NB_PLANES_4] = 4, [NB_PLANES_4_1] = 5,
    [NB_PLANES_4_2] = 6, [NB_PLANES_2] = 2, [NB_PLANES_2_1] = 3,
};

static const struct sub_range {
    int16_t low, high, min_high;
} sub_ranges[] = {
    [NB_SUB_NONE] = {1, 1, 1},  [NB_SUB_SM8] = {0, 63, 63},   [NB_SUB_SM4] = {0, 15, 15},
    [NB_SUB_S6] = {-32, 31, 0}, [NB_SUB_S8] = {-128, 127, 0}, [NB_SUB_S6X8] = {-32, 31, 0},
};

int nb_shape_init(struct nb_shape *ret, uint32_t type)
{
    const struct nb_codec *codec = nb_codec_of(type);
    if (!codec)
        return -ENOTSUP;
    const struct nb_layout *l = nb_layout_of(type);
    if (l->sub == NB_SUB_F32) // no search: GGUF has no such type
        return -ENOTSUP;
    const struct sub_range *sub = &sub_ranges[l->sub];
    bool table = l->codebook == NB_CODEBOOK_IQ4;
    int last = (1 << code_bits[l->planes]) - 1, offset = (int)l->offset;
    *ret = (struct nb_shape){
        .layout = l,
        .codec = codec,
        .block = l->scale_block,
        .group = l->group,
        .groups = l->scale_block / l->group,
        .bytes = nb_type_info(type)->bytes,
        .table = table,
        .super = l->sub != NB_SUB_NONE,
        .has_min = l->has_min,
        .low = (float)(table                  ? nb_iq4_values[0]
                       : type == NB_TYPE_Q8_0 ? -127
                                              : -offset),
        .high = (float)(table ? nb_iq4_values[15] : last - offset),
        .sub_low = sub->low,
        .sub_high = sub->high,
        .min_high = sub->min_high,
    };
    return 0;
}

float nb_shape_value(const struct nb_shape *s, uint8_t code)
{
    return s->table ? (float)nb_iq4_values[code] : (float)((int)code - (int)s->layout->offset);
}

uint8_t nb_shape_code(const struct nb_shape *s, float v)
{
    if (!s->table)
        return (uint8_t)((int)v + (int)s->layout->offset);
    uint8_t code = 0;
    while (code < 15 && (float)nb_iq4_values[code] < v)
        code++;
    return code;
}
