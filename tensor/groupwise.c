// Packing groupwise matrices: the same planes of codes as a model's, beside scales and minima in
// fp32.
#include "tensor/groupwise.h"

#include <errno.h>

#include "tensor/block.h"

#define ALIGN 64 // of a row group's stride

static uint32_t round_up(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

// Columns under one scale.
static uint32_t group_of(const struct nb_groupwise_shape *s)
{
    return s->group ? s->group : round_up((uint32_t)s->cols, NB_CELL);
}

static uint64_t row_bytes(const struct nb_groupwise_shape *s, uint64_t n)
{
    return s->bits == 8 ? n : (n + 1) / 2;
}

static int check(const struct nb_groupwise_shape *s)
{
    bool group = s->group == 0 || s->group == 32 || s->group == 64 || s->group == 128;
    if ((s->bits != 8 && s->bits != 4) || !group || !s->rows || !s->cols)
        return -EINVAL;
    return s->cols > NB_MAX_COLS || s->rows > INT32_MAX - NB_GROUP_ROWS ? -EOVERFLOW : 0;
}

int nb_groupwise_init(const struct nb_groupwise_shape *shape, struct nb_layout *ret_layout,
                      struct nb_packed *ret, struct nb_groupwise_bytes *ret_bytes)
{
    int rc = check(shape);
    if (rc < 0)
        return rc;
    uint32_t group = group_of(shape), cols = round_up((uint32_t)shape->cols, group);
    uint32_t groups = cols / group;
    const struct nb_layout layout = {.planes = shape->bits == 8 ? NB_PLANES_8 : NB_PLANES_4,
                                     .codebook = NB_CODEBOOK_LINEAR,
                                     .sub = NB_SUB_F32,
                                     .offset = shape->has_zeros   ? 0
                                               : shape->bits == 8 ? 128
                                                                  : 8,
                                     .scale_block = group,
                                     .group = NB_CELL,
                                     .has_min = shape->has_zeros};
    struct nb_packed p = {.layout = ret_layout, .rows = (uint32_t)shape->rows, .cols = cols};
    size_t scales = (size_t)groups * NB_GROUP_ROWS * sizeof(float);
    p.high = p.scale = (size_t)cols * shape->bits / 8 * NB_GROUP_ROWS;
    p.min = p.scale + scales;
    p.sub = p.min + (layout.has_min ? scales : 0);
    p.stride = (p.sub + ALIGN - 1) / ALIGN * ALIGN;
    *ret_layout = layout;
    *ret = p;
    *ret_bytes = (struct nb_groupwise_bytes){
        .codes = shape->rows * row_bytes(shape, shape->cols),
        .scales = shape->rows * groups * (shape->half_scales ? 2 : 4),
        .zeros = shape->has_zeros ? shape->rows * row_bytes(shape, groups) : 0};
    return 0;
}

// Codes [k, k + 32) of a row as the planes keep them: int8 plus 128.
static void read_codes(const struct nb_groupwise *g, const uint8_t *row, uint32_t k,
                       uint8_t code[NB_CELL])
{
    uint32_t n = (uint32_t)g->shape.cols > k ? (uint32_t)g->shape.cols - k : 0;
    n = n < NB_CELL ? n : NB_CELL;
    memset(code, 0, NB_CELL);
    if (g->shape.bits == 8) {
        for (uint32_t i = 0; i < n; i++)
            code[i] = row[k + i] ^ 0x80;
        return;
    }
    uint8_t two[NB_CELL / 2] = {0};
    memcpy(two, row + k / 2, (n + 1) / 2);
    for (uint32_t i = 0; i < NB_CELL / 2; i++) {
        code[2 * i] = two[i] & 15;
        code[2 * i + 1] = two[i] >> 4;
    }
}

static float read_scale(const struct nb_groupwise *g, uint64_t at)
{
    if (g->shape.half_scales)
        return nb_f16_to_f32(nb_load16(g->scales + 2 * at));
    float scale;
    memcpy(&scale, g->scales + 4 * at, sizeof(scale));
    return scale;
}

// The code that means 0, as the planes keep it.
static float read_zero(const struct nb_groupwise *g, uint64_t row, uint32_t group, uint32_t groups)
{
    const uint8_t *zeros = g->zeros + row * row_bytes(&g->shape, groups);
    if (g->shape.bits == 8)
        return (float)(zeros[group] ^ 0x80);
    return (float)(zeros[group / 2] >> group % 2 * 4 & 15);
}

static void pack_scales(const struct nb_groupwise *g, const struct nb_packed *p, uint64_t row,
                        uint8_t *group)
{
    uint32_t groups = p->cols / p->layout->scale_block;
    for (uint32_t b = 0; b < groups; b++) {
        size_t at = ((size_t)b * NB_GROUP_ROWS + row % NB_GROUP_ROWS) * sizeof(float);
        float scale = read_scale(g, row * groups + b);
        memcpy(group + p->scale + at, &scale, sizeof(scale));
        if (!p->layout->has_min)
            continue;
        float min = -(scale * read_zero(g, row, b, groups));
        memcpy(group + p->min + at, &min, sizeof(min));
    }
}

void nb_groupwise_pack(const struct nb_groupwise *g, const struct nb_packed *p, uint8_t *dst,
                       uint32_t first, uint32_t n)
{
    uint64_t bytes = row_bytes(&g->shape, g->shape.cols);
    uint32_t bits = g->shape.bits;
    for (uint32_t i = 0; i < n; i++, dst += p->stride) {
        uint64_t row0 = (uint64_t)(first + i) * NB_GROUP_ROWS, left = p->rows - row0;
        memset(dst, 0, p->stride);
        for (uint32_t r = 0; r < NB_GROUP_ROWS && r < left; r++) {
            const uint8_t *row = g->codes + (row0 + r) * bytes;
            pack_scales(g, p, row0 + r, dst);
            for (uint32_t k = 0; k < p->cols; k += NB_CELL) {
                uint8_t code[NB_CELL];
                read_codes(g, row, k, code);
                uint8_t *cell = dst + (size_t)k / NB_CELL * bits * 64 + 4 * r;
                if (bits == 8)
                    nb_put_cell(cell, code, 8, 0);
                else
                    nb_put_cell(cell, code, 4, 0);
            }
        }
    }
}
