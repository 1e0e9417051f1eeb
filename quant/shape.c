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
    [NB_SUB_F32] = {1, 1, 1},
};

// ---- NF4, whose scale is fp32: its halves

static void split_nf4(const uint8_t *src, struct nb_block *b)
{
    nb_codec_nf4.split(src, b);
    b->scale = nb_f32_to_f16(b->single);
}

static void join_nf4(const struct nb_block *b, uint8_t *dst)
{
    struct nb_block block = *b;
    block.single = nb_f16_to_f32(b->scale);
    nb_codec_nf4.join(&block, dst);
}

static const struct nb_codec codec_nf4 = {split_nf4, join_nf4};

// ---- All types

static void fill_table(struct nb_shape *s)
{
    for (unsigned i = 0; i < 16; i++)
        s->value[i] =
            s->layout->codebook == NB_CODEBOOK_NF4 ? nb_nf4_values[i] : (float)nb_iq4_values[i];
    for (unsigned i = 0; i < 15; i++)
        s->edge[i] = (s->value[i] + s->value[i + 1]) / 2;
    s->low = s->value[0];
    s->high = s->value[15];
}

int nb_shape_init(struct nb_shape *ret, uint32_t type)
{
    const struct nb_codec *codec = nb_codec_of(type);
    if (!codec || type == NB_TYPE_INT8)
        return -ENOTSUP;
    const struct nb_layout *l = nb_layout_of(type);
    const struct sub_range *sub = &sub_ranges[l->sub];
    int last = (1 << code_bits[l->planes]) - 1, offset = (int)l->offset;
    *ret = (struct nb_shape){
        .layout = l,
        .codec = type == NB_TYPE_NF4 ? &codec_nf4 : codec,
        .block = l->scale_block,
        .group = l->group,
        .groups = l->scale_block / l->group,
        .bytes = nb_type_info(type)->bytes,
        .table = l->codebook != NB_CODEBOOK_LINEAR,
        .super = l->sub != NB_SUB_NONE && l->sub != NB_SUB_F32,
        .has_min = l->has_min,
        .low = (float)(type == NB_TYPE_Q8_0 ? -127 : -offset),
        .high = (float)(last - offset),
        .sub_low = sub->low,
        .sub_high = sub->high,
        .min_high = sub->min_high,
    };
    if (ret->table)
        fill_table(ret);
    return 0;
}

float nb_shape_value(const struct nb_shape *s, uint8_t code)
{
    return s->table ? s->value[code] : (float)((int)code - (int)s->layout->offset);
}

uint8_t nb_shape_code(const struct nb_shape *s, float v)
{
    if (!s->table)
        return (uint8_t)((int)v + (int)s->layout->offset);
    uint8_t code = 0;
    while (code < 15 && s->value[code] < v)
        code++;
    return code;
}
