// A folder's small files: copied from a folder, or made of a GGUF's metadata. See write.h.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/hf/modules.h"
#include "tensor/hf/shards.h"
#include "tensor/hf/write_private.h"

#define FAIL(code, ...) nb_fail(ret_error, code, __VA_ARGS__)

// ---- Quantization

// Linear layers that are not quantized after all, by the names that the loaders know them by.
static json_t *list_plain(const struct nb_hf_writer *w)
{
    json_t *list = json_pack("[s]", "lm_head");
    for (uint32_t i = 0; i < w->n_outs; i++) {
        const struct nb_hf_out *out = &w->outs[i];
        if (out->linear && out->type != w->to)
            json_array_append_new(list, json_stringn(out->name, strlen(out->name) - 7));
    }
    return list;
}

static json_t *describe_nf4(const struct nb_hf_writer *w, const char *dtype)
{
    return json_pack("{s:s, s:b, s:b, s:s, s:b, s:s, s:s, s:o}", "quant_method", "bitsandbytes",
                     "load_in_4bit", 1, "load_in_8bit", 0, "bnb_4bit_quant_type", "nf4",
                     "bnb_4bit_use_double_quant", 1, "bnb_4bit_compute_dtype", dtype,
                     "bnb_4bit_quant_storage", "uint8", "llm_int8_skip_modules", list_plain(w));
}

static json_t *describe_int8(const struct nb_hf_writer *w)
{
    json_t *weights = json_pack("{s:i, s:s, s:b, s:s, s:b, s:n}", "num_bits", 8, "type", "int",
                                "symmetric", 1, "strategy", "channel", "dynamic", 0, "group_size");
    json_t *group = json_pack("{s:[s], s:o, s:n, s:n}", "targets", "Linear", "weights", weights,
                              "input_activations", "output_activations");
    return json_pack("{s:s, s:s, s:s, s:{s:o}, s:o, s:n}", "quant_method", "compressed-tensors",
                     "format", "int-quantized", "quantization_status", "compressed",
                     "config_groups", "group_0", group, "ignore", list_plain(w), "kv_cache_scheme");
}

int nb_hf_write_quantization(const struct nb_hf_writer *w, json_t *config)
{
    static const char *const names[] = {"float32", "float16", "bfloat16"};
    const char *name = NULL;
    json_object_del(config, "quantization_config");
    for (uint32_t i = 0; i < w->n_outs && !name; i++) // of the embedding, as a rule
        if (w->outs[i].t->n_dims > 1 && !w->outs[i].linear)
            name = names[w->outs[i].type == NB_TYPE_F16    ? 1
                         : w->outs[i].type == NB_TYPE_BF16 ? 2
                                                           : 0];
    name = name ? name : names[0];
    const bool newer = json_object_get(config, "dtype") != NULL;
    int rc = json_object_set_new(config, newer ? "dtype" : "torch_dtype", json_string(name));
    if (rc == 0 && w->to == NB_TYPE_NF4)
        rc = json_object_set_new(config, "quantization_config", describe_nf4(w, name));
    if (rc == 0 && w->to == NB_TYPE_INT8)
        rc = json_object_set_new(config, "quantization_config", describe_int8(w));
    return rc < 0 ? -ENOMEM : 0;
}

// ---- Texts

static int add_text(struct nb_hf_writer *w, const char *name, struct nb_str text,
                    struct nb_error *ret_error)
{
    struct nb_hf_text *t = &w->texts[w->n_texts];
    if (!text.data)
        return FAIL(-ENOMEM, "no memory for %s", name);
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->text = (char *)(uintptr_t)text.data;
    t->len = text.len;
    w->n_texts++;
    return 0;
}

int nb_hf_write_json(struct nb_hf_writer *w, const char *name, json_t *root,
                     struct nb_error *ret_error)
{
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    return add_text(w, name, (struct nb_str){text, text ? strlen(text) : 0}, ret_error);
}

// ---- From a folder

bool nb_hf_write_is_folder(const struct nb_source *s)
{
    return nb_hf_file(s, "", "config.json") >= 0 || nb_hf_file(s, "", "modules.json") >= 0;
}

static int write_config(struct nb_hf_writer *w, const char *name, struct nb_error *ret_error)
{
    struct nb_str text;
    json_t *root = NULL;
    int rc = nb_hf_text(w->s, "", name, &text, ret_error);
    if (rc == 0)
        rc = nb_hf_json(text, name, &root, ret_error);
    free((char *)(uintptr_t)text.data);
    if (rc == 0 && nb_hf_write_quantization(w, root) < 0) {
        json_decref(root);
        return FAIL(-ENOMEM, "no memory for %s", name);
    }
    return rc == 0 ? nb_hf_write_json(w, name, root, ret_error) : rc;
}

static bool is_weights(const char *name)
{
    const char *end = strrchr(name, '.');
    const size_t n = strlen(name), index = strlen(".safetensors.index.json");
    return (end && !strcmp(end, ".safetensors")) ||
           (n >= index && !strcmp(name + n - index, ".safetensors.index.json"));
}

static int copy_texts(struct nb_hf_writer *w, struct nb_error *ret_error)
{
    struct nb_hf_modules modules;
    char config[2 * NB_SOURCE_NAME];
    int rc = nb_hf_modules_read(w->s, &modules, ret_error);
    if (rc < 0)
        return rc;
    snprintf(config, sizeof(config), "%sconfig.json", modules.base);
    snprintf(w->name, sizeof(w->name), "%.200smodel.safetensors", modules.base);
    for (uint32_t i = 0; i < w->s->n_files && rc == 0; i++) {
        const char *name = w->s->files[i].name;
        struct nb_str text;
        if (is_weights(name))
            continue;
        if (!strcmp(name, config)) {
            rc = write_config(w, name, ret_error);
            continue;
        }
        rc = nb_hf_text(w->s, "", name, &text, ret_error);
        rc = rc < 0 ? rc : add_text(w, name, text, ret_error);
    }
    return rc;
}

int nb_hf_write_texts(struct nb_hf_writer *w, struct nb_error *ret_error)
{
    if (!w->family)
        return copy_texts(w, ret_error);
    int rc = nb_hf_write_config(w, ret_error);
    return rc < 0 ? rc : nb_hf_write_tokenizer(w, ret_error);
}
