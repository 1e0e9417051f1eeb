// Checks groupwise matrices: what is packed is what the codes, scales and zero points say, and the
// kernels treat it as the scalar ones do.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/groupwise.h"
#include "tests/kernels/check.h"

struct given {
    struct nb_groupwise g;
    struct nb_groupwise_bytes bytes;
    struct nb_layout layout;
    struct matrix m;
    uint8_t *codes, *scales, *zeros;
};

static uint8_t *random_bytes(size_t n)
{
    uint8_t *p = buffer(n);
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)random_u32();
    return p;
}

static void fill_scales(struct given *x)
{
    size_t size = x->g.shape.half_scales ? 2 : 4;
    for (size_t i = 0; i < x->bytes.scales / size; i++) {
        float f = random_float() * 0.01f;
        uint16_t h = nb_f32_to_f16(f);
        if (size == 2)
            memcpy(x->scales + 2 * i, &h, 2);
        else
            memcpy(x->scales + 4 * i, &f, 4);
    }
}

static struct given make(const struct nb_groupwise_shape *shape)
{
    struct given x = {.g.shape = *shape};
    if (nb_groupwise_init(shape, &x.layout, &x.m.w, &x.bytes) < 0)
        abort();
    x.g.codes = x.codes = random_bytes(x.bytes.codes);
    x.g.scales = x.scales = buffer(x.bytes.scales);
    x.g.zeros = x.zeros = random_bytes(x.bytes.zeros);
    fill_scales(&x);
    return x;
}

static void pack(struct given *x)
{
    uint32_t groups = (x->m.w.rows + 15) / 16, half = groups / 2;
    x->m.w.layout = &x->layout;
    x->m.data = buffer(nb_packed_bytes(&x->m.w));
    x->m.w.data = x->m.data;
    nb_groupwise_pack(&x->g, &x->m.w, x->m.data, 0, half);
    nb_groupwise_pack(&x->g, &x->m.w, x->m.data + half * x->m.w.stride, half, groups - half);
}

static void drop(struct given *x)
{
    free(x->codes);
    free(x->scales);
    free(x->zeros);
    free(x->m.data);
}

static int nibble(const uint8_t *row, size_t i)
{
    return row[i / 2] >> i % 2 * 4 & 15;
}

// Weight (row, col) by the definition, rounded as docs/numerics.md says.
static float weight(const struct given *x, size_t row, size_t col)
{
    const struct nb_groupwise_shape *s = &x->g.shape;
    size_t group = s->group ? s->group : s->cols, groups = (s->cols + group - 1) / group;
    size_t b = col / group, at = row * groups + b;
    uint16_t h;
    float scale;
    memcpy(&h, x->scales + 2 * at, 2);
    if (!s->half_scales)
        memcpy(&scale, x->scales + 4 * at, 4);
    else
        scale = nb_f16_to_f32(h);
    if (s->bits == 8) {
        int code = (int8_t)x->codes[row * s->cols + col];
        if (!s->has_zeros)
            return scale * (float)code;
        int zero = (int8_t)x->zeros[at];
        float whole = scale * (float)(code + 128), less = scale * (float)(zero + 128);
        return whole - less;
    }
    int code = nibble(x->codes + row * ((s->cols + 1) / 2), col);
    if (!s->has_zeros)
        return scale * (float)(code - 8);
    float whole = scale * (float)code;
    float less = scale * (float)nibble(x->zeros + row * ((groups + 1) / 2), b);
    return whole - less;
}

static void check_rows(const struct nb_kernels *k, const struct given *x, const char *what)
{
    const struct nb_packed *w = &x->m.w;
    float *want = buffer(w->cols * sizeof(float)), *got = buffer(w->cols * sizeof(float));
    for (uint32_t row = 0; row < w->rows; row++) {
        for (uint32_t c = 0; c < x->g.shape.cols; c++)
            want[c] = weight(x, row, c);
        k->decode_row(w, row, got);
        check_floats(want, got, x->g.shape.cols, "%s row %u of %u", what, row, w->rows);
    }
    free(want);
    free(got);
}

static void check_shape(const struct nb_kernels *k, const struct nb_groupwise_shape *shape)
{
    char what[64];
    struct given x = make(shape);
    pack(&x);
    snprintf(what, sizeof(what), "int%u, groups of %u, %s, %s", shape->bits, shape->group,
             shape->half_scales ? "fp16" : "fp32", shape->has_zeros ? "zeros" : "no zeros");
    check_rows(k, &x, what);
    for (uint32_t n = 1; n <= 13; n += 4) {
        struct act a = random_act(n, x.m.w.cols, 1 + n / 4 % 2, SANE);
        check_gemm_case(k, &(struct product){&x.m, &a, 0, (x.m.w.rows + 15) / 16, false, false},
                        what);
        check_gemm_alone(k, &x.m, &a);
        free(a.mem);
    }
    drop(&x);
}

void check_groupwise(const struct nb_kernels *k)
{
    static const uint32_t groups[] = {32, 64, 128, 0};
    for (uint32_t i = 0; i < 64; i++) {
        const struct nb_groupwise_shape shape = {.bits = i & 1 ? 4 : 8,
                                                 .half_scales = i & 2,
                                                 .has_zeros = i & 4,
                                                 .group = groups[i >> 3 & 3],
                                                 .rows = 1 + random_below(50),
                                                 .cols = 1 + random_below(400)};
        check_shape(k, &shape);
    }
}
