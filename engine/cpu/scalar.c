// The scalar reference: every rule of docs/numerics.md as a plain loop. The other ISA levels are
// checked against this file bit for bit, so it shares no code with them and must stay obvious
// rather than fast.
#include <math.h>
#include <string.h>

#include "engine/cpu/isa.h"
#include "tensor/block.h"

static float half(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof(h));
    return nb_f16_to_f32(h);
}

// docs/numerics.md, Functions. The scale 2^n is applied in two steps so that it neither overflows
// before the result does nor rounds a denormal twice.
static float exp_f32(float x)
{
    if (isnan(x))
        return x;
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float n = rintf(x * 0x1.715476p+0f);
    float r = fmaf(-n, -0x1.05c61p-29f, fmaf(-n, 0x1.62e43p-1f, x));
    float p = 0x1.6d110ap-10f;
    p = fmaf(p, r, 0x1.120b6ep-7f);
    p = fmaf(p, r, 0x1.55551ap-5f);
    p = fmaf(p, r, 0x1.5554dcp-3f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    int whole = (int)n, first = whole >> 1;
    return ldexpf(1.0f, first) * p * ldexpf(1.0f, whole - first);
}

static float tanh_f32(float x)
{
    return 1.0f - 2.0f / (exp_f32(x + x) + 1.0f);
}

// The normal distribution's cumulative probability, 0.5 (1 + erf(x / sqrt(2))).
static float normal_cdf(float x)
{
    float a = fabsf(x), p = 0x1.9caedep-29f;
    p = fmaf(p, a, -0x1.34620ep-23f);
    p = fmaf(p, a, 0x1.6e0a00p-19f);
    p = fmaf(p, a, -0x1.ad4dbep-16f);
    p = fmaf(p, a, 0x1.c08798p-14f);
    p = fmaf(p, a, 0x1.4d7170p-13f);
    p = fmaf(p, a, -0x1.4664e2p-8f);
    p = fmaf(p, a, 0x1.2a86c0p-5f);
    p = fmaf(p, a, 0x1.45ec38p-2f);
    p = fmaf(p, a, 0x1.98849ap-1f);
    float tail = 0.5f * exp_f32(-(a * p));
    return signbit(x) ? tail : 1.0f - tail;
}

static float fold16(float p[16])
{
    for (int half_n = 8; half_n > 0; half_n /= 2)
        for (int i = 0; i < half_n; i++)
            p[i] += p[i + half_n];
    return p[0];
}

// What stands under one scale: the largest magnitude that has a code, NaN where a number among
// those that are looked at is not finite.
static float most_of(const float *x, size_t n)
{
    float most = 0.0f;
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        most = fmaxf(most, fabsf(x[i]));
    }
    return finite ? most : NAN;
}

static void quantize_block(const struct nb_act *a, size_t at, float most)
{
    const float *x = a->x + at;
    bool zero = !(most >= 1e-30f);
    float s = isnan(most) ? NAN : zero ? 0.0f : most / 127.0f;
    float inv = zero ? 0.0f : 127.0f / most;
    a->s[at / NB_ACT_BLOCK] = s;
    for (int half_n = 0; half_n < 2; half_n++) {
        int sum1 = 0, sum2 = 0;
        for (int i = 16 * half_n; i < 16 * half_n + 16; i++) {
            float q1 = zero ? 0.0f : rintf(fminf(fmaxf(x[i] * inv, -127.0f), 127.0f));
            a->q1[at + i] = (int8_t)q1;
            sum1 += (int)q1;
            if (a->terms < 2)
                continue;
            float q2 = zero ? 0.0f : rintf(fmaf(-s, q1, x[i]) * (254.0f * inv));
            q2 = fminf(fmaxf(q2, -127.0f), 127.0f);
            a->q2[at + i] = (int8_t)q2;
            sum2 += (int)q2;
        }
        a->sum1[at / 16 + half_n] = (int16_t)sum1;
        if (a->terms > 1)
            a->sum2[at / 16 + half_n] = (int16_t)sum2;
    }
}

static void quantize(struct nb_act *a, uint32_t t0, uint32_t t1)
{
    for (size_t row = (size_t)t0 * a->k; row < (size_t)t1 * a->k; row += a->k) {
        float of_row = most_of(a->x + row, a->k);
        for (size_t at = row; at < row + a->k; at += NB_ACT_BLOCK) {
            float most = most_of(a->x + at, NB_ACT_BLOCK);
            if (a->scaled == NB_INPUT_ROW)
                most = of_row;
            if (a->scaled == NB_INPUT_FIXED && !isnan(most))
                most = a->range;
            quantize_block(a, at, most);
        }
    }
}

static void rmsnorm(const float *x, const float *weight, float eps, uint32_t n, float *out)
{
    float p[16] = {0};
    for (uint32_t i = 0; i < n; i++)
        p[i % 16] = fmaf(x[i], x[i], p[i % 16]);
    float sum = fold16(p), scale = sum < INFINITY ? 1.0f / sqrtf(sum / (float)n + eps) : NAN;
    for (uint32_t i = 0; i < n; i++)
        out[i] = weight ? x[i] * scale * weight[i] : x[i] * scale;
}

static void layernorm(const float *x, const float *weight, const float *bias, float eps, uint32_t n,
                      float *out)
{
    float p[16] = {0}, squares[16] = {0};
    for (uint32_t i = 0; i < n; i++)
        p[i % 16] += x[i];
    float mean = fold16(p) / (float)n;
    for (uint32_t i = 0; i < n; i++)
        squares[i % 16] = fmaf(x[i] - mean, x[i] - mean, squares[i % 16]);
    float sum = fold16(squares), scale = sum < INFINITY ? 1.0f / sqrtf(sum / (float)n + eps) : NAN;
    for (uint32_t i = 0; i < n; i++) {
        float y = (x[i] - mean) * scale;
        y = weight ? y * weight[i] : y;
        out[i] = bias ? y + bias[i] : y;
    }
}

static float act(enum nb_activation kind, float x)
{
    const float c = 0x1.988454p+0f, c3 = 0x1.2444f2p-4f; // 2 sqrt(2 / pi), that times 0.044715
    float positive = 0.0f > x ? 0.0f : x;
    switch (kind) {
    case NB_ACT_SILU:
        return x / (1.0f + exp_f32(-x));
    case NB_ACT_GELU:
        return x / (1.0f + exp_f32(-(x * fmaf(x * x, c3, c))));
    case NB_ACT_GELU_ERF:
        return x * normal_cdf(x);
    case NB_ACT_RELU2:
        return positive * positive;
    default:
        return positive;
    }
}

static void activate(enum nb_activation kind, const float *gate, const float *up, uint32_t n,
                     float *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = up ? act(kind, gate[i]) * up[i] : act(kind, gate[i]);
}

static void add(float *y, const float *x, float scale, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = fmaf(scale, x[i], y[i]);
}

static float capped(float x, float limit)
{
    return limit > 0.0f ? limit * tanh_f32(x / limit) : x;
}

static void cap(float *x, float scale, float limit, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = capped(x[i] * scale, limit);
}

static void rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rot_dim,
                 const float *cos_sin, bool neox)
{
    uint32_t n = rot_dim / 2;
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim)
        for (uint32_t i = 0; i < n; i++) {
            float *a = x + (neox ? i : 2 * i), *b = x + (neox ? i + n : 2 * i + 1);
            float c = cos_sin[i], s = cos_sin[n + i];
            float na = fmaf(*a, c, -(*b * s)), nb = fmaf(*b, c, *a * s);
            *a = na;
            *b = nb;
        }
}

static uint16_t finite_half(float x)
{
    x = x < -65504.0f ? -65504.0f : x;
    return nb_f32_to_f16(x > 65504.0f ? 65504.0f : x);
}

// The n elements of a head's vector at one position, `apart` elements from one to the next.
static void put_halves(uint8_t *to, const float *x, uint32_t n, size_t first, size_t apart)
{
    for (uint32_t d = 0; d < n; d++) {
        uint16_t h = finite_half(x[d]);
        memcpy(to + 2 * (first + d * apart), &h, sizeof(h));
    }
}

static void put_floats(uint8_t *to, const float *x, uint32_t n, size_t first, size_t apart)
{
    for (uint32_t d = 0; d < n; d++)
        memcpy(to + 4 * (first + d * apart), &x[d], sizeof(*x));
}

static void put_codes(uint8_t *to, const float *x, uint32_t n, uint32_t slot, size_t first,
                      size_t apart)
{
    for (uint32_t d0 = 0; d0 < n; d0 += NB_KV_GROUP) {
        float amax = 0.0f;
        bool finite = true;
        for (uint32_t d = d0; d < d0 + NB_KV_GROUP; d++) {
            finite = finite && isfinite(x[d]);
            amax = fmaxf(amax, fabsf(x[d]));
        }
        uint16_t h = finite_half(finite ? amax / 127.0f : NAN);
        float s = nb_f16_to_f32(h), inv = 1.0f / s;
        memcpy(to + (size_t)n * NB_KV_POSITIONS + 2 * ((size_t)d0 + slot), &h, sizeof(h));
        for (uint32_t d = d0; d < d0 + NB_KV_GROUP; d++) {
            float q = s > 0.0f ? rintf(x[d] * inv) : 0.0f;
            to[first + d * apart] = (uint8_t)(int8_t)fminf(fmaxf(q, -127.0f), 127.0f);
        }
    }
}

static void kv_write(const struct nb_kv_form *form, uint8_t *k_block, uint8_t *v_block,
                     const float *k, const float *v, uint32_t n_kv_heads, uint32_t slot)
{
    uint32_t k_dim = form->k_dim, v_dim = form->v_dim;
    for (uint32_t h = 0; h < n_kv_heads; h++) {
        uint8_t *k_to = k_block + h * k_dim * nb_kv_bytes(form->type);
        uint8_t *v_to = v_block + h * v_dim * nb_kv_bytes(form->type);
        if (form->type == NB_KV_F16) {
            put_halves(k_to, k + h * k_dim, k_dim, slot, NB_KV_POSITIONS);
            put_halves(v_to, v + h * v_dim, v_dim, slot * v_dim, 1);
        } else if (form->type == NB_KV_F32) {
            put_floats(k_to, k + h * k_dim, k_dim, slot, NB_KV_POSITIONS);
            put_floats(v_to, v + h * v_dim, v_dim, slot * v_dim, 1);
        } else {
            put_codes(k_to, k + h * k_dim, k_dim, slot, slot, NB_KV_POSITIONS);
            put_codes(v_to, v + h * v_dim, v_dim, slot, slot * v_dim, 1);
        }
    }
}

// Bits of weight k of row r in a plane of `bits` bits a code (8, 4, 2 or 1).
static int plane_bits(const uint8_t *plane, int bits, uint32_t r, uint32_t k)
{
    uint32_t at = k % 32, words = (uint32_t)bits,
             in_word = at / 4 / words; // words of 4 codes a row; NOLINT(*DivideZero)
    const uint8_t *cell = plane + k / 32 * (size_t)words * 64;
    int byte = cell[(at / 4 % words * 16 + r) * 4 + at % 4];
    return byte >> ((int)in_word * bits) & ((1 << bits) - 1);
}

// The code of weight k of row r in a row group, as an integer with its offset taken off or its
// table looked up.
static int code(const struct nb_packed *w, const uint8_t *group, uint32_t r, uint32_t k)
{
    static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
    static const struct {
        int low, high;
    } planes[] = {
        [NB_PLANES_8] = {8, 0},   [NB_PLANES_4] = {4, 0}, [NB_PLANES_4_1] = {4, 1},
        [NB_PLANES_4_2] = {4, 2}, [NB_PLANES_2] = {2, 0}, [NB_PLANES_2_1] = {2, 1},
    };
    int low = planes[w->layout->planes].low, high = planes[w->layout->planes].high;
    int c = plane_bits(group, low, r, k);
    if (high)
        c |= plane_bits(group + w->high, high, r, k) << low;
    return w->layout->codebook == NB_CODEBOOK_IQ4 ? iq4[c] : c - (int)w->layout->offset;
}

// The integer sub-scale and sub-minimum of group g (0..15 or 0..7) of a super-block.
static void sub_scales(const struct nb_packed *w, const uint8_t *sub, uint32_t r, uint32_t g,
                       int *scale, int *min)
{
    *scale = 1;
    *min = 0;
    switch (w->layout->sub) {
    case NB_SUB_NONE:
    case NB_SUB_F32:
        break;
    case NB_SUB_SM8:
        *scale = sub[g * 16 + r];
        *min = sub[(8 + g) * 16 + r];
        break;
    case NB_SUB_SM4:
        *scale = sub[g * 16 + r] & 15;
        *min = sub[g * 16 + r] >> 4;
        break;
    case NB_SUB_S6:
        *scale = sub[g % 8 * 16 + r] >> g / 8 * 4 & 15;
        *scale = (*scale | (sub[(8 + g % 4) * 16 + r] >> g / 4 * 2 & 3) << 4) - 32;
        break;
    case NB_SUB_S8:
    case NB_SUB_S6X8:
        *scale = (int8_t)sub[g * 16 + r];
        break;
    }
}

// Effective scale and minimum of the group that holds weight k.
static void scales(const struct nb_packed *w, const uint8_t *group, uint32_t r, uint32_t k,
                   float *ws, float *wm)
{
    const struct nb_layout *l = w->layout;
    size_t block = k / l->scale_block;
    int scale, min;
    if (l->sub == NB_SUB_F32) {
        memcpy(ws, group + w->scale + (block * 16 + r) * 4, sizeof(*ws));
        *wm = 0.0f;
        if (l->has_min)
            memcpy(wm, group + w->min + (block * 16 + r) * 4, sizeof(*wm));
        return;
    }
    sub_scales(w, group + w->sub + block * l->sub_bytes * 16, r, k % l->scale_block / l->group,
               &scale, &min);
    *ws = half(group + w->scale + (block * 16 + r) * 2) * (float)scale;
    *wm = l->has_min ? half(group + w->min + (block * 16 + r) * 2) : 0.0f;
    if (l->sub != NB_SUB_NONE)
        *wm = -(*wm * (float)min);
}

static float float_weight(const struct nb_packed *w, const uint8_t *group, uint32_t r, uint32_t k)
{
    size_t at = (size_t)k * 16 + r;
    uint16_t h;
    float f, ws, wm;
    if (w->layout->codebook == NB_CODEBOOK_NF4) {
        scales(w, group, r, k, &ws, &wm);
        return nb_nf4_values[plane_bits(group, 4, r, k)] * ws;
    }
    if (w->layout->planes == NB_PLANES_F32) {
        memcpy(&f, group + at * 4, sizeof(f));
        return f;
    }
    memcpy(&h, group + at * 2, sizeof(h));
    return w->layout->planes == NB_PLANES_F16 ? nb_f16_to_f32(h) : nb_bf16_to_f32(h);
}

// A row of the matrix, decoded once for all tokens: codes, or weights of the float class; scales by
// groups of 16.
struct row {
    int16_t *code;
    float *weight, *ws, *wm;
};

static void load_row(const struct nb_packed *w, uint32_t row, struct row *ret)
{
    const uint8_t *group = w->data + row / 16 * w->stride;
    for (uint32_t k = 0; k < w->cols; k++) {
        if (nb_is_float(w)) {
            ret->weight[k] = float_weight(w, group, row % 16, k);
            continue;
        }
        ret->code[k] = (int16_t)code(w, group, row % 16, k);
        if (k % 16 == 0)
            scales(w, group, row % 16, k, &ret->ws[k / 16], &ret->wm[k / 16]);
    }
}

static float dot_float(const struct nb_packed *w, const struct row *row, const float *x)
{
    float acc = 0.0f;
    for (uint32_t k = 0; k < w->cols; k++)
        acc = fmaf(row->weight[k], x[k], acc);
    return acc;
}

static float dot_quantized(const struct nb_packed *w, const struct row *row, const struct nb_act *a,
                           size_t at)
{
    uint32_t step = w->layout->group == 16 ? 16 : 32;
    float acc = 0.0f;
    for (uint32_t k = 0; k < w->cols; k += step) {
        int a1 = 0, a2 = 0, s1 = 0, s2 = 0;
        for (uint32_t i = k; i < k + step; i++) {
            a1 += row->code[i] * a->q1[at + i];
            s1 += a->q1[at + i];
            if (a->terms == 2) {
                a2 += row->code[i] * a->q2[at + i];
                s2 += a->q2[at + i];
            }
        }
        float s = a->s[(at + k) / NB_ACT_BLOCK], t = (float)a1, sum = (float)s1;
        if (a->terms == 2) {
            t = fmaf(254.0f, t, (float)a2);
            sum = fmaf(254.0f, sum, (float)s2);
            s /= 254.0f;
        }
        acc = fmaf(t * s, row->ws[k / 16], acc);
        if (w->layout->has_min)
            acc = fmaf(sum * s, row->wm[k / 16], acc);
    }
    return acc;
}

static size_t gemm_scratch(const struct nb_packed *w, uint32_t n)
{
    return (size_t)w->cols * (sizeof(float) + sizeof(int16_t)) +
           2 * sizeof(float) * (w->cols / 16 + 1);
}

static struct row row_in(void *scratch, uint32_t cols)
{
    struct row row = {.weight = scratch};
    row.ws = row.weight + cols;
    row.wm = row.ws + cols / 16 + 1;
    row.code = (int16_t *)(row.wm + cols / 16 + 1);
    return row;
}

static void gemm(const struct nb_packed *w, const struct nb_act *a, uint32_t g0, uint32_t g1,
                 const float *bias, bool accumulate, float *y, size_t ldy, void *scratch)
{
    struct row row = row_in(scratch, w->cols);
    uint32_t end = g1 * 16 < w->rows ? g1 * 16 : w->rows;
    for (uint32_t r = g0 * 16; r < end; r++) {
        load_row(w, r, &row);
        for (uint32_t t = 0; t < a->n; t++) {
            size_t at = (size_t)t * a->k;
            float sum =
                nb_is_float(w) ? dot_float(w, &row, a->x + at) : dot_quantized(w, &row, a, at);
            if (bias)
                sum += bias[r];
            float *out = y + t * ldy + r;
            *out = accumulate ? *out + sum : sum;
        }
    }
}

static void decode_row(const struct nb_packed *w, uint32_t row, float *out)
{
    const uint8_t *group = w->data + row / 16 * w->stride;
    for (uint32_t k = 0; k < w->cols; k++) {
        if (nb_is_float(w)) {
            out[k] = float_weight(w, group, row % 16, k);
            continue;
        }
        float ws, wm;
        scales(w, group, row % 16, k, &ws, &wm);
        out[k] = ws * (float)code(w, group, row % 16, k);
        if (w->layout->has_min)
            out[k] += wm;
    }
}

// One query of one head; `state` is out[v_dim] before the division.
struct query {
    const float *q;
    const uint8_t *k, *v; // of this head in a block
    enum nb_kv_type type;
    uint32_t k_dim, v_dim;
    float scale, softcap;
    float max, sum;
    float *out;
};

// Element d of a head's n at one position, the i-th that is kept.
static float kept(const struct query *q, const uint8_t *from, uint32_t n, uint32_t d, uint32_t slot,
                  size_t i)
{
    float x;
    if (q->type == NB_KV_F16)
        return half(from + 2 * i);
    if (q->type == NB_KV_F32) {
        memcpy(&x, from + 4 * i, sizeof(x));
        return x;
    }
    size_t scale = (size_t)d / NB_KV_GROUP * NB_KV_POSITIONS + slot;
    return half(from + (size_t)n * NB_KV_POSITIONS + 2 * scale) * (float)(int8_t)from[i];
}

static float key(const struct query *q, uint32_t d, uint32_t slot)
{
    return kept(q, q->k, q->k_dim, d, slot, (size_t)d * NB_KV_POSITIONS + slot);
}

static float value(const struct query *q, uint32_t d, uint32_t slot)
{
    return kept(q, q->v, q->v_dim, d, slot, (size_t)slot * q->v_dim + d);
}

static float score(const struct query *q, uint32_t slot)
{
    float s = 0.0f;
    for (uint32_t d = 0; d < q->k_dim; d++)
        s = fmaf(q->q[d], key(q, d, slot), s);
    return capped(s * q->scale, q->softcap);
}

// Slots [lo, hi) of one tile.
static void attend_tile(struct query *q, uint32_t lo, uint32_t hi)
{
    float p[NB_KV_POSITIONS] = {0}, partial[16] = {0}, max = q->max;
    for (uint32_t i = lo; i < hi; i++) {
        p[i] = score(q, i);
        max = p[i] > max ? p[i] : max;
    }
    for (uint32_t i = lo; i < hi; i++) {
        p[i] = exp_f32(p[i] - max);
        partial[i % 16] += p[i];
    }
    float keep = exp_f32(q->max - max);
    q->sum = fmaf(q->sum, keep, fold16(partial));
    q->max = max;
    for (uint32_t d = 0; d < q->v_dim; d++) {
        float o = q->out[d] * keep;
        for (uint32_t i = lo; i < hi; i++)
            o = fmaf(p[i], value(q, d, i), o);
        q->out[d] = o;
    }
}

static void attention(const struct nb_kv_form *form, const float *q, size_t ldq,
                      const uint8_t *const *blocks, size_t v_offset, uint32_t n_q, uint32_t pos0,
                      uint32_t kv_head, uint32_t group, const struct nb_attention *p,
                      float *out, // NOLINT(*non-const-parameter)
                      size_t ldo, void *scratch)
{
    const uint32_t k_dim = form->k_dim, v_dim = form->v_dim;
    const size_t bytes = nb_kv_bytes(form->type);
    for (uint32_t t = 0; t < n_q; t++)
        for (uint32_t h = 0; h < group; h++) {
            size_t head = (size_t)kv_head * group + h;
            struct query s = {.q = q + t * ldq + head * k_dim,
                              .type = form->type,
                              .k_dim = k_dim,
                              .v_dim = v_dim,
                              .scale = p->scale,
                              .softcap = p->softcap,
                              .max = p->sinks ? p->sinks[head] : -INFINITY,
                              .sum = p->sinks ? 1.0f : 0.0f,
                              .out = out + t * ldo + head * v_dim};
            uint32_t end = p->end ? p->end : pos0 + t + 1;
            uint32_t first = p->window && p->window < end ? end - p->window : 0;
            memset(s.out, 0, v_dim * sizeof(float));
            for (uint32_t b = first / NB_KV_POSITIONS; b * NB_KV_POSITIONS < end; b++) {
                uint32_t base = b * NB_KV_POSITIONS, left = end - base;
                s.k = blocks[b] + kv_head * k_dim * bytes;
                s.v = blocks[b] + v_offset + kv_head * v_dim * bytes;
                attend_tile(&s, first > base ? first - base : 0,
                            left < NB_KV_POSITIONS ? left : NB_KV_POSITIONS);
            }
            float inv = 1.0f / s.sum;
            for (uint32_t d = 0; d < v_dim; d++)
                s.out[d] *= inv;
        }
}

static size_t attn_scratch(const struct nb_kv_form *form, uint32_t n_q, uint32_t group)
{
    return 0;
}

#define LEVEL      nb_kernels_scalar
#define LEVEL_NAME "scalar"
#include "engine/cpu/table_tmpl.h"
