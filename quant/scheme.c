// The table of schemes, and what follows from a row.
#include "quant/scheme.h"

#include <math.h>
#include <strings.h>

#include "quant/shape.h"
#include "tensor/type.h"

#define EXACT(name, bits, group, min, type)                                                        \
    {                                                                                              \
        name, bits, group, min, NB_TYPE_##type, true, NULL                                         \
    }
#define HELD(name, bits, group, min, type)                                                         \
    {                                                                                              \
        name, bits, group, min, NB_TYPE_##type, false, NULL                                        \
    }
#define FOLDER(name, bits, group, min, type)                                                       \
    {                                                                                              \
        name, bits, group, min, NB_TYPE_##type, true,                                              \
            "a Hugging Face folder does (--format safetensors)"                                    \
    }
#define ROW    NB_GROUP_ROW
#define TENSOR NB_GROUP_TENSOR

// No type of 8 bits has a minimum, so weights with a zero point are held as halves.
static const struct nb_scheme schemes[] = {
    EXACT("f32", 32, 1, false, F32),
    EXACT("f16", 16, 1, false, F16),
    EXACT("bf16", 16, 1, false, BF16),
    EXACT("int8-g32", 8, 32, false, Q8_0),
    HELD("int8-g64", 8, 64, false, Q8_0),
    HELD("int8-g128", 8, 128, false, Q8_0),
    HELD("int8-channel", 8, ROW, false, Q8_0),
    HELD("int8-tensor", 8, TENSOR, false, Q8_0),
    HELD("int8-channel-zero", 8, ROW, true, F16),
    HELD("int8-tensor-zero", 8, TENSOR, true, F16),
    EXACT("q6_k", 6, 16, false, Q6_K),
    EXACT("int5-g32", 5, 32, false, Q5_0),
    EXACT("int5-g32-min", 5, 32, true, Q5_1),
    EXACT("q5_k", 5, 32, true, Q5_K),
    EXACT("int4-g32", 4, 32, false, Q4_0),
    EXACT("int4-g32-min", 4, 32, true, Q4_1),
    HELD("int4-g64", 4, 64, false, Q4_0),
    HELD("int4-g64-min", 4, 64, true, Q4_1),
    HELD("int4-g128", 4, 128, false, Q4_0),
    HELD("int4-g128-min", 4, 128, true, Q4_1),
    HELD("int4-channel", 4, ROW, false, Q4_0),
    HELD("int4-channel-min", 4, ROW, true, Q4_1),
    EXACT("q4_k", 4, 32, true, Q4_K),
    EXACT("iq4_nl", 4, 32, false, IQ4_NL),
    EXACT("iq4_xs", 4, 32, false, IQ4_XS),
    FOLDER("nf4", 4, 64, false, NF4),
    EXACT("q3_k", 3, 16, false, Q3_K),
    HELD("int3-g32", 3, 32, false, Q4_0),
    HELD("int3-g32-min", 3, 32, true, Q4_1),
    HELD("int3-g64", 3, 64, false, Q4_0),
    HELD("int3-g64-min", 3, 64, true, Q4_1),
    HELD("int3-g128", 3, 128, false, Q4_0),
    HELD("int3-g128-min", 3, 128, true, Q4_1),
    EXACT("q2_k", 2, 16, true, Q2_K),
    HELD("int2-g32", 2, 32, false, Q4_0),
    HELD("int2-g32-min", 2, 32, true, Q4_1),
    EXACT("int2-g64", 2, 64, false, Q2_0),
    HELD("int2-g64-min", 2, 64, true, Q4_1),
    HELD("int2-g128", 2, 128, false, Q2_0),
    HELD("int2-g128-min", 2, 128, true, Q4_1),
};

#define COUNT (sizeof(schemes) / sizeof(schemes[0]))

const struct nb_scheme *nb_schemes(size_t *ret_n)
{
    *ret_n = COUNT;
    return schemes;
}

const struct nb_scheme *nb_scheme_by_name(const char *name)
{
    const struct nb_type_info *info = nb_type_by_name(name);
    for (size_t i = 0; i < COUNT; i++)
        if (strcasecmp(schemes[i].name, name) == 0)
            return &schemes[i];
    return info ? nb_scheme_of_type(info->type) : NULL;
}

const struct nb_scheme *nb_scheme_of_type(uint32_t type)
{
    for (size_t i = 0; i < COUNT; i++)
        if (schemes[i].exact && schemes[i].type == type)
            return &schemes[i];
    return NULL;
}

uint64_t nb_scheme_group(const struct nb_scheme *s, uint64_t rows, uint64_t cols)
{
    const uint64_t group = s->group == TENSOR ? rows * cols : s->group;
    return s->group == ROW || (s->group != TENSOR && group > cols) ? cols : group;
}

double nb_scheme_bits(const struct nb_scheme *s, uint64_t rows, uint64_t cols)
{
    const uint64_t group = nb_scheme_group(s, rows, cols);
    if (s->exact)
        return nb_type_bits(s->type);
    const uint64_t groups = s->group == TENSOR ? 1 : rows * ((cols + group - 1) / group);
    const double each = s->type == NB_TYPE_F16 ? 32 + 8 : s->has_min ? 16 + 16 : 16;
    return s->bits + each * (double)groups / ((double)rows * (double)cols);
}

bool nb_scheme_has_zero(const struct nb_scheme *s)
{
    struct nb_shape shape;
    if (nb_shape_init(&shape, s->type) < 0) // floats; a zero point is a code
        return true;
    bool table = false;
    for (unsigned i = 0; shape.table && i < 16; i++)
        table = table || shape.value[i] == 0;
    return shape.table ? table : !shape.has_min;
}

void nb_scheme_codes(const struct nb_scheme *s, float *ret_low, float *ret_high)
{
    // In floats, which hold the half of an exact type's 32 bits too.
    const float half = ldexpf(0.5f, (int)s->bits);
    *ret_low = s->has_min ? 0 : -half;
    *ret_high = s->has_min ? 2 * half - 1 : half - 1;
}
