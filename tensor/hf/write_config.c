// config.json of a GGUF's metadata, by the tables that read one. What the result would not be read
// back as is refused. See write.h.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/hf/config.h"
#include "tensor/hf/write_private.h"

// The code once more, so that analyzers see that it is negative.
#define FAIL(code, ...) (nb_fail(ret_error, code, __VA_ARGS__), (code))

struct saying {
    const struct nb_hf_writer *w;
    const struct nb_gguf *g;
    json_t *root;
};

// ---- Metadata

static const char *key_of(const struct saying *s, const char *name, char ret[128])
{
    snprintf(ret, 128, "%s.%s", s->w->family->architecture, name);
    return ret;
}

static bool number(const struct saying *s, const char *name, double *ret)
{
    char key[128];
    return nb_gguf_f64(s->g, key_of(s, name, key), ret) == 0;
}

static bool is_text(const struct saying *s, const char *name, const char *value)
{
    char key[128];
    struct nb_str text;
    return nb_gguf_str(s->g, key_of(s, name, key), &text) == 0 && nb_hf_is(text, value);
}

static void say_whole(const struct saying *s, const char *key, double value)
{
    json_object_set_new(s->root, key, json_integer((json_int_t)value));
}

static void say_real(json_t *object, const char *key, double value)
{
    json_object_set_new(object, key, json_real(value));
}

static void say_number(const struct saying *s, const char *name, const char *key)
{
    double value;
    if (number(s, name, &value))
        say_whole(s, key, value);
}

static const struct nb_source_tensor *find(const struct saying *s, const char *name)
{
    for (uint32_t i = 0; i < s->w->s->n_tensors; i++)
        if (nb_hf_is(s->w->s->tensors[i].name, name))
            return &s->w->s->tensors[i];
    return NULL;
}

// ---- The tables

static void say_keys(const struct saying *s, const struct nb_hf_key *keys, uint32_t n)
{
    double value;
    for (uint32_t i = 0; i < n; i++) {
        const struct nb_hf_key *k = &keys[i];
        if (k->use == NB_HF_U32 && number(s, k->gguf, &value))
            say_whole(s, k->name, value);
        else if (k->use == NB_HF_F32 && number(s, k->gguf, &value))
            say_real(s->root, k->name, value);
        else if (k->use == NB_HF_IS && (!strncmp(k->name, "hidden_act", 10) ||
                                        !strcmp(k->name, "position_embedding_type")))
            json_object_set_new(s->root, k->name, json_loads(k->is[0], JSON_DECODE_ANY, NULL));
    }
}

static bool has_key(const struct saying *s, const char *name)
{
    for (uint32_t i = 0; i < s->w->family->n_keys; i++)
        if (!strcmp(s->w->family->keys[i].name, name))
            return true;
    return false;
}

static void say_shape(const struct saying *s)
{
    static const char *const numbers[][2] = {
        {"block_count", "num_hidden_layers"},
        {"attention.head_count", "num_attention_heads"},
        {"expert_count", "num_local_experts"},
    };
    double heads = 1, width = 0, kv, dims;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        say_number(s, numbers[i][0], numbers[i][1]);
    (void)number(s, "attention.head_count", &heads);
    (void)number(s, "embedding_length", &width);
    if (has_key(s, "num_key_value_heads"))
        say_whole(s, "num_key_value_heads", number(s, "attention.head_count_kv", &kv) ? kv : heads);
    if (number(s, "attention.key_length", &dims))
        say_whole(s, "head_dim", dims);
    else if (s->w->family->head_dim) // of a config.json that says none
        say_whole(s, "head_dim", floor(width / heads));
    const struct nb_source_tensor *embedding = find(s, "token_embd.weight");
    say_whole(s, "vocab_size", embedding ? (double)embedding->dims[1] : 0);
    json_object_set_new(s->root, "tie_word_embeddings",
                        json_boolean(find(s, "output.weight") == NULL));
}

// ---- Positions

static void say_list(json_t *scaling, const char *key, const struct saying *s, const char *name)
{
    const struct nb_source_tensor *t = find(s, name);
    struct nb_error error;
    json_t *list = json_array();
    float *x = t && t->type == NB_TYPE_F32 ? malloc(t->dims[0] * sizeof(*x)) : NULL;
    if (x && nb_source_read(s->w->s, t, 0, 1, x, &error) == 0)
        for (uint64_t i = 0; i < t->dims[0]; i++)
            json_array_append_new(list, json_real((double)x[i]));
    free(x);
    json_object_set_new(scaling, key, list);
}

// A kind of scaling as its reader wants it, or NULL where there is none that has numbers of its
// own.
static json_t *make_scaling(const struct saying *s)
{
    static const char *const reals[][2] = {{"rope.scaling.yarn_beta_fast", "beta_fast"},
                                           {"rope.scaling.yarn_beta_slow", "beta_slow"}};
    double value;
    const bool linear = is_text(s, "rope.scaling.type", "linear");
    const bool yarn = is_text(s, "rope.scaling.type", "yarn");
    json_t *scaling = json_object();
    if (linear || yarn) {
        json_object_set_new(scaling, "rope_type", json_string(linear ? "linear" : "yarn"));
        say_real(scaling, "factor", number(s, "rope.scaling.factor", &value) ? value : 0);
    }
    if (yarn) {
        if (number(s, "rope.scaling.original_context_length", &value))
            json_object_set_new(scaling, "original_max_position_embeddings",
                                json_integer((json_int_t)value));
        for (size_t i = 0; i < 2; i++)
            if (number(s, reals[i][0], &value))
                say_real(scaling, reals[i][1], value);
    }
    if (find(s, "rope_factors_long.weight")) {
        json_object_set_new(scaling, "rope_type", json_string("longrope"));
        say_list(scaling, "long_factor", s, "rope_factors_long.weight");
        say_list(scaling, "short_factor", s, "rope_factors_short.weight");
        if (number(s, "rope.scaling.attn_factor", &value))
            say_real(scaling, "attention_factor", value);
    }
    if (json_object_size(scaling))
        return scaling;
    json_decref(scaling);
    return NULL;
}

static void say_rope(const struct saying *s)
{
    double value;
    if (number(s, "rope.freq_base", &value))
        say_real(s->root, "rope_theta", value);
    if (has_key(s, "rope_local_base_freq") && number(s, "rope.freq_base_swa", &value))
        say_real(s->root, "rope_local_base_freq", value);
    json_t *scaling = make_scaling(s);
    if (scaling)
        json_object_set_new(s->root, "rope_scaling", scaling);
}

// ---- Families

static void say_windows(const struct saying *s)
{
    char key[128];
    uint64_t n;
    enum nb_gguf_type type;
    double window;
    if (!has_key(s, "sliding_window") || !number(s, "attention.sliding_window", &window))
        return;
    say_whole(s, "sliding_window", window);
    key_of(s, "attention.sliding_window_pattern", key);
    if (nb_gguf_array(s->g, key, &type, &n) < 0 || !has_key(s, "layer_types"))
        return;
    json_t *types = json_array();
    for (uint64_t i = 0; i < n; i++) {
        double windowed = 0;
        bool flag = false;
        if (nb_gguf_array_f64(s->g, key, i, &windowed) < 0)
            (void)nb_gguf_array_bool(s->g, key, i, &flag);
        json_array_append_new(
            types, json_string(windowed != 0 || flag ? "sliding_attention" : "full_attention"));
    }
    json_object_set_new(s->root, "layer_types", types);
}

static void say_rest(const struct saying *s)
{
    const char *architecture = s->w->family->architecture;
    double dims, heads = 1, width = 1, value, layers = 0;
    (void)number(s, "attention.head_count", &heads);
    (void)number(s, "embedding_length", &width);
    (void)number(s, "block_count", &layers);
    if (!strcmp(architecture, "phi3")) {
        // A little more, because its product with the width is cut to a whole number.
        if (number(s, "rope.dimension_count", &dims))
            say_real(s->root, "partial_rotary_factor", fmin(1, (dims * heads + 0.25) / width));
        say_number(s, "rope.scaling.original_context_length", "original_max_position_embeddings");
    } else if (!strcmp(architecture, "gemma3")) {
        const double of_heads = layers == 62 ? floor(width / heads) : 256;
        say_whole(s, "query_pre_attn_scalar",
                  layers != 62 && number(s, "attention.key_length", &value) ? value : of_heads);
    } else if (!strcmp(architecture, "bert")) {
        const struct nb_source_tensor *types = find(s, "token_types.weight");
        say_whole(s, "type_vocab_size", types ? (double)types->dims[1] : 1);
    }
    if (nb_gguf_f64(s->g, "tokenizer.ggml.bos_token_id", &value) == 0)
        say_whole(s, "bos_token_id", value);
    if (nb_gguf_f64(s->g, "tokenizer.ggml.eos_token_id", &value) == 0)
        say_whole(s, "eos_token_id", value);
}

// ---- Llama 3's scaling, of which a GGUF has the result

static int read_back(const struct nb_hf_writer *w, const json_t *root, struct nb_gguf_kvs *kvs,
                     struct nb_hf_config *ret, struct nb_error *ret_error)
{
    return nb_hf_config_read(root, "config.json", kvs, ret, ret_error);
}

static bool is_near(const struct nb_hf_config *c, const float *x, uint64_t n)
{
    bool near = c->n_vectors == 1 && c->vectors[0].n == n;
    for (uint64_t i = 0; near && i < n; i++)
        near = fabsf(c->vectors[0].values[i] - x[i]) <= 1e-6f * fabsf(x[i]);
    return near;
}

// Whether the scaling from this original context on makes these factors.
static bool makes(const struct saying *s, const float *x, uint64_t n, double factor, int original)
{
    struct nb_gguf_kvs kvs = {0};
    struct nb_hf_config c;
    struct nb_error error;
    json_object_set_new(s->root, "rope_scaling",
                        json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor",
                                  factor, "low_freq_factor", 1.0, "high_freq_factor", 4.0,
                                  "original_max_position_embeddings", original));
    bool found = read_back(s->w, s->root, &kvs, &c, &error) == 0;
    if (found) {
        found = is_near(&c, x, n);
        nb_hf_config_finish(&c);
    }
    nb_gguf_kvs_finish(&kvs);
    return found;
}

static int say_llama3(const struct saying *s, struct nb_error *ret_error)
{
    const struct nb_source_tensor *t = find(s, "rope_freqs.weight");
    float most = 1;
    bool found = false;
    if (!t)
        return 0;
    float *x = t->type == NB_TYPE_F32 ? malloc(t->dims[0] * sizeof(*x)) : NULL;
    int rc = x ? nb_source_read(s->w->s, t, 0, 1, x, ret_error)
               : FAIL(-ENOTSUP, "tensor rope_freqs.weight is not of F32");
    for (uint64_t i = 0; rc == 0 && i < t->dims[0]; i++)
        most = fmaxf(most, x[i]);
    for (int original = 32; rc == 0 && !found && original <= 1 << 20; original *= 2)
        found = makes(s, x, t->dims[0], (double)most, original);
    free(x);
    if (rc == 0 && !found)
        rc = FAIL(-ENOTSUP,
                  "tensor rope_freqs.weight is no scaling as Llama 3 has it, so no config.json "
                  "says it");
    return rc;
}

// ---- The file

static json_t *begin_config(const struct nb_hf_writer *w)
{
    static const struct {
        const char *architecture, *type;
    } types[] = {{"MistralForCausalLM", "mistral"},
                 {"MixtralForCausalLM", "mixtral"},
                 {"Gemma3ForCausalLM", "gemma3_text"}};
    const char *type = w->family->architecture;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (!strcmp(w->family->names[0], types[i].architecture))
            type = types[i].type;
    return json_pack("{s:[s], s:s}", "architectures", w->family->names[0], "model_type", type);
}

int nb_hf_write_config(struct nb_hf_writer *w, struct nb_error *ret_error)
{
    struct saying s = {w, w->s->metadata, begin_config(w)};
    struct nb_gguf_kvs kvs = {0};
    struct nb_hf_config c;
    say_keys(&s, nb_hf_common_keys, nb_hf_n_common_keys);
    say_keys(&s, w->family->keys, w->family->n_keys);
    say_shape(&s);
    say_rope(&s);
    say_windows(&s);
    say_rest(&s);
    int rc = say_llama3(&s, ret_error);
    if (rc == 0)
        rc = nb_hf_write_quantization(w, s.root);
    if (rc == 0)
        rc = read_back(w, s.root, &kvs, &c, ret_error);
    if (rc == 0) {
        nb_hf_config_finish(&c);
        rc = nb_hf_write_check(w, &kvs, w->family->architecture, ret_error);
    }
    nb_gguf_kvs_finish(&kvs);
    if (rc < 0)
        json_decref(s.root);
    return rc < 0 ? rc : nb_hf_write_json(w, "config.json", s.root, ret_error);
}

// The first family of that architecture whose models have experts, or not, as this one.
int nb_hf_write_family(struct nb_hf_writer *w, struct nb_error *ret_error)
{
    struct nb_str name = {"", 0};
    char shown[NB_HF_SHOWN_MAX], key[160];
    uint64_t experts = 0;
    (void)nb_gguf_str(w->s->metadata, "general.architecture", &name);
    for (uint32_t i = 0; i < nb_hf_n_families; i++) {
        const struct nb_hf_family *f = &nb_hf_families[i];
        bool has_experts = false;
        if (!nb_hf_is(name, f->architecture))
            continue;
        for (uint32_t k = 0; k < f->n_keys; k++)
            has_experts = has_experts || !strcmp(f->keys[k].name, "num_local_experts");
        snprintf(key, sizeof(key), "%s.expert_count", f->architecture);
        (void)nb_gguf_u64(w->s->metadata, key, &experts);
        if (has_experts == (experts > 0)) {
            w->family = f;
            return 0;
        }
    }
    return FAIL(-ENOTSUP,
                "the model is a %s%s; folders are written of llama, mixtral, qwen2, qwen3, gemma3, "
                "phi3 and bert",
                nb_hf_shown(name, shown), experts ? " with experts" : "");
}
