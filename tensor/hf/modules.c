// The modules of a sentence-transformers folder: see modules.h.
#include "tensor/hf/modules.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/hf/shards.h"

#define FILE_NAME "modules.json"

#define FAIL(code, ...) nb_fail(ret_error, code, __VA_ARGS__)

typedef int parser(struct nb_str text, const char *file, json_t **ret, struct nb_error *ret_error);

// *ret stays as it is where the file is absent.
static int read_json(const struct nb_source *s, const char *base, const char *name, parser *parse,
                     json_t **ret, struct nb_error *ret_error)
{
    struct nb_str text;
    char path[2 * NB_SOURCE_NAME];
    snprintf(path, sizeof(path), "%s%s", base, name);
    int rc = nb_hf_text(s, base, name, &text, ret_error);
    if (rc == 0 && text.data)
        rc = parse(text, path, ret, ret_error);
    free((char *)(uintptr_t)text.data);
    return rc;
}

// The folder of a module, with a slash behind it where it has a name.
static int base_of(const json_t *module, char ret[NB_SOURCE_NAME])
{
    const struct nb_str path = nb_hf_str(module, "path");
    if (!path.data || path.len + 2 > NB_SOURCE_NAME)
        return -EINVAL;
    snprintf(ret, NB_SOURCE_NAME, "%s%s", path.data, path.len ? "/" : "");
    return 0;
}

// ---- Pooling

// Ways to pool by their two names in a module's configuration; those without a number are not
// computed.
static const struct {
    const char *key, *mode;
    enum nb_hf_pooling pooling;
} ways[] = {
    {"pooling_mode_mean_tokens", "mean", NB_HF_POOLING_MEAN},
    {"pooling_mode_cls_token", "cls", NB_HF_POOLING_CLS},
    {"pooling_mode_lasttoken", "lasttoken", NB_HF_POOLING_LAST},
    {"pooling_mode_max_tokens", "max", NB_HF_POOLING_NONE},
    {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", NB_HF_POOLING_NONE},
    {"pooling_mode_weightedmean_tokens", "weightedmean", NB_HF_POOLING_NONE},
};

static int read_pooling(const json_t *config, const char *base, struct nb_hf_modules *m,
                        struct nb_error *ret_error)
{
    const struct nb_str mode = nb_hf_str(config, "pooling_mode");
    unsigned n = 0;
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
        if (nb_hf_bool(config, ways[i].key, false) || nb_hf_is(mode, ways[i].mode)) {
            m->pooling = ways[i].pooling;
            n++;
        }
    if (n == 1 && m->pooling && nb_hf_bool(config, "include_prompt", true))
        return 0;
    return FAIL(-ENOTSUP,
                "%sconfig.json: vectors are pooled by mean, by the first (cls) or by the last "
                "token, one of them and over the whole text; this model's are not",
                base);
}

static int open_pooling(const struct nb_source *s, const char *base, struct nb_hf_modules *m,
                        struct nb_error *ret_error)
{
    json_t *config = NULL;
    int rc = read_json(s, base, "config.json", nb_hf_json, &config, ret_error);
    if (rc == 0 && !config)
        rc = FAIL(-ENOENT, FILE_NAME " names %sconfig.json, which is not in the folder", base);
    if (rc == 0)
        rc = read_pooling(config, base, m, ret_error);
    json_decref(config);
    return rc;
}

// ---- The modules

// By the last part of their type, in the order in which they may come.
enum kind { TRANSFORMER, POOLING, NORMALIZE, KINDS };
static const char *const kinds[KINDS] = {"Transformer", "Pooling", "Normalize"};

static enum kind kind_of(struct nb_str type)
{
    const char *dot = type.data ? strrchr(type.data, '.') : NULL;
    const char *name = dot ? dot + 1 : type.data ? type.data : "";
    enum kind kind = TRANSFORMER;
    while (kind < KINDS && strcmp(kinds[kind], name) != 0)
        kind++;
    return kind;
}

static int read_list(const struct nb_source *s, const json_t *list, struct nb_hf_modules *m,
                     struct nb_error *ret_error)
{
    char base[NB_SOURCE_NAME], shown[NB_HF_SHOWN_MAX];
    enum kind next = TRANSFORMER;
    int rc = 0;
    for (size_t i = 0; i < json_array_size(list) && rc == 0; i++) {
        const json_t *module = json_array_get(list, i);
        const struct nb_str type = nb_hf_str(module, "type");
        const enum kind kind = kind_of(type);
        if (kind == KINDS || kind < next || (i == 0) != (kind == TRANSFORMER))
            return FAIL(-ENOTSUP,
                        FILE_NAME ": module %zu is %s; a Transformer, then perhaps Pooling and "
                                  "Normalize, are what Nibble computes",
                        i, nb_hf_shown(type, shown));
        if (base_of(module, base) < 0)
            return FAIL(-EINVAL, FILE_NAME ": module %zu has no path", i);
        if (kind == TRANSFORMER)
            snprintf(m->base, sizeof(m->base), "%s", base);
        else if (kind == POOLING)
            rc = open_pooling(s, base, m, ret_error);
        else
            m->normalize = true;
        next = kind + 1;
    }
    if (!json_array_size(list))
        return FAIL(-EINVAL, FILE_NAME ": it is no list of modules");
    return rc;
}

int nb_hf_modules_read(const struct nb_source *s, struct nb_hf_modules *ret,
                       struct nb_error *ret_error)
{
    struct nb_hf_modules m = {0};
    json_t *list = NULL;
    int rc = read_json(s, "", FILE_NAME, nb_hf_json_list, &list, ret_error);
    m.there = list != NULL;
    if (rc == 0 && list)
        rc = read_list(s, list, &m, ret_error);
    json_decref(list);
    if (rc == 0)
        *ret = m;
    return rc;
}
