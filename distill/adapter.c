// See adapter.h.
#include "distill/adapter.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/gguf_kvs.h"
#include "tensor/type.h"

static int put_string(struct nb_gguf_kvs *kvs, const char *key, const char *value)
{
    return nb_gguf_kvs_put_str(kvs, key, (struct nb_str){value, strlen(value)});
}

static int make_metadata(const struct nb_source *base, float alpha, struct nb_gguf **ret,
                         struct nb_error *e)
{
    struct nb_gguf_kvs kvs = {0};
    struct nb_str arch, name;
    if (nb_gguf_str(base->metadata, "general.architecture", &arch) < 0)
        return nb_fail(e, -EINVAL, "the model does not name its architecture");
    int rc = nb_gguf_kvs_put_str(&kvs, "general.architecture", arch);
    if (rc == 0)
        rc = put_string(&kvs, "general.type", "adapter");
    if (rc == 0 && nb_gguf_str(base->metadata, "general.name", &name) == 0)
        rc = nb_gguf_kvs_put_str(&kvs, "general.base_model.0.name", name);
    if (rc == 0)
        rc = put_string(&kvs, "adapter.type", "lora");
    if (rc == 0)
        rc = nb_gguf_kvs_put(&kvs, "adapter.lora.alpha", NB_GGUF_F32, &alpha);
    rc = rc < 0 ? nb_fail(e, rc, "no memory for the adapter's metadata")
                : nb_gguf_kvs_parse(&kvs, 0, ret, e);
    nb_gguf_kvs_finish(&kvs);
    return rc;
}

static int on_read(void *user, const struct nb_source_tensor *t, uint64_t first, uint64_t n,
                   void *dst, struct nb_error *ret_error)
{
    uint64_t all;
    const float *x = nb_train_tensor(user, t->name, &all);
    memcpy(dst, x + first * t->dims[0], n * t->dims[0] * sizeof(*x));
    return 0;
}

// The matrix that a factor belongs to, as the base has it. Factors come in pairs, A before B.
static int check_base(const struct nb_source *base, const struct nb_train *t, uint32_t pair,
                      struct nb_error *e)
{
    const struct nb_train_moved a = nb_train_moved(t, 2 * pair),
                                b = nb_train_moved(t, 2 * pair + 1);
    const struct nb_str name = {a.name, (size_t)(strrchr(a.name, '.') - a.name)};
    const uint32_t i = nb_source_find(base, name);
    const struct nb_source_tensor *w = &base->tensors[i];
    if (i < base->n_tensors && w->dims[0] == a.cols && nb_source_rows(w) == b.rows)
        return 0;
    return nb_fail(e, -ENOTSUP,
                   "this model's file has %.*s otherwise than it is computed with: it can have no "
                   "adapter yet (--adapter-matrices)",
                   (int)name.len, name.data);
}

static int make_tensors(struct nb_source *s, const struct nb_source *base, const struct nb_train *t,
                        struct nb_error *e)
{
    const uint32_t n = nb_train_count(t);
    s->tensors = calloc(n + 1, sizeof(*s->tensors));
    if (!s->tensors)
        return nb_fail(e, -ENOMEM, "no memory for the adapter's tensors");
    int rc = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        const struct nb_train_moved w = nb_train_moved(t, i);
        rc = check_base(base, t, i / 2, e);
        s->tensors[s->n_tensors++] =
            (struct nb_source_tensor){.name = {w.name, strlen(w.name)},
                                      .type = NB_TYPE_F32,
                                      .stored = NB_TYPE_F32,
                                      .n_dims = 2,
                                      .dims = {w.cols, w.rows, 1, 1},
                                      .bytes = (uint64_t)w.rows * w.cols * sizeof(float)};
    }
    return rc;
}

int nb_adapter_open(const struct nb_source *base, struct nb_train *t, float alpha,
                    struct nb_source **ret, struct nb_error *ret_error)
{
    struct nb_source *s = NULL;
    int rc = nb_source_create(base->files, base->n_files, &s, ret_error);
    if (rc < 0)
        return rc;
    s->read = on_read;
    s->read_user = t;
    rc = make_metadata(base, alpha, &s->metadata, ret_error);
    if (rc == 0)
        rc = make_tensors(s, base, t, ret_error);
    if (rc < 0)
        nb_source_close(s);
    else
        *ret = s;
    return rc;
}
