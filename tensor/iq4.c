// The IQ4 types: 4-bit codes into a table of 16 values; IQ4_XS adds 6-bit sub-scales over
// super-blocks of 256.
#include "tensor/block.h"

// IQ4_NL: d, nibbles 16.
static void split_iq4_nl(const uint8_t *src, struct nb_block *b)
{
    b->scale = nb_load16(src);
    nb_split_nibbles(src + 2, b->code, 16);
}

static void join_iq4_nl(const struct nb_block *b, uint8_t *dst)
{
    nb_store16(dst, b->scale);
    nb_join_nibbles(b->code, dst + 2, 16);
}

// IQ4_XS: d, 2 bytes of high pairs, 4 bytes of low nibbles of the sub-scales, then nibbles, 32
// weights to 16 bytes.
static void split_iq4_xs(const uint8_t *src, struct nb_block *b)
{
    b->scale = nb_load16(src);
    unsigned high = nb_load16(src + 2);
    for (unsigned g = 0; g < 8; g++) {
        unsigned low = src[4 + g / 2] >> (g % 2 * 4) & 15u;
        b->sub[g] = (uint8_t)((low | (high >> (2 * g) & 3) << 4) - 32);
        nb_split_nibbles(src + 8 + 16 * g, b->code + 32 * g, 16);
    }
}

static void join_iq4_xs(const struct nb_block *b, uint8_t *dst)
{
    unsigned high = 0;
    memset(dst + 4, 0, 4);
    for (unsigned g = 0; g < 8; g++) {
        unsigned v = b->sub[g] + 32u;
        dst[4 + g / 2] |= (uint8_t)((v & 15) << (g % 2 * 4));
        high |= (v >> 4 & 3) << (2 * g);
        nb_join_nibbles(b->code + 32 * g, dst + 8 + 16 * g, 16);
    }
    nb_store16(dst, b->scale);
    nb_store16(dst + 2, (uint16_t)high);
}

const struct nb_codec nb_codec_iq4_nl = {split_iq4_nl, join_iq4_nl};
const struct nb_codec nb_codec_iq4_xs = {split_iq4_xs, join_iq4_xs};
