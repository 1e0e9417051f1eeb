// See student.h.
#include "distill/student.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/gguf_kvs.h"

#define KEY 256

struct student {
    const struct nb_source *teacher, *s;
    uint32_t *of; // of each tensor, the teacher's
    char *names;
};

static void free_student(void *kept)
{
    struct student *k = kept;
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

static int make_metadata(const struct nb_source *teacher, const uint32_t *from, uint32_t n,
                         struct nb_gguf **ret, struct nb_error *e)
{
    struct nb_gguf_kvs kvs = {0};
    char count[KEY];
    uint32_t layers;
    size_t len = 0;
    int rc = nb_student_count(teacher, &layers, e);
    if (rc == 0)
        rc = key_of(teacher, "block_count", count, e);
    if (rc < 0)
        return rc;
    rc = nb_gguf_kvs_put(&kvs, count, NB_GGUF_U32, &n);
    if (rc == 0)
        rc = cut_arrays(&kvs, teacher->metadata, count, layers, from, n);
    if (rc == 0)
        rc = nb_gguf_kvs_copy(&kvs, teacher->metadata, NULL);
    void *section = rc == 0 ? nb_gguf_kvs_section(&kvs, 0, &len) : NULL;
    rc = section ? nb_gguf_parse_metadata(section, len, ret, e)
                 : nb_fail(e, -ENOMEM, "no memory for the student's metadata");
    free(section);
    nb_gguf_kvs_finish(&kvs);
    return rc;
}

// ---- Tensors

// The layer that a name begins with, and what follows; UINT32_MAX: none.
static uint32_t layer_of(struct nb_str name, struct nb_str *ret_rest)
{
    static const char prefix[] = "blk.";
    uint64_t layer = 0;
    size_t at = sizeof(prefix) - 1;
    if (name.len <= at || memcmp(name.data, prefix, at) != 0)
        return UINT32_MAX;
    for (; at < name.len && name.data[at] >= '0' && name.data[at] <= '9'; at++)
        layer = layer < NB_STUDENT_LAYERS ? 10 * layer + (uint64_t)(name.data[at] - '0') : layer;
    *ret_rest = (struct nb_str){name.data + at, name.len - at};
    return (uint32_t)layer;
}

// Its number in the student; n: it is not there.
static uint32_t number_of(uint32_t layer, const uint32_t *from, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && from[i] != layer)
        i++;
    return i;
}

static void take_tensor(struct student *k, struct nb_source *s, uint32_t i, uint32_t number,
                        struct nb_str rest, char **name)
{
    struct nb_source_tensor *t = &s->tensors[s->n_tensors];
    *t = k->teacher->tensors[i];
    k->of[s->n_tensors++] = i;
    if (number == UINT32_MAX)
        return;
    const int len = sprintf(*name, "blk.%" PRIu32 "%.*s", number, (int)rest.len, rest.data);
    t->name = (struct nb_str){*name, (size_t)len};
    *name += len + 1;
}

static int on_read(void *user, const struct nb_source_tensor *t, uint64_t first, uint64_t n,
                   void *dst, struct nb_error *ret_error)
{
    const struct student *k = user;
    const uint32_t of = k->of[t - k->s->tensors];
    return nb_source_read(k->teacher, &k->teacher->tensors[of], first, n, dst, ret_error);
}

static int take_tensors(struct student *k, struct nb_source *s, const uint32_t *from, uint32_t n)
{
    const struct nb_source *teacher = k->teacher;
    size_t room = 1;
    for (uint32_t i = 0; i < teacher->n_tensors; i++)
        room += teacher->tensors[i].name.len + 16;
    s->tensors = calloc(teacher->n_tensors + 1, sizeof(*s->tensors));
    k->of = calloc(teacher->n_tensors + 1, sizeof(*k->of));
    char *name = k->names = malloc(room);
    if (!s->tensors || !k->of || !name)
        return -ENOMEM;
    for (uint32_t i = 0; i < teacher->n_tensors; i++) {
        struct nb_str rest = {"", 0};
        const uint32_t layer = layer_of(teacher->tensors[i].name, &rest);
        const uint32_t number = layer == UINT32_MAX ? layer : number_of(layer, from, n);
        if (number == UINT32_MAX || number < n)
            take_tensor(k, s, i, number, rest, &name);
    }
    return 0;
}

int nb_student_open(const struct nb_source *teacher, const uint32_t *from, uint32_t n,
                    struct nb_source **ret, struct nb_error *ret_error)
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
    k->teacher = teacher;
    k->s = s;
    s->kept = s->read_user = k;
    s->free_kept = free_student;
    s->read = on_read;
    rc = make_metadata(teacher, from, n, &s->metadata, ret_error);
    if (rc == 0 && (rc = take_tensors(k, s, from, n)) < 0)
        nb_fail(ret_error, rc, "no memory for the student's tensors");
    if (rc < 0)
        nb_source_close(s);
    else
        *ret = s;
    return rc;
}
