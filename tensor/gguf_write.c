// Writing GGUF: see gguf_write.h.
#include "tensor/gguf_write.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/gguf_private.h"
#include "tensor/type.h"

struct buffer {
    uint8_t *data;
    size_t len, cap;
};

struct entry {
    char *name;
    uint64_t bytes;
};

struct nb_gguf_writer {
    struct buffer pairs, directory;
    char **keys;
    struct entry *tensors;
    uint64_t n_keys, n_tensors;
    uint64_t offset; // of the next tensor to add, in the data
    int fd;
    uint64_t current, done; // the tensor being written, and its bytes that are
    bool begun;
};

int nb_gguf_writer_create(struct nb_gguf_writer **ret)
{
    struct nb_gguf_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    *ret = w;
    return 0;
}

void nb_gguf_writer_destroy(struct nb_gguf_writer *w)
{
    if (!w)
        return;
    for (uint64_t i = 0; i < w->n_keys; i++)
        free(w->keys[i]);
    for (uint64_t i = 0; i < w->n_tensors; i++)
        free(w->tensors[i].name);
    free(w->keys);
    free(w->tensors);
    free(w->pairs.data);
    free(w->directory.data);
    free(w);
}

static int append(struct buffer *b, const void *data, size_t len)
{
    if (len > b->cap - b->len) {
        size_t cap = (b->len + len) * 2;
        uint8_t *grown = realloc(b->data, cap);
        if (!grown)
            return -ENOMEM;
        b->data = grown;
        b->cap = cap;
    }
    if (len)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    return 0;
}

static int append_u32(struct buffer *b, uint32_t v)
{
    return append(b, &v, sizeof(v));
}

static int append_u64(struct buffer *b, uint64_t v)
{
    return append(b, &v, sizeof(v));
}

static int append_str(struct buffer *b, struct nb_str s)
{
    int r = append_u64(b, s.len);
    return r < 0 ? r : append(b, s.data, s.len);
}

static bool same(struct nb_str s, const char *text)
{
    return strlen(text) == s.len && memcmp(text, s.data, s.len) == 0;
}

static bool has_key(const struct nb_gguf_writer *w, struct nb_str key)
{
    for (uint64_t i = 0; i < w->n_keys; i++)
        if (same(key, w->keys[i]))
            return true;
    return false;
}

// 1 when the key is new and was noted, 0 when it has its value already. The alignment is always
// GGUF's own, so that key is never written.
static int note_key(struct nb_gguf_writer *w, struct nb_str key)
{
    if (w->begun)
        return -EINVAL;
    if (has_key(w, key) || same(key, "general.alignment"))
        return 0;
    char **grown = realloc(w->keys, (w->n_keys + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    w->keys = grown;
    w->keys[w->n_keys] = strndup(key.data, key.len);
    if (!w->keys[w->n_keys])
        return -ENOMEM;
    w->n_keys++;
    return 1;
}

// Key and types of a pair; 0 when the key is there already.
static int start_pair(struct nb_gguf_writer *w, const char *key, const uint32_t *types, unsigned n)
{
    struct nb_str name = {key, strlen(key)};
    int r = note_key(w, name);
    if (r <= 0)
        return r;
    r = append_str(&w->pairs, name);
    for (unsigned i = 0; i < n && r >= 0; i++)
        r = append_u32(&w->pairs, types[i]);
    return r < 0 ? r : 1;
}

int nb_gguf_put(struct nb_gguf_writer *w, const char *key, enum nb_gguf_type type,
                const void *value)
{
    size_t bytes = nb_gguf_element_bytes(type);
    if (!bytes)
        return -EINVAL;
    int r = start_pair(w, key, (uint32_t[]){type}, 1);
    if (r <= 0)
        return r;
    return append(&w->pairs, value, bytes);
}

int nb_gguf_put_str(struct nb_gguf_writer *w, const char *key, struct nb_str value)
{
    int r = start_pair(w, key, (uint32_t[]){NB_GGUF_STRING}, 1);
    return r <= 0 ? r : append_str(&w->pairs, value);
}

int nb_gguf_put_array(struct nb_gguf_writer *w, const char *key, enum nb_gguf_type type,
                      const void *data, uint64_t n)
{
    size_t bytes = nb_gguf_element_bytes(type);
    if (!bytes)
        return -EINVAL;
    int r = start_pair(w, key, (uint32_t[]){NB_GGUF_ARRAY, type}, 2);
    if (r <= 0)
        return r;
    r = append_u64(&w->pairs, n);
    return r < 0 ? r : append(&w->pairs, data, n * bytes);
}

int nb_gguf_put_strs(struct nb_gguf_writer *w, const char *key, const struct nb_str *strs,
                     uint64_t n)
{
    int r = start_pair(w, key, (uint32_t[]){NB_GGUF_ARRAY, NB_GGUF_STRING}, 2);
    if (r <= 0)
        return r;
    r = append_u64(&w->pairs, n);
    for (uint64_t i = 0; i < n && r >= 0; i++)
        r = append_str(&w->pairs, strs[i]);
    return r;
}

int nb_gguf_copy_metadata(struct nb_gguf_writer *w, const struct nb_gguf *source)
{
    for (uint64_t i = 0; i < nb_gguf_n_keys(source); i++) {
        enum nb_gguf_type type;
        int r = note_key(w, nb_gguf_key(source, i, &type));
        if (r == 0)
            continue;
        struct nb_str raw = nb_gguf_pair_bytes(source, i);
        if (r > 0)
            r = append(&w->pairs, raw.data, raw.len);
        if (r < 0)
            return r;
    }
    return 0;
}

static uint64_t align(uint64_t n)
{
    return (n + NB_GGUF_ALIGNMENT - 1) / NB_GGUF_ALIGNMENT * NB_GGUF_ALIGNMENT;
}

// Bytes of a tensor; 0 when type and shape do not fit.
static uint64_t tensor_bytes(uint32_t type, uint32_t n_dims, const uint64_t *dims)
{
    const struct nb_type_info *info = nb_type_info(type);
    uint64_t n = 1, bytes;
    if (!info || n_dims < 1 || n_dims > NB_GGUF_MAX_DIMS || dims[0] % info->block)
        return 0;
    for (uint32_t d = 0; d < n_dims; d++)
        if (__builtin_mul_overflow(n, dims[d], &n))
            return 0;
    return __builtin_mul_overflow(n / info->block, (uint64_t)info->bytes, &bytes) ? 0 : bytes;
}

static bool has_tensor(const struct nb_gguf_writer *w, const char *name)
{
    for (uint64_t i = 0; i < w->n_tensors; i++)
        if (strcmp(w->tensors[i].name, name) == 0)
            return true;
    return false;
}

int nb_gguf_add_tensor(struct nb_gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                       const uint64_t *dims)
{
    struct nb_str s = {name, strlen(name)};
    uint64_t bytes = tensor_bytes(type, n_dims, dims);
    if (w->begun || !bytes || !nb_name_ok(s) || s.len > NB_GGUF_MAX_NAME || has_tensor(w, name))
        return -EINVAL;
    struct entry *grown = realloc(w->tensors, (w->n_tensors + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    w->tensors = grown;
    struct entry *e = &w->tensors[w->n_tensors];
    e->name = strdup(name);
    e->bytes = bytes;
    if (!e->name)
        return -ENOMEM;
    w->n_tensors++;

    int r = append_str(&w->directory, s);
    if (r >= 0)
        r = append_u32(&w->directory, n_dims);
    if (r >= 0)
        r = append(&w->directory, dims, n_dims * sizeof(*dims));
    if (r >= 0)
        r = append_u32(&w->directory, type);
    if (r >= 0)
        r = append_u64(&w->directory, w->offset);
    w->offset = align(w->offset + bytes);
    return r;
}

static int write_all(int fd, const void *data, size_t len)
{
    const uint8_t *p = data;
    while (len) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static int write_padding(int fd, uint64_t written)
{
    static const uint8_t zeros[NB_GGUF_ALIGNMENT];
    return write_all(fd, zeros, align(written) - written);
}

int nb_gguf_begin(struct nb_gguf_writer *w, int fd)
{
    struct buffer head = {0};
    if (w->begun)
        return -EINVAL;
    w->begun = true;
    w->fd = fd;
    int r = append(&head, (uint32_t[]){NB_GGUF_MAGIC, 3}, 8);
    if (r >= 0)
        r = append(&head, (uint64_t[]){w->n_tensors, w->n_keys}, 16);
    if (r >= 0)
        r = append(&head, w->pairs.data, w->pairs.len);
    if (r >= 0)
        r = append(&head, w->directory.data, w->directory.len);
    if (r >= 0)
        r = write_all(fd, head.data, head.len);
    if (r >= 0)
        r = write_padding(fd, head.len);
    free(head.data);
    return r;
}

int nb_gguf_write(struct nb_gguf_writer *w, const void *data, size_t len)
{
    if (!w->begun || w->current == w->n_tensors || len > w->tensors[w->current].bytes - w->done)
        return -EINVAL;
    int r = write_all(w->fd, data, len);
    if (r < 0)
        return r;
    w->done += len;
    if (w->done < w->tensors[w->current].bytes)
        return 0;
    r = write_padding(w->fd, w->done);
    w->current++;
    w->done = 0;
    return r;
}

int nb_gguf_end(struct nb_gguf_writer *w)
{
    return w->begun && w->current == w->n_tensors ? 0 : -EINVAL;
}
