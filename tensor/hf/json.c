// Bounded JSON: see json.h.
#include "tensor/hf/json.h"

#include <errno.h>
#include <string.h>

#include "tensor/fail.h"

#define BYTES_MAX ((size_t)128 << 20)

// A parsed value takes up to some hundred bytes, whatever its text takes. So the characters that
// begin one are counted first; those inside strings count as well. The largest tokenizer.json that
// we know (262k tokens, 515k merges) has half a million arrays and 1.8 million commas.
static const struct {
    char c;
    const char *what;
    uint32_t max;
} limits[] = {{'{', "objects", 1u << 18}, {'[', "arrays", 1u << 21}, {',', "values", 1u << 22}};

static int check_size(struct nb_str text, const char *file, struct nb_error *ret_error)
{
    uint32_t n[256] = {0};

    if (text.len > BYTES_MAX)
        return nb_fail(ret_error, -EFBIG, "%s has more than %zu MiB, the most that is read", file,
                       BYTES_MAX >> 20);
    for (size_t i = 0; i < text.len; i++)
        n[(uint8_t)text.data[i]]++;
    for (size_t i = 0; i < sizeof(limits) / sizeof(*limits); i++)
        if (n[(uint8_t)limits[i].c] > limits[i].max)
            return nb_fail(ret_error, -EFBIG, "%s has more than %u %s, the most read", file,
                           limits[i].max, limits[i].what);
    return 0;
}

static int parse(struct nb_str text, const char *file, json_type type, json_t **ret,
                 struct nb_error *ret_error)
{
    json_error_t error;
    char shown[NB_HF_SHOWN_MAX];
    int rc = check_size(text, file, ret_error);

    if (rc < 0)
        return rc;
    json_t *root = json_loadb(text.data, text.len, JSON_REJECT_DUPLICATES, &error);
    if (!root && json_error_code(&error) == json_error_out_of_memory)
        return nb_fail(ret_error, -ENOMEM, "no memory for %s", file);
    if (!root)
        return nb_fail(ret_error, -EINVAL, "%s, line %d: %s", file, error.line,
                       nb_hf_shown((struct nb_str){error.text, strlen(error.text)}, shown));
    if (json_typeof(root) != type) {
        json_decref(root);
        return nb_fail(ret_error, -EINVAL, "%s is not a JSON %s", file,
                       type == JSON_OBJECT ? "object" : "list");
    }
    *ret = root;
    return 0;
}

int nb_hf_json(struct nb_str text, const char *file, json_t **ret, struct nb_error *ret_error)
{
    return parse(text, file, JSON_OBJECT, ret, ret_error);
}

int nb_hf_json_list(struct nb_str text, const char *file, json_t **ret, struct nb_error *ret_error)
{
    return parse(text, file, JSON_ARRAY, ret, ret_error);
}

struct nb_str nb_hf_str(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return (struct nb_str){json_string_value(value), json_string_length(value)};
}

bool nb_hf_bool(const json_t *object, const char *key, bool absent)
{
    const json_t *value = json_object_get(object, key);

    return json_is_boolean(value) ? json_is_true(value) : absent;
}

int64_t nb_hf_id(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_integer(value) && json_integer_value(value) >= 0 ? json_integer_value(value)
                                                                    : -1;
}

bool nb_hf_is(struct nb_str s, const char *text)
{
    return s.data && s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

const char *nb_hf_shown(struct nb_str text, char buffer[NB_HF_SHOWN_MAX])
{
    size_t n = text.len < NB_HF_SHOWN_MAX - 1 ? text.len : NB_HF_SHOWN_MAX - 1;

    // No part of a character stays behind the cut.
    while (n < text.len && n > 0 && ((uint8_t)text.data[n] & 0xc0) == 0x80)
        n--;
    for (size_t i = 0; i < n; i++) {
        buffer[i] = text.data[i];
        if ((uint8_t)text.data[i] < 0x20 || text.data[i] == 0x7f)
            buffer[i] = '?';
    }
    buffer[n] = '\0';
    return buffer;
}
