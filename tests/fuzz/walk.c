// See walk.h.
#include "tests/fuzz/walk.h"

#include <stdlib.h>
#include <string.h>

static volatile uint64_t sum;

static void read_bytes(struct nb_str s)
{
    for (size_t i = 0; i < s.len; i++)
        sum += (uint8_t)s.data[i];
}

static void walk_array(const struct nb_gguf *g, const char *key)
{
    enum nb_gguf_type type;
    uint64_t n;
    if (nb_gguf_array(g, key, &type, &n) < 0)
        return;
    for (uint64_t i = 0; i < n + 1; i++) {
        struct nb_str s;
        double d;
        int64_t v;
        if (nb_gguf_array_str(g, key, i, &s) == 0)
            read_bytes(s);
        if (nb_gguf_array_f64(g, key, i, &d) == 0)
            sum += d != 0;
        if (nb_gguf_array_i64(g, key, i, &v) == 0)
            sum += (uint64_t)v;
    }
}

static void walk_key(const struct nb_gguf *g, const char *key)
{
    uint64_t u;
    double d;
    bool b;
    struct nb_str s;
    if (nb_gguf_u64(g, key, &u) == 0)
        sum += u;
    if (nb_gguf_f64(g, key, &d) == 0)
        sum += d != 0;
    if (nb_gguf_bool(g, key, &b) == 0)
        sum += b;
    if (nb_gguf_str(g, key, &s) == 0)
        read_bytes(s);
    walk_array(g, key);
}

void walk_gguf(const struct nb_gguf *g)
{
    for (uint64_t i = 0; i < nb_gguf_n_keys(g); i++) {
        enum nb_gguf_type type;
        struct nb_str key = nb_gguf_key(g, i, &type);
        char *name = strndup(key.data, key.len);
        walk_key(g, name);
        free(name);
        read_bytes(nb_gguf_pair_bytes(g, i));
    }
    for (uint64_t i = 0; i < nb_gguf_n_tensors(g); i++)
        read_bytes(nb_gguf_tensor(g, i)->name);
}

static void walk_matrix(const struct nb_packed *p)
{
    float *row = malloc(p->cols * sizeof(float));
    void *file = malloc(p->cols * sizeof(float));
    nb_layout_dequantize_row(p, 0, row);
    nb_layout_dequantize_row(p, p->rows - 1, row);
    nb_layout_unpack_row(p, p->rows - 1, file);
    sum += row[0] != 0;
    free(row);
    free(file);
}

void walk_image(const struct nb_image *img)
{
    for (uint32_t i = 0; i < nb_image_n_tensors(img); i++) {
        const struct nb_image_tensor *t = nb_image_tensor(img, i);
        read_bytes(t->name);
        for (uint32_t e = 0; e < t->n_slices; e++) {
            struct nb_packed slice = t->packed;
            slice.data += e * t->slice_bytes;
            walk_matrix(&slice);
        }
        for (uint64_t k = 0; k < t->dims[0] && t->n_dims == 1; k++)
            sum += t->f32[k] != 0;
    }
}
