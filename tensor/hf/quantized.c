// Codes and the tensors beside them: see quantized.h.
#include "tensor/hf/quantized.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/block.h"
#include "tensor/fail.h"
#include "tensor/gguf_private.h"

#define STATE     "quant_state.bitsandbytes__nf4"
#define STATE_MAX 4096
#define STR(s)    (int)(s).len, (s).data

// ---- config.json

static bool is_nf4(const json_t *q)
{
    return nb_hf_is(nb_hf_str(q, "quant_method"), "bitsandbytes") &&
           nb_hf_bool(q, "load_in_4bit", false) &&
           nb_hf_is(nb_hf_str(q, "bnb_4bit_quant_type"), "nf4");
}

// One group of layers, whose weights are int8 with a scale for each row.
static bool is_int8(const json_t *q)
{
    const json_t *groups = json_object_get(q, "config_groups"), *weights = NULL;
    const struct nb_str format = nb_hf_str(q, "format");
    if (json_object_size(groups) == 1) {
        json_t *object = (json_t *)(uintptr_t)groups; // the iterator writes nothing
        weights = json_object_get(json_object_iter_value(json_object_iter(object)), "weights");
    }
    return nb_hf_is(nb_hf_str(q, "quant_method"), "compressed-tensors") &&
           (nb_hf_is(format, "int-quantized") || nb_hf_is(format, "naive-quantized")) &&
           nb_hf_id(weights, "num_bits") == 8 && nb_hf_is(nb_hf_str(weights, "type"), "int") &&
           nb_hf_bool(weights, "symmetric", false) &&
           nb_hf_is(nb_hf_str(weights, "strategy"), "channel");
}

int nb_hf_quantization(const struct nb_hf_config *c)
{
    char shown[NB_HF_SHOWN_MAX];
    const json_t *q = nb_hf_get(c->root, "quantization_config");
    if (!q || is_nf4(q) || is_int8(q))
        return 0;
    return NB_HF_FAIL(c, -ENOTSUP,
                      "quantization_config is %s, which Nibble does not read: NF4 of bitsandbytes "
                      "and INT8 by channels of compressed-tensors (int-quantized) are",
                      nb_hf_value(q, shown));
}

// ---- Tensors

struct reading {
    const struct nb_source *s;
    const struct nb_hf_config *c;
    struct nb_hf_shards *shards;
    const struct nb_hf_entry *e;
    struct nb_hf_matrix *m;
};

// The code once more, so that analyzers see that it is negative.
#define FAIL(r, code, format, ...)                                                                 \
    (nb_fail((r)->c->ret_error, code, "%s: tensor %.*s " format, (r)->s->files[(r)->e->file].name, \
             STR((r)->e->tensor->name), ##__VA_ARGS__),                                            \
     (code))

static struct nb_hf_entry *beside(const struct reading *r, const char *suffix)
{
    char name[NB_GGUF_MAX_NAME + 64];
    snprintf(name, sizeof(name), "%.*s%s", STR(r->e->tensor->name), suffix);
    struct nb_hf_entry *e = nb_hf_shards_find(r->shards, name);
    if (e)
        e->used = true;
    return e;
}

// A tensor beside it, of that dtype and so many elements.
static int take(const struct reading *r, const char *suffix, const char *dtype, uint64_t bytes,
                const struct nb_hf_entry **ret)
{
    const struct nb_hf_entry *e = beside(r, suffix);
    if (!e)
        return FAIL(r, -EINVAL, "lacks its %s", suffix + 1);
    if (strcmp(e->tensor->dtype, dtype) != 0 || e->tensor->bytes != bytes)
        return FAIL(r, -EINVAL, "has a %s of %s and %" PRIu64 " bytes, not of %s and %" PRIu64,
                    suffix + 1, e->tensor->dtype, e->tensor->bytes, dtype, bytes);
    *ret = e;
    return 0;
}

static int read_floats(const struct reading *r, const struct nb_hf_entry *e, float *dst, size_t n)
{
    int rc = nb_source_read_bytes(r->s, e->file, e->tensor->offset, n * sizeof(*dst),
                                  e->tensor->name, dst, r->c->ret_error);
    for (size_t i = 0; rc == 0 && i < n; i++)
        if (!isfinite(dst[i]))
            rc = FAIL(r, -EINVAL, "has a number in %.*s that is not finite", STR(e->tensor->name));
    return rc;
}

// ---- NF4

static int read_state(const struct reading *r, json_t **ret)
{
    char text[STATE_MAX];
    const struct nb_hf_entry *e = beside(r, "." STATE);
    if (!e)
        return FAIL(r, -ENOTSUP,
                    "is of dtype %s and lacks its " STATE
                    ": F32, F16, BF16, NF4 of bitsandbytes and INT8 of compressed-tensors are read",
                    r->e->tensor->dtype);
    if (e->tensor->bytes > sizeof(text) || strcmp(e->tensor->dtype, "U8") != 0)
        return FAIL(r, -EINVAL, "has a " STATE " that is no JSON of at most %d bytes", STATE_MAX);
    int rc = nb_source_read_bytes(r->s, e->file, e->tensor->offset, e->tensor->bytes,
                                  e->tensor->name, text, r->c->ret_error);
    return rc < 0
               ? rc
               : nb_hf_json((struct nb_str){text, e->tensor->bytes}, STATE, ret, r->c->ret_error);
}

static int read_shape(const struct reading *r, const json_t *state)
{
    const json_t *shape = json_object_get(state, "shape");
    const int64_t each = nb_hf_id(state, "blocksize");
    for (unsigned d = 0; d < 2; d++) {
        const json_int_t n = json_integer_value(json_array_get(shape, d));
        if (json_array_size(shape) != 2 || n < 1 || n > INT32_MAX)
            return FAIL(r, -EINVAL, "has a quant_state without a shape of two dimensions");
        r->m->shape[d] = (uint64_t)n;
    }
    if (r->m->shape[0] * r->m->shape[1] != 2 * r->e->tensor->bytes)
        return FAIL(r, -EINVAL,
                    "has %" PRIu64 " bytes, not two codes in each for %" PRIu64 " by %" PRIu64,
                    r->e->tensor->bytes, r->m->shape[0], r->m->shape[1]);
    if (!nb_hf_is(nb_hf_str(state, "quant_type"), "nf4") || each < 64 || each > 4096 || each % 64)
        return FAIL(r, -ENOTSUP, "is not NF4 in blocks of a multiple of 64");
    if (r->m->shape[1] % 64)
        return FAIL(r, -ENOTSUP,
                    "has rows of %" PRIu64 " elements, and NF4 is read where rows are whole blocks "
                    "of 64",
                    r->m->shape[1]);
    r->m->scales->each = (uint64_t)each;
    return 0;
}

static int check_values(const struct reading *r)
{
    float values[16] = {0};
    const struct nb_hf_entry *e = NULL;
    int rc = take(r, ".quant_map", "F32", sizeof(values), &e);
    if (rc == 0)
        rc = read_floats(r, e, values, 16);
    for (size_t i = 0; rc == 0 && i < 16; i++)
        if (values[i] != nb_nf4_values[i])
            rc = FAIL(r, -ENOTSUP, "has a quant_map of other values than NF4's");
    return rc;
}

static int read_nested(const struct reading *r, const json_t *state, uint64_t n)
{
    struct nb_scales *s = r->m->scales;
    const int64_t each = nb_hf_id(state, "nested_blocksize");
    const json_t *shift = json_object_get(state, "nested_offset");
    const struct nb_hf_entry *e = NULL;
    if (each < 1 || !json_is_number(shift) || !isfinite((float)json_number_value(shift)))
        return FAIL(r, -EINVAL, "has nested scales without a nested_blocksize or nested_offset");
    s->nested = true;
    s->nested_each = (uint64_t)each;
    s->shift = (float)json_number_value(shift);
    int rc = take(r, ".nested_quant_map", "F32", sizeof(s->map), &e);
    if (rc == 0)
        rc = read_floats(r, e, s->map, 256);
    if (rc == 0)
        rc = take(r, ".nested_absmax", "F32", ((n - 1) / s->nested_each + 1) * sizeof(float), &e);
    if (rc < 0)
        return rc;
    s->nested_file = e->file;
    s->nested_offset = e->tensor->offset;
    return 0;
}

static int read_nf4(const struct reading *r, const json_t *state)
{
    struct nb_scales *s = r->m->scales;
    const struct nb_hf_entry *e = NULL;
    int rc = read_shape(r, state);
    if (rc == 0)
        rc = check_values(r);
    if (rc < 0)
        return rc;
    const uint64_t n = (2 * r->e->tensor->bytes - 1) / s->each + 1;
    const bool nested = nb_hf_get(state, "nested_offset") != NULL;
    rc = take(r, ".absmax", nested ? "U8" : "F32", nested ? n : n * sizeof(float), &e);
    if (rc == 0 && nested)
        rc = read_nested(r, state, n);
    if (rc < 0)
        return rc;
    s->type = NB_TYPE_F32;
    s->file = e->file;
    s->offset = e->tensor->offset;
    r->m->type = NB_TYPE_NF4;
    return 0;
}

// ---- INT8

static int read_int8(const struct reading *r)
{
    const struct nb_safetensor *t = r->e->tensor;
    struct nb_scales *s = r->m->scales;
    const struct nb_hf_entry *e = beside(r, "_scale");
    if (t->n_dims != 2 || t->shape[1] % 32 || !t->bytes)
        return FAIL(r, -ENOTSUP, "is int8 with rows that are no whole blocks of 32 elements");
    if (!e || !e->tensor->loadable ||
        e->tensor->bytes != t->shape[0] * nb_type_info(e->tensor->type)->bytes)
        return FAIL(r, -EINVAL, "is int8 and lacks its weight_scale of a float for each row");
    memcpy(r->m->shape, t->shape, sizeof(r->m->shape));
    s->each = t->shape[1];
    s->type = e->tensor->type;
    s->file = e->file;
    s->offset = e->tensor->offset;
    r->m->type = NB_TYPE_INT8;
    return 0;
}

int nb_hf_quantized(const struct nb_source *s, const struct nb_hf_config *c,
                    struct nb_hf_shards *shards, const struct nb_hf_entry *e,
                    struct nb_hf_matrix *ret)
{
    struct nb_hf_matrix m = {.n_dims = 2, .scales = calloc(1, sizeof(*m.scales))};
    const struct reading r = {s, c, shards, e, &m};
    json_t *state = NULL;
    int rc = m.scales ? 0 : FAIL(&r, -ENOMEM, "finds no memory for its scales");
    if (rc == 0 && !strcmp(e->tensor->dtype, "I8")) {
        rc = read_int8(&r);
    } else if (rc == 0) {
        rc = read_state(&r, &state);
        rc = rc < 0 ? rc : read_nf4(&r, state);
    }
    json_decref(state);
    if (rc < 0)
        free(m.scales);
    else
        *ret = m;
    return rc;
}
