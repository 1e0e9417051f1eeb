// Sixteen lanes in plain C: the words of engine/cpu/simd_avx2.h that the searches use, for
// processors without AVX2. The same roundings and the same order of sums, so the same bytes.
#pragma once

#include <stdint.h>
#include <string.h>

#define FORCED static inline __attribute__((always_inline))

typedef struct {
    float v[16];
} vf;
typedef struct {
    uint32_t v[16];
} vmask;

#define EACH_LANE for (unsigned i = 0; i < 16; i++)

FORCED vf f_set1(float x)
{
    vf r;
    EACH_LANE r.v[i] = x;
    return r;
}

FORCED vf f_zero(void)
{
    return f_set1(0);
}

FORCED vf f_load(const float *p)
{
    vf r;
    memcpy(r.v, p, sizeof(r.v));
    return r;
}

FORCED void f_store(float *p, vf x)
{
    memcpy(p, x.v, sizeof(x.v));
}

FORCED vf f_add(vf x, vf y)
{
    EACH_LANE x.v[i] += y.v[i];
    return x;
}

FORCED vf f_sub(vf x, vf y)
{
    EACH_LANE x.v[i] -= y.v[i];
    return x;
}

FORCED vf f_mul(vf x, vf y)
{
    EACH_LANE x.v[i] *= y.v[i];
    return x;
}

FORCED vf f_div(vf x, vf y)
{
    EACH_LANE x.v[i] /= y.v[i];
    return x;
}

FORCED vf f_sqrt(vf x)
{
    EACH_LANE x.v[i] = __builtin_sqrtf(x.v[i]);
    return x;
}

// x * y + z, rounded once.
FORCED vf f_fma(vf x, vf y, vf z)
{
    EACH_LANE x.v[i] = __builtin_fmaf(x.v[i], y.v[i], z.v[i]);
    return x;
}

// The second operand when either is NaN.
FORCED vf f_max(vf x, vf y)
{
    EACH_LANE x.v[i] = x.v[i] > y.v[i] ? x.v[i] : y.v[i];
    return x;
}

FORCED vf f_min(vf x, vf y)
{
    EACH_LANE x.v[i] = x.v[i] < y.v[i] ? x.v[i] : y.v[i];
    return x;
}

// To nearest even, for |x| below 2^22: the sum has no bits left for a fraction.
FORCED vf f_rint(vf x)
{
    EACH_LANE x.v[i] = x.v[i] + 0x1.8p23f - 0x1.8p23f;
    return x;
}

// Lanes whose sign bit is set.
FORCED vmask m_sign(vf x)
{
    vmask r;
    memcpy(r.v, x.v, sizeof(r.v));
    EACH_LANE r.v[i] = 0 - (r.v[i] >> 31);
    return r;
}

FORCED vf f_select(vmask m, vf yes, vf no)
{
    vf r;
    EACH_LANE r.v[i] = m.v[i] ? yes.v[i] : no.v[i];
    return r;
}

// Folds 16 -> 8 -> 4 -> 2 -> 1, partial i + half to partial i.
FORCED float f_fold(vf x)
{
    for (unsigned half = 8; half; half /= 2)
        for (unsigned i = 0; i < half; i++)
            x.v[i] += x.v[i + half];
    return x.v[0];
}
