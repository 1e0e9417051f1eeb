// The row-wise kernels: activations' quantization, norms, activation functions, sums and caps,
// RoPE, writing to the KV cache, decoding a row.
#pragma once

#include <math.h>
#include <string.h>

// docs/numerics.md, Functions. NaN stays NaN: it is the second operand of max and min.
FORCED vf f_exp(vf x)
{
    x = f_min(f_set1(89.0f), f_max(f_set1(-104.0f), x));
    vf n = f_rint(f_mul(x, f_set1(0x1.715476p+0f)));
    vf r = f_fnma(n, f_set1(-0x1.05c61p-29f), f_fnma(n, f_set1(0x1.62e43p-1f), x));
    vf p = f_set1(0x1.6d110ap-10f);
    p = f_fma(p, r, f_set1(0x1.120b6ep-7f));
    p = f_fma(p, r, f_set1(0x1.55551ap-5f));
    p = f_fma(p, r, f_set1(0x1.5554dcp-3f));
    p = f_fma(p, r, f_set1(0.5f));
    p = f_fma(p, r, f_set1(1.0f));
    p = f_fma(p, r, f_set1(1.0f));
    vi whole = f_to_int(n), first = i_sra1(whole), bias = i_set1(127);
    vf a = f_of_bits(i_sll32(i_add(first, bias), 23));
    vf b = f_of_bits(i_sll32(i_add(i_sub(whole, first), bias), 23));
    return f_mul(f_mul(a, p), b);
}

FORCED vf f_tanh(vf x)
{
    vf one = f_set1(1.0f);
    return f_sub(one, f_div(f_set1(2.0f), f_add(f_exp(f_add(x, x)), one)));
}

FORCED vf f_capped(vf x, float limit)
{
    return limit > 0.0f ? f_mul(f_set1(limit), f_tanh(f_div(x, f_set1(limit)))) : x;
}

// The normal distribution's cumulative probability, 0.5 (1 + erf(x / sqrt(2))).
FORCED vf f_normal_cdf(vf x)
{
    vf a = f_of_bits(i_and(f_bits(x), i_set1(0x7fffffff)));
    vf p = f_set1(0x1.9caedep-29f);
    p = f_fma(p, a, f_set1(-0x1.34620ep-23f));
    p = f_fma(p, a, f_set1(0x1.6e0a00p-19f));
    p = f_fma(p, a, f_set1(-0x1.ad4dbep-16f));
    p = f_fma(p, a, f_set1(0x1.c08798p-14f));
    p = f_fma(p, a, f_set1(0x1.4d7170p-13f));
    p = f_fma(p, a, f_set1(-0x1.4664e2p-8f));
    p = f_fma(p, a, f_set1(0x1.2a86c0p-5f));
    p = f_fma(p, a, f_set1(0x1.45ec38p-2f));
    p = f_fma(p, a, f_set1(0x1.98849ap-1f));
    vf tail = f_mul(f_set1(0.5f), f_exp(f_neg(f_mul(a, p))));
    return f_select(m_sign(x), tail, f_sub(f_set1(1.0f), tail));
}

// Second terms of 16 activations.
FORCED vi second_term(vf x, vf q1, float s, float inv)
{
    vf q2 = f_rint(f_mul(f_fnma(f_set1(s), q1, x), f_set1(254.0f * inv)));
    return f_to_int(f_min(f_set1(127.0f), f_max(f_set1(-127.0f), q2)));
}

// The largest magnitude of 32, as bits: so NaN and infinity are above every finite one.
FORCED uint32_t most_of(vf a, vf b)
{
    vi magnitude = i_set1(0x7fffffff);
    return i_fold_max_u32(i_max_u32(i_and(f_bits(a), magnitude), i_and(f_bits(b), magnitude)));
}

// 32 numbers under a scale for numbers up to `most`, given by its bits.
FORCED void quantize_cell(struct nb_act *a, size_t at, uint32_t bits_max)
{
    float most;
    memcpy(&most, &bits_max, 4);
    bool finite = bits_max < 0x7f800000u, zero = !finite || most < 1e-30f;
    float s = zero ? 0.0f : most / 127.0f, inv = zero ? 0.0f : 127.0f / most;
    a->s[at / NB_ACT_BLOCK] = finite ? s : NAN;
    for (int i = 0; i < 2; i++) {
        vf v = zero ? f_zero() : f_load(a->x + at + 16 * i);
        vf scaled = f_max(f_set1(-127.0f), f_mul(v, f_set1(inv)));
        vf q1 = f_rint(f_min(f_set1(127.0f), scaled));
        vi q = f_to_int(q1);
        i_to_s8(a->q1 + at + 16 * i, q);
        a->sum1[at / 16 + i] = (int16_t)i_fold(q);
        if (a->terms < 2)
            continue;
        q = second_term(v, q1, s, inv);
        i_to_s8(a->q2 + at + 16 * i, q);
        a->sum2[at / 16 + i] = (int16_t)i_fold(q);
    }
}

FORCED uint32_t most_at(const struct nb_act *a, size_t at)
{
    return most_of(f_load(a->x + at), f_load(a->x + at + 16));
}

// Blocks whose scale is not their own.
static void quantize_row(struct nb_act *a, size_t row)
{
    uint32_t most = 0, range;
    memcpy(&range, &a->range, 4);
    for (size_t at = row; a->scaled == NB_INPUT_ROW && at < row + a->k; at += NB_ACT_BLOCK) {
        uint32_t mine = most_at(a, at);
        most = mine > most ? mine : most;
    }
    for (size_t at = row; at < row + a->k; at += NB_ACT_BLOCK) {
        uint32_t mine = a->scaled == NB_INPUT_ROW ? most : most_at(a, at);
        quantize_cell(a, at, a->scaled == NB_INPUT_ROW || mine >= 0x7f800000u ? mine : range);
    }
}

static void quantize(struct nb_act *a, uint32_t t0, uint32_t t1)
{
    size_t end = (size_t)t1 * a->k, at = (size_t)t0 * a->k;
    for (; a->scaled != NB_INPUT_BLOCK && at < end; at += a->k)
        quantize_row(a, at);
    for (; at < end; at += NB_ACT_BLOCK)
        quantize_cell(a, at, most_at(a, at));
}

// The first n <= 16 of a row's floats: a constant 16 costs a plain load.
FORCED vf row_load(const float *p, uint32_t n)
{
    return n == 16 ? f_load(p) : f_load_n(p, n);
}

FORCED void row_store(float *p, vf v, uint32_t n)
{
    if (n == 16)
        f_store(p, v);
    else
        f_store_n(p, v, n);
}

FORCED vf weighted(vf v, const float *weight, uint32_t i, uint32_t n)
{
    return weight ? f_mul(v, row_load(weight + i, n)) : v;
}

FORCED vf biased(vf v, const float *bias, uint32_t i, uint32_t n)
{
    return bias ? f_add(v, row_load(bias + i, n)) : v;
}

static vf norm_scale(vf squares, float eps, uint32_t n)
{
    float sum = f_fold(squares);
    return f_set1(sum < INFINITY ? 1.0f / sqrtf(sum / (float)n + eps) : NAN);
}

static void rmsnorm(const float *x, const float *weight, float eps, uint32_t n, float *out)
{
    vf sum = f_zero();
    uint32_t whole = n & ~15u, rest = n & 15u;
    for (uint32_t i = 0; i < whole; i += 16) {
        vf v = f_load(x + i);
        sum = f_fma(v, v, sum);
    }
    vf last = f_load_n(x + whole, rest);
    vf scale = norm_scale(f_fma(last, last, sum), eps, n);
    for (uint32_t i = 0; i < whole; i += 16)
        f_store(out + i, weighted(f_mul(f_load(x + i), scale), weight, i, 16));
    f_store_n(out + whole, weighted(f_mul(last, scale), weight, whole, rest), rest);
}

static void layernorm(const float *x, const float *weight, const float *bias, float eps, uint32_t n,
                      float *out)
{
    uint32_t whole = n & ~15u, rest = n & 15u;
    vf sum = f_zero(), squares = f_zero(), last = f_load_n(x + whole, rest);
    for (uint32_t i = 0; i < whole; i += 16)
        sum = f_add(sum, f_load(x + i));
    vf mean = f_set1(f_fold(f_add(sum, last)) / (float)n);
    for (uint32_t i = 0; i < whole; i += 16) {
        vf v = f_sub(f_load(x + i), mean);
        squares = f_fma(v, v, squares);
    }
    last = f_select(m_range(0, (int)rest), f_sub(last, mean), f_zero());
    vf scale = norm_scale(f_fma(last, last, squares), eps, n);
    for (uint32_t i = 0; i < whole; i += 16) {
        vf v = weighted(f_mul(f_sub(f_load(x + i), mean), scale), weight, i, 16);
        f_store(out + i, biased(v, bias, i, 16));
    }
    vf v = weighted(f_mul(last, scale), weight, whole, rest);
    f_store_n(out + whole, biased(v, bias, whole, rest), rest);
}

// x / (1 + exp(-t))
FORCED vf f_gated(vf x, vf t)
{
    return f_div(x, f_add(f_set1(1.0f), f_exp(f_neg(t))));
}

FORCED vf f_act(enum nb_activation kind, vf x)
{
    const float c = 0x1.988454p+0f, c3 = 0x1.2444f2p-4f; // 2 sqrt(2 / pi), that times 0.044715
    vf positive = f_max(f_zero(), x);
    switch (kind) {
    case NB_ACT_SILU:
        return f_gated(x, x);
    case NB_ACT_GELU:
        return f_gated(x, f_mul(x, f_fma(f_mul(x, x), f_set1(c3), f_set1(c))));
    case NB_ACT_GELU_ERF:
        return f_mul(x, f_normal_cdf(x));
    case NB_ACT_RELU2:
        return f_mul(positive, positive);
    default:
        return positive;
    }
}

FORCED void activate_as(enum nb_activation kind, const float *gate, const float *up, uint32_t n,
                        float *out)
{
    uint32_t whole = n & ~15u, rest = n & 15u;
    for (uint32_t i = 0; i < whole; i += 16)
        f_store(out + i, weighted(f_act(kind, f_load(gate + i)), up, i, 16));
    vf last = weighted(f_act(kind, f_load_n(gate + whole, rest)), up, whole, rest);
    f_store_n(out + whole, last, rest);
}

// One loop for each kind, so that none asks for it inside.
static void activate(enum nb_activation kind, const float *gate, const float *up, uint32_t n,
                     float *out)
{
    switch (kind) {
    case NB_ACT_SILU:
        activate_as(NB_ACT_SILU, gate, up, n, out);
        break;
    case NB_ACT_GELU:
        activate_as(NB_ACT_GELU, gate, up, n, out);
        break;
    case NB_ACT_GELU_ERF:
        activate_as(NB_ACT_GELU_ERF, gate, up, n, out);
        break;
    case NB_ACT_RELU2:
        activate_as(NB_ACT_RELU2, gate, up, n, out);
        break;
    default:
        activate_as(NB_ACT_RELU, gate, up, n, out);
    }
}

static void add(float *y, const float *x, float scale, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        row_store(y + i, f_fma(f_set1(scale), row_load(x + i, m), row_load(y + i, m)), m);
    }
}

static void cap(float *x, float scale, float limit, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        row_store(x + i, f_capped(f_mul(row_load(x + i, m), f_set1(scale)), limit), m);
    }
}

FORCED void rotate(vf *a, vf *b, vf c, vf s)
{
    vf old = *a;
    *a = f_fma(old, c, f_neg(f_mul(*b, s)));
    *b = f_fma(*b, c, f_mul(old, s));
}

FORCED void rotate_one(float *a, float *b, float c, float s)
{
    float old = *a;
    *a = fmaf(old, c, -(*b * s));
    *b = fmaf(*b, c, old * s);
}

static void rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rot_dim,
                 const float *cos_sin, bool neox)
{
    uint32_t n = rot_dim / 2, whole = n & ~15u;
    const float *sine = cos_sin + n;
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim) {
        for (uint32_t i = 0; i < whole; i += 16) {
            float *p = neox ? x + i : x + 2 * i, *q = neox ? x + n + i : p + 16;
            vf a = f_load(p), b = f_load(q);
            if (!neox)
                f_unzip(a, b, &a, &b);
            rotate(&a, &b, f_load(cos_sin + i), f_load(sine + i));
            if (!neox)
                f_zip(a, b, &a, &b);
            f_store(p, a);
            f_store(q, b);
        }
        for (uint32_t i = whole; i < n; i++)
            rotate_one(neox ? x + i : x + 2 * i, neox ? x + n + i : x + 2 * i + 1, cos_sin[i],
                       sine[i]);
    }
}

// Sixteen floats to fp16, clamped to finite; NaN stays NaN.
FORCED void to_half(uint16_t *out, vf x)
{
    f_to_half(out, f_min(f_set1(65504.0f), f_max(f_set1(-65504.0f), x)));
}

// 32 elements to codes; returns their scale.
static uint16_t to_codes(int8_t out[NB_KV_GROUP], const float *from)
{
    vf x[2] = {f_load(from), f_load(from + 16)};
    uint32_t bits_max = most_of(x[0], x[1]);
    float amax;
    memcpy(&amax, &bits_max, 4);
    amax = amax / 127.0f < 65504.0f ? amax / 127.0f : 65504.0f;
    bool finite = bits_max < 0x7f800000u;
    uint16_t scale = nb_f32_to_f16(finite ? amax : NAN);
    vf inv = f_set1(1.0f / nb_f16_to_f32(scale));
    for (int i = 0; i < 2; i++) {
        vf q = finite && scale ? f_rint(f_mul(x[i], inv)) : f_zero();
        q = f_min(f_set1(127.0f), f_max(f_set1(-127.0f), q));
        i_to_s8(out + 16 * i, f_to_int(q));
    }
    return scale;
}

static void write_codes(const struct nb_kv_form *form, uint8_t *k_block, uint8_t *v_block,
                        const float *k, const float *v, uint32_t n_kv_heads, uint32_t slot)
{
    const uint32_t k_dim = form->k_dim, v_dim = form->v_dim;
    const size_t bytes = nb_kv_bytes(NB_KV_Q8_0);
    int8_t code[NB_KV_GROUP];
    uint16_t scale;
    for (uint32_t h = 0; h < n_kv_heads; h++) {
        uint8_t *k_to = k_block + h * k_dim * bytes, *v_to = v_block + h * v_dim * bytes;
        for (size_t d = 0; d < k_dim; d += NB_KV_GROUP) {
            scale = to_codes(code, k + h * k_dim + d);
            memcpy(k_to + (size_t)k_dim * NB_KV_POSITIONS + 2 * (d + slot), &scale, sizeof(scale));
            for (size_t i = 0; i < NB_KV_GROUP; i++)
                k_to[(d + i) * NB_KV_POSITIONS + slot] = (uint8_t)code[i];
        }
        for (size_t d = 0; d < v_dim; d += NB_KV_GROUP) {
            scale = to_codes(code, v + h * v_dim + d);
            memcpy(v_to + (size_t)v_dim * NB_KV_POSITIONS + 2 * (d + slot), &scale, sizeof(scale));
            memcpy(v_to + (size_t)slot * v_dim + d, code, sizeof(code));
        }
    }
}

static void write_halves(const struct nb_kv_form *form, uint16_t *k_block, uint16_t *v_block,
                         const float *k, const float *v, uint32_t n_kv_heads, uint32_t slot)
{
    const uint32_t k_dim = form->k_dim, v_dim = form->v_dim;
    uint16_t half[16];
    for (uint32_t i = 0, n = n_kv_heads * k_dim; i < n; i += 16) {
        uint32_t m = n - i < 16 ? n - i : 16;
        to_half(half, m == 16 ? f_load(k + i) : f_load_n(k + i, m));
        for (uint32_t j = 0; j < m; j++)
            k_block[(size_t)(i + j) * NB_KV_POSITIONS + slot] = half[j];
    }
    for (uint32_t h = 0; h < n_kv_heads; h++)
        for (uint32_t i = 0; i < v_dim; i += 16) {
            uint32_t m = v_dim - i < 16 ? v_dim - i : 16;
            const float *from = v + (size_t)h * v_dim + i;
            to_half(half, m == 16 ? f_load(from) : f_load_n(from, m));
            memcpy(v_block + ((size_t)h * NB_KV_POSITIONS + slot) * v_dim + i, half, m * 2);
        }
}

static void write_floats(const struct nb_kv_form *form, float *k_block, float *v_block,
                         const float *k, const float *v, uint32_t n_kv_heads, uint32_t slot)
{
    for (uint32_t i = 0; i < n_kv_heads * form->k_dim; i++)
        k_block[(size_t)i * NB_KV_POSITIONS + slot] = k[i];
    for (uint32_t h = 0; h < n_kv_heads; h++)
        memcpy(v_block + ((size_t)h * NB_KV_POSITIONS + slot) * form->v_dim, v + h * form->v_dim,
               form->v_dim * sizeof(*v));
}

static void kv_write(const struct nb_kv_form *form, uint8_t *k_block, uint8_t *v_block,
                     const float *k, const float *v, uint32_t n_kv_heads, uint32_t slot)
{
    if (form->type == NB_KV_F16)
        write_halves(form, (uint16_t *)(void *)k_block, (uint16_t *)(void *)v_block, k, v,
                     n_kv_heads, slot);
    else if (form->type == NB_KV_F32)
        write_floats(form, (float *)(void *)k_block, (float *)(void *)v_block, k, v, n_kv_heads,
                     slot);
    else
        write_codes(form, k_block, v_block, k, v, n_kv_heads, slot);
}

// Weights 4j .. 4j + 3 of row r in a plane of `bits` bits a code: a byte for each.
static uint32_t plane_word(const uint8_t *plane, int bits, int j, uint32_t r)
{
    uint32_t w;
    memcpy(&w, plane + ((size_t)(j % bits) * 16 + r) * 4, 4);
    return w >> (j / bits * bits) & ((1u << bits) - 1) * 0x01010101u;
}

// The 32 codes of row r in a cell: `unpack` of tile_tmpl.h for one row, a word of 4 codes at a
// time. A cell's plane has 64 bytes for each bit.
static void row_codes(const struct format *f, const uint8_t *low, const uint8_t *high, uint32_t r,
                      uint8_t out[CELL])
{
    int low_bits = f->low / 64, high_bits = f->high / 64;
    for (int j = 0; j < 8; j++) {
        uint32_t c = plane_word(low, low_bits, j, r);
        if (high_bits)
            c |= plane_word(high, high_bits, j, r) << low_bits;
        memcpy(out + 4 * j, &c, 4);
    }
    for (int i = 0; i < CELL && f->table; i++)
        out[i] = iq4_table[out[i]];
}

static void decode_quantized(const struct nb_packed *w, uint32_t row, float *out)
{
    const struct nb_layout *l = w->layout;
    const struct format *f = tiles_of(l)->format;
    const uint8_t *group = w->data + row / 16 * w->stride;
    uint32_t step = scale_step(l), r = row % 16;
    vi offset = i_set1((int)code_offset(l));
    for (uint32_t k = 0; k < w->cols; k += 16) {
        uint8_t codes[CELL];
        size_t cell = k / CELL;
        if (k % CELL == 0)
            row_codes(f, group + cell * (size_t)f->low, group + w->high + cell * (size_t)f->high, r,
                      codes);
        float s[16], m[16];
        vf ws, wm;
        scales_of_step(w, group, k / l->scale_block, k % l->scale_block / step, &ws, &wm);
        f_store(s, ws);
        f_store(m, wm);
        vf v = f_of_int(i_sub(i_of_u8(codes + k % CELL), offset));
        v = f_mul(f_set1(s[r]), v);
        f_store(out + k, l->has_min ? f_add(v, f_set1(m[r])) : v);
    }
}

static void decode_row(const struct nb_packed *w, uint32_t row, float *out)
{
    const uint8_t *group = w->data + row / 16 * w->stride;
    if (!nb_is_float(w)) {
        decode_quantized(w, row, out);
        return;
    }
    for (size_t k = 0; k < w->cols; k++) {
        float x[16];
        f_store(x, w->layout->codebook == NB_CODEBOOK_NF4
                       ? nf4_weights(group, (const float *)(group + w->scale), k)
                       : float_weights((int)w->layout->planes, group, k));
        out[k] = x[row % 16];
    }
}
