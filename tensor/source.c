// Reading from a source, whatever kind it is: see source.h.
#include "tensor/source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/fail.h"
#include "tensor/type.h"

#define STR(s) (int)(s).len, (s).data

void nb_source_close(struct nb_source *s)
{
    if (!s)
        return;
    nb_gguf_close(s->metadata);
    free(s->tensors);
    for (uint32_t i = 0; i < s->n_pieces; i++)
        free(s->pieces[i].scales);
    free(s->pieces);
    free(s->files);
    if (s->free_kept)
        s->free_kept(s->kept);
    free(s);
}

int nb_source_create(const struct nb_source_file *files, uint32_t n_files, struct nb_source **ret,
                     struct nb_error *ret_error)
{
    if (n_files < 1 || n_files > NB_SOURCE_FILES)
        return nb_fail(ret_error, -EINVAL, "a model has 1 to %d files, not %" PRIu32,
                       NB_SOURCE_FILES, n_files);
    struct nb_source *s = calloc(1, sizeof(*s));
    if (s)
        s->files = calloc(n_files, sizeof(*s->files));
    if (!s || !s->files) {
        nb_source_close(s);
        return nb_fail(ret_error, -ENOMEM, "no memory");
    }
    s->n_files = n_files;
    memcpy(s->files, files, n_files * sizeof(*files));
    *ret = s;
    return 0;
}

uint32_t nb_source_find(const struct nb_source *s, struct nb_str name)
{
    uint32_t i = 0;
    while (i < s->n_tensors && (s->tensors[i].name.len != name.len ||
                                memcmp(s->tensors[i].name.data, name.data, name.len) != 0))
        i++;
    return i;
}

int nb_source_repeat(struct nb_source *s, const char *of, const char *name)
{
    const struct nb_str copied = {name, strlen(name)};
    const uint32_t from = nb_source_find(s, (struct nb_str){of, strlen(of)});
    if (from == s->n_tensors)
        return -ENOENT;
    if (nb_source_find(s, copied) < s->n_tensors)
        return -EEXIST;
    struct nb_source_tensor copy = s->tensors[from];
    struct nb_source_tensor *grown = reallocarray(s->tensors, s->n_tensors + 1, sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    copy.name = copied;
    s->tensors = grown;
    s->tensors[s->n_tensors++] = copy;
    return 0;
}

uint64_t nb_source_rows(const struct nb_source_tensor *t)
{
    return t->dims[1] * t->dims[2] * t->dims[3];
}

uint64_t nb_source_row_bytes(const struct nb_source_tensor *t)
{
    return nb_type_row_bytes(t->type, t->dims[0]);
}

uint64_t nb_source_stored_bytes(const struct nb_source_tensor *t)
{
    if (!t->pieces->scales)
        return nb_type_row_bytes(t->stored, t->dims[0]);
    return t->stored == NB_TYPE_NF4 ? t->dims[0] / 2 : t->dims[0];
}

const struct nb_piece *nb_source_piece(const struct nb_source_tensor *t, uint64_t row)
{
    return &t->pieces[row / (nb_source_rows(t) / t->n_pieces)];
}

const char *nb_source_prefix(const struct nb_source *s, const struct nb_piece *piece,
                             char ret[NB_SOURCE_NAME + 2])
{
    *ret = 0;
    if (s->n_files > 1 && !piece->data)
        snprintf(ret, NB_SOURCE_NAME + 2, "%s: ", s->files[piece->file].name);
    return ret;
}

// ---- Reading

// What one call of nb_source_read does.
struct reading {
    const struct nb_source *s;
    const struct nb_source_tensor *t;
    struct nb_error *ret_error;
};

int nb_source_read_bytes(const struct nb_source *s, uint32_t file, uint64_t at, size_t len,
                         struct nb_str what, void *dst, struct nb_error *ret_error)
{
    uint8_t *to = dst;
    while (len) {
        ssize_t n = pread(s->files[file].fd, to, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return nb_fail(ret_error, n < 0 ? -errno : -EINVAL,
                           "%s%scannot read tensor %.*s at byte %" PRIu64 ": %s",
                           s->n_files > 1 ? s->files[file].name : "", s->n_files > 1 ? ": " : "",
                           STR(what), at, n < 0 ? strerror(errno) : "the file became shorter");
        to += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

// Rows of a piece.
static int read_at(const struct reading *rd, const struct nb_piece *piece, uint64_t first,
                   uint64_t n, uint8_t *dst)
{
    const uint64_t bytes = nb_type_row_bytes(rd->t->stored, rd->t->dims[0]);
    if (piece->data) {
        memcpy(dst, (const uint8_t *)piece->data + first * bytes, n * bytes);
        return 0;
    }
    if (piece->scales)
        return nb_source_read_scaled(rd->s, rd->t, piece, first, n, dst, rd->ret_error);
    return nb_source_read_bytes(rd->s, piece->file, piece->offset + first * bytes, n * bytes,
                                piece->name, dst, rd->ret_error);
}

// Where the file has what comes as number i, of heads of that length: 2i comes from i and 2i + 1
// from half a head further.
static uint64_t permuted(uint64_t head, uint64_t i)
{
    const uint64_t in_head = i % head;
    return i - in_head + in_head % 2 * (head / 2) + in_head / 2;
}

// Rows as they are stored: in runs, as far as a piece goes, or one by one.
static int read_stored(const struct reading *rd, uint64_t first, uint64_t n, uint8_t *dst)
{
    const struct nb_source_tensor *t = rd->t;
    const uint64_t rows = nb_source_rows(t), in_piece = rows / t->n_pieces;
    const uint64_t bytes = nb_type_row_bytes(t->stored, t->dims[0]),
                   heads = t->n_dims > 1 ? t->heads : 0;
    int rc = 0;
    for (uint64_t done = 0, run; done < n && rc == 0; done += run) {
        uint64_t row = heads ? permuted(rows / heads, first + done) : first + done;
        uint64_t left = in_piece - row % in_piece;
        run = heads ? 1 : left < n - done ? left : n - done;
        rc = read_at(rd, &t->pieces[row / in_piece], row % in_piece, run, dst + done * bytes);
    }
    return rc;
}

// Rows of another type as floats.
static int read_floats(const struct reading *rd, uint64_t first, uint64_t n, float *dst)
{
    const struct nb_source_tensor *t = rd->t;
    uint8_t *stored = malloc(n * nb_type_row_bytes(t->stored, t->dims[0]));
    if (!stored)
        return nb_fail(rd->ret_error, -ENOMEM, "no memory for %" PRIu64 " rows", n);
    const struct nb_type_info *info = nb_type_info(t->stored);
    int rc = read_stored(rd, first, n, stored);
    if (rc == 0)
        info->dequantize(stored, dst, n * t->dims[0] / info->block);
    free(stored);
    return rc;
}

static int permute_vector(const struct reading *rd, float *x)
{
    const uint64_t n = rd->t->dims[0];
    float *copy = malloc(n * sizeof(*x));
    if (!copy)
        return nb_fail(rd->ret_error, -ENOMEM, "no memory for a vector");
    memcpy(copy, x, n * sizeof(*x));
    for (uint64_t i = 0; i < n; i++)
        x[i] = copy[permuted(n / rd->t->heads, i)];
    free(copy);
    return 0;
}

int nb_source_read(const struct nb_source *s, const struct nb_source_tensor *t, uint64_t first,
                   uint64_t n, void *dst, struct nb_error *ret_error)
{
    struct reading rd = {.s = s, .t = t};
    float *floats = dst;
    if (s->read)
        return s->read(s->read_user, t, first, n, dst, ret_error);
    rd.ret_error = ret_error;
    int rc =
        t->stored == t->type ? read_stored(&rd, first, n, dst) : read_floats(&rd, first, n, floats);
    if (rc == 0 && t->heads && t->n_dims == 1)
        rc = permute_vector(&rd, floats);
    for (uint64_t i = 0; rc == 0 && t->add != 0 && i < n * t->dims[0]; i++)
        floats[i] += t->add;
    return rc;
}
