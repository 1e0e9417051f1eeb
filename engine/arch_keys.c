// Reading and judging the keys of an architecture. The tables are in arch_table.c; what the values
// mean is nb_hparams_read's.
#include "engine/arch_keys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tensor/fail.h"

const char *nb_shown(struct nb_str s, char buffer[NB_SHOWN_MAX])
{
    size_t n = 0;
    for (; n < s.len && n < NB_SHOWN_MAX - 1; n++) {
        char c = s.data[n];
        buffer[n] = '?';
        if (c >= 32 && c < 127)
            buffer[n] = c;
    }
    buffer[n] = 0;
    return buffer;
}

void nb_keys_name(const struct nb_keys *k, const char *name, char ret[NB_KEY_MAX])
{
    snprintf(ret, NB_KEY_MAX, "%s.%s", k->arch->name, name);
}

// ---- Values

#define KEY_FAIL(k, code, ...) nb_fail((k)->error, code, __VA_ARGS__)

// An array is a value for each layer: the value of all, where they are alike.
static int common_element(const struct nb_keys *k, const char *key, double *ret)
{
    enum nb_gguf_type type;
    uint64_t n = 0;
    double first = 0, value = 0;
    if (nb_gguf_array(k->g, key, &type, &n) < 0 || nb_gguf_array_f64(k->g, key, 0, &first) < 0)
        return KEY_FAIL(k, -EINVAL, "%s is no number", key);
    if (n != 1 && !k->n_layers)
        return KEY_FAIL(k, -EINVAL, "%s is an array, not a number", key);
    if (n != 1 && n != k->n_layers)
        return KEY_FAIL(k, -EINVAL, "%s has %llu values for %u layers", key, (unsigned long long)n,
                        k->n_layers);
    for (uint64_t i = 1; i < n; i++)
        if (nb_gguf_array_f64(k->g, key, i, &value) < 0 || value != first)
            return KEY_FAIL(k, -ENOTSUP,
                            "%s is %g in layer 0 and %g in layer %llu; Nibble computes models "
                            "whose layers are alike",
                            key, first, value, (unsigned long long)i);
    *ret = first;
    return 0;
}

// -ENOENT without a sentence.
static int number(const struct nb_keys *k, const char *key, double *ret)
{
    int rc = nb_gguf_f64(k->g, key, ret);
    return rc == -EINVAL ? common_element(k, key, ret) : rc;
}

static int lacks(const struct nb_keys *k, const char *key)
{
    return KEY_FAIL(k, -EINVAL, "the model's metadata lacks %s", key);
}

// 1 and the number of a key, whose whole name goes to `key`; 0: it is not there and need not be.
static int find_number(const struct nb_keys *k, const char *name, bool required,
                       char key[NB_KEY_MAX], double *ret)
{
    nb_keys_name(k, name, key);
    int rc = number(k, key, ret);
    if (rc == -ENOENT)
        return required ? lacks(k, key) : 0;
    return rc < 0 ? rc : 1;
}

int nb_keys_u32(const struct nb_keys *k, const char *name, bool required, uint32_t min,
                uint32_t max, uint32_t *ret)
{
    char key[NB_KEY_MAX];
    double value = 0;
    int rc = find_number(k, name, required, key, &value);
    if (rc <= 0)
        return rc;
    if (!(value >= min && value <= max) || value != (uint32_t)value)
        return KEY_FAIL(k, -EINVAL, "%s is %g, not a whole number from %u to %u", key, value, min,
                        max);
    *ret = (uint32_t)value;
    return 0;
}

int nb_keys_float(const struct nb_keys *k, const char *name, bool required, double min, double max,
                  double *ret)
{
    char key[NB_KEY_MAX];
    double value = 0;
    int rc = find_number(k, name, required, key, &value);
    if (rc <= 0)
        return rc;
    if (!(value >= min && value <= max))
        return KEY_FAIL(k, -EINVAL, "%s is %g, not a number from %g to %g", key, value, min, max);
    *ret = value;
    return 0;
}

int nb_keys_bool(const struct nb_keys *k, const char *name, bool *ret)
{
    char key[NB_KEY_MAX];
    nb_keys_name(k, name, key);
    double value = 0;
    int rc = nb_gguf_bool(k->g, key, ret);
    if (rc != -EINVAL)
        return 0;
    if (nb_gguf_f64(k->g, key, &value) < 0 || (value != 0 && value != 1))
        return KEY_FAIL(k, -EINVAL, "%s is no truth value", key);
    *ret = value != 0;
    return 0;
}

int nb_keys_str(const struct nb_keys *k, const char *name, struct nb_str *ret)
{
    char key[NB_KEY_MAX];
    nb_keys_name(k, name, key);
    if (nb_gguf_str(k->g, key, ret) == -EINVAL)
        return KEY_FAIL(k, -EINVAL, "%s is not a string", key);
    return 0;
}

// ---- What is not read

static bool is(struct nb_str s, const char *text)
{
    return text && s.len == strlen(text) && !memcmp(s.data, text, s.len);
}

static const struct nb_arch_key *find_in(const struct nb_arch_key *keys, uint32_t n,
                                         struct nb_str name)
{
    for (uint32_t i = 0; i < n; i++)
        if (is(name, keys[i].name))
            return &keys[i];
    return NULL;
}

static bool is_neutral_number(const struct nb_arch_key *key, double value)
{
    return value == key->neutral[0] || value == key->neutral[1];
}

// Of a number, a truth value, or every element of an array of numbers.
static bool is_neutral(const struct nb_gguf *g, const char *name, const struct nb_arch_key *key)
{
    double value;
    bool truth;
    struct nb_str s;
    enum nb_gguf_type type;
    uint64_t n = 0;
    if (nb_gguf_f64(g, name, &value) == 0)
        return !key->text[0] && is_neutral_number(key, value);
    if (nb_gguf_bool(g, name, &truth) == 0)
        return !key->text[0] && is_neutral_number(key, truth);
    if (nb_gguf_str(g, name, &s) == 0)
        return is(s, key->text[0]) || is(s, key->text[1]);
    if (key->text[0] || nb_gguf_array(g, name, &type, &n) < 0)
        return false;
    for (uint64_t i = 0; i < n; i++)
        if (nb_gguf_array_f64(g, name, i, &value) < 0 || !is_neutral_number(key, value))
            return false;
    return true;
}

static const char *value_text(const struct nb_gguf *g, const char *name, char ret[NB_SHOWN_MAX])
{
    double value;
    bool truth;
    struct nb_str s;
    if (nb_gguf_f64(g, name, &value) == 0)
        snprintf(ret, NB_SHOWN_MAX, "%g", value);
    else if (nb_gguf_bool(g, name, &truth) == 0)
        snprintf(ret, NB_SHOWN_MAX, "%s", truth ? "true" : "false");
    else if (nb_gguf_str(g, name, &s) == 0)
        nb_shown(s, ret);
    else
        snprintf(ret, NB_SHOWN_MAX, "an array");
    return ret;
}

static int refuse_unknown(const struct nb_keys *k, struct nb_str key)
{
    char buffer[NB_SHOWN_MAX];
    return KEY_FAIL(k, -ENOTSUP,
                    "%s is a key that Nibble does not know, so it may change what the model "
                    "computes; remove it if it does not (gguf-new-metadata --remove-metadata)",
                    nb_shown(key, buffer));
}

static int check_key(const struct nb_keys *k, struct nb_str key, size_t prefix)
{
    const struct nb_str name = {key.data + prefix, key.len - prefix};
    const struct nb_arch_key *known = find_in(k->arch->keys, k->arch->n_keys, name);
    if (!known)
        known = find_in(nb_common_keys, nb_n_common_keys, name);
    if (!known)
        return refuse_unknown(k, key);
    char whole[NB_KEY_MAX], value[NB_SHOWN_MAX];
    nb_keys_name(k, known->name, whole);
    if (known->use != NB_KEY_NEUTRAL || is_neutral(k->g, whole, known))
        return 0;
    return KEY_FAIL(k, -ENOTSUP,
                    "%s is %s (%s), which Nibble does not compute; choose another model", whole,
                    value_text(k->g, whole, value), known->what);
}

static int check_whole(const struct nb_keys *k)
{
    struct nb_str type;
    uint64_t parts = 0, number = 0;
    char buffer[NB_SHOWN_MAX];
    if (nb_gguf_u64(k->g, "split.count", &parts) == 0 && parts > 1) {
        (void)nb_gguf_u64(k->g, "split.no", &number);
        return KEY_FAIL(k, -ENOTSUP,
                        "the file is part %llu of %llu of a model; join them first "
                        "(llama-gguf-split --merge)",
                        (unsigned long long)number + 1, (unsigned long long)parts);
    }
    if (nb_gguf_str(k->g, "general.type", &type) == 0 && !is(type, "model"))
        return KEY_FAIL(k, -ENOTSUP, "general.type is '%s': the file is no model by itself",
                        nb_shown(type, buffer));
    return 0;
}

int nb_keys_check(const struct nb_keys *k)
{
    const size_t prefix = strlen(k->arch->name) + 1;
    int rc = check_whole(k);
    for (uint64_t i = 0; i < nb_gguf_n_keys(k->g) && rc == 0; i++) {
        enum nb_gguf_type type;
        struct nb_str key = nb_gguf_key(k->g, i, &type);
        if (key.len > prefix && !memcmp(key.data, k->arch->name, prefix - 1) &&
            key.data[prefix - 1] == '.')
            rc = check_key(k, key, prefix);
    }
    return rc;
}
