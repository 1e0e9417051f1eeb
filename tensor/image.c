// Mapping a packed model. The image may come from a disk cache, so nothing in it is believed:
// header, directory and names are copied once, and the places in it must be exactly those that
// packing would have chosen.
#include "tensor/image.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/fail.h"
#include "tensor/gguf_private.h"
#include "tensor/image_private.h"
#include "tensor/pages.h"

struct nb_image {
    const uint8_t *bytes; // the mapping
    size_t size;
    struct nb_image_header head;
    uint8_t *directory; // private copy: entries, then names
    struct nb_image_tensor *tensors;
    struct nb_names names;
    struct nb_gguf *metadata;
};

int nb_image_place(struct nb_image_entry *e, uint64_t *end, struct nb_packed *ret_packed)
{
    uint64_t bytes;
    if (e->n_dims < 1 || e->n_dims > 3 || e->dims[2] < 1 || e->dims[2] > NB_IMAGE_MAX_SLICES)
        return -EINVAL;
    if (e->n_dims == 1) {
        if (!nb_type_info(e->type) || e->dims[0] == 0 || e->dims[0] > NB_IMAGE_MAX_VECTOR)
            return -EINVAL;
        bytes = e->dims[0] * sizeof(float);
    } else {
        int rc = nb_packed_init(ret_packed, e->type, e->dims[1], e->dims[0]);
        if (rc < 0)
            return rc;
        // A slice has at most 2^53 bytes.
        if (__builtin_mul_overflow(nb_packed_bytes(ret_packed), e->dims[2], &bytes))
            return -EOVERFLOW;
    }
    e->offset = (*end + NB_IMAGE_ALIGNMENT - 1) / NB_IMAGE_ALIGNMENT * NB_IMAGE_ALIGNMENT;
    if (bytes > NB_IMAGE_MAX_BYTES || e->offset > NB_IMAGE_MAX_BYTES - bytes)
        return -EOVERFLOW;
    e->bytes = bytes;
    *end = e->offset + bytes;
    return 0;
}

#define IMAGE_FAIL(code, ...) nb_fail(ret_error, code, "packed model: " __VA_ARGS__)

static int map_fd(struct nb_image *img, int fd, int require_seals, struct nb_error *ret_error)
{
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    struct stat st;
    if (require_seals && (fcntl(fd, F_GET_SEALS) & seals) != seals)
        return IMAGE_FAIL(-EPERM, "it is not sealed against every change");
    if (fstat(fd, &st) < 0)
        return IMAGE_FAIL(-errno, "fstat: %s", strerror(errno));
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < sizeof(img->head))
        return IMAGE_FAIL(-EINVAL, "not a regular file of at least %zu bytes", sizeof(img->head));
    const void *p = nb_pages_map(fd, (size_t)st.st_size);
    if (!p)
        return IMAGE_FAIL(-errno, "mmap of %" PRIu64 " bytes: %s", (uint64_t)st.st_size,
                          strerror(errno));
    img->bytes = p;
    img->size = (size_t)st.st_size;
    return 0;
}

// The sections stand in one order without gaps, so each check is an equality or one bound.
static int check_header(struct nb_image *img, struct nb_error *ret_error)
{
    struct nb_image_header *h = &img->head;
    assert(img->bytes);
    memcpy(h, img->bytes, sizeof(*h));
    if (memcmp(h->magic, NB_IMAGE_MAGIC, sizeof(h->magic)) != 0)
        return IMAGE_FAIL(-EINVAL, "it does not begin with its magic");
    if (h->version != NB_IMAGE_VERSION)
        return IMAGE_FAIL(-ENOTSUP, "version %" PRIu32 ", this build reads %d: pack it again",
                          h->version, NB_IMAGE_VERSION);
    if (h->bytes != img->size)
        return IMAGE_FAIL(-EINVAL, "the header says %" PRIu64 " bytes, the file has %zu", h->bytes,
                          img->size);
    uint64_t left = img->size - sizeof(*h);
    if (h->reserved[0] || h->reserved[1] || h->reserved[2] || h->n_tensors > NB_GGUF_MAX_TENSORS ||
        h->metadata_len > left || h->names_len > left - h->metadata_len ||
        h->n_tensors * sizeof(struct nb_image_entry) > left - h->metadata_len - h->names_len)
        return IMAGE_FAIL(-EINVAL, "the header's counts do not fit the file");
    return 0;
}

static int check_entry(const struct nb_image *img, const struct nb_image_entry *e, uint32_t i,
                       uint64_t *name, uint64_t *end)
{
    struct nb_image_tensor *t = &img->tensors[i];
    struct nb_image_entry placed = *e;
    if (e->name_len > img->head.names_len - *name || e->reserved)
        return -EINVAL;
    if (nb_image_place(&placed, end, &t->packed) < 0)
        return -EINVAL;
    if (placed.offset != e->offset || placed.bytes != e->bytes)
        return -EINVAL;
    uint8_t *names = img->directory + img->head.n_tensors * sizeof(*e);
    t->name = (struct nb_str){(const char *)names + *name, e->name_len};
    *name += e->name_len;
    if (!nb_name_ok(t->name) || e->name_len > NB_GGUF_MAX_NAME)
        return -EINVAL;
    t->type = e->type;
    t->n_dims = e->n_dims;
    for (unsigned d = 0; d < 4; d++) {
        if (d >= e->n_dims && e->dims[d] != 1)
            return -EINVAL;
        t->dims[d] = e->dims[d];
    }
    if (e->n_dims == 1) {
        t->f32 = (const float *)(const void *)(img->bytes + e->offset);
    } else {
        t->packed.data = img->bytes + e->offset;
        t->n_slices = (uint32_t)e->dims[2];
        t->slice_bytes = nb_packed_bytes(&t->packed);
    }
    return 0;
}

static int check_directory(struct nb_image *img, struct nb_error *ret_error)
{
    const struct nb_image_header *h = &img->head;
    size_t entries = h->n_tensors * sizeof(struct nb_image_entry), len = entries + h->names_len;
    uint64_t name = 0, end = sizeof(*h) + h->metadata_len + len;
    img->directory = malloc(len ? len : 1);
    img->tensors = calloc(h->n_tensors ? h->n_tensors : 1, sizeof(*img->tensors));
    if (!img->directory || !img->tensors || nb_names_init(&img->names, h->n_tensors) < 0)
        return IMAGE_FAIL(-ENOMEM, "no memory for its directory");
    memcpy(img->directory, img->bytes + sizeof(*h) + h->metadata_len, len);

    for (uint32_t i = 0; i < h->n_tensors; i++) {
        struct nb_image_entry e;
        memcpy(&e, img->directory + i * sizeof(e), sizeof(e));
        if (check_entry(img, &e, i, &name, &end) < 0)
            return IMAGE_FAIL(-EINVAL, "entry %" PRIu32 " of its directory is not valid", i);
        img->names.items[i].str = img->tensors[i].name;
    }
    // Ends only grow, so the last one bounds them all.
    struct nb_str twice;
    if (name != h->names_len || end != img->size || nb_names_sort(&img->names, &twice) < 0)
        return IMAGE_FAIL(-EINVAL, "its directory does not account for the file");
    return 0;
}

int nb_image_map(int fd, int require_seals, struct nb_image **ret, struct nb_error *ret_error)
{
    struct nb_image *img = calloc(1, sizeof(*img));
    if (!img)
        return IMAGE_FAIL(-ENOMEM, "no memory");
    int rc = map_fd(img, fd, require_seals, ret_error);
    if (rc >= 0)
        rc = check_header(img, ret_error);
    if (rc >= 0)
        rc = check_directory(img, ret_error);
    if (rc >= 0)
        rc = nb_gguf_parse_metadata(img->bytes + sizeof(img->head), img->head.metadata_len,
                                    &img->metadata, ret_error);
    if (rc < 0) {
        nb_image_unmap(img);
        return rc;
    }
    *ret = img;
    return 0;
}

// What is in front of the tensors, and the vectors among them.
static void copy_small(const struct nb_image *img, uint8_t *to)
{
    const struct nb_image_header *h = &img->head;
    memcpy(to, img->bytes,
           sizeof(*h) + h->metadata_len + h->n_tensors * sizeof(struct nb_image_entry) +
               h->names_len);
    for (uint32_t i = 0; i < h->n_tensors; i++) {
        const struct nb_image_tensor *t = &img->tensors[i];
        if (t->f32)
            memcpy(to + ((const uint8_t *)t->f32 - img->bytes), t->f32, t->dims[0] * sizeof(float));
    }
}

// Of the pages that hold nothing else.
static void forbid(const struct nb_image_tensor *t, uintptr_t page)
{
    const uintptr_t at = (uintptr_t)t->packed.data;
    const uintptr_t first = (at + page - 1) / page * page;
    const uintptr_t end = (at + t->n_slices * t->slice_bytes) / page * page;
    if (first < end)
        mprotect((void *)first, end - first, PROT_NONE);
}

int nb_image_forget_matrices(struct nb_image *img)
{
    void *place = (void *)(uintptr_t)img->bytes;
    uint8_t *small =
        mmap(NULL, img->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (small == MAP_FAILED)
        return -ENOMEM;
    madvise(small, img->size, MADV_NOHUGEPAGE); // else a vector brings its neighbours back
    copy_small(img, small);
    mprotect(small, img->size, PROT_READ);
    if (mremap(small, img->size, img->size, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) {
        munmap(small, img->size);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < img->head.n_tensors; i++)
        if (img->tensors[i].n_slices)
            forbid(&img->tensors[i], (uintptr_t)sysconf(_SC_PAGESIZE));
    return 0;
}

void nb_image_unmap(struct nb_image *img)
{
    if (!img)
        return;
    nb_gguf_close(img->metadata);
    nb_names_finish(&img->names);
    free(img->tensors);
    free(img->directory);
    if (img->bytes)
        munmap((void *)(uintptr_t)img->bytes, img->size);
    free(img);
}

const struct nb_gguf *nb_image_metadata(const struct nb_image *img)
{
    return img->metadata;
}

uint32_t nb_image_n_tensors(const struct nb_image *img)
{
    return img->head.n_tensors;
}

const struct nb_image_tensor *nb_image_tensor(const struct nb_image *img, uint32_t i)
{
    return i < img->head.n_tensors ? &img->tensors[i] : NULL;
}

const struct nb_image_tensor *nb_image_find(const struct nb_image *img, const char *name)
{
    int64_t i = nb_names_find(&img->names, name);
    return i < 0 ? NULL : &img->tensors[i];
}

uint64_t nb_image_bytes(const struct nb_image *img)
{
    return img->size;
}
