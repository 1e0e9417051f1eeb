// Random and adversarial inputs for the kernels' harness, and comparison on the bits.
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"
#include "tests/kernels/report.h"

struct report check_report;

const uint32_t check_types[] = {
    NB_TYPE_Q4_0, NB_TYPE_Q4_1, NB_TYPE_Q5_0,   NB_TYPE_Q5_1, NB_TYPE_Q8_0, NB_TYPE_Q2_0,
    NB_TYPE_Q2_K, NB_TYPE_Q3_K, NB_TYPE_Q4_K,   NB_TYPE_Q5_K, NB_TYPE_Q6_K, NB_TYPE_IQ4_NL,
    NB_TYPE_F32,  NB_TYPE_F16,  NB_TYPE_IQ4_XS, NB_TYPE_BF16, NB_TYPE_INT8, NB_TYPE_NF4,
};
const uint32_t check_n_types = sizeof(check_types) / sizeof(check_types[0]);

static uint64_t state = 0x9e3779b97f4a7c15u;

void random_begin(uint64_t seed)
{
    state = (seed + 1) * 0x9e3779b97f4a7c15u | 1;
}

uint32_t random_u32(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state * 0x2545f4914f6cdd1du >> 32);
}

uint32_t random_below(uint32_t n)
{
    return random_u32() % n;
}

static float uniform(void)
{
    return (float)(random_u32() >> 8) * 0x1p-23f - 1.0f;
}

float random_float(void)
{
    return (uniform() + uniform() + uniform()) * 1.0f;
}

const char *mood_name(enum mood m)
{
    static const char *const names[MOODS] = {"sane",     "zeros", "extreme",
                                             "denormal", "huge",  "not finite"};
    return names[m];
}

void fill_floats(float *x, size_t n, enum mood m)
{
    static const float odd[] = {INFINITY, -INFINITY, NAN, -0.0f, 3e38f, 1e-40f, 0.0f};
    for (size_t i = 0; i < n; i++) {
        x[i] = m == ZEROS ? 0.0f : random_float();
        if (m == EXTREME)
            x[i] = i / 64 % 2 ? 1.0f : -1.0f;
        if (m == DENORMAL)
            x[i] *= random_below(2) ? 1e-38f : 1e-30f;
        if (m == HUGE_VALUES)
            x[i] *= random_below(2) ? 1e38f : 1e30f;
        if (m == NOT_FINITE && random_below(24) == 0)
            x[i] = odd[random_below(7)];
    }
}

void *buffer(size_t n)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, n ? n : 1))
        abort();
    return p;
}

// A level's failures are printed up to a limit; all are counted.
static void fail(const char *format, va_list args)
{
    if (check_report.failed++ >= 20)
        return;
    fprintf(stderr, "FAIL %s %s: ", check_report.level, check_report.op);
    vfprintf(stderr, format, args);
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    return u;
}

void check_floats(const float *want, const float *got, size_t n, const char *format, ...)
{
    check_report.compared += n;
    for (size_t i = 0; i < n; i++) {
        if (bits_of(want[i]) == bits_of(got[i]) || (isnan(want[i]) && isnan(got[i])))
            continue;
        va_list args;
        va_start(args, format);
        fail(format, args);
        va_end(args);
        if (check_report.failed <= 20)
            fprintf(stderr, ": [%zu] is %a, should be %a\n", i, got[i], want[i]);
        return;
    }
}

float within(double tolerance, double exact, float got)
{
    return fabs(got - exact) <= tolerance ? got : (float)exact;
}

static bool half_nan(uint16_t h)
{
    return (h & 0x7fff) > 0x7c00;
}

void check_halves(const uint16_t *want, const uint16_t *got, size_t n, const char *format, ...)
{
    check_report.compared += n;
    for (size_t i = 0; i < n; i++) {
        if (want[i] == got[i] || (half_nan(want[i]) && half_nan(got[i])))
            continue;
        va_list args;
        va_start(args, format);
        fail(format, args);
        va_end(args);
        if (check_report.failed <= 20)
            fprintf(stderr, ": [%zu] is %04x, should be %04x\n", i, got[i], want[i]);
        return;
    }
}

void check_bytes(const void *want, const void *got, size_t n, const char *format, ...)
{
    check_report.compared += n;
    if (memcmp(want, got, n) == 0)
        return;
    va_list args;
    va_start(args, format);
    fail(format, args);
    va_end(args);
    if (check_report.failed <= 20)
        fprintf(stderr, ": bytes differ\n");
}

static void sane_halves(uint8_t *at, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = nb_f32_to_f16(random_float() * 0.01f);
        memcpy(at + 2 * i, &h, 2);
    }
}

static void sane_scales(const struct nb_packed *w, uint8_t *at, size_t n)
{
    if (w->layout->sub != NB_SUB_F32) {
        sane_halves(at, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float f = random_float() * 0.01f;
        memcpy(at + 4 * i, &f, 4);
    }
}

static void sane_elements(const struct nb_packed *w, uint8_t *group)
{
    for (size_t i = 0; i < (size_t)w->cols * 16; i++) {
        float f = random_float();
        uint16_t h = w->layout->planes == NB_PLANES_F16 ? nb_f32_to_f16(f) : nb_f32_to_bf16(f);
        if (w->layout->planes == NB_PLANES_F32)
            memcpy(group + 4 * i, &f, 4);
        else
            memcpy(group + 2 * i, &h, 2);
    }
}

struct matrix random_matrix(uint32_t type, uint32_t rows, uint32_t cols, int fill, bool hostile)
{
    struct matrix m;
    if (nb_packed_init(&m.w, type, rows, cols))
        abort();
    size_t bytes = nb_packed_bytes(&m.w);
    m.data = buffer(bytes);
    for (size_t i = 0; i < bytes; i++)
        m.data[i] = fill >= 0 ? (uint8_t)fill : (uint8_t)random_u32();
    m.w.data = m.data;
    uint32_t block = m.w.layout->scale_block;
    for (uint8_t *g = m.data; !hostile && g < m.data + bytes; g += m.w.stride) {
        if (!block) {
            sane_elements(&m.w, g);
            continue;
        }
        sane_scales(&m.w, g + m.w.scale, (size_t)cols / block * 16);
        if (m.w.layout->has_min)
            sane_halves(g + m.w.min, (size_t)cols / block * 16);
    }
    return m;
}

struct act random_act(uint32_t n, uint32_t k, uint32_t terms, enum mood m)
{
    struct act r = {.mem = buffer(nb_act_bytes(n, k))};
    nb_act_init(&r.a, r.mem, n, k, terms);
    fill_floats(r.a.x, (size_t)n * k, m);
    nb_kernels_of(NB_ISA_SCALAR)->quantize(&r.a, 0, n);
    return r;
}
