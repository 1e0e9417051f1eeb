// Reading a GGUF file that may be hostile. The bytes are fetched once by pread into private memory,
// only as far as the parse has come, and nothing is believed before it was checked against what the
// file can hold.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/fail.h"
#include "tensor/gguf_private.h"
#include "tensor/type.h"

#define READ_AHEAD ((size_t)1 << 20)

// The parse. The first failure sticks: later takes give zeros, and loops look at `error`.
struct reader {
    struct nb_gguf *g;
    int fd; // -1: all bytes are there
    uint64_t file_size, limit;
    uint64_t alignment;
    size_t pos;
    int error;
    struct nb_error *ret_error;
};

#define FAIL(r, code, ...)                                                                         \
    ((r)->error ? 0 : ((r)->error = nb_fail((r)->ret_error, code, __VA_ARGS__)))

#define STR(s) (int)(s).len, (s).data // for %.*s, of names that nb_name_ok saw

static void fetch(struct reader *r, size_t upto)
{
    struct nb_gguf *g = r->g;
    while (g->filled < upto) {
        ssize_t n = pread(r->fd, g->bytes + g->filled, upto - g->filled, (off_t)g->filled);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            FAIL(r, n < 0 ? -errno : -EINVAL, "cannot read at byte %zu: %s", g->filled,
                 n < 0 ? strerror(errno) : "the file became shorter");
            return;
        }
        g->filled += (size_t)n;
    }
}

// Makes the next n bytes readable at pos.
static bool need(struct reader *r, uint64_t n)
{
    if (r->error)
        return false;
    if (n > r->limit - r->pos) {
        if (r->limit < r->file_size)
            FAIL(r, -EFBIG, "the metadata is larger than %" PRIu64 " MiB, the most that is read",
                 NB_GGUF_MAX_METADATA >> 20);
        else
            FAIL(r, -EINVAL,
                 "truncated: %" PRIu64 " bytes are needed at byte %zu of the metadata, the file "
                 "ends at %" PRIu64,
                 n, r->pos, r->file_size);
        return false;
    }
    size_t last = r->pos + n;
    if (last > r->g->filled) {
        size_t ahead = r->limit - r->pos < READ_AHEAD ? r->limit : r->pos + READ_AHEAD;
        fetch(r, last > ahead ? last : ahead);
    }
    return !r->error;
}

static const uint8_t *take(struct reader *r, uint64_t n)
{
    if (!need(r, n))
        return NULL;
    const uint8_t *p = r->g->bytes + r->pos;
    r->pos += n;
    return p;
}

static uint32_t take_u32(struct reader *r)
{
    uint32_t v = 0;
    const uint8_t *p = take(r, sizeof(v));
    if (p)
        memcpy(&v, p, sizeof(v));
    return v;
}

static uint64_t take_u64(struct reader *r)
{
    uint64_t v = 0;
    const uint8_t *p = take(r, sizeof(v));
    if (p)
        memcpy(&v, p, sizeof(v));
    return v;
}

static struct nb_str take_str(struct reader *r)
{
    uint64_t len = take_u64(r);
    const uint8_t *p = take(r, len);
    return p ? (struct nb_str){(const char *)p, len} : (struct nb_str){"", 0};
}

static struct nb_str take_name(struct reader *r, size_t max, const char *what, uint64_t i)
{
    size_t at = r->pos;
    struct nb_str s = take_str(r);
    if (!r->error && s.len > max)
        FAIL(r, -EFBIG, "%s %" PRIu64 " at byte %zu has %zu bytes; the limit is %zu", what, i, at,
             s.len, max);
    if (!r->error && !nb_name_ok(s))
        FAIL(r, -EINVAL, "%s %" PRIu64 " at byte %zu is empty or has control characters", what, i,
             at);
    return s;
}

static void read_header(struct reader *r, uint64_t *ret_tensors, uint64_t *ret_keys)
{
    uint32_t magic = take_u32(r), version = take_u32(r);
    if (!r->error && magic != NB_GGUF_MAGIC)
        FAIL(r, -EINVAL, "not a GGUF file: it does not begin with \"GGUF\"");
    if (!r->error && version != 0 && (version & 0xffff) == 0)
        FAIL(r, -ENOTSUP, "a big-endian GGUF file; convert it with gguf-convert-endian");
    if (!r->error && version != 2 && version != 3)
        FAIL(r, -ENOTSUP, "GGUF version %" PRIu32 "; versions 2 and 3 are read: convert it again",
             version);
    *ret_tensors = take_u64(r);
    *ret_keys = take_u64(r);
    if (!r->error && *ret_tensors > NB_GGUF_MAX_TENSORS)
        FAIL(r, -EFBIG, "%" PRIu64 " tensors; the limit is %d", *ret_tensors, NB_GGUF_MAX_TENSORS);
    if (!r->error && *ret_keys > NB_GGUF_MAX_KEYS)
        FAIL(r, -EFBIG, "%" PRIu64 " metadata keys; the limit is %d", *ret_keys, NB_GGUF_MAX_KEYS);
}

static void check_bools(struct reader *r, const struct nb_gguf_pair *p)
{
    for (uint64_t i = 0; i < p->n; i++)
        if (p->data[i] > 1) {
            FAIL(r, -EINVAL, "key %.*s: a truth value is neither 0 nor 1", STR(p->key));
            return;
        }
}

// Every string of an array is walked once, and where it lies is kept: tokens are asked by number.
static void read_strings(struct reader *r, struct nb_gguf_pair *p)
{
    size_t start = r->pos;
    if (p->n > (r->limit - r->pos) / sizeof(uint64_t)) {
        need(r, p->n > UINT64_MAX / sizeof(uint64_t) ? UINT64_MAX : p->n * sizeof(uint64_t));
        return;
    }
    p->strings = malloc((p->n ? p->n : 1) * sizeof(*p->strings));
    if (!p->strings) {
        FAIL(r, -ENOMEM, "no memory for %" PRIu64 " strings of key %.*s", p->n, STR(p->key));
        return;
    }
    for (uint64_t i = 0; i < p->n && !r->error; i++) {
        p->strings[i] = (uint32_t)(r->pos - start);
        take_str(r);
    }
}

static void read_elements(struct reader *r, struct nb_gguf_pair *p)
{
    size_t bytes = nb_gguf_element_bytes(p->element);
    p->data = r->g->bytes + r->pos;
    if (p->element == NB_GGUF_STRING && p->type == NB_GGUF_ARRAY)
        read_strings(r, p);
    else if (p->element == NB_GGUF_STRING)
        take_str(r);
    else if (!bytes)
        FAIL(r, p->element == NB_GGUF_ARRAY ? -ENOTSUP : -EINVAL, "key %.*s: %s", STR(p->key),
             p->element == NB_GGUF_ARRAY ? "arrays of arrays are not read" : "no such value type");
    else
        take(r, p->n > UINT64_MAX / bytes ? UINT64_MAX : p->n * bytes);
    if (!r->error && p->element == NB_GGUF_BOOL)
        check_bools(r, p);
}

static void read_pair(struct reader *r, struct nb_gguf_pair *p, uint64_t i)
{
    size_t start = r->pos;
    p->key = take_name(r, NB_GGUF_MAX_KEY, "key", i);
    p->type = p->element = take_u32(r);
    p->n = 1;
    if (p->type == NB_GGUF_ARRAY) {
        p->element = take_u32(r);
        p->n = take_u64(r);
    }
    if (!r->error)
        read_elements(r, p);
    p->raw = r->g->bytes + start;
    p->raw_end = r->g->bytes + r->pos;
}

static void sort_names(struct reader *r, struct nb_names *names, const char *what)
{
    struct nb_str duplicate;
    if (!r->error && nb_names_sort(names, &duplicate) < 0)
        FAIL(r, -EINVAL, "%s %.*s comes twice", what, STR(duplicate));
}

static void read_pairs(struct reader *r, uint64_t n)
{
    struct nb_gguf *g = r->g;
    // The smallest pair has 13 bytes: a count beyond that is refused before anything is allocated
    // for it.
    if (r->error || !need(r, n * 13))
        return;
    g->pairs = calloc(n ? n : 1, sizeof(*g->pairs));
    if (!g->pairs || nb_names_init(&g->keys, (uint32_t)n) < 0) {
        FAIL(r, -ENOMEM, "no memory for %" PRIu64 " metadata keys", n);
        return;
    }
    for (uint64_t i = 0; i < n && !r->error; i++) {
        g->n_pairs = (uint32_t)i + 1;
        read_pair(r, &g->pairs[i], i);
        g->keys.items[i].str = g->pairs[i].key;
    }
    sort_names(r, &g->keys, "key");
}

static void read_alignment(struct reader *r)
{
    r->alignment = NB_GGUF_ALIGNMENT;
    if (r->error || nb_gguf_u64(r->g, "general.alignment", &r->alignment) == -ENOENT)
        return;
    uint64_t a = r->alignment;
    uint32_t at = (uint32_t)nb_names_find(&r->g->keys, "general.alignment");
    if (r->g->pairs[at].type != NB_GGUF_U32 || a == 0 || (a & (a - 1)) || a > NB_GGUF_MAX_ALIGNMENT)
        FAIL(r, -EINVAL, "general.alignment is not a power of two of up to %" PRIu64,
             NB_GGUF_MAX_ALIGNMENT);
}

// Fills bytes from type and shape; types unknown to us keep 0.
static void size_tensor(struct reader *r, struct nb_gguf_tensor *t)
{
    uint64_t elements = 1;
    for (unsigned d = 0; d < NB_GGUF_MAX_DIMS; d++)
        if (t->dims[d] == 0 || __builtin_mul_overflow(elements, t->dims[d], &elements)) {
            FAIL(r, -EINVAL, "tensor %.*s: a dimension is zero, or there are too many weights",
                 STR(t->name));
            return;
        }
    const struct nb_type_info *info = nb_type_info(t->type);
    if (!info)
        return;
    if (t->type >= NB_TYPE_GGUF_END)
        FAIL(r, -ENOTSUP, "tensor %.*s is of type %" PRIu32 ", which no GGUF has", STR(t->name),
             t->type);
    else if (t->dims[0] % info->block)
        FAIL(r, -EINVAL, "tensor %.*s: rows of %" PRIu64 " weights are not whole blocks of %s (%u)",
             STR(t->name), t->dims[0], info->name, info->block);
    else if (__builtin_mul_overflow(elements / info->block, (uint64_t)info->bytes, &t->bytes))
        FAIL(r, -EINVAL, "tensor %.*s: its size overflows", STR(t->name));
}

static void read_tensor(struct reader *r, struct nb_gguf_tensor *t, uint64_t i)
{
    t->name = take_name(r, NB_GGUF_MAX_NAME, "the name of tensor", i);
    t->n_dims = take_u32(r);
    if (!r->error && (t->n_dims == 0 || t->n_dims > NB_GGUF_MAX_DIMS))
        FAIL(r, -EINVAL, "tensor %.*s has %" PRIu32 " dimensions; 1 to %d are read", STR(t->name),
             t->n_dims, NB_GGUF_MAX_DIMS);
    for (unsigned d = 0; d < NB_GGUF_MAX_DIMS; d++)
        t->dims[d] = d < t->n_dims && !r->error ? take_u64(r) : 1;
    t->type = take_u32(r);
    t->offset = take_u64(r);
    if (!r->error)
        size_tensor(r, t);
}

// From an offset in the data section to one in the file, with all bounds.
static void place_tensor(struct reader *r, struct nb_gguf_tensor *t, uint64_t data_start)
{
    if (t->offset % r->alignment)
        FAIL(r, -EINVAL, "tensor %.*s: offset %" PRIu64 " is not aligned to %" PRIu64, STR(t->name),
             t->offset, r->alignment);
    else if (data_start > r->file_size || t->offset > r->file_size - data_start ||
             t->bytes > r->file_size - data_start - t->offset)
        FAIL(r, -EINVAL,
             "truncated: tensor %.*s needs %" PRIu64 " bytes at %" PRIu64
             " of the data, past the end of the file",
             STR(t->name), t->bytes, t->offset);
    else
        t->offset += data_start;
}

static int by_offset(const void *a, const void *b)
{
    const struct nb_gguf_tensor *x = *(const struct nb_gguf_tensor *const *)a;
    const struct nb_gguf_tensor *y = *(const struct nb_gguf_tensor *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static void check_overlaps(struct reader *r)
{
    uint32_t n = r->g->n_tensors;
    const struct nb_gguf_tensor **sorted = calloc(n ? n : 1, sizeof(*sorted));
    if (!sorted) {
        FAIL(r, -ENOMEM, "no memory for %u tensors", n);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        sorted[i] = &r->g->tensors[i];
    qsort(sorted, n, sizeof(*sorted), by_offset);
    for (uint32_t i = 1; i < n && !r->error; i++)
        if (sorted[i - 1]->offset + sorted[i - 1]->bytes > sorted[i]->offset)
            FAIL(r, -EINVAL, "tensors %.*s and %.*s overlap", STR(sorted[i - 1]->name),
                 STR(sorted[i]->name));
    free(sorted);
}

static void read_tensors(struct reader *r, uint64_t n)
{
    struct nb_gguf *g = r->g;
    // The smallest entry: a name of one byte, one dimension.
    if (r->error || !need(r, n * 33))
        return;
    g->tensors = calloc(n ? n : 1, sizeof(*g->tensors));
    if (!g->tensors || nb_names_init(&g->names, (uint32_t)n) < 0) {
        FAIL(r, -ENOMEM, "no memory for %" PRIu64 " tensors", n);
        return;
    }
    for (uint64_t i = 0; i < n && !r->error; i++) {
        read_tensor(r, &g->tensors[i], i);
        g->names.items[i].str = g->tensors[i].name;
    }
    sort_names(r, &g->names, "tensor");
    uint64_t data_start = (r->pos + r->alignment - 1) & ~(r->alignment - 1);
    for (uint64_t i = 0; i < n && !r->error; i++)
        place_tensor(r, &g->tensors[i], data_start);
    g->n_tensors = (uint32_t)n;
    if (!r->error)
        check_overlaps(r);
}

// `size`: all that there is of it. The mapping costs address space alone until it is filled.
static int begin(struct reader *r, int fd, uint64_t size, struct nb_error *ret_error)
{
    uint64_t limit = size < NB_GGUF_MAX_METADATA ? size : NB_GGUF_MAX_METADATA;
    struct nb_gguf *g = calloc(1, sizeof(*g));
    *r = (struct reader){
        .g = g, .fd = fd, .file_size = size, .limit = limit, .ret_error = ret_error};
    if (!g) {
        nb_fail(ret_error, -ENOMEM, "no memory");
        return -ENOMEM;
    }
    g->mapped = limit ? limit : 1;
    g->bytes = mmap(NULL, g->mapped, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (g->bytes == MAP_FAILED) {
        free(g);
        nb_fail(ret_error, -ENOMEM, "no address space for the metadata");
        return -ENOMEM;
    }
    return 0;
}

static int end(struct reader *r, struct nb_gguf **ret)
{
    struct nb_gguf *g = r->g;
    if (r->error) {
        nb_gguf_close(g);
        return r->error;
    }
    // What was mapped for metadata that did not come goes back, and tensor data read ahead.
    size_t page = (size_t)sysconf(_SC_PAGESIZE), used = (r->pos + page - 1) / page * page;
    if (used < g->mapped) {
        munmap(g->bytes + used, g->mapped - used);
        g->mapped = used;
    }
    *ret = g;
    return 0;
}

int nb_gguf_open(int fd, struct nb_gguf **ret, struct nb_error *ret_error)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return nb_fail(ret_error, -errno, "fstat: %s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return nb_fail(ret_error, -EINVAL, "not a regular file");

    struct reader r;
    uint64_t n_tensors, n_keys;
    int error = begin(&r, fd, (uint64_t)st.st_size, ret_error);
    if (error)
        return error;
    read_header(&r, &n_tensors, &n_keys);
    read_pairs(&r, n_keys);
    r.g->metadata_len = r.pos;
    read_alignment(&r);
    read_tensors(&r, n_tensors);
    return end(&r, ret);
}

int nb_gguf_parse_metadata(const void *data, size_t len, struct nb_gguf **ret,
                           struct nb_error *ret_error)
{
    struct reader r;
    uint64_t n_tensors, n_keys;
    if (len > NB_GGUF_MAX_METADATA)
        return nb_fail(ret_error, -EFBIG, "the metadata is larger than %" PRIu64 " MiB",
                       NB_GGUF_MAX_METADATA >> 20);
    int error = begin(&r, -1, len, ret_error);
    if (error)
        return error;
    if (len)
        memcpy(r.g->bytes, data, len);
    r.g->filled = len;
    read_header(&r, &n_tensors, &n_keys);
    read_pairs(&r, n_keys);
    if (!r.error && r.pos != len)
        FAIL(&r, -EINVAL, "%zu bytes follow the metadata", len - r.pos);
    r.g->metadata_len = r.pos;
    return end(&r, ret);
}

void nb_gguf_close(struct nb_gguf *g)
{
    if (!g)
        return;
    for (uint32_t i = 0; i < g->n_pairs; i++)
        free(g->pairs[i].strings);
    free(g->pairs);
    free(g->tensors);
    nb_names_finish(&g->keys);
    nb_names_finish(&g->names);
    munmap(g->bytes, g->mapped);
    free(g);
}
