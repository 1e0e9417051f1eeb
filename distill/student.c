// See student.h.
#include "distill/student.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/inputs.h"
#include "tensor/gguf_kvs.h"
#include "tensor/type.h"

#define KEY 256

// Which rows or columns of the teacher's.
struct chosen {
    uint32_t *of; // NULL: all
    uint32_t n;
};

struct piece {
    uint32_t tensor; // the teacher's
    struct chosen rows, cols;
};

struct student {
    const struct nb_source *teacher, *s;
    const struct nb_hparams *hp;
    const struct nb_student_kept *kept; // these two while it is made
    struct piece *of;                   // of each tensor
    char *names;
};

static void free_student(void *kept)
{
    struct student *k = kept;
    for (uint32_t i = 0; k->of && i < k->s->n_tensors; i++) {
        free(k->of[i].rows.of);
        free(k->of[i].cols.of);
    }
    free(k->of);
    free(k->names);
    free(k);
}

// ---- Metadata

static int key_of(const struct nb_source *s, const char *name, char ret[KEY], struct nb_error *e)
{
    struct nb_str arch;
    if (nb_gguf_str(s->metadata, "general.architecture", &arch) < 0 || arch.len > KEY / 2)
        return nb_fail(e, -EINVAL, "the model does not name its architecture");
    snprintf(ret, KEY, "%.*s.%s", (int)arch.len, arch.data, name);
    return 0;
}

int nb_student_count(const struct nb_source *s, uint32_t *ret, struct nb_error *ret_error)
{
    char key[KEY];
    uint64_t n = 0;
    int rc = key_of(s, "block_count", key, ret_error);
    if (rc == 0 && (nb_gguf_u64(s->metadata, key, &n) < 0 || n < 1 || n > NB_STUDENT_LAYERS))
        rc = nb_fail(ret_error, -EINVAL, "%s is not from 1 to %d", key, NB_STUDENT_LAYERS);
    *ret = (uint32_t)n;
    return rc;
}

void nb_student_evenly(uint32_t all, uint32_t n, uint32_t *ret)
{
    for (uint32_t i = 0; i < n; i++)
        ret[i] = n == 1 ? 0 : (i * (all - 1) + (n - 1) / 2) / (n - 1);
}

// An array of numbers with an entry for each layer.
static int cut_array(struct nb_gguf_kvs *kvs, const struct nb_gguf *g, const char *key,
                     const uint32_t *from, uint32_t n)
{
    enum nb_gguf_type type;
    uint64_t all;
    int rc = nb_gguf_array(g, key, &type, &all);
    const bool floats = type == NB_GGUF_F32 || type == NB_GGUF_F64, truth = type == NB_GGUF_BOOL;
    int64_t *whole = calloc(n, sizeof(*whole));
    double *real = calloc(n, sizeof(*real));
    bool *is = calloc(n, sizeof(*is));
    rc = rc < 0 ? rc : whole && real && is ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = floats  ? nb_gguf_array_f64(g, key, from[i], &real[i])
             : truth ? nb_gguf_array_bool(g, key, from[i], &is[i])
                     : nb_gguf_array_i64(g, key, from[i], &whole[i]);
    if (rc == 0)
        rc = floats  ? nb_gguf_kvs_put_array(kvs, key, NB_GGUF_F64, real, n)
             : truth ? nb_gguf_kvs_put_array(kvs, key, NB_GGUF_BOOL, is, n)
                     : nb_gguf_kvs_put_array(kvs, key, NB_GGUF_I64, whole, n);
    free(whole);
    free(real);
    free(is);
    return rc;
}

static int cut_arrays(struct nb_gguf_kvs *kvs, const struct nb_gguf *g, const char *count,
                      uint32_t layers, const uint32_t *from, uint32_t n)
{
    const size_t prefix = (size_t)(strrchr(count, '.') - count) + 1;
    int rc = 0;
    for (uint64_t i = 0; i < nb_gguf_n_keys(g) && rc == 0; i++) {
        enum nb_gguf_type type, of;
        uint64_t all;
        char key[KEY];
        const struct nb_str name = nb_gguf_key(g, i, &type);
        snprintf(key, sizeof(key), "%.*s", (int)name.len, name.data);
        if (type == NB_GGUF_ARRAY && !strncmp(key, count, prefix) && name.len < sizeof(key) &&
            nb_gguf_array(g, key, &of, &all) == 0 && all == layers && of != NB_GGUF_STRING)
            rc = cut_array(kvs, g, key, from, n);
    }
    return rc;
}

// Its number in the student; the number of layers: it is not there.
static uint32_t number_of(const struct nb_student_kept *p, uint32_t layer)
{
    uint32_t i = 0;
    while (i < p->layers && p->layer[i] != layer)
        i++;
    return i;
}

// Static ranges of inputs, by tensors' names (engine/inputs.h).
struct ranges {
    struct nb_str *name;
    double *range;
    char *renamed; // [ranges][NB_SOURCE_NAME]
    uint64_t n;
};

static void take_range(struct ranges *r, const struct nb_student_kept *p, struct nb_str name,
                       double range)
{
    char *to = r->renamed + r->n * NB_SOURCE_NAME;
    struct nb_str rest;
    const uint32_t layer = nb_arch_layer(name, &rest);
    const uint32_t number = layer == NB_NO_LAYER ? 0 : number_of(p, layer);
    if (number == p->layers || name.len >= NB_SOURCE_NAME)
        return;
    int len = snprintf(to, NB_SOURCE_NAME, "%.*s", (int)name.len, name.data);
    if (layer != NB_NO_LAYER)
        len =
            snprintf(to, NB_SOURCE_NAME, "blk.%" PRIu32 ".%.*s", number, (int)rest.len, rest.data);
    r->name[r->n] = (struct nb_str){to, (size_t)len};
    r->range[r->n++] = range;
}

static int put_ranges(struct nb_gguf_kvs *kvs, const struct student *k, struct ranges *r,
                      uint64_t all)
{
    const struct nb_gguf *g = k->teacher->metadata;
    int rc = 0;
    for (uint64_t i = 0; i < all && rc == 0; i++) {
        struct nb_str name;
        double range;
        rc = nb_gguf_array_str(g, NB_KEY_ACTIVATIONS_MATRICES, i, &name);
        if (rc == 0)
            rc = nb_gguf_array_f64(g, NB_KEY_ACTIVATIONS_RANGES, i, &range);
        if (rc == 0)
            take_range(r, k->kept, name, range);
    }
    if (rc == 0)
        rc = nb_gguf_kvs_put_strs(kvs, NB_KEY_ACTIVATIONS_MATRICES, r->name, r->n);
    return rc == 0
               ? nb_gguf_kvs_put_array(kvs, NB_KEY_ACTIVATIONS_RANGES, NB_GGUF_F64, r->range, r->n)
               : rc;
}

// Lists that do not fit each other stay, and are refused where they are read.
static int cut_ranges(struct nb_gguf_kvs *kvs, const struct student *k)
{
    struct nb_inputs in;
    struct nb_error unread;
    if (nb_inputs_read(k->teacher->metadata, UINT32_MAX, &in, &unread) < 0 || in.n == 0)
        return 0;
    struct ranges r = {.name = calloc(in.n, sizeof(*r.name)),
                       .range = calloc(in.n, sizeof(*r.range)),
                       .renamed = malloc(in.n * NB_SOURCE_NAME)};
    int rc = r.name && r.range && r.renamed ? put_ranges(kvs, k, &r, in.n) : -ENOMEM;
    free(r.name);
    free(r.range);
    free(r.renamed);
    return rc;
}

// What is cut has another number, and heads keep their size.
static int put_cut(struct nb_gguf_kvs *kvs, const struct student *k, struct nb_error *e)
{
    const struct nb_student_kept *p = k->kept;
    const struct nb_hparams *hp = k->hp;
    const uint32_t shared = hp->n_heads / hp->n_kv_heads;
    const bool heads = p->n[NB_CUT_HEADS] > 0, either = heads || p->n[NB_CUT_WIDTH] > 0;
    const struct {
        const char *name;
        uint32_t value; // 0: it stays
    } numbers[] = {{"attention.head_count", p->n[NB_CUT_HEADS] * shared},
                   {"attention.head_count_kv", p->n[NB_CUT_HEADS]},
                   {"attention.key_length", either ? hp->k_dim : 0},
                   {"attention.value_length", either ? hp->v_dim : 0},
                   {"feed_forward_length", p->n[NB_CUT_FEED_FORWARD]},
                   {"embedding_length", p->n[NB_CUT_WIDTH]}};
    int rc = 0;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]) && rc == 0; i++) {
        char key[KEY];
        if (!numbers[i].value)
            continue;
        rc = key_of(k->teacher, numbers[i].name, key, e);
        if (rc == 0)
            rc = nb_gguf_kvs_put(kvs, key, NB_GGUF_U32, &numbers[i].value);
    }
    return rc;
}

static int make_metadata(const struct student *k, struct nb_gguf **ret, struct nb_error *e)
{
    const struct nb_student_kept *p = k->kept;
    struct nb_gguf_kvs kvs = {0};
    char count[KEY];
    uint32_t layers;
    int rc = nb_student_count(k->teacher, &layers, e);
    if (rc == 0)
        rc = key_of(k->teacher, "block_count", count, e);
    if (rc < 0)
        return rc;
    rc = nb_gguf_kvs_put(&kvs, count, NB_GGUF_U32, &p->layers);
    if (rc == 0 && k->hp)
        rc = put_cut(&kvs, k, e);
    if (rc == 0)
        rc = cut_ranges(&kvs, k);
    if (rc == 0)
        rc = cut_arrays(&kvs, k->teacher->metadata, count, layers, p->layer, p->layers);
    if (rc == 0)
        rc = nb_gguf_kvs_copy(&kvs, k->teacher->metadata, NULL);
    rc = rc < 0 ? nb_fail(e, rc, "no memory for the student's metadata")
                : nb_gguf_kvs_parse(&kvs, 0, ret, e);
    nb_gguf_kvs_finish(&kvs);
    return rc;
}

// ---- Rows and columns

// Of the `all` that a tensor has, which are kept, in the teacher's layer.
static int choose(const struct student *k, enum nb_dim dim, uint32_t layer, struct nb_str name,
                  uint64_t all, struct chosen *ret, struct nb_error *e)
{
    struct nb_axis axis;
    if (!k->hp || !nb_axis_of(k->hp, dim, &axis) || !k->kept->n[axis.cut])
        return 0;
    const uint32_t n = k->kept->n[axis.cut], whole = nb_cut_all(k->hp, axis.cut);
    const bool of_layer = axis.cut != NB_CUT_WIDTH && layer != NB_NO_LAYER;
    const uint32_t *of = k->kept->of[axis.cut] + (of_layer ? (size_t)layer * n : 0);
    uint32_t at = 0;
    if (all != (uint64_t)whole * nb_axis_units(&axis))
        return nb_fail(e, -ENOTSUP, "tensor %.*s: its %s is not as its family has it: no cut",
                       (int)name.len, name.data, nb_cut_names[axis.cut]);
    ret->of = calloc((size_t)n * nb_axis_units(&axis) + 1, sizeof(*ret->of));
    if (!ret->of)
        return nb_fail(e, -ENOMEM, "no memory for the student's tensors");
    for (uint32_t part = 0; part < axis.parts; part++) {
        const uint32_t unit = axis.unit[part];
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < unit; j++)
                ret->of[ret->n++] = at + of[i] * unit + j;
        at += whole * unit;
    }
    return 0;
}

// Of experts each has its rows.
static int cut_tensor(struct student *k, struct nb_source_tensor *t, uint32_t layer,
                      struct nb_str name, struct piece *p, struct nb_error *e)
{
    enum nb_dim rows, cols;
    if (!k->hp || !nb_arch_dims(k->hp->arch, name, &rows, &cols))
        return 0;
    int rc = choose(k, cols, layer, name, t->dims[0], &p->cols, e);
    if (rc == 0 && t->n_dims > 1)
        rc = choose(k, rows, layer, name, t->dims[1], &p->rows, e);
    if (rc < 0 || !(p->cols.of || p->rows.of))
        return rc;
    if (!nb_type_info(t->type))
        return nb_fail(e, -ENOTSUP, "tensor %.*s is of the type %s, which cannot be cut",
                       (int)name.len, name.data, nb_type_name(t->type));
    t->dims[0] = p->cols.of ? p->cols.n : t->dims[0];
    t->dims[1] = p->rows.of ? p->rows.n : t->dims[1];
    t->type = t->stored = NB_TYPE_F32;
    t->bytes = nb_source_rows(t) * t->dims[0] * sizeof(float);
    return 0;
}

// One of the teacher's rows as floats, and of these the columns that are kept.
static int read_row(const struct student *k, const struct piece *p, uint64_t row, void *raw,
                    float *whole, float *dst, struct nb_error *e)
{
    const struct nb_source_tensor *t = &k->teacher->tensors[p->tensor];
    const struct nb_type_info *info = nb_type_info(t->type);
    int rc = nb_source_read(k->teacher, t, row, 1, raw, e);
    if (rc < 0)
        return rc;
    info->dequantize(raw, p->cols.of ? whole : dst, t->dims[0] / info->block);
    for (uint32_t i = 0; i < p->cols.n; i++)
        dst[i] = whole[p->cols.of[i]];
    return 0;
}

static int read_cut(const struct student *k, const struct piece *p, uint64_t first, uint64_t n,
                    float *dst, struct nb_error *e)
{
    const struct nb_source_tensor *t = &k->teacher->tensors[p->tensor];
    const uint64_t cols = p->cols.of ? p->cols.n : t->dims[0];
    void *raw = malloc(nb_source_row_bytes(t));
    float *whole = calloc(t->dims[0], sizeof(*whole));
    int rc = raw && whole ? 0 : nb_fail(e, -ENOMEM, "no memory for a row of the student");
    for (uint64_t i = first; i < first + n && rc == 0; i++, dst += cols) {
        const uint64_t row =
            p->rows.of ? i / p->rows.n * t->dims[1] + p->rows.of[i % p->rows.n] : i;
        rc = read_row(k, p, row, raw, whole, dst, e);
    }
    free(raw);
    free(whole);
    return rc;
}

static int on_read(void *user, const struct nb_source_tensor *t, uint64_t first, uint64_t n,
                   void *dst, struct nb_error *ret_error)
{
    const struct student *k = user;
    const struct piece *p = &k->of[t - k->s->tensors];
    return p->rows.of || p->cols.of ? read_cut(k, p, first, n, dst, ret_error)
                                    : nb_source_read(k->teacher, &k->teacher->tensors[p->tensor],
                                                     first, n, dst, ret_error);
}

// ---- Tensors

static int take_tensor(struct student *k, struct nb_source *s, uint32_t i, char **name,
                       struct nb_error *e)
{
    const struct nb_source_tensor *of = &k->teacher->tensors[i];
    struct nb_str rest;
    const uint32_t layer = nb_arch_layer(of->name, &rest);
    const uint32_t number = layer == NB_NO_LAYER ? 0 : number_of(k->kept, layer);
    if (number == k->kept->layers)
        return 0;
    struct nb_source_tensor *t = &s->tensors[s->n_tensors];
    struct piece *p = &k->of[s->n_tensors++];
    *t = *of;
    p->tensor = i;
    if (layer != NB_NO_LAYER) {
        const int len = sprintf(*name, "blk.%" PRIu32 ".%.*s", number, (int)rest.len, rest.data);
        t->name = (struct nb_str){*name, (size_t)len};
        *name += len + 1;
    }
    return cut_tensor(k, t, layer, of->name, p, e);
}

static int take_tensors(struct student *k, struct nb_source *s, struct nb_error *e)
{
    const struct nb_source *teacher = k->teacher;
    size_t room = 1;
    for (uint32_t i = 0; i < teacher->n_tensors; i++)
        room += teacher->tensors[i].name.len + 16;
    s->tensors = calloc(teacher->n_tensors + 1, sizeof(*s->tensors));
    k->of = calloc(teacher->n_tensors + 1, sizeof(*k->of));
    char *name = k->names = malloc(room);
    if (!s->tensors || !k->of || !name)
        return nb_fail(e, -ENOMEM, "no memory for the student's tensors");
    int rc = 0;
    for (uint32_t i = 0; i < teacher->n_tensors && rc == 0; i++)
        rc = take_tensor(k, s, i, &name, e);
    return rc;
}

int nb_student_open(const struct nb_source *teacher, const struct nb_hparams *hp,
                    const struct nb_student_kept *kept, struct nb_source **ret,
                    struct nb_error *ret_error)
{
    struct nb_source *s = NULL;
    int rc = nb_source_create(teacher->files, teacher->n_files, &s, ret_error);
    if (rc < 0)
        return rc;
    struct student *k = calloc(1, sizeof(*k));
    if (!k) {
        nb_source_close(s);
        return nb_fail(ret_error, -ENOMEM, "no memory for the student");
    }
    *k = (struct student){.teacher = teacher, .s = s, .hp = hp, .kept = kept};
    s->kept = s->read_user = k;
    s->free_kept = free_student;
    s->read = on_read;
    rc = make_metadata(k, &s->metadata, ret_error);
    if (rc == 0)
        rc = take_tensors(k, s, ret_error);
    if (rc < 0)
        nb_source_close(s);
    else
        *ret = s;
    return rc;
}
