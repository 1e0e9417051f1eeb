// Whether a folder's texts, read back, are the metadata that they were made of. See write.h.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/gguf_kvs.h"
#include "tensor/hf/write_private.h"

#define STR(s)          (int)(s).len, (s).data
#define FAIL(code, ...) nb_fail(ret_error, code, __VA_ARGS__)

// What a reader derives from the rest, or does not look at.
static bool may_differ(struct nb_str key)
{
    static const char *const ends[] = {".vocab_size",
                                       ".rope.dimension_count",
                                       ".pooling_type",
                                       ".rope.scaling.finetuned",
                                       ".rope.scaling.attn_factor",
                                       "ggml.scores",
                                       "ggml.pre",
                                       "ggml.cls_token_id",
                                       "ggml.eot_token_id",
                                       "ggml.eom_token_id",
                                       "ggml.token_type_count"};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        const size_t n = strlen(ends[i]);
        if (key.len >= n && !memcmp(key.data + key.len - n, ends[i], n))
            return true;
    }
    return false;
}

static bool same_numbers(const struct nb_gguf *a, const struct nb_gguf *b, const char *key)
{
    double x, y;
    bool p, q;
    if (nb_gguf_f64(a, key, &x) == 0 && nb_gguf_f64(b, key, &y) == 0)
        return (float)x == (float)y;
    return nb_gguf_bool(a, key, &p) == 0 && nb_gguf_bool(b, key, &q) == 0 && p == q;
}

// An array that says one thing of every layer is that number.
static bool same_arrays(const struct nb_gguf *a, const struct nb_gguf *b, const char *key)
{
    uint64_t n, m;
    enum nb_gguf_type type;
    double x, y;
    if (nb_gguf_array(a, key, &type, &n) < 0)
        return false;
    const bool list = nb_gguf_array(b, key, &type, &m) == 0;
    bool same = list ? n == m : n > 0 && nb_gguf_f64(b, key, &y) == 0;
    for (uint64_t i = 0; same && i < n; i++)
        same = nb_gguf_array_f64(a, key, i, &x) == 0 &&
               (!list || nb_gguf_array_f64(b, key, i, &y) == 0) && x == y;
    return same;
}

// Pair i of the source is among those that were read.
static bool came_back(const struct nb_gguf *source, uint64_t i, const struct nb_gguf *read)
{
    enum nb_gguf_type type;
    char text[256];
    const struct nb_str key = nb_gguf_key(source, i, &type), pair = nb_gguf_pair_bytes(source, i);
    for (uint64_t k = 0; k < nb_gguf_n_keys(read); k++) {
        const struct nb_str other = nb_gguf_pair_bytes(read, k);
        if (other.len == pair.len && !memcmp(other.data, pair.data, pair.len))
            return true;
    }
    snprintf(text, sizeof(text), "%.*s", STR(key));
    return same_numbers(source, read, text) || same_arrays(source, read, text);
}

// A number that says that there is none, or a flag that is not set.
static bool says_nothing(const struct nb_gguf *source, struct nb_str key)
{
    char text[256];
    double x;
    bool flag;
    struct nb_str none;
    snprintf(text, sizeof(text), "%.*s", STR(key));
    return (nb_gguf_f64(source, text, &x) == 0 && x == 0) ||
           (nb_gguf_bool(source, text, &flag) == 0 && !flag) ||
           (nb_gguf_str(source, text, &none) == 0 && nb_hf_is(none, "none"));
}

static int compare(const struct nb_gguf *source, const struct nb_gguf *read, const char *prefix,
                   struct nb_error *ret_error)
{
    char shown[NB_HF_SHOWN_MAX];
    const size_t n = strlen(prefix);
    for (uint64_t i = 0; i < nb_gguf_n_keys(source); i++) {
        enum nb_gguf_type type;
        const struct nb_str key = nb_gguf_key(source, i, &type);
        if (key.len <= n || memcmp(key.data, prefix, n) != 0 || key.data[n] != '.' ||
            may_differ(key) || came_back(source, i, read) || says_nothing(source, key))
            continue;
        return FAIL(-ENOTSUP,
                    "the model's %s is nothing that a folder says as Nibble writes it: write a "
                    "GGUF",
                    nb_hf_shown(key, shown));
    }
    return 0;
}

int nb_hf_write_check(const struct nb_hf_writer *w, const struct nb_gguf_kvs *kvs,
                      const char *prefix, struct nb_error *ret_error)
{
    size_t len = 0;
    struct nb_gguf *read = NULL;
    void *section = nb_gguf_kvs_section(kvs, 0, &len);
    int rc = section ? nb_gguf_parse_metadata(section, len, &read, ret_error)
                     : FAIL(-ENOMEM, "no memory for the metadata");
    if (rc == 0)
        rc = compare(w->s->metadata, read, prefix, ret_error);
    nb_gguf_close(read);
    free(section);
    return rc;
}
