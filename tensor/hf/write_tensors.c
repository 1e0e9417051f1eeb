// Which tensors a folder gets, under which names and in which types: see write.h.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/convert.h"
#include "tensor/gguf_private.h"
#include "tensor/hf/config.h"
#include "tensor/hf/write_private.h"

#define STR(s) (int)(s).len, (s).data
// The code once more, so that analyzers see that it is negative.
#define FAIL(code, ...) (nb_fail(ret_error, code, __VA_ARGS__), (code))

// ---- Types

static bool is_named(const struct nb_source_tensor *t, const char *name)
{
    return nb_hf_is(t->name, name);
}

static bool is_linear(const struct nb_source_tensor *t)
{
    return t->n_dims > 1 && !nb_convert_is_single(t) && !is_named(t, "token_embd.weight") &&
           !is_named(t, "output.weight");
}

static bool is_coded(uint32_t type)
{
    return type == NB_TYPE_INT8 || type == NB_TYPE_NF4;
}

static uint32_t kept(const struct nb_source_tensor *t)
{
    return t->type == NB_TYPE_F32 || t->type == NB_TYPE_BF16 ? t->type : NB_TYPE_F16;
}

static uint32_t type_of(struct nb_hf_writer *w, const struct nb_hf_out *out)
{
    if (out->t->n_dims == 1 || nb_convert_is_single(out->t))
        return NB_TYPE_F32;
    if (w->to == NB_HF_WRITE_KEEP)
        return kept(out->t);
    if (is_coded(w->to) && !out->linear)
        return out->t->type == NB_TYPE_BF16 ? NB_TYPE_BF16 : NB_TYPE_F16;
    if (out->t->dims[0] % nb_type_info(w->to)->block == 0)
        return w->to;
    if (!w->done.n_unfit++)
        snprintf(w->done.unfit, sizeof(w->done.unfit), "%.255s", out->name);
    return NB_TYPE_F16;
}

static int add(struct nb_hf_writer *w, const struct nb_source_tensor *t, struct nb_str name,
               uint64_t slice, uint64_t slices, struct nb_error *ret_error)
{
    struct nb_hf_out *out = &w->outs[w->n_outs];
    int rc = nb_convert_check_tensor(t, ret_error);
    if (rc < 0)
        return rc;
    if (name.len >= sizeof(out->name))
        return FAIL(-EINVAL, "tensor %.*s has too long a name", STR(t->name));
    *out = (struct nb_hf_out){.t = t, .rows = nb_source_rows(t) / slices};
    memcpy(out->name, name.data, name.len);
    out->first = slice * out->rows;
    out->linear = is_linear(t);
    out->type = type_of(w, out);
    w->n_outs++;
    return 0;
}

// ---- From a folder: each piece is a tensor, under its own name

static int add_pieces(struct nb_hf_writer *w, struct nb_error *ret_error)
{
    int rc = 0;
    for (uint32_t i = 0; i < w->s->n_tensors; i++) {
        const struct nb_source_tensor *t = &w->s->tensors[i];
        for (uint32_t p = 0; p < t->n_pieces && rc == 0; p++) {
            if (t->pieces[p].data) // config.json has it
                continue;
            rc = add(w, t, t->pieces[p].name, p, t->n_pieces, ret_error);
            w->outs[w->n_outs - 1].heads = t->heads;
            w->outs[w->n_outs - 1].add = t->add;
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

// ---- From a GGUF, by the family's table

struct mapping {
    struct nb_hf_writer *w;
    bool *used; // of the source's tensors
    uint32_t heads, kv_heads;
    struct nb_error *ret_error;
};

static void expand(const char *pattern, const uint32_t *numbers, const char *before,
                   const char *after, char ret[NB_HF_OUT_NAME])
{
    size_t n = (size_t)snprintf(ret, NB_HF_OUT_NAME, "%s", before);
    for (; *pattern && n + 24 < NB_HF_OUT_NAME; pattern++)
        if (*pattern == '%')
            n += (size_t)snprintf(ret + n, NB_HF_OUT_NAME - n, "%" PRIu32, *numbers++);
        else
            ret[n++] = *pattern;
    snprintf(ret + n, NB_HF_OUT_NAME - n, "%s", after);
}

static const struct nb_source_tensor *find(const struct mapping *m, const char *name)
{
    for (uint32_t i = 0; i < m->w->s->n_tensors; i++)
        if (is_named(&m->w->s->tensors[i], name)) {
            m->used[i] = true;
            return &m->w->s->tensors[i];
        }
    return NULL;
}

static int add_row(const struct mapping *m, const struct nb_hf_tensor *row, uint32_t layer,
                   const char *suffix)
{
    char gguf[NB_HF_OUT_NAME], name[NB_HF_OUT_NAME];
    const char *prefix = row->flags & NB_HF_NO_PREFIX ? "" : m->w->family->prefix;
    expand(row->gguf, &layer, "", suffix, gguf);
    const struct nb_source_tensor *t = find(m, gguf);
    if (!t) // who reads the folder says what is missing
        return 0;
    const uint32_t slices = t->n_dims > 2 ? (uint32_t)t->dims[2] : 1;
    int rc = 0;
    for (uint32_t i = 0; i < slices && rc == 0; i++) {
        expand(row->name, (uint32_t[]){layer, i}, prefix, suffix, name);
        rc = add(m->w, t, (struct nb_str){name, strlen(name)}, i, slices, m->ret_error);
        struct nb_hf_out *out = &m->w->outs[m->w->n_outs - 1];
        out->heads = row->rows == NB_HF_ROWS_Q   ? m->heads
                     : row->rows == NB_HF_ROWS_K ? m->kv_heads
                                                 : 0;
        out->add = row->flags & NB_HF_PLUS_ONE ? 1 : 0;
        const uint64_t rows = t->n_dims > 1 ? out->rows : t->dims[0];
        if (rc == 0 && out->heads && rows % (2 * (uint64_t)out->heads))
            rc = nb_fail(m->ret_error, -EINVAL,
                         "tensor %.*s has not pairs of rows in each of %" PRIu32 " heads",
                         STR(t->name), out->heads);
    }
    return rc;
}

static int add_rows(const struct mapping *m, uint32_t layers)
{
    const struct nb_hf_family *family = m->w->family;
    int rc = 0;
    for (uint32_t i = 0; i < family->n_tensors; i++) {
        const struct nb_hf_tensor *row = &family->tensors[i];
        const uint32_t n = strchr(row->name, '%') ? layers : 1;
        for (uint32_t layer = 0; layer < n && rc == 0; layer++) {
            rc = add_row(m, row, layer, ".weight");
            rc = rc < 0 ? rc : add_row(m, row, layer, ".bias");
        }
    }
    return rc;
}

// Factors of positions are said in config.json.
static int refuse_surplus(const struct mapping *m)
{
    for (uint32_t i = 0; i < m->w->s->n_tensors; i++) {
        const struct nb_source_tensor *t = &m->w->s->tensors[i];
        if (!m->used[i] && strncmp(t->name.data, "rope_f", 6) != 0)
            return nb_fail(m->ret_error, -ENOTSUP,
                           "tensor %.*s has no place in a folder of a %s, and without it the model "
                           "would be another",
                           STR(t->name), m->w->family->names[0]);
    }
    return 0;
}

static int add_by_table(struct nb_hf_writer *w, struct nb_error *ret_error)
{
    const struct nb_gguf *g = w->s->metadata;
    struct mapping m = {.w = w, .used = calloc(w->s->n_tensors + 1, sizeof(bool))};
    uint64_t layers = 0, heads = 0, kv_heads = 0;
    char key[3][128];
    m.ret_error = ret_error;
    snprintf(key[0], sizeof(key[0]), "%s.block_count", w->family->architecture);
    snprintf(key[1], sizeof(key[1]), "%s.attention.head_count", w->family->architecture);
    snprintf(key[2], sizeof(key[2]), "%s.attention.head_count_kv", w->family->architecture);
    int rc = m.used ? 0 : FAIL(-ENOMEM, "no memory for the list of tensors");
    if (rc == 0 && (nb_gguf_u64(g, key[0], &layers) < 0 || nb_gguf_u64(g, key[1], &heads) < 0 ||
                    layers > NB_HF_LAYERS_MAX || heads < 1 || heads > 1 << 16))
        rc = FAIL(-EINVAL, "%s and %s are not both there, numbers in their bounds", key[0], key[1]);
    kv_heads = heads;
    if (rc == 0 && nb_gguf_u64(g, key[2], &kv_heads) == -EINVAL)
        rc = FAIL(-ENOTSUP, "%s differs from layer to layer, which no folder here says", key[2]);
    m.heads = (uint32_t)heads;
    m.kv_heads = (uint32_t)kv_heads;
    if (rc == 0)
        rc = add_rows(&m, (uint32_t)layers);
    if (rc == 0)
        rc = refuse_surplus(&m);
    free(m.used);
    return rc;
}

int nb_hf_write_tensors(struct nb_hf_writer *w, struct nb_error *ret_error)
{
    size_t n = 1;
    for (uint32_t i = 0; i < w->s->n_tensors; i++) {
        const struct nb_source_tensor *t = &w->s->tensors[i];
        n += t->n_dims > 2 ? t->dims[2] : t->n_pieces;
    }
    if (n > NB_GGUF_MAX_TENSORS)
        return FAIL(-EFBIG, "%zu tensors; the limit is %d", n, NB_GGUF_MAX_TENSORS);
    w->outs = calloc(n, sizeof(*w->outs));
    if (!w->outs)
        return FAIL(-ENOMEM, "no memory for the list of tensors");
    return w->family ? add_by_table(w, ret_error) : add_pieces(w, ret_error);
}
