// Key-values as bytes: see gguf_kvs.h.
#include "tensor/gguf_kvs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/gguf_private.h"

void nb_gguf_kvs_finish(struct nb_gguf_kvs *kvs)
{
    for (uint64_t i = 0; i < kvs->n; i++)
        free(kvs->keys[i]);
    free(kvs->keys);
    free(kvs->bytes);
    *kvs = (struct nb_gguf_kvs){0};
}

static int append(struct nb_gguf_kvs *kvs, const void *data, size_t len)
{
    if (len > kvs->room - kvs->len) {
        size_t room = (kvs->len + len) * 2;
        uint8_t *grown = realloc(kvs->bytes, room);
        if (!grown)
            return -ENOMEM;
        kvs->bytes = grown;
        kvs->room = room;
    }
    if (len)
        memcpy(kvs->bytes + kvs->len, data, len);
    kvs->len += len;
    return 0;
}

static int append_u32(struct nb_gguf_kvs *kvs, uint32_t v)
{
    return append(kvs, &v, sizeof(v));
}

static int append_u64(struct nb_gguf_kvs *kvs, uint64_t v)
{
    return append(kvs, &v, sizeof(v));
}

static int append_str(struct nb_gguf_kvs *kvs, struct nb_str s)
{
    int rc = append_u64(kvs, s.len);
    return rc < 0 ? rc : append(kvs, s.data, s.len);
}

static bool same(struct nb_str s, const char *text)
{
    return strlen(text) == s.len && memcmp(text, s.data, s.len) == 0;
}

static bool has_key(const struct nb_gguf_kvs *kvs, uint64_t n, struct nb_str key)
{
    for (uint64_t i = 0; i < n; i++)
        if (same(key, kvs->keys[i]))
            return true;
    return false;
}

// 1 when the key is none of the first n and was noted, 0 when it is not taken.
static int note_key(struct nb_gguf_kvs *kvs, uint64_t n, struct nb_str key)
{
    if (has_key(kvs, n, key) || same(key, "general.alignment"))
        return 0;
    char **grown = realloc(kvs->keys, (kvs->n + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    kvs->keys = grown;
    kvs->keys[kvs->n] = strndup(key.data, key.len);
    if (!kvs->keys[kvs->n])
        return -ENOMEM;
    kvs->n++;
    return 1;
}

// Key and types of a pair; 0 when the key is not taken.
static int start_pair(struct nb_gguf_kvs *kvs, const char *key, const uint32_t *types, unsigned n)
{
    struct nb_str name = {key, strlen(key)};
    int rc = note_key(kvs, kvs->n, name);
    if (rc <= 0)
        return rc;
    rc = append_str(kvs, name);
    for (unsigned i = 0; i < n && rc >= 0; i++)
        rc = append_u32(kvs, types[i]);
    return rc < 0 ? rc : 1;
}

int nb_gguf_kvs_put(struct nb_gguf_kvs *kvs, const char *key, enum nb_gguf_type type,
                    const void *value)
{
    size_t bytes = nb_gguf_element_bytes(type);
    if (!bytes)
        return -EINVAL;
    int rc = start_pair(kvs, key, (uint32_t[]){type}, 1);
    return rc <= 0 ? rc : append(kvs, value, bytes);
}

int nb_gguf_kvs_put_str(struct nb_gguf_kvs *kvs, const char *key, struct nb_str value)
{
    int rc = start_pair(kvs, key, (uint32_t[]){NB_GGUF_STRING}, 1);
    return rc <= 0 ? rc : append_str(kvs, value);
}

int nb_gguf_kvs_put_array(struct nb_gguf_kvs *kvs, const char *key, enum nb_gguf_type type,
                          const void *data, uint64_t n)
{
    size_t bytes = nb_gguf_element_bytes(type);
    if (!bytes)
        return -EINVAL;
    int rc = start_pair(kvs, key, (uint32_t[]){NB_GGUF_ARRAY, type}, 2);
    if (rc <= 0)
        return rc;
    rc = append_u64(kvs, n);
    return rc < 0 ? rc : append(kvs, data, n * bytes);
}

int nb_gguf_kvs_put_strs(struct nb_gguf_kvs *kvs, const char *key, const struct nb_str *strs,
                         uint64_t n)
{
    int rc = start_pair(kvs, key, (uint32_t[]){NB_GGUF_ARRAY, NB_GGUF_STRING}, 2);
    if (rc <= 0)
        return rc;
    rc = append_u64(kvs, n);
    for (uint64_t i = 0; i < n && rc >= 0; i++)
        rc = append_str(kvs, strs[i]);
    return rc;
}

int nb_gguf_kvs_copy(struct nb_gguf_kvs *kvs, const struct nb_gguf *source, const char *without)
{
    const size_t prefix = without ? strlen(without) : 0;
    const uint64_t before = kvs->n; // no key of `source` comes twice in it
    for (uint64_t i = 0; i < nb_gguf_n_keys(source); i++) {
        enum nb_gguf_type type;
        struct nb_str key = nb_gguf_key(source, i, &type);
        if (without && key.len >= prefix && !memcmp(key.data, without, prefix))
            continue;
        struct nb_str raw = nb_gguf_pair_bytes(source, i);
        int rc = note_key(kvs, before, key);
        if (rc > 0)
            rc = append(kvs, raw.data, raw.len);
        if (rc < 0)
            return rc;
    }
    return 0;
}

void *nb_gguf_kvs_section(const struct nb_gguf_kvs *kvs, uint64_t n_tensors, size_t *ret_len)
{
    const uint32_t start[] = {NB_GGUF_MAGIC, 3};
    const uint64_t counts[] = {n_tensors, kvs->n};
    const size_t head = sizeof(start) + sizeof(counts);
    uint8_t *section = malloc(head + kvs->len);
    if (!section)
        return NULL;
    memcpy(section, start, sizeof(start));
    memcpy(section + sizeof(start), counts, sizeof(counts));
    if (kvs->len)
        memcpy(section + head, kvs->bytes, kvs->len);
    *ret_len = head + kvs->len;
    return section;
}

int nb_gguf_kvs_parse(const struct nb_gguf_kvs *kvs, uint64_t n_tensors, struct nb_gguf **ret,
                      struct nb_error *ret_error)
{
    size_t len = 0;
    void *section = nb_gguf_kvs_section(kvs, n_tensors, &len);
    if (!section)
        return nb_fail(ret_error, -ENOMEM, "no memory for the metadata");
    int rc = nb_gguf_parse_metadata(section, len, ret, ret_error);
    free(section);
    return rc;
}
