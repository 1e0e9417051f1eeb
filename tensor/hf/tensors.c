// From a folder's names to GGUF's: see tensors.h.
#include "tensor/hf/tensors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/gguf_private.h"
#include "tensor/hf/quantized.h"

#define NAME_MAX_HF 160 // longer than any that the tables make
#define STR(s)      (int)(s).len, (s).data

// Suffixes of a tensor, and what norms were called once.
static const char *const suffixes[][2] = {{"weight", "gamma"}, {"bias", "beta"}};

struct mapping {
    struct nb_source *s;
    const struct nb_hf_config *c;
    struct nb_hf_shards *shards;
    const char *prefix;
    char (*names)[NB_HF_NAME];
};

#define FAIL(m, code, ...) nb_fail((m)->c->ret_error, code, __VA_ARGS__)

// Puts the numbers in the places of %.
static void expand(const char *pattern, const uint32_t *numbers, char *ret, size_t size)
{
    size_t n = 0;
    for (; *pattern && n + 12 < size; pattern++)
        if (*pattern == '%')
            n += (size_t)snprintf(ret + n, size - n, "%" PRIu32, *numbers++);
        else
            ret[n++] = *pattern;
    ret[n] = '\0';
}

static bool is_layered(const struct nb_hf_tensor *row)
{
    return strchr(row->name, '%') != NULL;
}

static bool is_stack(const struct nb_hf_tensor *row)
{
    const char *first = strchr(row->name, '%');
    return first && strchr(first + 1, '%');
}

// `name` (for the error line) is the first of the names that it may have.
static struct nb_hf_entry *find(const struct mapping *m, const struct nb_hf_tensor *row,
                                const uint32_t *numbers, unsigned suffix, char name[NAME_MAX_HF])
{
    char base[NAME_MAX_HF - 32], other[NAME_MAX_HF];
    expand(row->name, numbers, base, sizeof(base));
    const char *prefix = row->flags & NB_HF_NO_PREFIX ? "" : m->prefix;
    snprintf(name, NAME_MAX_HF, "%s%s.%s", prefix, base, suffixes[suffix][0]);
    snprintf(other, sizeof(other), "%s%s.%s", prefix, base, suffixes[suffix][1]);
    struct nb_hf_entry *e = nb_hf_shards_find(m->shards, name);
    return e ? e : nb_hf_shards_find(m->shards, other);
}

// ---- One tensor

static const char *file_of(const struct mapping *m, const struct nb_hf_entry *e)
{
    return m->s->files[e->file].name;
}

static int check_shape(const struct mapping *m, const struct nb_hf_tensor *row,
                       const struct nb_hf_entry *e, uint32_t n_dims)
{
    const struct nb_safetensor *t = e->tensor;
    const bool whole = row->flags & NB_HF_PLUS_ONE ? n_dims == 1 : n_dims <= 2;
    if (!whole || !n_dims || !t->bytes || (is_stack(row) && n_dims != 2))
        return FAIL(m, -EINVAL,
                    "%s: tensor %.*s has %" PRIu32 " dimensions or no elements, which "
                    "does not fit a %s model",
                    file_of(m, e), STR(t->name), n_dims, m->c->family->architecture);
    return 0;
}

static int read_entry(const struct mapping *m, const struct nb_hf_tensor *row,
                      const struct nb_hf_entry *e, struct nb_hf_matrix *ret)
{
    const struct nb_safetensor *t = e->tensor;
    int rc = check_shape(m, row, e, t->n_dims);
    if (rc < 0)
        return rc;
    if (!t->loadable) {
        rc = nb_hf_quantized(m->s, m->c, m->shards, e, ret);
        return rc < 0 ? rc : check_shape(m, row, e, ret->n_dims);
    }
    *ret = (struct nb_hf_matrix){.type = t->type, .n_dims = t->n_dims};
    memcpy(ret->shape, t->shape, sizeof(ret->shape));
    return 0;
}

static uint32_t heads_of(const struct mapping *m, const struct nb_hf_tensor *row)
{
    return row->rows == NB_HF_ROWS_Q   ? m->c->n_heads
           : row->rows == NB_HF_ROWS_K ? m->c->n_kv_heads
                                       : 0;
}

// Vectors are F32 in a GGUF, whatever they were.
static int describe(const struct mapping *m, const struct nb_hf_tensor *row,
                    const struct nb_hf_entry *e, const struct nb_hf_matrix *from,
                    struct nb_source_tensor *t)
{
    const bool single = from->n_dims == 1 || row->flags & NB_HF_SINGLE;
    t->type = single ? NB_TYPE_F32 : from->type;
    t->stored = from->type;
    t->n_dims = from->n_dims;
    for (uint32_t d = 0; d < 4; d++)
        t->dims[d] = d < from->n_dims ? from->shape[from->n_dims - 1 - d] : 1;
    t->heads = heads_of(m, row);
    t->add = row->flags & NB_HF_PLUS_ONE ? 1 : 0;
    const uint64_t rows = from->shape[0];
    if (t->heads && rows % (2 * (uint64_t)t->heads))
        return FAIL(m, -EINVAL,
                    "%s: tensor %.*s has %" PRIu64 " rows, not pairs of rows in each of "
                    "%" PRIu32 " heads",
                    file_of(m, e), STR(e->tensor->name), rows, t->heads);
    return 0;
}

static void add_piece(const struct mapping *m, struct nb_source_tensor *t, struct nb_hf_entry *e,
                      const struct nb_hf_matrix *matrix)
{
    e->used = true;
    m->s->pieces[m->s->n_pieces++] = (struct nb_piece){.name = e->tensor->name,
                                                       .tensor = m->s->n_tensors,
                                                       .file = e->file,
                                                       .offset = e->tensor->offset,
                                                       .scales = matrix->scales};
    t->n_pieces++;
}

static struct nb_source_tensor *new_tensor(const struct mapping *m, const char *name)
{
    struct nb_source_tensor *t = &m->s->tensors[m->s->n_tensors];
    char *own = m->names[m->s->n_tensors];
    snprintf(own, NB_HF_NAME, "%s", name);
    *t = (struct nb_source_tensor){.name = {own, strlen(own)},
                                   .pieces = &m->s->pieces[m->s->n_pieces]};
    return t;
}

static void finish_tensor(const struct mapping *m, struct nb_source_tensor *t)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    t->bytes = t->dims[0] * t->dims[1] * t->dims[2] / info->block * info->bytes;
    m->s->n_tensors++;
}

static int missing(const struct mapping *m, const char *name)
{
    return FAIL(m, -EINVAL, "tensor %s is missing: no safetensors file of the folder has it", name);
}

// ---- The table

static int add_plain(const struct mapping *m, const struct nb_hf_tensor *row, uint32_t layer,
                     unsigned suffix)
{
    char name[NAME_MAX_HF], base[NB_HF_NAME - 8], gguf[NB_HF_NAME];
    struct nb_hf_entry *e = find(m, row, &layer, suffix, name);
    if (!e)
        return suffix && row->flags & NB_HF_BIAS_OPTIONAL ? 0 : missing(m, name);
    struct nb_hf_matrix matrix;
    int rc = read_entry(m, row, e, &matrix);
    if (rc < 0)
        return rc;
    expand(row->gguf, &layer, base, sizeof(base));
    snprintf(gguf, sizeof(gguf), "%s.%s", base, suffixes[suffix][0]);
    struct nb_source_tensor *t = new_tensor(m, gguf);
    add_piece(m, t, e, &matrix);
    rc = describe(m, row, e, &matrix, t);
    finish_tensor(m, t);
    return rc;
}

// The experts' matrices, one slice each.
static int add_stack(const struct mapping *m, const struct nb_hf_tensor *row, uint32_t layer)
{
    char name[NAME_MAX_HF], base[NB_HF_NAME - 8], gguf[NB_HF_NAME];
    struct nb_hf_matrix first, next;
    expand(row->gguf, &layer, base, sizeof(base));
    snprintf(gguf, sizeof(gguf), "%s.weight", base);
    struct nb_source_tensor *t = new_tensor(m, gguf);
    for (uint32_t expert = 0; expert < m->c->n_experts; expert++) {
        struct nb_hf_entry *e = find(m, row, (uint32_t[]){layer, expert}, 0, name);
        if (!e)
            return missing(m, name);
        int rc = read_entry(m, row, e, &next);
        if (rc < 0)
            return rc;
        add_piece(m, t, e, &next);
        if (!expert) {
            first = next;
            rc = describe(m, row, e, &next, t);
        } else if (next.type != first.type || memcmp(next.shape, first.shape, sizeof(next.shape))) {
            rc = FAIL(m, -EINVAL,
                      "%s: tensor %s is of another shape or dtype than the layer's first",
                      file_of(m, e), name);
        }
        if (rc < 0)
            return rc;
    }
    t->n_dims = 3;
    t->dims[2] = t->n_pieces;
    finish_tensor(m, t);
    return 0;
}

static int add_row(const struct mapping *m, const struct nb_hf_tensor *row, uint32_t layer)
{
    if (row->flags & NB_HF_HEAD && m->c->tied)
        return 0;
    if (is_stack(row))
        return add_stack(m, row, layer);
    int rc = add_plain(m, row, layer, 0);
    if (rc == 0 && row->flags & (NB_HF_BIAS | NB_HF_BIAS_OPTIONAL))
        rc = add_plain(m, row, layer, 1);
    return rc;
}

// Rows of layers that follow each other come layer by layer.
static int add_rows(const struct mapping *m)
{
    const struct nb_hf_tensor *rows = m->c->family->tensors;
    const uint32_t n = m->c->family->n_tensors;
    int rc = 0;
    for (uint32_t i = 0, end; i < n && rc == 0; i = end) {
        for (end = i; end < n && is_layered(&rows[end]); end++)
            ;
        const uint32_t layers = end > i ? m->c->n_layers : 1;
        end = end > i ? end : i + 1;
        for (uint32_t layer = 0; layer < layers; layer++)
            for (uint32_t k = i; k < end && rc == 0; k++)
                rc = add_row(m, &rows[k], layer);
    }
    return rc;
}

static void add_vectors(const struct mapping *m)
{
    for (uint32_t i = 0; i < m->c->n_vectors; i++) {
        const struct nb_hf_vector *v = &m->c->vectors[i];
        struct nb_source_tensor *t = new_tensor(m, v->name);
        t->type = t->stored = NB_TYPE_F32;
        t->n_dims = 1;
        t->n_pieces = 1;
        memcpy(t->dims, (uint64_t[4]){v->n, 1, 1, 1}, sizeof(t->dims));
        m->s->pieces[m->s->n_pieces++] =
            (struct nb_piece){.name = t->name, .tensor = m->s->n_tensors, .data = v->values};
        finish_tensor(m, t);
    }
}

// ---- What is left

static bool matches(const char *pattern, struct nb_str name)
{
    const size_t n = strlen(pattern);
    if (*pattern == '*')
        return name.len >= n - 1 && !memcmp(name.data + name.len - (n - 1), pattern + 1, n - 1);
    if (pattern[n - 1] == '*')
        return name.len >= n - 1 && !memcmp(name.data, pattern, n - 1);
    return nb_hf_is(name, pattern);
}

static bool may_be_left(const struct mapping *m, struct nb_str name)
{
    for (const char *const *p = m->c->family->ignored; *p; p++)
        if (matches(*p, name))
            return true;
    return m->c->tied && nb_hf_is(name, "lm_head.weight"); // the embedding once more
}

static int refuse_surplus(const struct mapping *m)
{
    for (uint32_t i = 0; i < m->shards->n; i++) {
        const struct nb_hf_entry *e = &m->shards->entries[i];
        if (!e->used && !may_be_left(m, e->tensor->name))
            return FAIL(m, -ENOTSUP,
                        "%s: tensor %.*s has no place in a %s model of %" PRIu32
                        " layers as Nibble reads it, and without it the model would be another",
                        file_of(m, e), STR(e->tensor->name), m->c->family->architecture,
                        m->c->n_layers);
    }
    return 0;
}

static int check_vocabulary(const struct mapping *m)
{
    const struct nb_source_tensor *t = &m->s->tensors[0]; // each table begins with the embedding
    if (t->n_dims == 2 && t->dims[1] == m->c->vocab)
        return 0;
    return FAIL(m, -EINVAL, "%s: vocab_size is %" PRIu32 ", and tensor %.*s has %" PRIu64 " rows",
                m->c->file, m->c->vocab, STR(m->s->pieces[0].name), t->dims[1]);
}

int nb_hf_tensors(struct nb_source *s, const struct nb_hf_config *c, struct nb_hf_shards *shards,
                  char (**ret_names)[NB_HF_NAME])
{
    struct mapping m = {.s = s, .c = c, .shards = shards, .prefix = c->family->prefix};
    char name[NAME_MAX_HF];
    const uint32_t layer = 0;                              // the first row of a table has none
    const size_t n = (size_t)shards->n + c->n_vectors + 1; // no tensor is taken twice
    s->tensors = calloc(n, sizeof(*s->tensors));
    s->pieces = calloc(n, sizeof(*s->pieces));
    m.names = *ret_names = calloc(n, sizeof(*m.names));
    if (!s->tensors || !s->pieces || !m.names)
        return FAIL(&m, -ENOMEM, "no memory for %zu tensors", n);
    if (!find(&m, &c->family->tensors[0], &layer, 0, name))
        m.prefix = "";
    int rc = add_rows(&m);
    if (rc == 0)
        rc = check_vocabulary(&m);
    if (rc == 0)
        rc = refuse_surplus(&m);
    if (rc == 0)
        add_vectors(&m);
    return rc;
}
