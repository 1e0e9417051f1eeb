// Packing a GGUF file into an image, a chunk at a time: the file is read and the image written by
// pread and pwrite, so a full disk or a truncated file is an error and not a signal, and no mapping
// is left that would forbid sealing.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/fail.h"
#include "tensor/image_private.h"

#define CHUNK ((uint64_t)1 << 20) // bytes of packed data at a time, at least one row group

#define STR(s) (int)(s).len, (s).data

struct plan {
    struct nb_gguf *source;
    struct nb_image_header head;
    struct nb_image_entry *entries;
    struct nb_packed *packed; // of each matrix
    const void *metadata;
};

struct pack {
    struct plan plan;
    int file_fd, image_fd;
    nb_image_progress progress;
    void *user;
    uint8_t *in, *out;
    char *ret_error;
    size_t error_size;
};

static void plan_finish(struct plan *p)
{
    free(p->packed);
    free(p->entries);
    nb_gguf_close(p->source);
}

// Why a tensor cannot be in an image, for its user.
static int refuse(const struct nb_gguf_tensor *t, int reason, char *ret_error, size_t error_size)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    if (!info)
        return nb_fail(ret_error, error_size, -ENOTSUP,
                       "tensor %.*s is of type %s (%u), which Nibble does not load; quantize the "
                       "model again to one of F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K to Q6_K "
                       "IQ4_NL IQ4_XS Q2_0",
                       STR(t->name), nb_type_name(t->type), t->type);
    if (t->n_dims > 2)
        return nb_fail(ret_error, error_size, -ENOTSUP,
                       "tensor %.*s (%s) has %u dimensions, as mixtures of experts do; Nibble "
                       "loads dense models: choose one",
                       STR(t->name), info->name, t->n_dims);
    return nb_fail(ret_error, error_size, reason,
                   "tensor %.*s (%s) of %" PRIu64 " by %" PRIu64
                   " is larger than a packed model can hold",
                   STR(t->name), info->name, t->dims[1], t->dims[0]);
}

static int plan_tensors(struct plan *p, char *ret_error, size_t error_size)
{
    uint32_t n = p->head.n_tensors;
    uint64_t end = sizeof(p->head) + p->head.metadata_len + n * sizeof(*p->entries);
    for (uint32_t i = 0; i < n; i++)
        p->head.names_len += nb_gguf_tensor(p->source, i)->name.len;
    end += p->head.names_len;
    for (uint32_t i = 0; i < n; i++) {
        const struct nb_gguf_tensor *t = nb_gguf_tensor(p->source, i);
        struct nb_image_entry *e = &p->entries[i];
        *e = (struct nb_image_entry){
            .name_len = (uint32_t)t->name.len, .type = t->type, .n_dims = t->n_dims};
        memcpy(e->dims, t->dims, sizeof(e->dims));
        int r = nb_image_place(e, &end, &p->packed[i]);
        if (r < 0)
            return refuse(t, r, ret_error, error_size);
    }
    p->head.bytes = end;
    return 0;
}

static int plan_init(struct plan *ret, int file_fd, char *ret_error, size_t error_size)
{
    struct plan p = {.head = {.magic = NB_IMAGE_MAGIC, .version = NB_IMAGE_VERSION}};
    int r = nb_gguf_open(file_fd, &p.source, ret_error, error_size);
    if (r < 0)
        return r;
    size_t len;
    p.metadata = nb_gguf_metadata(p.source, &len);
    p.head.metadata_len = len;
    p.head.n_tensors = (uint32_t)nb_gguf_n_tensors(p.source);
    p.entries = calloc(p.head.n_tensors + 1, sizeof(*p.entries));
    p.packed = calloc(p.head.n_tensors + 1, sizeof(*p.packed));
    if (!p.entries || !p.packed)
        r = nb_fail(ret_error, error_size, -ENOMEM, "no memory for %u tensors", p.head.n_tensors);
    else
        r = plan_tensors(&p, ret_error, error_size);
    if (r < 0)
        plan_finish(&p);
    else
        *ret = p;
    return r;
}

static int write_at(struct pack *k, const void *data, size_t len, uint64_t at)
{
    const uint8_t *p = data;
    while (len) {
        ssize_t n = pwrite(k->image_fd, p, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return nb_fail(k->ret_error, k->error_size, -errno,
                           "cannot write the packed model at byte %" PRIu64 ": %s", at,
                           strerror(errno));
        p += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int read_at(struct pack *k, const struct nb_gguf_tensor *t, size_t len, uint64_t at)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = pread(k->file_fd, k->in + done, len - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return nb_fail(k->ret_error, k->error_size, n < 0 ? -errno : -EINVAL,
                           "cannot read tensor %.*s at byte %" PRIu64 ": %s", STR(t->name),
                           at + done, n < 0 ? strerror(errno) : "the file became shorter");
        done += (size_t)n;
    }
    return 0;
}

static int report(struct pack *k, uint64_t done)
{
    int r = k->progress ? k->progress(k->user, done, k->plan.head.bytes) : 0;
    return r < 0 ? nb_fail(k->ret_error, k->error_size, r, "cancelled") : 0;
}

static int reserve(struct pack *k, uint64_t in, uint64_t out)
{
    free(k->in);
    free(k->out);
    k->in = malloc(in);
    k->out = malloc(out);
    if (!k->in || !k->out)
        return nb_fail(k->ret_error, k->error_size, -ENOMEM, "no memory for a chunk of rows");
    return 0;
}

static int pack_matrix(struct pack *k, const struct nb_gguf_tensor *t,
                       const struct nb_image_entry *e, const struct nb_packed *p)
{
    uint64_t row_bytes = t->bytes / p->rows, groups = (p->rows + 15) / 16;
    uint64_t step = p->stride < CHUNK ? CHUNK / p->stride : 1;
    int r = reserve(k, step * 16 * row_bytes, step * p->stride);
    for (uint64_t g = 0; g < groups && r >= 0; g += step) {
        uint64_t n = groups - g < step ? groups - g : step, first = g * 16;
        struct nb_packed part = *p;
        part.rows = (uint32_t)(p->rows - first < n * 16 ? p->rows - first : n * 16);
        r = read_at(k, t, part.rows * row_bytes, t->offset + first * row_bytes);
        if (r < 0)
            break;
        nb_layout_pack(&part, k->in, k->out, 0, (uint32_t)n);
        r = write_at(k, k->out, n * p->stride, e->offset + g * p->stride);
        if (r >= 0)
            r = report(k, e->offset + (g + n) * p->stride);
    }
    return r;
}

static int pack_vector(struct pack *k, const struct nb_gguf_tensor *t,
                       const struct nb_image_entry *e)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    int r = reserve(k, t->bytes, e->bytes);
    if (r >= 0)
        r = read_at(k, t, t->bytes, t->offset);
    if (r < 0)
        return r;
    info->decode(k->in, (float *)(void *)k->out, t->dims[0] / info->block);
    return write_at(k, k->out, e->bytes, e->offset);
}

static int write_head(struct pack *k)
{
    const struct plan *p = &k->plan;
    uint64_t at = sizeof(p->head);
    int r = write_at(k, p->metadata, p->head.metadata_len, at);
    at += p->head.metadata_len;
    if (r >= 0)
        r = write_at(k, p->entries, p->head.n_tensors * sizeof(*p->entries), at);
    at += p->head.n_tensors * sizeof(*p->entries);
    for (uint32_t i = 0; i < p->head.n_tensors && r >= 0; i++) {
        struct nb_str name = nb_gguf_tensor(p->source, i)->name;
        r = write_at(k, name.data, name.len, at);
        at += name.len;
    }
    return r;
}

static int size_image(struct pack *k)
{
    struct stat st;
    if (fstat(k->image_fd, &st) < 0)
        return nb_fail(k->ret_error, k->error_size, -errno, "fstat: %s", strerror(errno));
    if (st.st_size)
        return nb_fail(k->ret_error, k->error_size, -EINVAL, "the output is not empty");
    if (ftruncate(k->image_fd, (off_t)k->plan.head.bytes) < 0)
        return nb_fail(k->ret_error, k->error_size, -errno, "cannot make %" PRIu64 " bytes: %s",
                       k->plan.head.bytes, strerror(errno));
    return 0;
}

static int write_image(struct pack *k)
{
    const struct plan *p = &k->plan;
    int r = size_image(k);
    if (r >= 0)
        r = write_head(k);
    for (uint32_t i = 0; i < p->head.n_tensors && r >= 0; i++) {
        const struct nb_gguf_tensor *t = nb_gguf_tensor(p->source, i);
        const struct nb_image_entry *e = &p->entries[i];
        r = e->n_dims == 2 ? pack_matrix(k, t, e, &p->packed[i]) : pack_vector(k, t, e);
    }
    // The header comes last: an image whose packing was cut short has no magic.
    return r < 0 ? r : write_at(k, &p->head, sizeof(p->head), 0);
}

int nb_image_pack(int file_fd, int image_fd, nb_image_progress progress, void *user,
                  uint64_t *ret_bytes, char *ret_error, size_t error_size)
{
    struct pack k = {.file_fd = file_fd,
                     .image_fd = image_fd,
                     .progress = progress,
                     .user = user,
                     .ret_error = ret_error,
                     .error_size = error_size};
    int r = plan_init(&k.plan, file_fd, ret_error, error_size);
    if (r < 0)
        return r;
    r = write_image(&k);
    if (r >= 0)
        *ret_bytes = k.plan.head.bytes;
    free(k.in);
    free(k.out);
    plan_finish(&k.plan);
    return r < 0 ? r : 0;
}

int nb_image_size(int file_fd, uint64_t *ret_bytes, char *ret_error, size_t error_size)
{
    struct plan p;
    int r = plan_init(&p, file_fd, ret_error, error_size);
    if (r < 0)
        return r;
    *ret_bytes = p.head.bytes;
    plan_finish(&p);
    return 0;
}
