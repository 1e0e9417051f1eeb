// Writing GGUF: see gguf_write.h.
#include "tensor/gguf_write.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/gguf_private.h"
#include "tensor/type.h"

struct entry {
    char *name;
    uint32_t type, n_dims;
    uint64_t dims[NB_GGUF_MAX_DIMS];
    uint64_t bytes, offset; // the offset from the start of the data
};

struct nb_gguf_writer {
    struct nb_gguf_kvs kvs;
    struct entry *tensors;
    uint64_t n_tensors;
    uint64_t offset; // of the next tensor to add, in the data
    uint64_t data;   // where it begins in the file
    int fd;
    uint64_t current, done; // the tensor being written, and its bytes that are
    bool begun, own;
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
    nb_gguf_kvs_finish(&w->kvs);
    for (uint64_t i = 0; i < w->n_tensors; i++)
        free(w->tensors[i].name);
    free(w->tensors);
    free(w);
}

int nb_gguf_put(struct nb_gguf_writer *w, const char *key, enum nb_gguf_type type,
                const void *value)
{
    return w->begun ? -EINVAL : nb_gguf_kvs_put(&w->kvs, key, type, value);
}

int nb_gguf_put_str(struct nb_gguf_writer *w, const char *key, struct nb_str value)
{
    return w->begun ? -EINVAL : nb_gguf_kvs_put_str(&w->kvs, key, value);
}

int nb_gguf_put_array(struct nb_gguf_writer *w, const char *key, enum nb_gguf_type type,
                      const void *data, uint64_t n)
{
    return w->begun ? -EINVAL : nb_gguf_kvs_put_array(&w->kvs, key, type, data, n);
}

int nb_gguf_put_strs(struct nb_gguf_writer *w, const char *key, const struct nb_str *strs,
                     uint64_t n)
{
    return w->begun ? -EINVAL : nb_gguf_kvs_put_strs(&w->kvs, key, strs, n);
}

int nb_gguf_copy_metadata(struct nb_gguf_writer *w, const struct nb_gguf *source)
{
    return w->begun ? -EINVAL : nb_gguf_kvs_copy(&w->kvs, source, NULL);
}

static uint64_t align(uint64_t n)
{
    return (n + NB_GGUF_ALIGNMENT - 1) / NB_GGUF_ALIGNMENT * NB_GGUF_ALIGNMENT;
}

// Bytes of a tensor; 0 when type and shape do not fit.
void nb_gguf_writer_own(struct nb_gguf_writer *w)
{
    w->own = true;
}

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
    if (w->begun || (type >= NB_TYPE_GGUF_END && !w->own) || !bytes || !nb_name_ok(s) ||
        s.len > NB_GGUF_MAX_NAME || has_tensor(w, name))
        return -EINVAL;
    struct entry *grown = realloc(w->tensors, (w->n_tensors + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    w->tensors = grown;
    struct entry *e = &w->tensors[w->n_tensors];
    *e = (struct entry){.type = type, .n_dims = n_dims, .bytes = bytes, .offset = w->offset};
    memcpy(e->dims, dims, n_dims * sizeof(*dims));
    e->name = strdup(name);
    if (!e->name)
        return -ENOMEM;
    w->n_tensors++;
    w->offset = align(w->offset + bytes);
    return 0;
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

static uint8_t *put(uint8_t *at, const void *data, size_t len)
{
    memcpy(at, data, len);
    return at + len;
}

// In the list of tensors: name, dimensions, type and offset.
static uint64_t entry_bytes(const struct entry *e)
{
    return sizeof(uint64_t) + strlen(e->name) + sizeof(e->n_dims) + e->n_dims * sizeof(*e->dims) +
           sizeof(e->type) + sizeof(e->offset);
}

static int write_entry(const struct nb_gguf_writer *w, const struct entry *e, uint64_t *written)
{
    uint8_t bytes[NB_GGUF_MAX_NAME + 64], *end = bytes;
    const uint64_t len = strlen(e->name);
    end = put(end, &len, sizeof(len));
    end = put(end, e->name, len);
    end = put(end, &e->n_dims, sizeof(e->n_dims));
    end = put(end, e->dims, e->n_dims * sizeof(*e->dims));
    end = put(end, &e->type, sizeof(e->type));
    end = put(end, &e->offset, sizeof(e->offset));
    *written += (uint64_t)(end - bytes);
    return write_all(w->fd, bytes, (size_t)(end - bytes));
}

int nb_gguf_begin(struct nb_gguf_writer *w, int fd)
{
    size_t len = 0;
    if (w->begun)
        return -EINVAL;
    w->begun = true;
    w->fd = fd;
    void *section = nb_gguf_kvs_section(&w->kvs, w->n_tensors, &len);
    uint64_t written = len;
    int rc = section ? write_all(fd, section, len) : -ENOMEM;
    free(section);
    for (uint64_t i = 0; i < w->n_tensors && rc >= 0; i++)
        rc = write_entry(w, &w->tensors[i], &written);
    w->data = align(written);
    return rc < 0 ? rc : write_padding(fd, written);
}

int nb_gguf_write(struct nb_gguf_writer *w, const void *data, size_t len)
{
    if (!w->begun || w->current == w->n_tensors || len > w->tensors[w->current].bytes - w->done)
        return -EINVAL;
    int rc = write_all(w->fd, data, len);
    if (rc < 0)
        return rc;
    w->done += len;
    if (w->done < w->tensors[w->current].bytes)
        return 0;
    rc = write_padding(w->fd, w->done);
    w->current++;
    w->done = 0;
    return rc;
}

int nb_gguf_end(struct nb_gguf_writer *w)
{
    return w->begun && w->current == w->n_tensors ? 0 : -EINVAL;
}

uint64_t nb_gguf_size(const struct nb_gguf_writer *w)
{
    size_t len = 0;
    void *section = nb_gguf_kvs_section(&w->kvs, w->n_tensors, &len);
    uint64_t size = len;
    free(section);
    for (uint64_t i = 0; i < w->n_tensors; i++)
        size += entry_bytes(&w->tensors[i]);
    return section ? align(size) + w->offset : 0;
}

uint64_t nb_gguf_offset(const struct nb_gguf_writer *w, uint64_t tensor)
{
    return w->data + w->tensors[tensor].offset;
}
