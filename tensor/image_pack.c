// Packing a model into an image, a chunk at a time: its files are read and the image written by
// pread and pwrite, so a full disk or a truncated file is an error and not a signal, and no mapping
// is left that would forbid sealing.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/damage.h"
#include "tensor/fail.h"
#include "tensor/image_private.h"
#include "tensor/pages.h"

#define CHUNK ((uint64_t)1 << 20) // bytes of packed data at a time, at least one row group

#define STR(s) (int)(s).len, (s).data

struct plan {
    const struct nb_source *source;
    struct nb_image_header head;
    struct nb_image_entry *entries;
    struct nb_packed *packed; // of each matrix, and of the slices of a stack of them
    const void *metadata;
};

struct pack {
    struct plan plan;
    int image_fd;
    struct nb_pack_options options;
    uint8_t *in, *out;
    struct nb_error *ret_error;
};

static void plan_finish(struct plan *p)
{
    free(p->packed);
    free(p->entries);
}

// Why a tensor cannot be in an image, for its user.
static int refuse(const struct nb_source_tensor *t, int reason, struct nb_error *ret_error)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    if (!info)
        return nb_fail(ret_error, -ENOTSUP,
                       "tensor %.*s is of type %s (%u), which Nibble does not load; quantize the "
                       "model again to one of F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K to Q6_K "
                       "IQ4_NL IQ4_XS Q2_0",
                       STR(t->name), nb_type_name(t->type), t->type);
    if (t->n_dims > 3)
        return nb_fail(ret_error, -ENOTSUP,
                       "tensor %.*s (%s) has %u dimensions, and no model that Nibble computes has "
                       "more than 3: choose another file",
                       STR(t->name), info->name, t->n_dims);
    return nb_fail(ret_error, reason,
                   "tensor %.*s (%s) of %" PRIu64 " by %" PRIu64 " by %" PRIu64
                   " is larger than a packed model can hold",
                   STR(t->name), info->name, t->dims[2], t->dims[1], t->dims[0]);
}

static int plan_tensors(struct plan *p, struct nb_error *ret_error)
{
    uint32_t n = p->head.n_tensors;
    uint64_t end = sizeof(p->head) + p->head.metadata_len + n * sizeof(*p->entries);
    for (uint32_t i = 0; i < n; i++)
        p->head.names_len += p->source->tensors[i].name.len;
    end += p->head.names_len;
    for (uint32_t i = 0; i < n; i++) {
        const struct nb_source_tensor *t = &p->source->tensors[i];
        struct nb_image_entry *e = &p->entries[i];
        *e = (struct nb_image_entry){
            .name_len = (uint32_t)t->name.len, .type = t->type, .n_dims = t->n_dims};
        memcpy(e->dims, t->dims, sizeof(e->dims));
        int rc = nb_image_place(e, &end, &p->packed[i]);
        if (rc < 0)
            return refuse(t, rc, ret_error);
    }
    p->head.bytes = end;
    return 0;
}

static int plan_init(struct plan *ret, const struct nb_source *source, struct nb_error *ret_error)
{
    struct plan p = {.source = source,
                     .head = {.magic = NB_IMAGE_MAGIC, .version = NB_IMAGE_VERSION}};
    size_t len;
    int rc;
    p.metadata = nb_gguf_metadata(source->metadata, &len);
    p.head.metadata_len = len;
    p.head.n_tensors = source->n_tensors;
    p.entries = calloc(p.head.n_tensors + 1, sizeof(*p.entries));
    p.packed = calloc(p.head.n_tensors + 1, sizeof(*p.packed));
    if (!p.entries || !p.packed)
        rc = nb_fail(ret_error, -ENOMEM, "no memory for %u tensors", p.head.n_tensors);
    else
        rc = plan_tensors(&p, ret_error);
    if (rc < 0)
        plan_finish(&p);
    else
        *ret = p;
    return rc;
}

static int write_at(struct pack *k, const void *data, size_t len, uint64_t at)
{
    const uint8_t *p = data;
    while (len) {
        ssize_t n = pwrite(k->image_fd, p, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return nb_fail(k->ret_error, -errno,
                           "cannot write the packed model at byte %" PRIu64 ": %s", at,
                           strerror(errno));
        p += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int report(struct pack *k, uint64_t done)
{
    int rc =
        k->options.progress ? k->options.progress(k->options.user, done, k->plan.head.bytes) : 0;
    return rc < 0 ? nb_fail(k->ret_error, rc, "cancelled") : 0;
}

static int reserve(struct pack *k, uint64_t in, uint64_t out)
{
    free(k->in);
    free(k->out);
    k->in = malloc(in ? in : 1);
    k->out = malloc(out ? out : 1);
    if (!k->in || !k->out)
        return nb_fail(k->ret_error, -ENOMEM, "no memory for a chunk of rows");
    return 0;
}

// `first_row`: of the whole tensor.
static int refuse_number(struct pack *k, const struct nb_source_tensor *t, uint64_t first_row,
                         const struct nb_no_number *n)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    uint64_t row = first_row + n->row;
    char place[64] = "", prefix[NB_SOURCE_NAME + 2];
    if (t->n_dims == 2)
        snprintf(place, sizeof(place), "row %" PRIu64 ", ", row);
    if (t->n_dims == 3)
        snprintf(place, sizeof(place), "slice %" PRIu64 ", row %" PRIu64 ", ", row / t->dims[1],
                 row % t->dims[1]);
    return nb_fail(k->ret_error, -EINVAL,
                   "%stensor %.*s (%s) has %s (%s%s %" PRIu32
                   "): the file is damaged, fetch or convert it again",
                   nb_source_prefix(k->plan.source, nb_source_piece(t, row), prefix), STR(t->name),
                   info->name, n->what, place,
                   t->n_dims > 1 && info->block > 1 ? "block" : "element", n->block);
}

// Row groups [g, g + n) of slice `slice`, as a matrix of their own.
static int pack_groups(struct pack *k, const struct nb_source_tensor *t,
                       const struct nb_image_entry *e, const struct nb_packed *p, uint64_t slice,
                       uint64_t g, uint64_t n)
{
    const uint64_t first = g * NB_GROUP_ROWS;
    const uint64_t row = slice * p->rows + first, at = slice * nb_packed_bytes(p) + g * p->stride;
    struct nb_packed part = *p;
    struct nb_no_number none;
    if (p->rows - first < n * NB_GROUP_ROWS)
        part.rows = (uint32_t)(p->rows - first);
    else
        part.rows = (uint32_t)(n * NB_GROUP_ROWS);
    int rc = nb_source_read(k->plan.source, t, row, part.rows, k->in, k->ret_error);
    if (rc < 0)
        return rc;
    nb_layout_pack(&part, k->in, k->out, 0, (uint32_t)n);
    if (nb_packed_no_number(&part, k->out, (uint32_t)n, &none))
        return refuse_number(k, t, row, &none);
    rc = write_at(k, k->out, n * p->stride, e->offset + at);
    return rc < 0 ? rc : report(k, e->offset + at + n * p->stride);
}

static int pack_slices(struct pack *k, const struct nb_source_tensor *t,
                       const struct nb_image_entry *e, const struct nb_packed *p)
{
    uint64_t groups = nb_packed_bytes(p) / p->stride;
    uint64_t step = p->stride < CHUNK ? CHUNK / p->stride : 1;
    if (step > groups)
        step = groups;
    int rc = reserve(k, step * NB_GROUP_ROWS * nb_source_row_bytes(t), step * p->stride);
    for (uint64_t slice = 0; slice < t->dims[2]; slice++)
        for (uint64_t g = 0; g < groups && rc >= 0; g += step)
            rc = pack_groups(k, t, e, p, slice, g, groups - g < step ? groups - g : step);
    return rc;
}

static int pack_vector(struct pack *k, const struct nb_source_tensor *t,
                       const struct nb_image_entry *e)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    int rc = reserve(k, t->bytes, e->bytes);
    if (rc >= 0)
        rc = nb_source_read(k->plan.source, t, 0, 1, k->in, k->ret_error);
    if (rc < 0)
        return rc;
    struct nb_no_number none;
    float *x = (float *)(void *)k->out;
    info->dequantize(k->in, x, t->dims[0] / info->block);
    if (nb_vector_no_number(x, t->dims[0], &none))
        return refuse_number(k, t, 0, &none);
    return write_at(k, k->out, e->bytes, e->offset);
}

static int write_head(struct pack *k)
{
    const struct plan *p = &k->plan;
    uint64_t at = sizeof(p->head);
    int rc = write_at(k, p->metadata, p->head.metadata_len, at);
    at += p->head.metadata_len;
    if (rc >= 0)
        rc = write_at(k, p->entries, p->head.n_tensors * sizeof(*p->entries), at);
    at += p->head.n_tensors * sizeof(*p->entries);
    for (uint32_t i = 0; i < p->head.n_tensors && rc >= 0; i++) {
        struct nb_str name = p->source->tensors[i].name;
        rc = write_at(k, name.data, name.len, at);
        at += name.len;
    }
    return rc;
}

static int size_image(struct pack *k)
{
    struct stat st;
    if (fstat(k->image_fd, &st) < 0)
        return nb_fail(k->ret_error, -errno, "fstat: %s", strerror(errno));
    if (st.st_size)
        return nb_fail(k->ret_error, -EINVAL, "the output is not empty");
    if (ftruncate(k->image_fd, (off_t)k->plan.head.bytes) < 0)
        return nb_fail(k->ret_error, -errno, "cannot make %" PRIu64 " bytes: %s",
                       k->plan.head.bytes, strerror(errno));
    return 0;
}

static int write_image(struct pack *k)
{
    const struct plan *p = &k->plan;
    int rc = size_image(k);
    if (rc >= 0)
        rc = write_head(k);
    for (uint32_t i = 0; i < p->head.n_tensors && rc >= 0; i++) {
        const struct nb_source_tensor *t = &p->source->tensors[i];
        const struct nb_image_entry *e = &p->entries[i];
        rc = e->n_dims > 1 ? pack_slices(k, t, e, &p->packed[i]) : pack_vector(k, t, e);
    }
    // The header comes last: an image whose packing was cut short has no magic.
    return rc < 0 ? rc : write_at(k, &p->head, sizeof(p->head), 0);
}

// 1: a file ends in zeros, and its user wants them.
static int check_ends(const struct pack *k)
{
    const struct nb_piece *zero = NULL;
    char prefix[NB_SOURCE_NAME + 2];
    int rc = nb_find_zeros(k->plan.source, &zero);
    if (rc < 0)
        return nb_fail(k->ret_error, rc, "cannot read a file's end: %s", strerror(-rc));
    if (!zero || k->options.zeros)
        return zero != NULL;
    return nb_fail(k->ret_error, -EINVAL,
                   "%sthe file is zero from tensor %.*s to its end, as after an interrupted "
                   "download: fetch it again (nibble load --force takes its zeros)",
                   nb_source_prefix(k->plan.source, zero, prefix), STR(zero->name));
}

int nb_image_pack(const struct nb_source *source, int image_fd,
                  const struct nb_pack_options *options, uint64_t *ret_bytes,
                  struct nb_error *ret_error)
{
    struct pack k = {.image_fd = image_fd,
                     .options = options ? *options : (struct nb_pack_options){.zeros = false},
                     .ret_error = ret_error};
    int rc = plan_init(&k.plan, source, ret_error);
    if (rc < 0)
        return rc;
    int zeros = rc = check_ends(&k);
    if (rc >= 0)
        rc = write_image(&k);
    if (rc >= 0) {
        nb_pages_join(image_fd, k.plan.head.bytes);
        *ret_bytes = k.plan.head.bytes;
    }
    free(k.in);
    free(k.out);
    plan_finish(&k.plan);
    return rc < 0 ? rc : zeros;
}

int nb_image_size(const struct nb_source *source, uint64_t *ret_bytes, struct nb_error *ret_error)
{
    struct plan p;
    int rc = plan_init(&p, source, ret_error);
    if (rc < 0)
        return rc;
    *ret_bytes = p.head.bytes;
    plan_finish(&p);
    return 0;
}
