// Rows of INT8 and NF4, whose codes and scales a folder keeps apart, put together as blocks
// (single.c).
#include <errno.h>
#include <stdlib.h>

#include "tensor/block.h"
#include "tensor/fail.h"
#include "tensor/source.h"

struct reading {
    const struct nb_source *s;
    const struct nb_piece *piece;
    struct nb_error *ret_error;
};

static int read_bytes(const struct reading *r, uint32_t file, uint64_t at, size_t len, void *dst)
{
    return nb_source_read_bytes(r->s, file, at, len, r->piece->name, dst, r->ret_error);
}

static int no_memory(const struct reading *r)
{
    nb_fail(r->ret_error, -ENOMEM, "no memory for a tensor's scales");
    return -ENOMEM; // so that analyzers see that it is negative
}

// Scales [first, first + n) of the piece that stand as floats.
static int read_plain(const struct reading *r, uint64_t first, uint64_t n, float *dst)
{
    const struct nb_scales *s = r->piece->scales;
    const struct nb_type_info *info = nb_type_info(s->type);
    uint8_t *stored = malloc(n * info->bytes);
    if (!stored)
        return no_memory(r);
    int rc = read_bytes(r, s->file, s->offset + first * info->bytes, n * info->bytes, stored);
    if (rc == 0)
        info->dequantize(stored, dst, n);
    free(stored);
    return rc;
}

static int read_nested(const struct reading *r, uint64_t first, uint64_t n, float *dst)
{
    const struct nb_scales *s = r->piece->scales;
    const uint64_t outer = first / s->nested_each, end = (first + n - 1) / s->nested_each + 1;
    uint8_t *codes = malloc(n);
    float *scales = malloc((end - outer) * sizeof(*scales));
    int rc = codes && scales ? 0 : no_memory(r);
    if (rc == 0)
        rc = read_bytes(r, s->file, s->offset + first, n, codes);
    if (rc == 0)
        rc = read_bytes(r, s->nested_file, s->nested_offset + outer * sizeof(*scales),
                        (end - outer) * sizeof(*scales), scales);
    for (uint64_t i = 0; rc == 0 && i < n; i++) {
        const float scaled = s->map[codes[i]] * scales[(first + i) / s->nested_each - outer];
        dst[i] = scaled + s->shift;
    }
    free(codes);
    free(scales);
    return rc;
}

int nb_source_read_scaled(const struct nb_source *s, const struct nb_source_tensor *t,
                          const struct nb_piece *piece, uint64_t first, uint64_t n, void *dst,
                          struct nb_error *ret_error)
{
    struct reading r = {.s = s, .piece = piece};
    const struct nb_scales *scales = piece->scales;
    const struct nb_type_info *info = nb_type_info(t->stored);
    const size_t row = nb_source_stored_bytes(t), codes = info->bytes - sizeof(float);
    const uint64_t begin = first * t->dims[0], elements = n * t->dims[0];
    const uint64_t outer = begin / scales->each, end = (begin + elements - 1) / scales->each + 1;
    uint8_t *in = malloc(n * row), *out = dst;
    float *d = malloc((end - outer) * sizeof(*d));
    r.ret_error = ret_error;
    int rc = in && d ? 0 : no_memory(&r);
    if (rc == 0)
        rc = read_bytes(&r, piece->file, piece->offset + first * row, n * row, in);
    if (rc == 0)
        rc = scales->nested ? read_nested(&r, outer, end - outer, d)
                            : read_plain(&r, outer, end - outer, d);
    for (uint64_t i = 0; rc == 0 && i < elements / info->block; i++, out += info->bytes) {
        memcpy(out, &d[(begin + i * info->block) / scales->each - outer], sizeof(*d));
        memcpy(out + sizeof(*d), in + i * codes, codes);
    }
    free(in);
    free(d);
    return rc;
}
