// See adapters.h.
#include "tensor/adapters.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/type.h"

#define SCALE  1e3 // at most, either way
#define STR(s) (int)(s).len, (s).data

// What one adapter adds to one matrix.
struct term {
    uint32_t rank;
    float by;     // scale * alpha / rank
    float *a, *b; // [rank][cols], [rows][rank]
    struct term *next;
};

struct adapted {
    struct nb_source_tensor plain; // as it was
    struct term *first;
};

struct adapters {
    struct nb_source plain; // as it was; only its rows are read
    struct adapted *tensors;
    uint32_t n_tensors;
};

// An adapter while it is read.
struct reading {
    struct nb_source *base, *s;
    struct adapters *all;
    const char *name; // for errors
    double scale, alpha;
    struct nb_error *error;
};

__attribute__((format(printf, 3, 4))) static int fail(const struct reading *rd, int rc,
                                                      const char *format, ...)
{
    char text[sizeof(rd->error->text)];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return nb_fail(rd->error, rc, "the adapter %.60s%s", rd->name, text);
}

bool nb_is_adapter_file(const struct nb_source_file *file)
{
    return !strncmp(file->name, NB_ADAPTER_FILE, sizeof(NB_ADAPTER_FILE) - 1);
}

static void free_adapters(void *kept)
{
    struct adapters *all = kept;
    for (uint32_t i = 0; i < all->n_tensors; i++)
        for (struct term *t = all->tensors[i].first, *next; t; t = next) {
            next = t->next;
            free(t->a);
            free(t->b);
            free(t);
        }
    free(all->tensors);
    if (all->plain.free_kept)
        all->plain.free_kept(all->plain.kept);
    free(all);
}

// ---- Rows

static void add_term(const struct term *t, uint64_t first, uint64_t n, uint64_t cols, float *dst)
{
    for (uint64_t row = 0; row < n; row++)
        for (uint32_t k = 0; k < t->rank; k++) {
            const float by = t->by * t->b[(first + row) * t->rank + k];
            for (uint64_t i = 0; i < cols; i++)
                dst[row * cols + i] += by * t->a[k * cols + i];
        }
}

static int read_adapted(const struct adapters *all, const struct adapted *of, uint64_t first,
                        uint64_t n, float *dst, struct nb_error *ret_error)
{
    const struct nb_source_tensor *t = &of->plain;
    const struct nb_type_info *info = nb_type_info(t->type);
    void *raw = malloc(n * nb_source_row_bytes(t));
    if (!raw)
        return nb_fail(ret_error, -ENOMEM, "no memory for %" PRIu64 " adapted rows", n);
    int rc = nb_source_read(&all->plain, t, first, n, raw, ret_error);
    if (rc == 0) {
        info->dequantize(raw, dst, n * t->dims[0] / info->block);
        for (const struct term *term = of->first; term; term = term->next)
            add_term(term, first, n, t->dims[0], dst);
    }
    free(raw);
    return rc;
}

static struct adapted *find(const struct adapters *all, struct nb_str name)
{
    for (uint32_t i = 0; i < all->n_tensors; i++)
        if (all->tensors[i].plain.name.len == name.len &&
            !memcmp(all->tensors[i].plain.name.data, name.data, name.len))
            return &all->tensors[i];
    return NULL;
}

// By its name: whoever asks may have a list of tensors of his own.
static int on_read(void *user, const struct nb_source_tensor *t, uint64_t first, uint64_t n,
                   void *dst, struct nb_error *ret_error)
{
    const struct adapters *all = user;
    const struct adapted *of = find(all, t->name);
    return of ? read_adapted(all, of, first, n, dst, ret_error)
              : nb_source_read(&all->plain, t, first, n, dst, ret_error);
}

// ---- An adapter's file

static int expect(const struct reading *rd, const char *key, struct nb_str wanted)
{
    struct nb_str is = {"nothing", 7};
    (void)nb_gguf_str(rd->s->metadata, key, &is);
    if (is.len == wanted.len && !memcmp(is.data, wanted.data, is.len))
        return 0;
    return fail(rd, -EINVAL, ": its %s is %.*s and not %.*s", key, (int)(is.len < 40 ? is.len : 40),
                is.data, STR(wanted));
}

static int check_metadata(struct reading *rd)
{
    struct nb_str arch = {"", 0};
    (void)nb_gguf_str(rd->base->metadata, "general.architecture", &arch);
    int rc = expect(rd, "general.type", (struct nb_str){"adapter", 7});
    if (rc == 0)
        rc = expect(rd, "adapter.type", (struct nb_str){"lora", 4});
    if (rc == 0)
        rc = expect(rd, "general.architecture", arch);
    if (rc == 0 && nb_gguf_f64(rd->s->metadata, "adapter.lora.alpha", &rd->alpha) < 0)
        return fail(rd, -EINVAL, " has no number adapter.lora.alpha");
    return rc < 0 || (isfinite(rd->alpha) && fabs(rd->alpha) <= 1e6)
               ? rc
               : fail(rd, -EINVAL, " has an alpha of %g: it is 1000000 at most", rd->alpha);
}

// "adapter/SCALE/NAME"
static int read_name(struct reading *rd, const char *name)
{
    const char *at = name + sizeof(NB_ADAPTER_FILE) - 1, *last = strrchr(at, '/');
    char *end;
    rd->scale = strtod(at, &end);
    rd->name = last ? last + 1 : at;
    return end != at && *end == '/' && isfinite(rd->scale) && fabs(rd->scale) <= SCALE
               ? 0
               : fail(rd, -EINVAL, " has no scale from %g to %g before its name", -SCALE, SCALE);
}

// Both factors fit the matrix: [rank][cols] and [rows][rank], no thicker than it.
static int check_shapes(const struct reading *rd, const struct nb_source_tensor *w,
                        const struct nb_source_tensor *a, const struct nb_source_tensor *b)
{
    if (w->n_dims != 2)
        return fail(rd, -ENOTSUP, " changes %.*s, which is no plain matrix: such are not adapted",
                    STR(w->name));
    if (a->n_dims == 2 && b->n_dims == 2 && a->dims[0] == w->dims[0] && b->dims[1] == w->dims[1] &&
        a->dims[1] == b->dims[0] && a->dims[1] <= w->dims[0] && a->dims[1] <= w->dims[1])
        return 0;
    return fail(rd, -EINVAL,
                " has factors %" PRIu64 " x %" PRIu64 " and %" PRIu64 " x %" PRIu64
                " of %.*s, which is %" PRIu64 " x %" PRIu64 " here: it is of another base",
                b->dims[1], b->dims[0], a->dims[1], a->dims[0], STR(w->name), w->dims[1],
                w->dims[0]);
}

static int read_floats(const struct reading *rd, const struct nb_source_tensor *t, float **ret)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    const uint64_t rows = nb_source_rows(t), n = rows * t->dims[0];
    if (!info)
        return fail(rd, -ENOTSUP, ": its tensor %.*s is of a type that Nibble does not read",
                    STR(t->name));
    void *raw = malloc(rows * nb_source_row_bytes(t));
    float *x = *ret = malloc(n * sizeof(*x));
    if (!raw || !x) {
        free(raw);
        return fail(rd, -ENOMEM, ": no memory for its tensor %.*s", STR(t->name));
    }
    int rc = nb_source_read(rd->s, t, 0, rows, raw, rd->error);
    if (rc == 0)
        info->dequantize(raw, x, n / info->block);
    free(raw);
    for (uint64_t i = 0; i < n && rc == 0; i++)
        if (!isfinite(x[i]))
            rc = fail(rd, -EINVAL, ": its tensor %.*s has a number that is not finite",
                      STR(t->name));
    return rc;
}

// ---- A matrix and its factors

static struct adapted *adapt(const struct reading *rd, uint32_t i)
{
    struct adapters *all = rd->all;
    struct nb_source_tensor *t = &rd->base->tensors[i];
    struct adapted *of = find(all, t->name);
    if (of)
        return of;
    of = &all->tensors[all->n_tensors++];
    of->plain = *t;
    t->type = NB_TYPE_F32;
    t->bytes = nb_source_rows(t) * t->dims[0] * sizeof(float);
    return of;
}

static int add_pair(const struct reading *rd, uint32_t matrix, const struct nb_source_tensor *a,
                    const struct nb_source_tensor *b)
{
    struct nb_source_tensor *w = &rd->base->tensors[matrix];
    int rc = check_shapes(rd, w, a, b);
    if (rc == 0 && !nb_type_info(w->type))
        rc = fail(rd, -ENOTSUP, " changes %.*s, whose type Nibble does not read", STR(w->name));
    if (rc < 0)
        return rc;
    struct term *t = calloc(1, sizeof(*t));
    if (!t)
        return fail(rd, -ENOMEM, ": no memory for it");
    struct adapted *of = adapt(rd, matrix);
    struct term **end = &of->first;
    while (*end)
        end = &(*end)->next;
    *end = t;
    t->rank = (uint32_t)a->dims[1];
    // llama.cpp too takes an alpha of 0 for that of the rank.
    t->by = (float)(rd->alpha != 0 ? rd->scale * rd->alpha / t->rank : rd->scale);
    rc = read_floats(rd, a, &t->a);
    return rc == 0 ? read_floats(rd, b, &t->b) : rc;
}

// The matrix whose factor a tensor is, and the other factor; each pair is met once, at its A.
static int add_tensor(const struct reading *rd, const struct nb_source_tensor *t)
{
    static const char first[] = ".lora_a", second[] = ".lora_b", embedding[] = "token_embd.weight";
    const size_t suffix = sizeof(first) - 1;
    const char *end = t->name.len > suffix ? t->name.data + t->name.len - suffix : "";
    const bool is_a = *end && !memcmp(end, first, suffix);
    if (!is_a && !(*end && !memcmp(end, second, suffix)))
        return fail(rd, -ENOTSUP, ": its tensor %.*s is no factor of a matrix", STR(t->name));
    const struct nb_str name = {t->name.data, t->name.len - suffix};
    const uint32_t matrix = nb_source_find(rd->base, name);
    char other[NB_SOURCE_NAME];
    snprintf(other, sizeof(other), "%.*s%s", STR(name), is_a ? second : first);
    const uint32_t pair = nb_source_find(rd->s, (struct nb_str){other, strlen(other)});
    if (name.len == sizeof(embedding) - 1 && !memcmp(name.data, embedding, name.len))
        return fail(rd, -ENOTSUP, " changes the embedding, which is not adapted");
    if (matrix == rd->base->n_tensors)
        return fail(rd, -EINVAL, " changes %.*s, which this model has not: it is of another base",
                    STR(name));
    if (pair == rd->s->n_tensors)
        return fail(rd, -EINVAL, " has %.*s and no %s", STR(t->name), other);
    return is_a ? add_pair(rd, matrix, t, &rd->s->tensors[pair]) : 0;
}

static int add_adapter(struct reading *rd, const struct nb_source_file *file)
{
    int rc = read_name(rd, file->name);
    struct nb_error error = {""};
    if (rc == 0 && (rc = nb_source_open_gguf(file, 1, &rd->s, &error)) < 0)
        return fail(rd, rc, ": %.160s", error.text);
    if (rc == 0)
        rc = check_metadata(rd);
    if (rc == 0 && rd->s->n_tensors == 0)
        rc = fail(rd, -EINVAL, " has no tensors");
    for (uint32_t i = 0; rc == 0 && i < rd->s->n_tensors; i++)
        rc = add_tensor(rd, &rd->s->tensors[i]);
    nb_source_close(rd->s);
    rd->s = NULL;
    return rc;
}

int nb_adapters_add(struct nb_source *s, const struct nb_source_file *files, uint32_t n,
                    struct nb_error *ret_error)
{
    struct adapters *all = calloc(1, sizeof(*all));
    if (all)
        all->tensors = calloc(s->n_tensors + 1, sizeof(*all->tensors));
    if (!all || !all->tensors) {
        free(all);
        return nb_fail(ret_error, -ENOMEM, "no memory for adapters");
    }
    all->plain = *s;
    s->kept = s->read_user = all;
    s->free_kept = free_adapters;
    s->read = on_read;
    int rc = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        struct reading rd = {.base = s, .all = all, .error = ret_error};
        rc = add_adapter(&rd, &files[i]);
    }
    return rc;
}
