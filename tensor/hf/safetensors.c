// The header of a safetensors file: see safetensors.h.
#include "tensor/hf/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/fail.h"
#include "tensor/gguf_private.h"

#define HEADER_MAX ((uint64_t)16 << 20) // 65536 tensors take some 10 MiB

// What the format has; those of the first three rows are loaded.
static const struct dtype {
    const char *name;
    uint32_t bits;
    uint32_t type;
    bool loadable;
} dtypes[] = {
    {"F32", 32, NB_TYPE_F32, true},
    {"F16", 16, NB_TYPE_F16, true},
    {"BF16", 16, NB_TYPE_BF16, true},
    {"F64", 64, 0, false},
    {"C64", 64, 0, false},
    {"I64", 64, 0, false},
    {"U64", 64, 0, false},
    {"I32", 32, 0, false},
    {"U32", 32, 0, false},
    {"I16", 16, 0, false},
    {"U16", 16, 0, false},
    {"I8", 8, 0, false},
    {"U8", 8, 0, false},
    {"BOOL", 8, 0, false},
    {"F8_E4M3", 8, 0, false},
    {"F8_E5M2", 8, 0, false},
    {"F8_E8M0", 8, 0, false},
    {"F6_E2M3", 6, 0, false},
    {"F6_E3M2", 6, 0, false},
    {"F4", 4, 0, false},
};

struct reader {
    const char *file;
    uint64_t data, size; // where the bytes begin, and the file's
    struct nb_error *ret_error;
};

#define FAIL(r, code, format, ...)                                                                 \
    nb_fail((r)->ret_error, code, "%s: " format, (r)->file, ##__VA_ARGS__)
#define STR(s) (int)(s).len, (s).data

void nb_safetensors_finish(struct nb_safetensors *s)
{
    json_decref(s->header);
    free(s->tensors);
    *s = (struct nb_safetensors){0};
}

static int read_bytes(const struct reader *r, int fd, void *dst, size_t len, uint64_t at)
{
    uint8_t *p = dst;
    while (len) {
        ssize_t n = pread(fd, p, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return FAIL(r, n < 0 ? -errno : -EINVAL, "cannot read at byte %" PRIu64 ": %s", at,
                        n < 0 ? strerror(errno) : "the file became shorter");
        p += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int read_header(struct reader *r, int fd, json_t **ret)
{
    struct stat st;
    uint64_t len = 0;
    if (fstat(fd, &st) < 0)
        return FAIL(r, -errno, "fstat: %s", strerror(errno));
    r->size = (uint64_t)st.st_size;
    if (!S_ISREG(st.st_mode) || r->size < sizeof(len))
        return FAIL(r, -EINVAL, "not a regular file of at least %zu bytes", sizeof(len));
    int rc = read_bytes(r, fd, &len, sizeof(len), 0);
    if (rc < 0)
        return rc;
    if (len > r->size - sizeof(len))
        return FAIL(r, -EINVAL,
                    "truncated, or no safetensors file: its header would have %" PRIu64
                    " bytes, the file has %" PRIu64,
                    len, r->size);
    if (len > HEADER_MAX)
        return FAIL(r, -EFBIG, "its header has %" PRIu64 " bytes; the limit is %" PRIu64, len,
                    HEADER_MAX);
    char *text = malloc(len + 1);
    if (!text)
        return FAIL(r, -ENOMEM, "no memory for its header");
    rc = read_bytes(r, fd, text, len, sizeof(len));
    if (rc == 0)
        rc = nb_hf_json((struct nb_str){text, len}, r->file, ret, r->ret_error);
    free(text);
    r->data = sizeof(len) + len;
    return rc;
}

static const struct dtype *find_dtype(struct nb_str name)
{
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
        if (nb_hf_is(name, dtypes[i].name))
            return &dtypes[i];
    return NULL;
}

// A whole number from 0 to `max`.
static bool whole(const json_t *value, uint64_t max, uint64_t *ret)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) > max)
        return false;
    *ret = (uint64_t)json_integer_value(value);
    return true;
}

static int read_shape(const struct reader *r, const json_t *shape, struct nb_safetensor *t,
                      uint64_t *ret_elements)
{
    uint64_t elements = 1;
    if (!json_is_array(shape) || json_array_size(shape) > NB_SAFETENSORS_DIMS)
        return FAIL(r, -EINVAL, "tensor %.*s: its shape is no list of at most %d numbers",
                    STR(t->name), NB_SAFETENSORS_DIMS);
    t->n_dims = (uint32_t)json_array_size(shape);
    for (uint32_t d = 0; d < t->n_dims; d++)
        if (!whole(json_array_get(shape, d), INT64_MAX, &t->shape[d]) ||
            __builtin_mul_overflow(elements, t->shape[d], &elements))
            return FAIL(r, -EINVAL, "tensor %.*s: its shape has no size", STR(t->name));
    *ret_elements = elements;
    return 0;
}

// From offsets in the data to offsets in the file; the bytes must be those of the shape.
static int read_offsets(const struct reader *r, const json_t *offsets, struct nb_safetensor *t,
                        uint64_t bits)
{
    uint64_t begin, end;
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !whole(json_array_get(offsets, 0), INT64_MAX, &begin) ||
        !whole(json_array_get(offsets, 1), INT64_MAX, &end) || begin > end)
        return FAIL(r, -EINVAL, "tensor %.*s: its data_offsets are no pair of offsets",
                    STR(t->name));
    if (end > r->size - r->data)
        return FAIL(r, -EINVAL,
                    "truncated: tensor %.*s ends at byte %" PRIu64 " of the data, the data at "
                    "%" PRIu64,
                    STR(t->name), end, r->size - r->data);
    if (bits % 8 || bits / 8 != end - begin)
        return FAIL(r, -EINVAL,
                    "tensor %.*s has %" PRIu64 " bytes by its offsets, and other ones by its shape "
                    "and dtype",
                    STR(t->name), end - begin);
    t->offset = r->data + begin;
    t->bytes = end - begin;
    return 0;
}

static int read_tensor(const struct reader *r, const char *name, const json_t *entry,
                       struct nb_safetensor *t)
{
    char shown[NB_HF_SHOWN_MAX];
    uint64_t elements = 0, bits;
    t->name = (struct nb_str){name, strlen(name)};
    if (!nb_name_ok(t->name) || t->name.len > NB_GGUF_MAX_NAME)
        return FAIL(r, -EINVAL,
                    "a tensor's name is empty, longer than %d bytes, or has control "
                    "characters",
                    NB_GGUF_MAX_NAME);
    const json_t *shape = json_object_get(entry, "shape");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const struct nb_str dtype = nb_hf_str(entry, "dtype");
    if (!dtype.data || !shape || !offsets || json_object_size(entry) != 3)
        return FAIL(r, -EINVAL, "tensor %.*s has not just a dtype, a shape and data_offsets",
                    STR(t->name));
    const struct dtype *d = find_dtype(dtype);
    if (!d)
        return FAIL(r, -ENOTSUP, "tensor %.*s has the unknown dtype %s", STR(t->name),
                    nb_hf_shown(dtype, shown));
    t->dtype = d->name;
    t->type = d->type;
    t->loadable = d->loadable;
    int rc = read_shape(r, shape, t, &elements);
    if (rc < 0)
        return rc;
    if (__builtin_mul_overflow(elements, (uint64_t)d->bits, &bits))
        return FAIL(r, -EINVAL, "tensor %.*s: its size overflows", STR(t->name));
    return read_offsets(r, offsets, t, bits);
}

static int by_offset(const void *a, const void *b)
{
    const struct nb_safetensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); // empty ones first
}

// Every byte of the data belongs to one tensor.
static int check_order(const struct reader *r, const struct nb_safetensors *s)
{
    uint64_t end = r->data;
    for (uint32_t i = 0; i < s->n; i++) {
        const struct nb_safetensor *t = &s->tensors[i];
        if (t->offset != end)
            return FAIL(r, -EINVAL, "tensor %.*s %s", STR(t->name),
                        t->offset < end ? "overlaps with another one"
                                        : "comes behind a hole in the data");
        end = t->offset + t->bytes;
    }
    if (end != r->size)
        return FAIL(r, -EINVAL, "%" PRIu64 " bytes follow the last tensor", r->size - end);
    return 0;
}

static int read_tensors(const struct reader *r, struct nb_safetensors *s)
{
    const char *name;
    json_t *entry;
    const size_t n = json_object_size(s->header);
    if (n > NB_GGUF_MAX_TENSORS)
        return FAIL(r, -EFBIG, "%zu tensors; the limit is %d", n, NB_GGUF_MAX_TENSORS);
    s->tensors = calloc(n + 1, sizeof(*s->tensors));
    if (!s->tensors)
        return FAIL(r, -ENOMEM, "no memory for %zu tensors", n);
    json_object_foreach(s->header, name, entry) {
        if (!strcmp(name, "__metadata__"))
            continue;
        int rc = read_tensor(r, name, entry, &s->tensors[s->n]);
        if (rc < 0)
            return rc;
        s->n++;
    }
    qsort(s->tensors, s->n, sizeof(*s->tensors), by_offset);
    return check_order(r, s);
}

int nb_safetensors_open(int fd, const char *file, struct nb_safetensors *ret,
                        struct nb_error *ret_error)
{
    struct reader r = {.file = file};
    r.ret_error = ret_error;
    struct nb_safetensors s = {0};
    int rc = read_header(&r, fd, &s.header);
    if (rc == 0)
        rc = read_tensors(&r, &s);
    if (rc < 0)
        nb_safetensors_finish(&s);
    else
        *ret = s;
    return rc;
}
