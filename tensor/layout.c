// The packed layouts: one table for all types, one way to place codes in planes and to take them
// back.
#include "tensor/layout.h"

#include <errno.h>

#include "tensor/block.h"

#define ROWS  NB_GROUP_ROWS
#define CELL  NB_CELL
#define ALIGN 64 // of a group's stride

#define LAYOUT(T, p, book, s, off, block, grp, min, bytes)                                         \
    [NB_TYPE_##T] = {NB_TYPE_##T, NB_PLANES_##p, NB_CODEBOOK_##book, NB_SUB_##s, off, block, grp,  \
                     min,         bytes}

static const struct nb_layout layouts[] = {
    LAYOUT(F32, F32, LINEAR, NONE, 0, 0, 0, false, 0),
    LAYOUT(F16, F16, LINEAR, NONE, 0, 0, 0, false, 0),
    LAYOUT(BF16, BF16, LINEAR, NONE, 0, 0, 0, false, 0),
    LAYOUT(Q4_0, 4, LINEAR, NONE, 8, 32, 32, false, 0),
    LAYOUT(Q4_1, 4, LINEAR, NONE, 0, 32, 32, true, 0),
    LAYOUT(Q5_0, 4_1, LINEAR, NONE, 16, 32, 32, false, 0),
    LAYOUT(Q5_1, 4_1, LINEAR, NONE, 0, 32, 32, true, 0),
    LAYOUT(Q8_0, 8, LINEAR, NONE, 128, 32, 32, false, 0),
    LAYOUT(Q2_K, 2, LINEAR, SM4, 0, 256, 16, true, 16),
    LAYOUT(Q3_K, 2_1, LINEAR, S6, 4, 256, 16, false, 12),
    LAYOUT(Q4_K, 4, LINEAR, SM8, 0, 256, 32, true, 16),
    LAYOUT(Q5_K, 4_1, LINEAR, SM8, 0, 256, 32, true, 16),
    LAYOUT(Q6_K, 4_2, LINEAR, S8, 32, 256, 16, false, 16),
    LAYOUT(IQ4_NL, 4, IQ4, NONE, 0, 32, 32, false, 0),
    LAYOUT(IQ4_XS, 4, IQ4, S6X8, 0, 256, 32, false, 8),
    LAYOUT(Q2_0, 2, LINEAR, NONE, 1, 64, 64, false, 0),
    LAYOUT(INT8, 8, LINEAR, F32, 128, 32, 32, false, 0),
    LAYOUT(NF4, 4, NF4, F32, 0, 64, 64, false, 0),
};

// Bits of a code in the low and the high plane, or bytes of a float element.
static const struct planes {
    uint8_t low, high, element;
} planes[] = {
    [NB_PLANES_F32] = {0, 0, 4}, [NB_PLANES_F16] = {0, 0, 2}, [NB_PLANES_BF16] = {0, 0, 2},
    [NB_PLANES_8] = {8, 0, 0},   [NB_PLANES_4] = {4, 0, 0},   [NB_PLANES_4_1] = {4, 1, 0},
    [NB_PLANES_4_2] = {4, 2, 0}, [NB_PLANES_2] = {2, 0, 0},   [NB_PLANES_2_1] = {2, 1, 0},
};

static size_t scale_bytes(const struct nb_layout *l)
{
    return l->sub == NB_SUB_F32 ? sizeof(float) : sizeof(uint16_t);
}

const struct nb_layout *nb_layout_of(uint32_t type)
{
    return nb_type_info(type) ? &layouts[type] : NULL;
}

int nb_packed_init(struct nb_packed *ret, uint32_t type, uint64_t rows, uint64_t cols)
{
    const struct nb_layout *l = nb_layout_of(type);
    if (!l || !rows || !cols || cols % nb_type_info(type)->block)
        return -EINVAL;
    if (cols > NB_MAX_COLS || rows > INT32_MAX - ROWS)
        return -EOVERFLOW;

    struct nb_packed p = {.layout = l, .rows = (uint32_t)rows, .cols = (uint32_t)cols};
    const struct planes *k = &planes[l->planes];
    size_t end = (size_t)cols * k->element * ROWS;
    if (l->scale_block) {
        size_t cells = cols / CELL, blocks = cols / l->scale_block;
        size_t scales = blocks * scale_bytes(l) * ROWS;
        p.high = cells * k->low * 64;
        p.scale = p.high + cells * k->high * 64;
        p.min = p.scale + scales;
        p.sub = p.min + (l->has_min ? scales : 0);
        end = p.sub + blocks * l->sub_bytes * ROWS;
    }
    p.stride = (end + ALIGN - 1) / ALIGN * ALIGN;
    *ret = p;
    return 0;
}

size_t nb_packed_bytes(const struct nb_packed *p)
{
    return ((size_t)p->rows + ROWS - 1) / ROWS * p->stride;
}

static inline __attribute__((always_inline)) void get_cell(const uint8_t *cell, uint8_t *code,
                                                           unsigned bits, unsigned shift)
{
    uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
    for (unsigned j = 0; j < bits; j++) {
        uint32_t word = nb_load32(cell + j * 4 * ROWS);
        for (unsigned part = 0; part < 8 / bits; part++) {
            uint8_t *four = code + 4 * (bits * part + j);
            nb_store32(four, nb_load32(four) | (word >> (bits * part) & mask) << shift);
        }
    }
}

static inline __attribute__((always_inline)) void put_planes(const struct nb_packed *p,
                                                             uint8_t *group, size_t cell,
                                                             unsigned row, const uint8_t *code,
                                                             unsigned low, unsigned high)
{
    for (unsigned c = 0; c < p->layout->scale_block / CELL; c++, cell++, code += CELL) {
        nb_put_cell(group + cell * low * 64 + 4 * row, code, low, 0);
        if (high)
            nb_put_cell(group + p->high + cell * high * 64 + 4 * row, code, high, low);
    }
}

static inline __attribute__((always_inline)) void get_planes(const struct nb_packed *p,
                                                             const uint8_t *group, size_t cell,
                                                             unsigned row, uint8_t *code,
                                                             unsigned low, unsigned high)
{
    memset(code, 0, p->layout->scale_block);
    for (unsigned c = 0; c < p->layout->scale_block / CELL; c++, cell++, code += CELL) {
        get_cell(group + cell * low * 64 + 4 * row, code, low, 0);
        if (high)
            get_cell(group + p->high + cell * high * 64 + 4 * row, code, high, low);
    }
}

// The switches give put_planes and get_planes constant widths: they are the inner loop of loading a
// model.
static void put_codes(const struct nb_packed *p, uint8_t *group, size_t cell, unsigned row,
                      const uint8_t *code)
{
    switch (p->layout->planes) {
    case NB_PLANES_8:
        put_planes(p, group, cell, row, code, 8, 0);
        break;
    case NB_PLANES_4:
        put_planes(p, group, cell, row, code, 4, 0);
        break;
    case NB_PLANES_4_1:
        put_planes(p, group, cell, row, code, 4, 1);
        break;
    case NB_PLANES_4_2:
        put_planes(p, group, cell, row, code, 4, 2);
        break;
    case NB_PLANES_2:
        put_planes(p, group, cell, row, code, 2, 0);
        break;
    case NB_PLANES_2_1:
        put_planes(p, group, cell, row, code, 2, 1);
        break;
    case NB_PLANES_F32:
    case NB_PLANES_F16:
    case NB_PLANES_BF16:
        break;
    }
}

static void put_block(const struct nb_packed *p, uint8_t *group, size_t block, unsigned row,
                      const struct nb_block *b)
{
    const struct nb_layout *l = p->layout;
    put_codes(p, group, block * (l->scale_block / CELL), row, b->code);
    if (l->sub == NB_SUB_F32)
        memcpy(group + p->scale + 4 * (block * ROWS + row), &b->single, sizeof(b->single));
    else
        nb_store16(group + p->scale + 2 * (block * ROWS + row), b->scale);
    if (l->has_min)
        nb_store16(group + p->min + 2 * (block * ROWS + row), b->min);
    uint8_t *sub = group + p->sub + block * l->sub_bytes * ROWS + row;
    for (unsigned i = 0; i < l->sub_bytes; i++)
        sub[i * ROWS] = b->sub[i];
}

static void get_block(const struct nb_packed *p, const uint8_t *group, size_t block, unsigned row,
                      struct nb_block *b)
{
    const struct nb_layout *l = p->layout;
    const struct planes *k = &planes[l->planes];
    get_planes(p, group, block * (l->scale_block / CELL), row, b->code, k->low, k->high);
    if (l->sub == NB_SUB_F32)
        memcpy(&b->single, group + p->scale + 4 * (block * ROWS + row), sizeof(b->single));
    else
        b->scale = nb_load16(group + p->scale + 2 * (block * ROWS + row));
    b->min = l->has_min ? nb_load16(group + p->min + 2 * (block * ROWS + row)) : 0;
    const uint8_t *sub = group + p->sub + block * l->sub_bytes * ROWS + row;
    for (unsigned i = 0; i < l->sub_bytes && i < NB_SUB_MAX; i++)
        b->sub[i] = sub[i * ROWS];
}

// Sixteen columns at a time, so that the rows meet in the same cache lines.
static inline __attribute__((always_inline)) void
put_elements(const uint8_t *src, uint8_t *group, size_t cols, unsigned rows, size_t size)
{
    for (size_t k0 = 0; k0 < cols; k0 += 16)
        for (unsigned r = 0; r < rows; r++)
            for (size_t k = k0; k < cols && k < k0 + 16; k++)
                memcpy(group + (k * ROWS + r) * size, src + (r * cols + k) * size, size);
}

static void pack_floats(const struct nb_packed *p, const uint8_t *src, uint8_t *group, unsigned n)
{
    if (planes[p->layout->planes].element == 4)
        put_elements(src, group, p->cols, n, 4);
    else
        put_elements(src, group, p->cols, n, 2);
}

static void pack_blocks(const struct nb_packed *p, const uint8_t *src, uint8_t *group, unsigned n)
{
    const struct nb_codec *codec = nb_codec_of(p->layout->type);
    size_t bytes = nb_type_info(p->layout->type)->bytes, blocks = p->cols / p->layout->scale_block;
    struct nb_block b;
    // Rows inside: the sixteen rows of a cell share its cache lines.
    for (size_t i = 0; i < blocks; i++)
        for (unsigned r = 0; r < n; r++) {
            codec->split(src + (r * blocks + i) * bytes, &b);
            put_block(p, group, i, r, &b);
        }
}

void nb_layout_pack(const struct nb_packed *p, const void *src, uint8_t *dst, uint32_t first_group,
                    uint32_t n_groups)
{
    const struct nb_type_info *info = nb_type_info(p->layout->type);
    size_t row_bytes = (size_t)p->cols / info->block * info->bytes;
    for (uint32_t g = first_group; g < first_group + n_groups; g++) {
        uint8_t *group = dst + g * p->stride;
        const uint8_t *rows = (const uint8_t *)src + (size_t)g * ROWS * row_bytes;
        unsigned n = p->rows - g * ROWS < ROWS ? p->rows - g * ROWS : ROWS;
        memset(group, 0, p->stride);
        if (p->layout->scale_block)
            pack_blocks(p, rows, group, n);
        else
            pack_floats(p, rows, group, n);
    }
}

void nb_layout_unpack_row(const struct nb_packed *p, uint32_t row, void *dst)
{
    const struct nb_layout *l = p->layout;
    const uint8_t *group = p->data + row / ROWS * p->stride;
    uint8_t *out = dst;
    if (!l->scale_block) {
        size_t size = planes[l->planes].element;
        for (size_t k = 0; k < p->cols; k++)
            memcpy(out + k * size, group + (k * ROWS + row % ROWS) * size, size);
        return;
    }
    const struct nb_codec *codec = nb_codec_of(l->type);
    size_t bytes = nb_type_info(l->type)->bytes;
    struct nb_block b;
    for (size_t i = 0; i < p->cols / l->scale_block; i++) {
        get_block(p, group, i, row % ROWS, &b);
        codec->join(&b, out + i * bytes);
    }
}

static void dequantize_floats(const struct nb_packed *p, const uint8_t *elements, float *dst)
{
    const struct nb_type_info *info = nb_type_info(p->layout->type);
    for (size_t k = 0; k < p->cols; k++)
        info->dequantize(elements + k * ROWS * info->bytes, dst + k, 1);
}

void nb_layout_dequantize_row(const struct nb_packed *p, uint32_t row, float *dst)
{
    const struct nb_layout *l = p->layout;
    const uint8_t *group = p->data + row / ROWS * p->stride;
    if (!l->scale_block) {
        dequantize_floats(p, group + (size_t)row % ROWS * nb_type_info(l->type)->bytes, dst);
        return;
    }
    struct nb_block b;
    for (size_t i = 0; i < p->cols / l->scale_block; i++) {
        get_block(p, group, i, row % ROWS, &b);
        nb_block_dequantize(l, &b, dst + i * l->scale_block);
    }
}
