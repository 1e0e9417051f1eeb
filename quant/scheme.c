// The table of schemes. A scheme whose groups are larger than a type's is not that type: the file
// would hold a scale more often than the scheme has one.
#include "quant/scheme.h"

#include <strings.h>

#include "tensor/type.h"

#define NONE(name, bits, group, min, instead)                                                      \
    {                                                                                              \
        name, bits, group, min, NB_TYPE_END, instead                                               \
    }

static const struct nb_scheme schemes[] = {
    {"int8-g32", 8, 32, false, NB_TYPE_Q8_0, NULL},
    NONE("int8-g64", 8, 64, false, "Q8_0 has groups of 32"),
    NONE("int8-g128", 8, 128, false, "Q8_0 has groups of 32"),
    NONE("int8-channel", 8, 0, false, "Q8_0 has a scale for each 32 weights of a row"),
    NONE("int8-tensor", 8, 0, false, "Q8_0 has a scale for each 32 weights of a row"),
    NONE("int8-channel-min", 8, 0, true, "no 8-bit type has a minimum; Q8_0 is symmetric"),
    NONE("int8-tensor-min", 8, 0, true, "no 8-bit type has a minimum; Q8_0 is symmetric"),
    {"q6_k", 6, 16, false, NB_TYPE_Q6_K, NULL},
    {"int5-g32", 5, 32, false, NB_TYPE_Q5_0, NULL},
    {"int5-g32-min", 5, 32, true, NB_TYPE_Q5_1, NULL},
    {"q5_k", 5, 32, true, NB_TYPE_Q5_K, NULL},
    {"int4-g32", 4, 32, false, NB_TYPE_Q4_0, NULL},
    {"int4-g32-min", 4, 32, true, NB_TYPE_Q4_1, NULL},
    NONE("int4-g64", 4, 64, false, "Q4_0 has groups of 32"),
    NONE("int4-g64-min", 4, 64, true, "Q4_1 has groups of 32"),
    NONE("int4-g128", 4, 128, false, "Q4_0 has groups of 32"),
    NONE("int4-g128-min", 4, 128, true, "Q4_1 has groups of 32"),
    {"q4_k", 4, 32, true, NB_TYPE_Q4_K, NULL},
    {"iq4_nl", 4, 32, false, NB_TYPE_IQ4_NL, NULL},
    {"iq4_xs", 4, 32, false, NB_TYPE_IQ4_XS, NULL},
    NONE("nf4", 4, 64, false, "IQ4_NL has sixteen other levels, and groups of 32"),
    {"q3_k", 3, 16, false, NB_TYPE_Q3_K, NULL},
    NONE("int3-g32", 3, 32, false, "Q3_K has groups of 16 in super-blocks of 256"),
    NONE("int3-g64", 3, 64, false, "Q3_K has groups of 16 in super-blocks of 256"),
    NONE("int3-g128", 3, 128, false, "Q3_K has groups of 16 in super-blocks of 256"),
    NONE("int3-g32-min", 3, 32, true,
         "Q3_K is symmetric, with groups of 16 in super-blocks of 256"),
    {"q2_k", 2, 16, true, NB_TYPE_Q2_K, NULL},
    {"int2-g64", 2, 64, false, NB_TYPE_Q2_0, NULL},
    NONE("int2-g32", 2, 32, false, "Q2_0 has groups of 64"),
    NONE("int2-g128", 2, 128, false, "Q2_0 has groups of 64"),
    NONE("int2-g32-min", 2, 32, true, "Q2_K has groups of 16 in super-blocks of 256"),
};

const struct nb_scheme *nb_schemes(size_t *ret_n)
{
    *ret_n = sizeof(schemes) / sizeof(schemes[0]);
    return schemes;
}

const struct nb_scheme *nb_scheme_by_name(const char *name)
{
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
        if (strcasecmp(schemes[i].name, name) == 0)
            return &schemes[i];
    return NULL;
}
