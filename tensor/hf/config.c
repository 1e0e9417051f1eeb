// config.json by the tables: see config.h.
#include "tensor/hf/config.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/hf/quantized.h"

#define KEY_MAX 128

// ---- Values

const json_t *nb_hf_get(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

const char *nb_hf_value(const json_t *value, char buffer[NB_HF_SHOWN_MAX])
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    nb_hf_shown((struct nb_str){text ? text : "?", text ? strlen(text) : 1}, buffer);
    free(text);
    return buffer;
}

int nb_hf_lacks(const struct nb_hf_config *c, const char *key)
{
    return NB_HF_FAIL(c, -EINVAL, "it lacks %s, which a model of architecture %s needs", key,
                      c->family->names[0]);
}

int nb_hf_u32(const struct nb_hf_config *c, const json_t *object, const char *key, uint32_t min,
              uint32_t max, uint32_t *ret)
{
    char shown[NB_HF_SHOWN_MAX];
    const json_t *value = nb_hf_get(object, key);
    if (!value)
        return 0;
    if (!json_is_integer(value) || json_integer_value(value) < min ||
        json_integer_value(value) > max)
        return NB_HF_FAIL(c, -EINVAL, "%s is %s, not a whole number from %u to %u", key,
                          nb_hf_value(value, shown), min, max);
    *ret = (uint32_t)json_integer_value(value);
    return 0;
}

int nb_hf_f64(const struct nb_hf_config *c, const json_t *object, const char *key, double *ret)
{
    char shown[NB_HF_SHOWN_MAX];
    const json_t *value = nb_hf_get(object, key);
    if (!value)
        return 0;
    if (!json_is_number(value) || !isfinite((float)json_number_value(value)))
        return NB_HF_FAIL(c, -EINVAL, "%s is %s, not a number", key, nb_hf_value(value, shown));
    *ret = json_number_value(value);
    return 0;
}

// ---- Metadata

static int said(const struct nb_hf_config *c, int rc)
{
    return rc < 0 ? NB_HF_FAIL(c, rc, "no memory for its metadata") : 0;
}

static const char *key_of(const struct nb_hf_config *c, const char *name, char buffer[KEY_MAX])
{
    snprintf(buffer, KEY_MAX, "%s.%s", c->family->architecture, name);
    return buffer;
}

static int put(struct nb_hf_config *c, const char *name, enum nb_gguf_type type, const void *value)
{
    char key[KEY_MAX];
    return said(c, nb_gguf_kvs_put(c->kvs, key_of(c, name, key), type, value));
}

int nb_hf_put_u32(struct nb_hf_config *c, const char *name, uint32_t value)
{
    return put(c, name, NB_GGUF_U32, &value);
}

int nb_hf_put_f32(struct nb_hf_config *c, const char *name, double value)
{
    const float single = (float)value;
    return put(c, name, NB_GGUF_F32, &single);
}

int nb_hf_put_bool(struct nb_hf_config *c, const char *name, bool value)
{
    return put(c, name, NB_GGUF_BOOL, &value);
}

int nb_hf_put_text(struct nb_hf_config *c, const char *name, const char *text)
{
    char key[KEY_MAX];
    return said(
        c, nb_gguf_kvs_put_str(c->kvs, key_of(c, name, key), (struct nb_str){text, strlen(text)}));
}

int nb_hf_put_u32s(struct nb_hf_config *c, const char *name, const uint32_t *values, uint32_t n)
{
    char key[KEY_MAX];
    return said(c, nb_gguf_kvs_put_array(c->kvs, key_of(c, name, key), NB_GGUF_U32, values, n));
}

float *nb_hf_add_vector(struct nb_hf_config *c, const char *name, uint32_t n)
{
    float *values = calloc(n ? n : 1, sizeof(*values));
    if (values)
        c->vectors[c->n_vectors++] = (struct nb_hf_vector){name, values, n};
    else
        NB_HF_FAIL(c, -ENOMEM, "no memory for %s", name);
    return values;
}

void nb_hf_config_finish(struct nb_hf_config *c)
{
    for (uint32_t i = 0; i < c->n_vectors; i++)
        free(c->vectors[i].values);
    c->n_vectors = 0;
}

// ---- The tables

static int find_family(struct nb_hf_config *c)
{
    const json_t *names = nb_hf_get(c->root, "architectures");
    const struct nb_str name = {json_string_value(json_array_get(names, 0)),
                                json_string_length(json_array_get(names, 0))};
    char shown[NB_HF_SHOWN_MAX], known[256] = "";
    if (!name.data || json_array_size(names) != 1)
        return NB_HF_FAIL(c, -EINVAL, "it lacks architectures, a list of one name");
    for (uint32_t i = 0; i < nb_hf_n_families; i++) {
        const char *const *own = nb_hf_families[i].names;
        size_t len = strlen(known);
        snprintf(known + len, sizeof(known) - len, "%s%s", i ? " " : "", own[0]);
        for (; *own; own++)
            if (nb_hf_is(name, *own)) {
                c->family = &nb_hf_families[i];
                c->headless = name.len > 5 && !strcmp(name.data + name.len - 5, "Model");
                return 0;
            }
    }
    return NB_HF_FAIL(c, -ENOTSUP, "the model is a %s; folders are read of %s",
                      nb_hf_shown(name, shown), known);
}

static const struct nb_hf_key *find_in(const struct nb_hf_key *keys, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++)
        if (!strcmp(keys[i].name, name))
            return &keys[i];
    return NULL;
}

static const struct nb_hf_key *find_key(const struct nb_hf_config *c, const char *name)
{
    const struct nb_hf_key *own = find_in(c->family->keys, c->family->n_keys, name);
    return own ? own : find_in(nb_hf_common_keys, nb_hf_n_common_keys, name);
}

bool nb_hf_knows(const struct nb_hf_config *c, const char *key)
{
    return find_key(c, key) != NULL;
}

static int check_key(const struct nb_hf_config *c, const char *name, const json_t *value)
{
    char shown[NB_HF_SHOWN_MAX];
    const struct nb_hf_key *key = find_key(c, name);
    if (!key)
        return NB_HF_FAIL(c, -ENOTSUP,
                          "%s is a key that Nibble does not know, so it may change what the model "
                          "computes; remove it if it does not",
                          nb_hf_shown((struct nb_str){name, strlen(name)}, shown));
    if (key->use != NB_HF_IS || json_is_null(value))
        return 0;
    nb_hf_value(value, shown);
    for (int i = 0; i < 2 && key->is[i]; i++)
        if (!strcmp(shown, key->is[i]))
            return 0;
    return NB_HF_FAIL(c, -ENOTSUP, "%s is %s (%s), which Nibble does not compute", name, shown,
                      key->what);
}

static int check_keys(const struct nb_hf_config *c)
{
    const char *name;
    const json_t *value;
    int rc = 0;
    json_t *root = (json_t *)(uintptr_t)c->root; // the iterator writes nothing
    json_object_foreach(root, name, value) {
        if ((rc = check_key(c, name, value)) < 0)
            break;
    }
    return rc;
}

static int check_required(const struct nb_hf_config *c, const struct nb_hf_key *keys, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (keys[i].required && find_key(c, keys[i].name) == &keys[i] &&
            !nb_hf_get(c->root, keys[i].name))
            return nb_hf_lacks(c, keys[i].name);
    return 0;
}

static int write_number(struct nb_hf_config *c, const struct nb_hf_key *key)
{
    uint32_t whole = 0;
    double number = 0;
    int rc;
    if (!nb_hf_get(c->root, key->name))
        return 0;
    if (key->use == NB_HF_U32) {
        rc = nb_hf_u32(c, c->root, key->name, 1, INT32_MAX, &whole);
        return rc < 0 ? rc : nb_hf_put_u32(c, key->gguf, whole);
    }
    rc = nb_hf_f64(c, c->root, key->name, &number);
    return rc < 0 ? rc : nb_hf_put_f32(c, key->gguf, number);
}

static int write_numbers(struct nb_hf_config *c, const struct nb_hf_key *keys, uint32_t n)
{
    int rc = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++)
        if ((keys[i].use == NB_HF_U32 || keys[i].use == NB_HF_F32) &&
            find_key(c, keys[i].name) == &keys[i])
            rc = write_number(c, &keys[i]);
    return rc;
}

// ---- The shape, which more than metadata is made from

static int read_shape(struct nb_hf_config *c)
{
    const struct {
        const char *key;
        uint32_t max, *ret;
    } numbers[] = {
        {"num_hidden_layers", NB_HF_LAYERS_MAX, &c->n_layers},
        {"num_attention_heads", 1 << 16, &c->n_heads},
        {"hidden_size", INT32_MAX, &c->embedding},
        {"vocab_size", INT32_MAX, &c->vocab},
        {"max_position_embeddings", INT32_MAX, &c->context},
        {"num_key_value_heads", 1 << 16, &c->n_kv_heads},
        {"num_local_experts", NB_HF_EXPERTS_MAX, &c->n_experts},
        {"head_dim", 1 << 16, &c->head_dim},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        int rc = nb_hf_u32(c, c->root, numbers[i].key, 1, numbers[i].max, numbers[i].ret);
        if (rc < 0)
            return rc;
    }
    const json_t *tied = nb_hf_get(c->root, "tie_word_embeddings");
    c->tied = c->headless || (tied ? json_is_true(tied) : c->family->tied);
    return 0;
}

// How far a head goes is written where the configuration, or its family, says so.
static int write_heads(struct nb_hf_config *c)
{
    int rc = nb_hf_put_u32(c, "block_count", c->n_layers);
    if (rc == 0)
        rc = nb_hf_put_u32(c, "attention.head_count", c->n_heads);
    if (rc == 0 && find_key(c, "num_key_value_heads"))
        rc =
            nb_hf_put_u32(c, "attention.head_count_kv", c->n_kv_heads ? c->n_kv_heads : c->n_heads);
    if (!c->n_kv_heads)
        c->n_kv_heads = c->n_heads;
    if (!c->head_dim)
        c->head_dim = c->family->head_dim;
    if (rc == 0 && c->head_dim)
        rc = nb_hf_put_u32(c, "attention.key_length", c->head_dim);
    if (rc == 0 && c->head_dim)
        rc = nb_hf_put_u32(c, "attention.value_length", c->head_dim);
    if (!c->head_dim)
        c->head_dim = c->embedding / c->n_heads;
    if (rc == 0 && c->n_experts)
        rc = nb_hf_put_u32(c, "expert_count", c->n_experts);
    return rc;
}

static int check(struct nb_hf_config *c)
{
    int rc = find_family(c);
    if (rc == 0)
        rc = check_keys(c);
    if (rc == 0)
        rc = nb_hf_quantization(c);
    if (rc == 0)
        rc = check_required(c, nb_hf_common_keys, nb_hf_n_common_keys);
    if (rc == 0)
        rc = check_required(c, c->family->keys, c->family->n_keys);
    return rc < 0 ? rc : read_shape(c);
}

static int write(struct nb_hf_config *c)
{
    const char *name = c->family->architecture;
    int rc = said(c, nb_gguf_kvs_put_str(c->kvs, "general.architecture",
                                         (struct nb_str){name, strlen(name)}));
    if (rc == 0)
        rc = said(c, nb_gguf_kvs_put_str(c->kvs, "general.type", (struct nb_str){"model", 5}));
    if (rc == 0)
        rc = write_numbers(c, nb_hf_common_keys, nb_hf_n_common_keys);
    if (rc == 0)
        rc = write_heads(c);
    if (rc == 0)
        rc = write_numbers(c, c->family->keys, c->family->n_keys);
    return rc < 0 ? rc : c->family->extra(c);
}

int nb_hf_config_read(const json_t *root, const char *file, struct nb_gguf_kvs *kvs,
                      struct nb_hf_config *ret, struct nb_error *ret_error)
{
    struct nb_hf_config c = {.family = nb_hf_families, .root = root, .file = file, .kvs = kvs};
    c.ret_error = ret_error;
    int rc = check(&c);
    if (rc == 0)
        rc = write(&c);
    if (rc < 0)
        nb_hf_config_finish(&c);
    else
        *ret = c;
    return rc;
}
