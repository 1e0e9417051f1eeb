// See adapter_file.h.
#include "tensor/adapter_file.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define STR(s)        (int)(s).len, (s).data
#define FAIL(rc, ...) nb_adapter_fail(file->name, file->error, rc, __VA_ARGS__)

int nb_adapter_fail(const char *name, struct nb_error *error, int rc, const char *format, ...)
{
    char text[sizeof(error->text)];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return nb_fail(error, rc, "the adapter %.60s%s", name, text);
}

static bool is(struct nb_str a, struct nb_str b)
{
    return a.len == b.len && !memcmp(a.data, b.data, a.len);
}

// ---- Metadata

static int expect(const struct nb_adapter_file *file, const char *key, struct nb_str wanted)
{
    struct nb_str found = {"nothing", 7};
    (void)nb_gguf_str(file->metadata, key, &found);
    if (is(found, wanted))
        return 0;
    return FAIL(-EINVAL, ": its %s is %.*s and not %.*s", key,
                (int)(found.len < 40 ? found.len : 40), found.data, STR(wanted));
}

static int check_metadata(const struct nb_adapter_file *file, double *ret_alpha)
{
    struct nb_str arch = {"", 0};
    double alpha = 0;
    (void)nb_gguf_str(file->base, "general.architecture", &arch);
    int rc = expect(file, "general.type", (struct nb_str){"adapter", 7});
    if (rc == 0)
        rc = expect(file, "adapter.type", (struct nb_str){"lora", 4});
    if (rc == 0)
        rc = expect(file, "general.architecture", arch);
    if (rc < 0)
        return rc;
    if (nb_gguf_f64(file->metadata, "adapter.lora.alpha", &alpha) < 0)
        return FAIL(-EINVAL, " has no number adapter.lora.alpha");
    if (!isfinite(alpha) || fabs(alpha) > 1e6)
        return FAIL(-EINVAL, " has an alpha of %g: it is 1000000 at most", alpha);
    *ret_alpha = alpha;
    return 0;
}

// ---- Tensors

// Both factors fit the matrix: [rank][cols] and [rows][rank], no thicker than it.
static int check_shapes(const struct nb_adapter_file *file, const struct nb_shape *w,
                        const struct nb_shape *a, const struct nb_shape *b)
{
    if (w->n_dims != 2)
        return FAIL(-ENOTSUP, " changes %.*s, which is no plain matrix: such are not adapted",
                    STR(w->name));
    if (a->n_dims == 2 && b->n_dims == 2 && a->dims[0] == w->dims[0] && b->dims[1] == w->dims[1] &&
        a->dims[1] == b->dims[0] && a->dims[1] <= w->dims[0] && a->dims[1] <= w->dims[1])
        return 0;
    return FAIL(-EINVAL,
                " has factors %" PRIu64 " x %" PRIu64 " and %" PRIu64 " x %" PRIu64
                " of %.*s, which is %" PRIu64 " x %" PRIu64 " here: it is of another base",
                b->dims[1], b->dims[0], a->dims[1], a->dims[0], STR(w->name), w->dims[1],
                w->dims[0]);
}

static int take_pair(const struct nb_adapter_file *file, double alpha, const struct nb_shape *w,
                     uint32_t a, uint32_t b)
{
    int rc = check_shapes(file, w, &file->tensors[a], &file->tensors[b]);
    if (rc < 0)
        return rc;
    const double rank = (double)file->tensors[a].dims[1];
    // llama.cpp too takes an alpha of 0 for that of the rank.
    const double by = alpha != 0 ? file->scale * alpha / rank : file->scale;
    return file->pair(file->user, w->name, a, b, (float)by);
}

static uint32_t place_of(const struct nb_adapter_file *file, struct nb_str name)
{
    uint32_t i = 0;
    while (i < file->n && !is(file->tensors[i].name, name))
        i++;
    return i;
}

// The matrix whose factor a tensor is, and the other factor; each pair is met once, at its A.
static int check_tensor(const struct nb_adapter_file *file, double alpha, uint32_t i)
{
    static const char first[] = ".lora_a", second[] = ".lora_b", embedding[] = "token_embd.weight";
    const struct nb_str t = file->tensors[i].name;
    const size_t suffix = sizeof(first) - 1;
    const char *end = t.len > suffix ? t.data + t.len - suffix : "";
    const bool is_a = *end && !memcmp(end, first, suffix);
    if (!is_a && !(*end && !memcmp(end, second, suffix)))
        return FAIL(-ENOTSUP, ": its tensor %.*s is no factor of a matrix", STR(t));
    const struct nb_str matrix = {t.data, t.len - suffix};
    struct nb_shape w;
    char other[256];
    snprintf(other, sizeof(other), "%.*s%s", STR(matrix), is_a ? second : first);
    const uint32_t pair = place_of(file, (struct nb_str){other, strlen(other)});
    if (is(matrix, (struct nb_str){embedding, sizeof(embedding) - 1}))
        return FAIL(-ENOTSUP, " changes the embedding, which is not adapted");
    if (!file->find(file->user, matrix, &w))
        return FAIL(-EINVAL, " changes %.*s, which this model has not: it is of another base",
                    STR(matrix));
    if (pair == file->n)
        return FAIL(-EINVAL, " has %.*s and no %s", STR(t), other);
    return is_a ? take_pair(file, alpha, &w, i, pair) : 0;
}

int nb_adapter_check(const struct nb_adapter_file *file)
{
    double alpha = 0;
    if (!isfinite(file->scale) || fabs(file->scale) > NB_ADAPTER_SCALE)
        return FAIL(-EINVAL, " has no scale from %g to %g", -NB_ADAPTER_SCALE, NB_ADAPTER_SCALE);
    int rc = check_metadata(file, &alpha);
    if (rc == 0 && file->n == 0)
        rc = FAIL(-EINVAL, " has no tensors");
    for (uint32_t i = 0; rc == 0 && i < file->n; i++)
        rc = check_tensor(file, alpha, i);
    return rc;
}
