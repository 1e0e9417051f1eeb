// Checks the row-wise kernels.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"

#define REFERENCE nb_kernels_of(NB_ISA_SCALAR)

static void check_act(const struct nb_act *want, const struct nb_act *got, const char *name)
{
    size_t values = (size_t)want->n * want->k;
    check_bytes(want->q1, got->q1, values, "q1 %s", name);
    check_floats(want->s, got->s, values / 32, "scales %s", name);
    check_bytes(want->sum1, got->sum1, values / 8, "sums %s", name);
    if (want->terms < 2)
        return;
    check_bytes(want->q2, got->q2, values, "q2 %s", name);
    check_bytes(want->sum2, got->sum2, values / 8, "second sums %s", name);
}

// One scale for a row, or for all of them: some saturate.
static void scale_together(struct nb_act *a, uint32_t n)
{
    static const float ranges[] = {1, 1e-30f, 1e30f, 0.37f};
    a->scaled = a->terms == 2 ? NB_INPUT_BLOCK : n % 4 == 2 ? NB_INPUT_ROW : NB_INPUT_FIXED;
    a->range = ranges[n / 4 % 4];
}

void check_quantize(const struct nb_kernels *k)
{
    for (int mood = 0; mood < MOODS; mood++)
        for (uint32_t n = 1; n < 17; n++) {
            uint32_t width = 32 * (1 + random_below(20)), terms = 1 + n % 2;
            struct act want = random_act(n, width, terms, (enum mood)mood);
            struct act got = {.mem = buffer(nb_act_bytes(n, width))};
            nb_act_init(&got.a, got.mem, n, width, terms);
            memcpy(got.a.x, want.a.x, (size_t)n * width * sizeof(float));
            for (int together = 0; together < 2; together++) {
                k->quantize(&got.a, 0, n / 2);
                k->quantize(&got.a, n / 2, n);
                check_act(&want.a, &got.a, mood_name((enum mood)mood));
                scale_together(&want.a, n);
                scale_together(&got.a, n);
                REFERENCE->quantize(&want.a, 0, n);
            }
            free(want.mem);
            free(got.mem);
        }
}

// Lengths of rows: each remainder of 16, and a few rows of many.
static uint32_t next_length(uint32_t n)
{
    return n < 35 ? n + 1 : n * 3 + 5;
}

void check_rmsnorm(const struct nb_kernels *k)
{
    for (int mood = 0; mood < MOODS; mood++)
        for (uint32_t n = 1; n < 600; n = next_length(n)) {
            float *x = buffer(n * 4), *weight = buffer(n * 4), *want = buffer(n * 4);
            float *got = buffer(n * 4);
            fill_floats(x, n, (enum mood)mood);
            fill_floats(weight, n, SANE);
            REFERENCE->rmsnorm(x, NULL, 1e-5f, n, want);
            k->rmsnorm(x, NULL, 1e-5f, n, got);
            check_floats(want, got, n, "no weights, %s n %u", mood_name((enum mood)mood), n);
            REFERENCE->rmsnorm(x, weight, 1e-5f, n, want);
            k->rmsnorm(x, weight, 1e-5f, n, x);
            check_floats(want, x, n, "%s n %u", mood_name((enum mood)mood), n);
            free(x);
            free(weight);
            free(want);
            free(got);
        }
}

// LayerNorm in double. The tolerance is of a row whose mean is as large as its deviation.
static void check_layernorm_exact(const struct nb_kernels *k, uint32_t n)
{
    float *x = buffer(n * 4), *weight = buffer(n * 4), *bias = buffer(n * 4);
    float *want = buffer(n * 4), *got = buffer(n * 4);
    double mean = 0, variance = 0;
    fill_floats(x, n, SANE);
    fill_floats(weight, n, SANE);
    fill_floats(bias, n, SANE);
    for (uint32_t i = 0; i < n; i++)
        mean += (x[i] += 1.0f) / (double)n;
    for (uint32_t i = 0; i < n; i++)
        variance += (x[i] - mean) * (x[i] - mean) / n;
    k->layernorm(x, weight, bias, 1e-5f, n, got);
    for (uint32_t i = 0; i < n; i++) {
        double exact = (x[i] - mean) / sqrt(variance + 1e-5) * weight[i] + bias[i];
        want[i] = within(4e-6, exact, got[i]);
    }
    check_floats(want, got, n, "beside double, n %u", n);
    free(x);
    free(weight);
    free(bias);
    free(want);
    free(got);
}

void check_layernorm(const struct nb_kernels *k)
{
    for (int mood = 0; mood < MOODS; mood++)
        for (uint32_t n = 1, i = 0; n < 600; n = next_length(n), i++) {
            float *x = buffer(n * 4), *want = buffer(n * 4);
            float *weight = i % 4 < 3 ? buffer(n * 4) : NULL, *bias = i % 2 ? NULL : buffer(n * 4);
            fill_floats(x, n, (enum mood)mood);
            if (weight)
                fill_floats(weight, n, SANE);
            if (bias)
                fill_floats(bias, n, SANE);
            REFERENCE->layernorm(x, weight, bias, 1e-5f, n, want);
            k->layernorm(x, weight, bias, 1e-5f, n, x);
            check_floats(want, x, n, "%s n %u, %s weights, %s bias", mood_name((enum mood)mood), n,
                         weight ? "with" : "no", bias ? "with" : "no");
            free(x);
            free(weight);
            free(bias);
            free(want);
        }
    for (uint32_t n = 2; n < 2000; n = next_length(n))
        check_layernorm_exact(k, n);
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double gelu(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

static double gelu_erf(double x)
{
    return 0.5 * x * erfc(-x / sqrt(2));
}

static double relu2(double x)
{
    return x > 0 ? x * x : 0;
}

static double relu(double x)
{
    return x > 0 ? x : 0;
}

// Each activation beside libm: how far it may be off, as shares of |x| and of the exact value, and
// what is lost where exp(-x) overflows.
#define SHUT 1e-36
static const struct {
    const char *name;
    double (*exact)(double x);
    double of_x, of_exact;
} activations[NB_ACT_COUNT] = {
    [NB_ACT_SILU] = {"silu", silu, 0, 3e-7},
    [NB_ACT_GELU] = {"gelu", gelu, 2e-7, 0},
    [NB_ACT_GELU_ERF] = {"gelu_erf", gelu_erf, 1.5e-7, 0},
    [NB_ACT_RELU2] = {"relu2", relu2, 0, 6e-8},
    [NB_ACT_RELU] = {"relu", relu, 0, 0},
};

static void check_activation_exact(const struct nb_kernels *k, enum nb_activation kind, float size)
{
    uint32_t n = 4099;
    float *x = buffer(n * 4), *want = buffer(n * 4), *got = buffer(n * 4);
    for (uint32_t i = 0; i < n; i++)
        x[i] = random_float() * size;
    k->activate(kind, x, NULL, n, got);
    for (uint32_t i = 0; i < n; i++) {
        double exact = activations[kind].exact(x[i]);
        double off =
            activations[kind].of_x * fabs((double)x[i]) + activations[kind].of_exact * fabs(exact);
        want[i] = within(off + (exact < 0 ? SHUT : 0), exact, got[i]);
    }
    check_floats(want, got, n, "%s of %g beside libm", activations[kind].name, size);
    free(x);
    free(want);
    free(got);
}

// Far from 0 the gate is open or shut to the last bit.
static void check_activation_limits(const struct nb_kernels *k, enum nb_activation kind)
{
    const float far[4] = {-100.0f, -3e38f, 100.0f, 3e38f};
    const float open[4] = {0, 0, 100.0f, 3e38f}, squared[4] = {0, 0, 10000.0f, INFINITY};
    float got[4], want[4];
    k->activate(kind, far, NULL, 4, got);
    for (int i = 0; i < 4; i++)
        want[i] = within(0, kind == NB_ACT_RELU2 ? squared[i] : open[i], got[i]);
    check_floats(want, got, 4, "%s far from 0", activations[kind].name);
}

static void check_activation(const struct nb_kernels *k, enum nb_activation kind, enum mood mood,
                             uint32_t n, float size)
{
    float *gate = buffer(n * 4), *up = buffer(n * 4), *want = buffer(n * 4), *got = buffer(n * 4);
    const char *name = activations[kind].name;
    fill_floats(gate, n, mood);
    fill_floats(up, n, mood);
    for (uint32_t i = 0; i < n; i++)
        gate[i] *= size;
    REFERENCE->activate(kind, gate, NULL, n, want);
    k->activate(kind, gate, NULL, n, got);
    check_floats(want, got, n, "%s alone, %s times %g n %u", name, mood_name(mood), size, n);
    REFERENCE->activate(kind, gate, up, n, want);
    k->activate(kind, gate, up, n, gate);
    check_floats(want, gate, n, "%s, %s times %g n %u", name, mood_name(mood), size, n);
    free(gate);
    free(up);
    free(want);
    free(got);
}

void check_activate(const struct nb_kernels *k)
{
    for (int kind = 0; kind < NB_ACT_COUNT; kind++) {
        for (int mood = 0; mood < MOODS; mood++)
            for (uint32_t n = 1, i = 0; n < 5000; n = next_length(n), i++)
                check_activation(k, (enum nb_activation)kind, (enum mood)mood, n,
                                 powf(3, (float)(i % 5)));
        for (int power = -4; power < 5; power++)
            check_activation_exact(k, (enum nb_activation)kind, powf(3, (float)power));
        check_activation_limits(k, (enum nb_activation)kind);
    }
}

void check_add(const struct nb_kernels *k)
{
    for (int mood = 0; mood < MOODS; mood++)
        for (uint32_t n = 1; n < 600; n = next_length(n)) {
            float *x = buffer(n * 4), *want = buffer(n * 4), *got = buffer(n * 4);
            float scale = n % 3 ? random_float() : 1.0f;
            fill_floats(x, n, (enum mood)mood);
            fill_floats(want, n, (enum mood)mood);
            memcpy(got, want, n * 4);
            REFERENCE->add(want, x, scale, n);
            k->add(got, x, scale, n);
            check_floats(want, got, n, "%s n %u scale %g", mood_name((enum mood)mood), n, scale);
            free(x);
            free(want);
            free(got);
        }
    float x[17], y[17], want[17];
    for (int i = 0; i < 17; i++) {
        x[i] = (float)i + 0.25f;
        y[i] = -(float)i;
        want[i] = (float)i + 0.5f;
    }
    k->add(y, x, 2.0f, 17);
    check_floats(want, y, 17, "sums that are exact");
}

void check_cap(const struct nb_kernels *k)
{
    static const float caps[] = {0.0f, 30.0f, 1.0f, -1.0f, 1e-30f};
    for (int mood = 0; mood < MOODS; mood++)
        for (uint32_t n = 1; n < 600; n = next_length(n)) {
            float *want = buffer(n * 4), *got = buffer(n * 4);
            float scale = random_float() * 10.0f, cap = caps[n % 5];
            fill_floats(want, n, (enum mood)mood);
            memcpy(got, want, n * 4);
            REFERENCE->cap(want, scale, cap, n);
            k->cap(got, scale, cap, n);
            check_floats(want, got, n, "%s n %u scale %g cap %g", mood_name((enum mood)mood), n,
                         scale, cap);
            free(want);
            free(got);
        }
    float x[1000], got[1000], want[1000];
    for (int i = 0; i < 1000; i++)
        x[i] = got[i] = random_float() * 100.0f;
    k->cap(got, 0.5f, 30.0f, 1000);
    for (int i = 0; i < 1000; i++)
        want[i] = within(30 * 2e-7, 30 * tanh(x[i] * 0.5 / 30), got[i]);
    check_floats(want, got, 1000, "beside libm");
    for (int i = 0; i < 1000; i++)
        want[i] = x[i] * 0.5f;
    k->cap(x, 0.5f, 0.0f, 1000);
    check_floats(want, x, 1000, "without a cap");
}

void check_rope(const struct nb_kernels *k)
{
    for (uint32_t i = 0; i < 100; i++) {
        uint32_t heads = 1 + random_below(9), rot = 2 * (1 + random_below(64));
        uint32_t dim = rot + random_below(20), n = heads * dim;
        float *want = buffer(n * 4), *got = buffer(n * 4), *angles = buffer(rot * 4);
        fill_floats(want, n, i % 7 ? SANE : NOT_FINITE);
        fill_floats(angles, rot, SANE);
        memcpy(got, want, n * 4);
        REFERENCE->rope(want, heads, dim, rot, angles, i % 2);
        k->rope(got, heads, dim, rot, angles, i % 2);
        check_floats(want, got, n, "%u heads of %u, %u turned, neox %u", heads, dim, rot, i % 2);
        free(want);
        free(got);
        free(angles);
    }
}

// What the reference keeps of a head's n values at a slot is, but for half a code, what they were.
static void check_codes(const float *x, const uint8_t *head, uint32_t n, uint32_t slot, bool is_key)
{
    const uint8_t *scales = head + (size_t)n * NB_KV_POSITIONS;
    for (uint32_t d = 0; d < n; d++) {
        size_t at = is_key ? (size_t)d * NB_KV_POSITIONS + slot : (size_t)slot * n + d;
        uint16_t h;
        memcpy(&h, scales + 2 * (d / NB_KV_GROUP * NB_KV_POSITIONS + slot), sizeof(h));
        float scale = nb_f16_to_f32(h), kept = scale * (float)(int8_t)head[at];
        float near = fabsf(kept - x[d]) <= 0.501f * scale ? x[d] : kept;
        check_floats(&x[d], &near, 1, "a code of %g at scale %g", x[d], scale);
    }
}

void check_kv_write(const struct nb_kernels *k)
{
    for (uint32_t i = 0; i < 120; i++) {
        const enum nb_kv_type type = (enum nb_kv_type)(i % NB_KV_TYPES);
        struct nb_kv_form f = {type, 1 + random_below(100), 1 + random_below(100)};
        if (type == NB_KV_Q8_0)
            f = (struct nb_kv_form){type, 32 * (1 + random_below(4)), 32 * (1 + random_below(4))};
        const enum mood mood = (enum mood)(i / NB_KV_TYPES % MOODS);
        uint32_t heads = 1 + random_below(4), n_k = heads * f.k_dim, n_v = heads * f.v_dim;
        float *key = buffer(n_k * 4), *value = buffer(n_v * 4);
        size_t k_size = n_k * nb_kv_bytes(type), size = k_size + n_v * nb_kv_bytes(type);
        uint8_t *want = buffer(size), *got = buffer(size);
        memset(want, 0x55, size);
        memset(got, 0x55, size);
        fill_floats(key, n_k, mood);
        fill_floats(value, n_v, mood);
        for (uint32_t j = 0; j < n_k && mood != SANE; j++)
            key[j] *= i % 3 ? 1.0f : 40000.0f;
        for (uint32_t slot = 0; slot < NB_KV_POSITIONS; slot += 1 + random_below(9)) {
            REFERENCE->kv_write(&f, want, want + k_size, key, value, heads, slot);
            k->kv_write(&f, got, got + k_size, key, value, heads, slot);
            if (type != NB_KV_Q8_0 || mood != SANE)
                continue;
            check_codes(key, want, f.k_dim, slot, true);
            check_codes(value, want + k_size, f.v_dim, slot, false);
        }
        if (type == NB_KV_F16)
            check_halves((uint16_t *)(void *)want, (uint16_t *)(void *)got, size / 2,
                         "%u heads, k %u v %u", heads, f.k_dim, f.v_dim);
        else
            check_bytes(want, got, size, "type %d, %s, %u heads, k %u v %u", type, mood_name(mood),
                        heads, f.k_dim, f.v_dim);
        free(key);
        free(value);
        free(want);
        free(got);
    }
}
