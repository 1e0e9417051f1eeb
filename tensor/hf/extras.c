// What the tables of family.c do not say of a family: windows, positions, an encoder's keys.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/hf/config.h"

// ---- Windows

// Whether layer i sees a window alone, by layer_types.
static int read_layer_types(const struct nb_hf_config *c, const json_t *types, uint32_t *ret)
{
    char shown[NB_HF_SHOWN_MAX];
    if (json_array_size(types) != c->n_layers)
        return NB_HF_FAIL(c, -EINVAL, "layer_types is no list of %u names", c->n_layers);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const json_t *type = json_array_get(types, i);
        const struct nb_str name = {json_string_value(type), json_string_length(type)};
        ret[i] = nb_hf_is(name, "sliding_attention");
        if (!ret[i] && !nb_hf_is(name, "full_attention"))
            return NB_HF_FAIL(c, -ENOTSUP, "layer %u is %s, which Nibble does not compute", i,
                              nb_hf_value(type, shown));
    }
    return 0;
}

static uint32_t sum(const uint32_t *values, uint32_t n)
{
    uint32_t total = 0;
    for (uint32_t i = 0; i < n; i++)
        total += values[i];
    return total;
}

// A window that is as long as the context is none.
static int put_window(struct nb_hf_config *c)
{
    uint32_t window = 0;
    int rc = nb_hf_u32(c, c->root, "sliding_window", 0, INT32_MAX, &window);
    return rc < 0 || !window || window >= c->context
               ? rc
               : nb_hf_put_u32(c, "attention.sliding_window", window);
}

// ---- Families

int nb_hf_llama(struct nb_hf_config *c)
{
    int rc = nb_hf_put_u32(c, "vocab_size", c->vocab);
    if (rc == 0)
        rc = nb_hf_put_u32(c, "rope.dimension_count", c->head_dim);
    if (rc == 0)
        rc = put_window(c);
    return rc < 0 ? rc : nb_hf_rope(c, c->head_dim, 10000);
}

// Windows in the layers from max_window_layers on are not what stock GGUFs say.
int nb_hf_qwen(struct nb_hf_config *c)
{
    uint32_t window = c->context, first = c->n_layers, windows[NB_HF_LAYERS_MAX] = {0};
    const bool use = json_is_true(nb_hf_get(c->root, "use_sliding_window"));
    const json_t *types = nb_hf_get(c->root, "layer_types");
    int rc = nb_hf_u32(c, c->root, "sliding_window", 1, INT32_MAX, &window);
    if (rc == 0)
        rc = nb_hf_u32(c, c->root, "max_window_layers", 0, INT32_MAX, &first);
    if (rc == 0 && types)
        rc = read_layer_types(c, types, windows);
    if (rc == 0 && !types && use && first < c->n_layers)
        windows[first] = 1;
    if (rc == 0 && window < c->context && sum(windows, c->n_layers))
        rc = NB_HF_FAIL(c, -ENOTSUP,
                        "some of its layers see a window of %u tokens, which Nibble "
                        "does not compute for this family",
                        window);
    return rc < 0 ? rc : nb_hf_rope(c, c->head_dim, 10000);
}

// Stock llama.cpp divides by the root of head_dim, but in the model of 62 layers.
static int check_attention_scale(const struct nb_hf_config *c)
{
    const double usual = c->n_layers == 62 ? c->embedding / c->n_heads : c->head_dim;
    double scalar = 256;
    int rc = nb_hf_f64(c, c->root, "query_pre_attn_scalar", &scalar);
    if (rc == 0 && scalar != usual)
        rc =
            NB_HF_FAIL(c, -ENOTSUP,
                       "query_pre_attn_scalar is %g (attention scaled otherwise than by %g), which "
                       "Nibble does not compute",
                       scalar, usual);
    return rc;
}

// Which layers see a window: every one but each `period`-th, or a list.
static int read_pattern(const struct nb_hf_config *c, uint32_t *windows, uint32_t *ret_period)
{
    uint32_t period = 6;
    const json_t *types = nb_hf_get(c->root, "layer_types");
    int rc = nb_hf_u32(c, c->root, "_sliding_window_pattern", 1, INT32_MAX, &period);
    if (rc == 0)
        rc = nb_hf_u32(c, c->root, "sliding_window_pattern", 1, INT32_MAX, &period);
    for (uint32_t i = 0; rc == 0 && i < c->n_layers; i++)
        windows[i] = (i + 1) % period != 0;
    if (rc == 0 && types)
        rc = read_layer_types(c, types, windows);
    *ret_period = period;
    return rc;
}

// Which pattern there is, is written where it is not the usual one.
static int put_pattern(struct nb_hf_config *c)
{
    uint32_t windows[NB_HF_LAYERS_MAX] = {0}, window = 0, period = 0;
    bool usual = true;
    int rc = read_pattern(c, windows, &period);
    if (rc < 0 || sum(windows, c->n_layers) == 0)
        return rc;
    rc = nb_hf_u32(c, c->root, "sliding_window", 1, INT32_MAX, &window);
    if (rc == 0 && !window)
        rc = nb_hf_lacks(c, "sliding_window");
    if (rc == 0)
        rc = nb_hf_put_u32(c, "attention.sliding_window", window);
    for (uint32_t i = 0; i < c->n_layers; i++)
        usual = usual && windows[i] == ((i + 1) % 6 != 0);
    return rc < 0 || usual
               ? rc
               : nb_hf_put_u32s(c, "attention.sliding_window_pattern", windows, c->n_layers);
}

int nb_hf_gemma3(struct nb_hf_config *c)
{
    int rc = check_attention_scale(c);
    if (rc == 0)
        rc = put_pattern(c);
    if (rc == 0)
        rc = nb_hf_rope(c, c->head_dim, 1000000);
    return rc < 0 ? rc : nb_hf_put_f32(c, "rope.freq_base_swa", 10000); // if nothing else was said
}

// A window of 0 says that there is none, as stock llama.cpp has it for this family.
int nb_hf_phi3(struct nb_hf_config *c)
{
    double part = 1;
    uint32_t window = 0, original = c->context;
    const json_t *parameters = nb_hf_get(c->root, "rope_parameters");
    int rc = nb_hf_f64(c, c->root, "partial_rotary_factor", &part);
    if (rc == 0)
        rc = nb_hf_f64(c, parameters, "partial_rotary_factor", &part);
    if (rc == 0 && !(part > 0 && part <= 1))
        rc = NB_HF_FAIL(c, -EINVAL, "partial_rotary_factor is %g, not above 0 and up to 1", part);
    if (rc == 0)
        rc = nb_hf_u32(c, parameters, "original_max_position_embeddings", 1, INT32_MAX, &original);
    if (rc == 0)
        rc = nb_hf_u32(c, c->root, "original_max_position_embeddings", 1, INT32_MAX, &original);
    if (rc == 0)
        rc = nb_hf_u32(c, c->root, "sliding_window", 0, INT32_MAX, &window);
    const uint32_t dims = (uint32_t)(part * c->embedding) / c->n_heads;
    if (rc == 0)
        rc = nb_hf_put_u32(c, "rope.dimension_count", dims);
    if (rc == 0)
        rc = nb_hf_put_u32(c, "rope.scaling.original_context_length", original);
    if (rc == 0)
        rc = nb_hf_put_u32(c, "attention.sliding_window", window);
    return rc < 0 ? rc : nb_hf_rope(c, dims, 10000);
}

int nb_hf_bert(struct nb_hf_config *c)
{
    uint32_t types = 0;
    int rc = nb_hf_u32(c, c->root, "type_vocab_size", 1, INT32_MAX, &types);
    if (rc == 0)
        rc = nb_hf_put_bool(c, "attention.causal", false);
    if (rc == 0 &&
        nb_gguf_kvs_put(c->kvs, "tokenizer.ggml.token_type_count", NB_GGUF_U32, &types) < 0)
        rc = NB_HF_FAIL(c, -ENOMEM, "no memory for its metadata");
    return rc;
}
