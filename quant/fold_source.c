// See fold_source.h. Rows that a fold mixes are computed together and stay until others are asked
// for: they are read from the first on.
#include "quant/fold_source.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/type.h"

struct nb_fold_source {
    const struct nb_fold *f;
    struct nb_source *s;
    struct nb_source plain; // as it was; its tensors are its own
    uint64_t *unit;         // of each tensor, in rows; 0: the fold leaves it alone
    // Units of the tensor that was read last.
    pthread_mutex_t lock;
    uint32_t tensor;
    uint64_t first, n; // rows
    float *rows;
};

// ---- The output matrix

static const struct nb_arch *arch_of(const struct nb_source *s)
{
    struct nb_str name;
    const struct nb_arch *arch = NULL;
    if (nb_gguf_str(s->metadata, "general.architecture", &name) < 0)
        return NULL;
    for (uint32_t i = 0; (arch = nb_arch_at(i)); i++)
        if (strlen(arch->name) == name.len && !memcmp(arch->name, name.data, name.len))
            break;
    return arch;
}

int nb_fold_untie(struct nb_source *s, struct nb_error *ret_error)
{
    static const char own[] = "output.weight";
    char tied[NB_SOURCE_NAME];
    const struct nb_arch *arch = arch_of(s);
    int rc = 0;
    for (const struct nb_op_rows *piece = arch ? arch->end : NULL; piece && piece->n; piece++)
        for (uint32_t i = 0; i < piece->n && rc == 0; i++) {
            const struct nb_op_row *row = &piece->rows[i];
            if (!row->tied || strncmp(own, row->weight, strlen(row->weight)) != 0)
                continue;
            snprintf(tied, sizeof(tied), "%s.weight", row->tied);
            rc = nb_source_repeat(s, tied, own);
        }
    // A source without an embedding is refused by who makes a plan of it.
    return rc == -ENOMEM ? nb_fail(ret_error, rc, "no memory for the list of tensors") : 0;
}

// ---- Rows

// Plain rows as floats, and then folded.
static int read_folded(const struct nb_fold_source *fs, uint32_t i, uint64_t first, uint64_t n,
                       float *dst, struct nb_error *ret_error)
{
    const struct nb_source_tensor *t = &fs->plain.tensors[i];
    const struct nb_type_info *info = nb_type_info(t->type);
    const uint64_t cols = t->dims[0];
    void *raw = malloc(n * nb_source_row_bytes(t));
    if (!raw)
        return nb_fail(ret_error, -ENOMEM, "no memory for a folded tensor");
    int rc = nb_source_read(&fs->plain, t, first, n, raw, ret_error);
    if (rc == 0) {
        info->dequantize(raw, dst, n * cols / info->block);
        rc = nb_fold_tensor(fs->f, NULL, t->name, first * cols, n * cols, dst);
        if (rc < 0)
            nb_fail(ret_error, rc, "tensor %.*s cannot be folded: %s", (int)t->name.len,
                    t->name.data, strerror(-rc));
    }
    free(raw);
    return rc;
}

// The unit that has the row is the one in memory then.
static int reach(struct nb_fold_source *fs, uint32_t i, uint64_t row, struct nb_error *ret_error)
{
    const uint64_t unit = fs->unit[i], cols = fs->plain.tensors[i].dims[0];
    if (fs->tensor == i && row >= fs->first && row < fs->first + fs->n)
        return 0;
    free(fs->rows);
    fs->n = 0;
    fs->rows = malloc(unit * cols * sizeof(*fs->rows));
    if (!fs->rows)
        return nb_fail(ret_error, -ENOMEM, "no memory for a folded tensor");
    int rc = read_folded(fs, i, row / unit * unit, unit, fs->rows, ret_error);
    if (rc == 0) {
        fs->tensor = i;
        fs->first = row / unit * unit;
        fs->n = unit;
    }
    return rc;
}

static int read_mixed(struct nb_fold_source *fs, uint32_t i, uint64_t first, uint64_t n, float *dst,
                      struct nb_error *ret_error)
{
    const uint64_t cols = fs->plain.tensors[i].dims[0];
    int rc = 0;
    pthread_mutex_lock(&fs->lock);
    for (uint64_t done = 0, some; done < n && rc == 0; done += some) {
        const uint64_t row = first + done;
        rc = reach(fs, i, row, ret_error);
        if (rc < 0)
            break;
        const uint64_t left = fs->first + fs->n - row;
        some = left < n - done ? left : n - done;
        memcpy(dst + done * cols, fs->rows + (row - fs->first) * cols, some * cols * sizeof(*dst));
    }
    pthread_mutex_unlock(&fs->lock);
    return rc;
}

static int on_read(void *user, const struct nb_source_tensor *t, uint64_t first, uint64_t n,
                   void *dst, struct nb_error *ret_error)
{
    struct nb_fold_source *fs = user;
    const uint32_t i = (uint32_t)(t - fs->s->tensors);
    if (!fs->unit[i])
        return nb_source_read(&fs->plain, &fs->plain.tensors[i], first, n, dst, ret_error);
    return fs->unit[i] > 1 ? read_mixed(fs, i, first, n, dst, ret_error)
                           : read_folded(fs, i, first, n, dst, ret_error);
}

static int make(struct nb_fold_source *fs)
{
    const uint32_t n = fs->s->n_tensors;
    fs->plain = *fs->s;
    fs->plain.tensors = calloc(n + 1, sizeof(*fs->plain.tensors));
    fs->unit = calloc(n + 1, sizeof(*fs->unit));
    if (!fs->plain.tensors || !fs->unit)
        return -ENOMEM;
    memcpy(fs->plain.tensors, fs->s->tensors, n * sizeof(*fs->plain.tensors));
    for (uint32_t i = 0; i < n; i++) {
        struct nb_source_tensor *t = &fs->s->tensors[i];
        fs->unit[i] = nb_fold_unit(fs->f, t->name) / t->dims[0];
        if (!fs->unit[i])
            continue;
        t->type = NB_TYPE_F32;
        t->bytes = nb_source_rows(t) * t->dims[0] * sizeof(float);
    }
    fs->s->read = on_read;
    fs->s->read_user = fs;
    return 0;
}

int nb_fold_source_create(const struct nb_fold *f, struct nb_source *s, struct nb_fold_source **ret,
                          struct nb_error *ret_error)
{
    struct nb_fold_source *fs = calloc(1, sizeof(*fs));
    if (!fs)
        return nb_fail(ret_error, -ENOMEM, "no memory for the folded model");
    fs->f = f;
    fs->s = s;
    pthread_mutex_init(&fs->lock, NULL);
    int rc = make(fs);
    if (rc < 0) {
        nb_fold_source_destroy(fs);
        return nb_fail(ret_error, rc, "no memory for the folded model");
    }
    *ret = fs;
    return 0;
}

void nb_fold_source_destroy(struct nb_fold_source *fs)
{
    if (!fs)
        return;
    if (fs->s->read == on_read) {
        memcpy(fs->s->tensors, fs->plain.tensors, fs->s->n_tensors * sizeof(*fs->plain.tensors));
        fs->s->read = NULL;
    }
    pthread_mutex_destroy(&fs->lock);
    free(fs->plain.tensors);
    free(fs->unit);
    free(fs->rows);
    free(fs);
}
