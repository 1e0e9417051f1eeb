// See vocabulary.h: a model with the tokens that stay.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "distill/vocabulary.h"
#include "engine/arch.h"
#include "tensor/gguf_kvs.h"

#define PREFIX "tokenizer.ggml."
#define KEY    256
#define STR(s) (int)(s).len, (s).data

enum cut { WHOLE, ROWS, ELEMENTS }; // of a tensor

struct small {
    const struct nb_source *model, *s;
    struct nb_vocabulary v;
    enum cut *cut; // [tensors]
};

static void free_small(void *kept)
{
    struct small *k = kept;
    nb_vocabulary_finish(&k->v);
    free(k->cut);
    free(k);
}

// --- Metadata

struct cutting {
    const struct nb_gguf *g;
    const struct nb_tokenizer *t;
    const struct nb_vocabulary *v;
    uint32_t *number; // [the model's tokens]: the new one; UINT32_MAX: it goes
    struct nb_gguf_kvs kvs;
    struct nb_error *error;
};

static int put_texts(struct cutting *c, const char *key)
{
    struct nb_str *of = calloc(c->v->n + 1, sizeof(*of));
    int rc = of ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < c->v->n && rc == 0; i++)
        rc = nb_gguf_array_str(c->g, key, c->v->of[i], &of[i]);
    if (rc == 0)
        rc = nb_gguf_kvs_put_strs(&c->kvs, key, of, c->v->n);
    free(of);
    return rc;
}

static int put_scores(struct cutting *c, const char *key)
{
    float *of = calloc(c->v->n + 1, sizeof(*of));
    int rc = of ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < c->v->n && rc == 0; i++) {
        double x;
        rc = nb_gguf_array_f64(c->g, key, c->v->of[i], &x);
        of[i] = rc == 0 ? (float)x : 0;
    }
    if (rc == 0)
        rc = nb_gguf_kvs_put_array(&c->kvs, key, NB_GGUF_F32, of, c->v->n);
    free(of);
    return rc;
}

static int put_types(struct cutting *c, const char *key)
{
    int32_t *of = calloc(c->v->n + 1, sizeof(*of));
    int rc = of ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < c->v->n && rc == 0; i++) {
        int64_t x;
        rc = nb_gguf_array_i64(c->g, key, c->v->of[i], &x);
        of[i] = rc == 0 ? (int32_t)x : 0;
    }
    if (rc == 0)
        rc = nb_gguf_kvs_put_array(&c->kvs, key, NB_GGUF_I32, of, c->v->n);
    free(of);
    return rc;
}

// A text that is a token, which goes.
static bool goes(const struct cutting *c, const char *text, size_t len)
{
    const int32_t id = nb_tokenizer_find(c->t, text, len);
    return id != NB_TOKEN_NONE && c->number[id] == UINT32_MAX;
}

// "left right", where left may begin with the space. 1: it stays.
static int stays(const struct cutting *c, struct nb_str merge)
{
    const char *space = merge.len > 1 ? memchr(merge.data + 1, ' ', merge.len - 1) : NULL;
    char *both = space ? malloc(merge.len) : NULL;
    if (!both)
        return space ? -ENOMEM : 0;
    const size_t left = (size_t)(space - merge.data), right = merge.len - left - 1;
    memcpy(both, merge.data, left);
    memcpy(both + left, space + 1, right);
    const bool gone =
        goes(c, merge.data, left) || goes(c, space + 1, right) || goes(c, both, left + right);
    free(both);
    return !gone;
}

static int put_merges(struct cutting *c, const char *key)
{
    enum nb_gguf_type type;
    uint64_t all = 0, n = 0;
    int rc = nb_gguf_array(c->g, key, &type, &all);
    struct nb_str *of = calloc(all + 1, sizeof(*of));
    rc = of ? rc : -ENOMEM;
    for (uint64_t i = 0; i < all && rc == 0; i++) {
        rc = nb_gguf_array_str(c->g, key, i, &of[n]);
        const int kept = rc == 0 ? stays(c, of[n]) : rc;
        n += kept > 0;
        rc = kept < 0 ? kept : 0;
    }
    if (rc == 0)
        rc = nb_gguf_kvs_put_strs(&c->kvs, key, of, n);
    free(of);
    return rc;
}

static int put_id(struct cutting *c, const char *key, uint64_t id)
{
    const uint32_t number = id < nb_tokenizer_vocab(c->t) ? c->number[id] : UINT32_MAX;
    return number == UINT32_MAX ? 0 : nb_gguf_kvs_put(&c->kvs, key, NB_GGUF_U32, &number);
}

// A key of the tokenizer's.
static int put_key(struct cutting *c, const char *key, enum nb_gguf_type type)
{
    static const struct {
        const char *name;
        int (*put)(struct cutting *c, const char *key);
    } arrays[] = {{"tokens", put_texts},
                  {"scores", put_scores},
                  {"token_type", put_types},
                  {"merges", put_merges}};
    const char *name = key + sizeof(PREFIX) - 1;
    uint64_t id;
    for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]) && type == NB_GGUF_ARRAY; i++)
        if (!strcmp(name, arrays[i].name))
            return arrays[i].put(c, key);
    if (type == NB_GGUF_ARRAY)
        return nb_fail(c->error, -ENOTSUP,
                       "the model has a list %.200s, which is not known to follow fewer tokens: "
                       "leave out \"vocabulary\"",
                       key);
    return nb_vocabulary_names_token(key) && nb_gguf_u64(c->g, key, &id) == 0 ? put_id(c, key, id)
                                                                              : 0;
}

// What files leave to usual numbers, which are others now.
static int put_usual(struct cutting *c)
{
    static const struct {
        const char *key;
        enum nb_special special;
    } usual[] = {{PREFIX "bos_token_id", NB_SPECIAL_BOS},
                 {PREFIX "eos_token_id", NB_SPECIAL_EOS},
                 {PREFIX "unknown_token_id", NB_SPECIAL_UNK}};
    int rc = 0;
    for (size_t i = 0; i < sizeof(usual) / sizeof(usual[0]) && rc == 0; i++) {
        const int32_t id = nb_tokenizer_special(c->t, usual[i].special);
        rc = id == NB_TOKEN_NONE ? 0 : put_id(c, usual[i].key, (uint64_t)id);
    }
    return rc;
}

static int put_all(struct cutting *c)
{
    struct nb_str arch;
    char size[KEY];
    uint64_t was;
    int rc = 0;
    for (uint64_t i = 0; i < nb_gguf_n_keys(c->g) && rc == 0; i++) {
        enum nb_gguf_type type;
        char key[KEY];
        const struct nb_str name = nb_gguf_key(c->g, i, &type);
        snprintf(key, sizeof(key), "%.*s", STR(name));
        if (!strncmp(key, PREFIX, sizeof(PREFIX) - 1))
            rc = put_key(c, key, type);
    }
    if (rc == 0)
        rc = put_usual(c);
    if (rc == 0 && nb_gguf_str(c->g, "general.architecture", &arch) == 0) {
        snprintf(size, sizeof(size), "%.*s.vocab_size", (int)(arch.len < 64 ? arch.len : 64),
                 arch.data);
        rc = nb_gguf_u64(c->g, size, &was) == 0
                 ? nb_gguf_kvs_put(&c->kvs, size, NB_GGUF_U32, &c->v->n)
                 : 0;
    }
    // That one would say the whole vocabulary still.
    return rc == 0 ? nb_gguf_kvs_copy(&c->kvs, c->g, "tokenizer.huggingface.") : rc;
}

static int make_metadata(struct cutting *c, struct nb_gguf **ret)
{
    const uint32_t all = nb_tokenizer_vocab(c->t);
    c->number = malloc((all + 1) * sizeof(*c->number));
    int rc = c->number ? 0 : -ENOMEM;
    if (rc == 0)
        memset(c->number, 0xff, all * sizeof(*c->number));
    for (uint32_t i = 0; i < c->v->n && rc == 0; i++)
        c->number[c->v->of[i]] = i;
    if (rc == 0)
        rc = put_all(c);
    if (rc == -ENOMEM || rc == -EINVAL)
        nb_fail(c->error, rc, "the tokenizer's metadata cannot be cut: %s", strerror(-rc));
    if (rc == 0)
        rc = nb_gguf_kvs_parse(&c->kvs, 0, ret, c->error);
    nb_gguf_kvs_finish(&c->kvs);
    free(c->number);
    return rc;
}

// --- Tensors

static int read_elements(const struct small *k, uint32_t tensor, void *dst, struct nb_error *e)
{
    const struct nb_source_tensor *t = &k->model->tensors[tensor];
    const uint64_t bytes = nb_source_row_bytes(t), each = bytes / t->dims[0];
    uint8_t *all = malloc(bytes);
    if (!all)
        return nb_fail(e, -ENOMEM, "no memory for a row of the model");
    int rc = nb_source_read(k->model, t, 0, 1, all, e);
    for (uint32_t i = 0; i < k->v.n && rc == 0; i++)
        memcpy((uint8_t *)dst + i * each, all + k->v.of[i] * each, each);
    free(all);
    return rc;
}

static int on_read(void *user, const struct nb_source_tensor *t, uint64_t first, uint64_t n,
                   void *dst, struct nb_error *ret_error)
{
    const struct small *k = user;
    const uint32_t tensor = (uint32_t)(t - k->s->tensors);
    const struct nb_source_tensor *of = &k->model->tensors[tensor];
    uint8_t *to = dst;
    int rc = 0;
    if (k->cut[tensor] == ELEMENTS)
        return read_elements(k, tensor, dst, ret_error);
    if (k->cut[tensor] == WHOLE)
        return nb_source_read(k->model, of, first, n, dst, ret_error);
    for (uint64_t i = first, some; i < first + n && rc == 0; i += some) {
        for (some = 1; i + some < first + n && k->v.of[i + some] == k->v.of[i] + some;)
            some++;
        rc = nb_source_read(k->model, of, k->v.of[i], some, to, ret_error);
        to += some * nb_source_row_bytes(of);
    }
    return rc;
}

static int take_tensor(struct small *k, struct nb_source *s, const struct nb_arch *arch, uint32_t i,
                       uint32_t all, struct nb_error *e)
{
    struct nb_source_tensor *t = &s->tensors[i];
    enum nb_dim rows = NB_DIM_NONE, cols = NB_DIM_NONE;
    *t = k->model->tensors[i];
    nb_arch_dims(arch, t->name, &rows, &cols);
    if (rows != NB_DIM_VOCAB && cols != NB_DIM_VOCAB)
        return 0;
    const int of = rows == NB_DIM_VOCAB;
    if (t->dims[of] != all || (!of && t->n_dims > 1) || t->bytes == 0)
        return nb_fail(e, -ENOTSUP,
                       "tensor %.*s has %" PRIu64 " rows, and there are %u tokens: its vocabulary "
                       "is not cut",
                       STR(t->name), t->dims[of], all);
    k->cut[i] = of ? ROWS : ELEMENTS;
    t->bytes = t->bytes / all * k->v.n;
    t->dims[of] = k->v.n;
    return 0;
}

static int take_tensors(struct small *k, struct nb_source *s, uint32_t all, struct nb_error *e)
{
    const struct nb_source *m = k->model;
    const struct nb_arch *arch = nb_arch_of(m->metadata);
    int rc = 0;
    if (!arch)
        return nb_fail(e, -ENOTSUP,
                       "the model is of no family that is known: its vocabulary is "
                       "not cut");
    s->tensors = calloc(m->n_tensors + 1, sizeof(*s->tensors));
    k->cut = calloc(m->n_tensors + 1, sizeof(*k->cut));
    if (!s->tensors || !k->cut)
        return nb_fail(e, -ENOMEM, "no memory for the model's tensors");
    s->n_tensors = m->n_tensors;
    for (uint32_t i = 0; i < m->n_tensors && rc == 0; i++)
        rc = take_tensor(k, s, arch, i, all, e);
    return rc;
}

int nb_vocabulary_open(const struct nb_source *model, const struct nb_tokenizer *t,
                       const struct nb_vocabulary *v, struct nb_source **ret,
                       struct nb_error *ret_error)
{
    struct cutting c = {.g = model->metadata, .t = t, .v = v, .error = ret_error};
    struct nb_source *s = NULL;
    int rc = nb_source_create(model->files, model->n_files, &s, ret_error);
    if (rc < 0)
        return rc;
    struct small *k = calloc(1, sizeof(*k));
    uint32_t *of = malloc((v->n + 1) * sizeof(*of));
    if (!k || !of) {
        free(k);
        free(of);
        nb_source_close(s);
        return nb_fail(ret_error, -ENOMEM, "no memory for the vocabulary");
    }
    memcpy(of, v->of, v->n * sizeof(*of));
    *k = (struct small){.model = model, .s = s, .v = {v->n, of}};
    s->kept = s->read_user = k;
    s->free_kept = free_small;
    s->read = on_read;
    rc = make_metadata(&c, &s->metadata);
    if (rc == 0)
        rc = take_tensors(k, s, nb_tokenizer_vocab(t), ret_error);
    if (rc < 0)
        nb_source_close(s);
    else
        *ret = s;
    return rc;
}
