// Questions to an open GGUF file. Everything was checked when it was read: gguf_read.c.
#include "tensor/gguf.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "tensor/gguf_private.h"

static const uint8_t element_bytes[] = {
    [NB_GGUF_U8] = 1,  [NB_GGUF_I8] = 1,  [NB_GGUF_U16] = 2, [NB_GGUF_I16] = 2,
    [NB_GGUF_U32] = 4, [NB_GGUF_I32] = 4, [NB_GGUF_F32] = 4, [NB_GGUF_BOOL] = 1,
    [NB_GGUF_U64] = 8, [NB_GGUF_I64] = 8, [NB_GGUF_F64] = 8,
};

size_t nb_gguf_element_bytes(uint32_t type)
{
    return type < sizeof(element_bytes) ? element_bytes[type] : 0;
}

const void *nb_gguf_metadata(const struct nb_gguf *g, size_t *ret_len)
{
    *ret_len = g->metadata_len;
    return g->bytes;
}

uint64_t nb_gguf_n_tensors(const struct nb_gguf *g)
{
    return g->n_tensors;
}

const struct nb_gguf_tensor *nb_gguf_tensor(const struct nb_gguf *g, uint64_t i)
{
    return i < g->n_tensors ? &g->tensors[i] : NULL;
}

const struct nb_gguf_tensor *nb_gguf_find_tensor(const struct nb_gguf *g, const char *name)
{
    int64_t i = nb_names_find(&g->names, name);
    return i < 0 ? NULL : &g->tensors[i];
}

static const struct nb_gguf_pair *find(const struct nb_gguf *g, const char *key)
{
    int64_t i = nb_names_find(&g->keys, key);
    return i < 0 ? NULL : &g->pairs[i];
}

// Element i of an integer type: negative numbers in two's complement, told by ret_negative. False
// for other types.
static bool integer_of(const struct nb_gguf_pair *p, uint64_t i, uint64_t *ret, bool *ret_negative)
{
    size_t bytes = nb_gguf_element_bytes(p->element);
    uint64_t v = 0;
    memcpy(&v, p->data + i * bytes, bytes);
    switch (p->element) {
    case NB_GGUF_I8:
        v = (uint64_t)(int8_t)v;
        break;
    case NB_GGUF_I16:
        v = (uint64_t)(int16_t)v;
        break;
    case NB_GGUF_I32:
        v = (uint64_t)(int32_t)v;
        break;
    case NB_GGUF_I64:
        break;
    case NB_GGUF_U8:
    case NB_GGUF_U16:
    case NB_GGUF_U32:
    case NB_GGUF_U64:
        *ret_negative = false;
        *ret = v;
        return true;
    default:
        return false;
    }
    *ret_negative = (int64_t)v < 0;
    *ret = v;
    return true;
}

static bool float_of(const struct nb_gguf_pair *p, uint64_t i, double *ret)
{
    float f;
    if (p->element == NB_GGUF_F64) {
        memcpy(ret, p->data + 8 * i, 8);
    } else if (p->element == NB_GGUF_F32) {
        memcpy(&f, p->data + 4 * i, 4);
        *ret = (double)f;
    } else {
        return false;
    }
    return true;
}

// Element i as an integer, of whatever type it is: a float where it has a whole value, up to where
// its neighbours are whole too.
static bool whole_of(const struct nb_gguf_pair *p, uint64_t i, uint64_t *ret, bool *ret_negative)
{
    double d;
    if (integer_of(p, i, ret, ret_negative))
        return true;
    if (!float_of(p, i, &d) || !(fabs(d) < 0x1p53) || d != (double)(int64_t)d)
        return false;
    *ret_negative = d < 0;
    *ret = (uint64_t)(int64_t)d;
    return true;
}

static bool number_of(const struct nb_gguf_pair *p, uint64_t i, double *ret)
{
    uint64_t v;
    bool negative;
    if (float_of(p, i, ret))
        return true;
    if (!integer_of(p, i, &v, &negative))
        return false;
    *ret = negative ? (double)(int64_t)v : (double)v;
    return true;
}

static struct nb_str string_at(const uint8_t *p)
{
    uint64_t len;
    memcpy(&len, p, sizeof(len));
    return (struct nb_str){(const char *)p + sizeof(len), len};
}

// The pair, if it is a scalar (or, with `array`, an array that has an element i).
static int element(const struct nb_gguf *g, const char *key, bool array, uint64_t i,
                   const struct nb_gguf_pair **ret)
{
    const struct nb_gguf_pair *p = find(g, key);
    if (!p)
        return -ENOENT;
    if ((p->type == NB_GGUF_ARRAY) != array || i >= p->n)
        return -EINVAL;
    *ret = p;
    return 0;
}

int nb_gguf_u64(const struct nb_gguf *g, const char *key, uint64_t *ret)
{
    const struct nb_gguf_pair *p;
    uint64_t v;
    bool negative;
    int rc = element(g, key, false, 0, &p);
    if (rc < 0)
        return rc;
    if (!whole_of(p, 0, &v, &negative) || negative)
        return -EINVAL;
    *ret = v;
    return 0;
}

int nb_gguf_f64(const struct nb_gguf *g, const char *key, double *ret)
{
    const struct nb_gguf_pair *p;
    int rc = element(g, key, false, 0, &p);
    if (rc < 0)
        return rc;
    return number_of(p, 0, ret) ? 0 : -EINVAL;
}

int nb_gguf_bool(const struct nb_gguf *g, const char *key, bool *ret)
{
    const struct nb_gguf_pair *p;
    int rc = element(g, key, false, 0, &p);
    if (rc < 0)
        return rc;
    if (p->element != NB_GGUF_BOOL)
        return -EINVAL;
    *ret = p->data[0];
    return 0;
}

int nb_gguf_str(const struct nb_gguf *g, const char *key, struct nb_str *ret)
{
    const struct nb_gguf_pair *p;
    int rc = element(g, key, false, 0, &p);
    if (rc < 0)
        return rc;
    if (p->element != NB_GGUF_STRING)
        return -EINVAL;
    *ret = string_at(p->data);
    return 0;
}

int nb_gguf_array(const struct nb_gguf *g, const char *key, enum nb_gguf_type *ret_type,
                  uint64_t *ret_n)
{
    const struct nb_gguf_pair *p = find(g, key);
    if (!p)
        return -ENOENT;
    if (p->type != NB_GGUF_ARRAY)
        return -EINVAL;
    *ret_type = p->element;
    *ret_n = p->n;
    return 0;
}

int nb_gguf_array_str(const struct nb_gguf *g, const char *key, uint64_t i, struct nb_str *ret)
{
    const struct nb_gguf_pair *p;
    int rc = element(g, key, true, i, &p);
    if (rc < 0)
        return rc;
    if (p->element != NB_GGUF_STRING)
        return -EINVAL;
    *ret = string_at(p->data + p->strings[i]);
    return 0;
}

bool nb_gguf_same_strings(const struct nb_gguf *a, const struct nb_gguf *b, const char *key)
{
    enum nb_gguf_type type;
    uint64_t n = 0, other = 0;
    bool same = nb_gguf_array(a, key, &type, &n) == 0 &&
                nb_gguf_array(b, key, &type, &other) == 0 && n == other;
    for (uint64_t i = 0; i < n && same; i++) {
        struct nb_str x, y;
        same = nb_gguf_array_str(a, key, i, &x) == 0 && nb_gguf_array_str(b, key, i, &y) == 0 &&
               x.len == y.len && !memcmp(x.data, y.data, x.len);
    }
    return same;
}

int nb_gguf_array_bool(const struct nb_gguf *g, const char *key, uint64_t i, bool *ret)
{
    const struct nb_gguf_pair *p;
    int rc = element(g, key, true, i, &p);
    if (rc < 0)
        return rc;
    if (p->element != NB_GGUF_BOOL)
        return -EINVAL;
    *ret = p->data[i];
    return 0;
}

int nb_gguf_array_f64(const struct nb_gguf *g, const char *key, uint64_t i, double *ret)
{
    const struct nb_gguf_pair *p;
    int rc = element(g, key, true, i, &p);
    if (rc < 0)
        return rc;
    return number_of(p, i, ret) ? 0 : -EINVAL;
}

int nb_gguf_array_i64(const struct nb_gguf *g, const char *key, uint64_t i, int64_t *ret)
{
    const struct nb_gguf_pair *p;
    uint64_t v;
    bool negative;
    int rc = element(g, key, true, i, &p);
    if (rc < 0)
        return rc;
    if (!whole_of(p, i, &v, &negative) || (!negative && v > INT64_MAX))
        return -EINVAL;
    *ret = (int64_t)v;
    return 0;
}

uint64_t nb_gguf_n_keys(const struct nb_gguf *g)
{
    return g->n_pairs;
}

struct nb_str nb_gguf_key(const struct nb_gguf *g, uint64_t i, enum nb_gguf_type *ret_type)
{
    *ret_type = g->pairs[i].type;
    return g->pairs[i].key;
}

struct nb_str nb_gguf_pair_bytes(const struct nb_gguf *g, uint64_t i)
{
    const struct nb_gguf_pair *p = &g->pairs[i];
    return (struct nb_str){(const char *)p->raw, (size_t)(p->raw_end - p->raw)};
}
