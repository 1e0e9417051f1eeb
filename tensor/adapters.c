// See adapters.h.
#include "tensor/adapters.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/adapter_file.h"
#include "tensor/type.h"

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
    struct nb_error *error;
};

#define FAIL(rc, ...) nb_adapter_fail(rd->name, rd->error, rc, __VA_ARGS__)

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

static int read_floats(const struct reading *rd, const struct nb_source_tensor *t, float **ret)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    const uint64_t rows = nb_source_rows(t), n = rows * t->dims[0];
    if (!info)
        return FAIL(-ENOTSUP, ": its tensor %.*s is of a type that Nibble does not read",
                    STR(t->name));
    void *raw = malloc(rows * nb_source_row_bytes(t));
    float *x = *ret = malloc(n * sizeof(*x));
    if (!raw || !x) {
        free(raw);
        return FAIL(-ENOMEM, ": no memory for its tensor %.*s", STR(t->name));
    }
    int rc = nb_source_read(rd->s, t, 0, rows, raw, rd->error);
    if (rc == 0)
        info->dequantize(raw, x, n / info->block);
    free(raw);
    for (uint64_t i = 0; i < n && rc == 0; i++)
        if (!isfinite(x[i]))
            rc = FAIL(-EINVAL, ": its tensor %.*s has a number that is not finite", STR(t->name));
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

static int add_pair(void *user, struct nb_str matrix, uint32_t a, uint32_t b, float by)
{
    const struct reading *rd = user;
    const uint32_t i = nb_source_find(rd->base, matrix);
    if (!nb_type_info(rd->base->tensors[i].type))
        return FAIL(-ENOTSUP, " changes %.*s, whose type Nibble does not read", STR(matrix));
    struct term *t = calloc(1, sizeof(*t));
    if (!t)
        return FAIL(-ENOMEM, ": no memory for it");
    struct adapted *of = adapt(rd, i);
    struct term **end = &of->first;
    while (*end)
        end = &(*end)->next;
    *end = t;
    t->rank = (uint32_t)rd->s->tensors[a].dims[1];
    t->by = by;
    int rc = read_floats(rd, &rd->s->tensors[a], &t->a);
    return rc == 0 ? read_floats(rd, &rd->s->tensors[b], &t->b) : rc;
}

static bool find_matrix(void *user, struct nb_str matrix, struct nb_shape *ret)
{
    const struct reading *rd = user;
    const uint32_t i = nb_source_find(rd->base, matrix);
    if (i == rd->base->n_tensors)
        return false;
    const struct nb_source_tensor *t = &rd->base->tensors[i];
    *ret = (struct nb_shape){t->name, t->n_dims, t->dims};
    return true;
}

static int check(struct reading *rd, double scale)
{
    struct nb_shape *shapes = calloc(rd->s->n_tensors + 1, sizeof(*shapes));
    if (!shapes)
        return FAIL(-ENOMEM, ": no memory for it");
    for (uint32_t i = 0; i < rd->s->n_tensors; i++) {
        const struct nb_source_tensor *t = &rd->s->tensors[i];
        shapes[i] = (struct nb_shape){t->name, t->n_dims, t->dims};
    }
    const struct nb_adapter_file file = {.name = rd->name,
                                         .metadata = rd->s->metadata,
                                         .base = rd->base->metadata,
                                         .tensors = shapes,
                                         .n = rd->s->n_tensors,
                                         .scale = scale,
                                         .find = find_matrix,
                                         .pair = add_pair,
                                         .user = rd,
                                         .error = rd->error};
    int rc = nb_adapter_check(&file);
    free(shapes);
    return rc;
}

// Of "adapter/SCALE/NAME": the name, and the scale, which is none where there is no number.
static double read_name(struct reading *rd, const char *name)
{
    const char *at = name + sizeof(NB_ADAPTER_FILE) - 1, *last = strrchr(at, '/');
    char *end;
    const double scale = strtod(at, &end);
    rd->name = last ? last + 1 : at;
    return end != at && *end == '/' ? scale : NAN;
}

static int add_adapter(struct reading *rd, const struct nb_source_file *file)
{
    const double scale = read_name(rd, file->name);
    struct nb_error error = {""};
    int rc = nb_source_open_gguf(file, 1, &rd->s, &error);
    rc = rc < 0 ? FAIL(rc, ": %.160s", error.text) : check(rd, scale);
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
