// Checks the row-wise kernels.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"

#define REFERENCE nb_kernels_of(NB_ISA_SCALAR)

void check_quantize(const struct nb_kernels *k)
{
    for (int mood = 0; mood < MOODS; mood++)
        for (uint32_t n = 1; n < 12; n++) {
            uint32_t width = 32 * (1 + random_below(20)), terms = 1 + n % 2;
            struct act want = random_act(n, width, terms, (enum mood)mood);
            struct act got = {.mem = buffer(nb_act_bytes(n, width))};
            nb_act_init(&got.a, got.mem, n, width, terms);
            memcpy(got.a.x, want.a.x, (size_t)n * width * sizeof(float));
            k->quantize(&got.a, 0, n / 2);
            k->quantize(&got.a, n / 2, n);
            size_t values = (size_t)n * width;
            const char *name = mood_name((enum mood)mood);
            check_bytes(want.a.q1, got.a.q1, values, "q1 %s", name);
            check_floats(want.a.s, got.a.s, values / 32, "scales %s", name);
            check_bytes(want.a.sum1, got.a.sum1, values / 8, "sums %s", name);
            if (terms == 2) {
                check_bytes(want.a.q2, got.a.q2, values, "q2 %s", name);
                check_bytes(want.a.sum2, got.a.sum2, values / 8, "second sums %s", name);
            }
            free(want.mem);
            free(got.mem);
        }
}

void check_rmsnorm(const struct nb_kernels *k)
{
    for (int mood = 0; mood < MOODS; mood++)
        for (uint32_t n = 1; n < 200; n += 1 + n / 4) {
            float *x = buffer(n * 4), *weight = buffer(n * 4), *want = buffer(n * 4);
            fill_floats(x, n, (enum mood)mood);
            fill_floats(weight, n, SANE);
            REFERENCE->rmsnorm(x, weight, 1e-5f, n, want);
            k->rmsnorm(x, weight, 1e-5f, n, x);
            check_floats(want, x, n, "%s n %u", mood_name((enum mood)mood), n);
            free(x);
            free(weight);
            free(want);
        }
}

void check_swiglu(const struct nb_kernels *k)
{
    uint32_t n = 4099;
    float *gate = buffer(n * 4), *up = buffer(n * 4), *want = buffer(n * 4), *got = buffer(n * 4);
    for (int mood = 0; mood < MOODS; mood++)
        for (int power = 0; power < 5; power++) {
            float size = powf(3, (float)power);
            fill_floats(gate, n, (enum mood)mood);
            fill_floats(up, n, (enum mood)mood);
            for (uint32_t i = 0; i < n; i++)
                gate[i] *= size;
            REFERENCE->swiglu(gate, up, n, want);
            k->swiglu(gate, up, n, got);
            check_floats(want, got, n, "%s times %g", mood_name((enum mood)mood), size);
        }
    // exp itself, against libm: silu(g) * 1 = g / (1 + exp(-g)).
    for (uint32_t i = 0; i < n; i++) {
        gate[i] = random_float() * 30.0f;
        up[i] = 1.0f;
    }
    k->swiglu(gate, up, n, got);
    for (uint32_t i = 0; i < n; i++) {
        double exact = gate[i] / (1.0 + exp(-(double)gate[i]));
        want[i] = fabs(got[i] - exact) <= 3e-7 * fabs(exact) ? got[i] : (float)exact;
    }
    check_floats(want, got, n, "silu beside libm");
    free(gate);
    free(up);
    free(want);
    free(got);
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
    const uint8_t *scales = head + (size_t)n * NB_KV_TILE;
    for (uint32_t d = 0; d < n; d++) {
        size_t at = is_key ? (size_t)d * NB_KV_TILE + slot : (size_t)slot * n + d;
        uint16_t h;
        memcpy(&h, scales + 2 * (d / NB_KV_GROUP * NB_KV_TILE + slot), sizeof(h));
        float scale = nb_f16_to_f32(h), kept = scale * (float)(int8_t)head[at];
        float near = fabsf(kept - x[d]) <= 0.501f * scale ? x[d] : kept;
        check_floats(&x[d], &near, 1, "a code of %g at scale %g", x[d], scale);
    }
}

void check_kv_write(const struct nb_kernels *k)
{
    for (uint32_t i = 0; i < 120; i++) {
        const enum nb_kv_type type = i % 2 ? NB_KV_Q8_0 : NB_KV_F16;
        struct nb_kv_form f = {type, 1 + random_below(100), 1 + random_below(100)};
        if (type == NB_KV_Q8_0)
            f = (struct nb_kv_form){type, 32 * (1 + random_below(4)), 32 * (1 + random_below(4))};
        const enum mood mood = (enum mood)(i / 2 % MOODS);
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
        for (uint32_t slot = 0; slot < NB_KV_TILE; slot += 1 + random_below(9)) {
            REFERENCE->kv_write(&f, want, want + k_size, key, value, heads, slot);
            k->kv_write(&f, got, got + k_size, key, value, heads, slot);
            if (type == NB_KV_F16 || mood != SANE)
                continue;
            check_codes(key, want, f.k_dim, slot, true);
            check_codes(value, want + k_size, f.v_dim, slot, false);
        }
        if (type == NB_KV_F16)
            check_halves((uint16_t *)(void *)want, (uint16_t *)(void *)got, size / 2,
                         "%u heads, k %u v %u", heads, f.k_dim, f.v_dim);
        else
            check_bytes(want, got, size, "q8_0, %s, %u heads, k %u v %u", mood_name(mood), heads,
                        f.k_dim, f.v_dim);
        free(key);
        free(value);
        free(want);
        free(got);
    }
}
