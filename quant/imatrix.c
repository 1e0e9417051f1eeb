// See imatrix.h. Keys and tensors as in llama.cpp's tools/imatrix, of October 2026.
#include "quant/imatrix.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/gguf_write.h"
#include "tensor/type.h"

#define SUMS   ".in_sum2"
#define COUNTS ".counts"
#define NAME   256 // bytes of a tensor's name
#define STR(s) (int)(s).len, (s).data

// ---- Reading

static int read_floats(int fd, const struct nb_gguf_tensor *t, float *to, uint64_t first,
                       uint64_t n)
{
    const size_t bytes = n * sizeof(float);
    const ssize_t got = pread(fd, to, bytes, (off_t)(t->offset + first * sizeof(float)));
    return got < 0 ? -errno : (size_t)got == bytes ? 0 : -EINVAL;
}

static bool is_sane(float x)
{
    return x >= 0 && isfinite(x);
}

static int read_counts(int fd, const struct nb_gguf_tensor *t, struct nb_column_stats *m)
{
    float *x = malloc(m->n * sizeof(*x));
    int rc = x ? read_floats(fd, t, x, 0, m->n) : -ENOMEM;
    for (uint32_t i = 0; i < m->n && rc == 0; i++) {
        if (!is_sane(x[i]) || x[i] >= 0x1p63f)
            rc = -EINVAL;
        else
            m->counts[i] = (uint64_t)x[i];
    }
    free(x);
    return rc;
}

static int read_sums(int fd, const struct nb_gguf_tensor *t, struct nb_column_stats *m)
{
    float *x = malloc(m->cols * sizeof(*x));
    int rc = x ? 0 : -ENOMEM;
    for (uint32_t e = 0; e < m->n && rc == 0; e++) {
        rc = read_floats(fd, t, x, (uint64_t)e * m->cols, m->cols);
        for (uint32_t i = 0; i < m->cols && rc == 0; i++) {
            m->sums[(size_t)e * m->cols + i] = (double)x[i];
            rc = is_sane(x[i]) ? 0 : -EINVAL;
        }
    }
    free(x);
    return rc;
}

static int read_matrix(int fd, const struct nb_gguf *g, const struct nb_gguf_tensor *sums,
                       struct nb_importance *s)
{
    char name[NAME];
    const struct nb_str base = {sums->name.data, sums->name.len - strlen(SUMS)};
    if (base.len + sizeof(COUNTS) > sizeof(name))
        return -EINVAL;
    snprintf(name, sizeof(name), "%.*s" COUNTS, STR(base));
    const struct nb_gguf_tensor *counts = nb_gguf_find_tensor(g, name);
    if (!counts || sums->type != NB_TYPE_F32 || counts->type != NB_TYPE_F32 ||
        sums->dims[2] * sums->dims[3] != 1 || sums->dims[0] > NB_IMPORTANCE_COLS ||
        sums->dims[1] > NB_IMPORTANCE_EXPERTS || counts->bytes != sums->dims[1] * sizeof(float))
        return -EINVAL;
    int rc = nb_importance_add(s, base, (uint32_t)sums->dims[0], (uint32_t)sums->dims[1]);
    if (rc == 0)
        rc = read_counts(fd, counts, &s->items[s->count - 1]);
    return rc == 0 ? read_sums(fd, sums, &s->items[s->count - 1]) : rc;
}

static bool ends_in(struct nb_str name, const char *end)
{
    const size_t n = strlen(end);
    return name.len > n && !memcmp(name.data + name.len - n, end, n);
}

static int read_all(int fd, const struct nb_gguf *g, struct nb_importance *s,
                    struct nb_error *ret_error)
{
    for (uint64_t i = 0; i < nb_gguf_n_tensors(g); i++) {
        const struct nb_gguf_tensor *t = nb_gguf_tensor(g, i);
        int rc = ends_in(t->name, SUMS) ? read_matrix(fd, g, t, s) : 0;
        if (rc < 0)
            return nb_fail(ret_error, rc,
                           "the importance matrix's %.*s is damaged: it needs non-negative F32 "
                           "sums and as many counts (%s)",
                           STR(t->name), strerror(-rc));
    }
    return s->count ? 0
                    : nb_fail(ret_error, -EINVAL,
                              "the file is no importance matrix: it has no tensor NAME" SUMS
                              " (llama-imatrix writes such files)");
}

int nb_imatrix_read(int fd, struct nb_importance *ret, struct nb_error *ret_error)
{
    struct nb_gguf *g;
    struct nb_error why = {""};
    int rc = nb_gguf_open(fd, &g, &why);
    if (rc < 0)
        return nb_fail(ret_error, rc,
                       "the importance matrix is no GGUF file as llama-imatrix writes: %s",
                       why.text);
    rc = read_all(fd, g, ret, ret_error);
    nb_gguf_close(g);
    if (rc < 0)
        nb_importance_finish(ret);
    return rc;
}

// ---- Writing

static int add_tensors(struct nb_gguf_writer *w, const struct nb_column_stats *m)
{
    char name[NAME];
    const uint64_t sums[4] = {m->cols, m->n, 1, 1}, counts[4] = {1, m->n, 1, 1};
    if (snprintf(name, sizeof(name), "%s" SUMS, m->name) >= (int)sizeof(name))
        return -EINVAL;
    int rc = nb_gguf_add_tensor(w, name, NB_TYPE_F32, 2, sums);
    snprintf(name, sizeof(name), "%.240s" COUNTS, m->name);
    return rc == 0 ? nb_gguf_add_tensor(w, name, NB_TYPE_F32, 2, counts) : rc;
}

static int write_tensors(struct nb_gguf_writer *w, const struct nb_column_stats *m)
{
    int rc = 0;
    for (uint64_t i = 0; i < (uint64_t)m->n * m->cols && rc == 0; i++) {
        const float sum = (float)m->sums[i];
        rc = nb_gguf_write(w, &sum, sizeof(sum));
    }
    for (uint32_t e = 0; e < m->n && rc == 0; e++) {
        const float count = (float)m->counts[e];
        rc = nb_gguf_write(w, &count, sizeof(count));
    }
    return rc;
}

static int put_metadata(struct nb_gguf_writer *w, uint32_t samples, uint32_t length)
{
    static const struct nb_str type = {"imatrix", 7}, datasets[] = {{"calibration", 11}};
    int rc = nb_gguf_put_str(w, "general.type", type);
    if (rc == 0)
        rc = nb_gguf_put_strs(w, "imatrix.datasets", datasets, 1);
    if (rc == 0)
        rc = nb_gguf_put(w, "imatrix.chunk_count", NB_GGUF_U32, &samples);
    return rc == 0 ? nb_gguf_put(w, "imatrix.chunk_size", NB_GGUF_U32, &length) : rc;
}

int nb_imatrix_write(const struct nb_importance *s, uint32_t samples, uint32_t length, int fd)
{
    struct nb_gguf_writer *w = NULL;
    int rc = lseek(fd, 0, SEEK_SET) < 0 || ftruncate(fd, 0) < 0 ? -errno : 0;
    if (rc == 0)
        rc = nb_gguf_writer_create(&w);
    if (rc == 0)
        rc = put_metadata(w, samples, length);
    for (uint32_t i = 0; i < s->count && rc == 0; i++)
        rc = add_tensors(w, &s->items[i]);
    if (rc == 0)
        rc = nb_gguf_begin(w, fd);
    for (uint32_t i = 0; i < s->count && rc == 0; i++)
        rc = write_tensors(w, &s->items[i]);
    if (rc == 0)
        rc = nb_gguf_end(w);
    nb_gguf_writer_destroy(w);
    return rc;
}
