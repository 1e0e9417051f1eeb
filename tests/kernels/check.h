// The kernels' harness: every op of every ISA level against the scalar reference, on the bits.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/kernels.h"

// One op's checks on one level; each counts what it compares through check_*.
void check_gemm(const struct nb_kernels *k);
void check_decode(const struct nb_kernels *k);
void check_groupwise(const struct nb_kernels *k);
void check_quantize(const struct nb_kernels *k);
void check_rmsnorm(const struct nb_kernels *k);
void check_layernorm(const struct nb_kernels *k);
void check_activate(const struct nb_kernels *k);
void check_add(const struct nb_kernels *k);
void check_cap(const struct nb_kernels *k);
void check_rope(const struct nb_kernels *k);
void check_kv_write(const struct nb_kernels *k);
void check_attention(const struct nb_kernels *k);

// Compares floats on their bits (any NaN equals any NaN) and reports the first difference of a
// failing case.
void check_floats(const float *want, const float *got, size_t n, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void check_halves(const uint16_t *want, const uint16_t *got, size_t n, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void check_bytes(const void *want, const void *got, size_t n, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

// What a check on bits should see of a value that need only be near: itself where it is, else the
// exact one.
float within(double tolerance, double exact, float got);

void random_begin(uint64_t seed); // what follows is of this seed alone
uint32_t random_u32(void);
uint32_t random_below(uint32_t n);
float random_float(void); // about standard normal

// What the inputs of a case look like.
enum mood { SANE, ZEROS, EXTREME, DENORMAL, HUGE_VALUES, NOT_FINITE, MOODS };
const char *mood_name(enum mood m);
void fill_floats(float *x, size_t n, enum mood m);

// 64-byte aligned and exactly n bytes long, so that a sanitizer sees an overrun; never NULL.
void *buffer(size_t n);

extern const uint32_t check_types[];
extern const uint32_t check_n_types;

// A packed matrix of random codes: all codes random, or all bytes `fill` (0 to 255); scales sane
// unless `hostile`.
struct matrix {
    struct nb_packed w;
    uint8_t *data;
};
struct matrix random_matrix(uint32_t type, uint32_t rows, uint32_t cols, int fill, bool hostile);

// Activations quantized by the scalar kernel, a scale for each block. Free `mem`.
struct act {
    struct nb_act a;
    void *mem;
};
struct act random_act(uint32_t n, uint32_t k, uint32_t terms, enum mood m);

// One product: `k` against the scalar reference.
struct product {
    const struct matrix *m;
    const struct act *a;
    uint32_t g0, g1;
    bool bias, accumulate;
};
void check_gemm_case(const struct nb_kernels *k, const struct product *p, const char *what);
void check_gemm_alone(const struct nb_kernels *k, const struct matrix *m, struct act *a);

// A level that no processor here has, emulated; NULL where there is none.
const struct nb_kernels *emulated_level(void);
struct nb_gemm_kernels;
const struct nb_gemm_kernels *emulated_sgemm(void);
const struct nb_gemm_kernels *emulated_bgemm(void);

// The products of float matrices, of all levels.
void check_sgemm(void);

// `kernels-check --bench [filter]`
// Median seconds of a call.
double seconds(void (*call)(void *), void *data);
void bench_attention(const struct nb_kernels *k, const char *filter);
void bench_sgemm(const char *filter);
int bench(const struct nb_kernels *const *levels, size_t n, const char *filter);
