// See rounding.h.
#include "quant/rounding.h"

#include <stdio.h>
#include <string.h>

#include "quant/encode.h"
#include "tensor/type.h"

#define F16_MOST 0x477fe000u // 65504, the most of a weight, and of a scale, which is less

bool nb_rounding_has(uint32_t type)
{
    const struct nb_type_info *info = nb_type_info(type);
    return info && type < NB_TYPE_GGUF_END && nb_encoded_bytes(type, 1, info->block) > 0;
}

const char *nb_rounding_list(char ret[NB_ROUNDING_LIST])
{
    size_t at = 0;
    *ret = 0;
    for (uint32_t t = 0; t < NB_TYPE_GGUF_END && at < NB_ROUNDING_LIST; t++)
        if (nb_rounding_has(t))
            at += (size_t)snprintf(ret + at, NB_ROUNDING_LIST - at, "%s%s", at ? ", " : "",
                                   nb_type_name(t));
    return ret;
}

int nb_rounding_rows(uint32_t type, const float *src, uint64_t n, uint64_t cols, void *dst)
{
    const struct nb_type_info *info = nb_type_info(type);
    const struct nb_encode how = {.type = type};
    if (!info->quantize)
        return nb_encode_rows(&how, src, n, cols, dst);
    info->quantize(src, dst, n * cols / info->block);
    return 0;
}

// By their bits, which compilers do many at a time.
bool nb_rounding_is_risky(uint32_t type, const float *src, uint64_t n)
{
    uint32_t risky = 0, bits;
    for (uint64_t i = 0; i < n; i++) {
        memcpy(&bits, &src[i], sizeof(bits));
        risky |= (bits & 0x7fffffff) > F16_MOST;
    }
    return risky && type != NB_TYPE_F32 && type != NB_TYPE_BF16;
}
