// Rotary positions in config.json: rope_theta and rope_scaling, or rope_parameters, which has both
// and stands once for each kind of layer where they differ.
#include <errno.h>
#include <math.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/hf/config.h"

struct rope {
    const json_t *parameters; // NULL: none
    uint32_t dims;            // rotated of each head
    double base;
};

static int required(struct nb_hf_config *c, const struct rope *r, const char *key, double *ret)
{
    int rc = nb_hf_f64(c, r->parameters, key, ret);
    if (rc == 0 && !(*ret > 0))
        rc = NB_HF_FAIL(c, -EINVAL, "its rope_scaling lacks %s, a number above 0", key);
    return rc;
}

static int put_factor(struct nb_hf_config *c, const struct rope *r, const char *type)
{
    double factor = 0;
    int rc = required(c, r, "factor", &factor);
    if (rc == 0)
        rc = nb_hf_put_text(c, "rope.scaling.type", type);
    return rc < 0 ? rc : nb_hf_put_f32(c, "rope.scaling.factor", factor);
}

static int put_none(struct nb_hf_config *c, const struct rope *r)
{
    (void)c, (void)r;
    return 0;
}

static int put_linear(struct nb_hf_config *c, const struct rope *r)
{
    return put_factor(c, r, "linear");
}

// The attention's factor of YaRN follows from `factor`; GGUF has no place for another one that all
// engines read alike.
static int put_yarn(struct nb_hf_config *c, const struct rope *r)
{
    double factor = 0, original = c->context, fast = 0, slow = 0;
    int rc = put_factor(c, r, "yarn");
    if (rc == 0 && (rc = nb_hf_f64(c, r->parameters, "factor", &factor)) == 0)
        rc = nb_hf_f64(c, r->parameters, "original_max_position_embeddings", &original);
    const double usual = 1 + 0.1 * log(factor);
    double attention = usual;
    if (rc == 0)
        rc = nb_hf_f64(c, r->parameters, "attention_factor", &attention);
    if (rc == 0 && fabs(attention - usual) > 1e-6)
        rc = NB_HF_FAIL(c, -ENOTSUP,
                        "its rope_scaling has the attention_factor %g (YaRN with another attention "
                        "scale), which Nibble does not compute",
                        attention);
    if (rc == 0)
        rc = nb_hf_put_u32(c, "rope.scaling.original_context_length", (uint32_t)original);
    if (rc == 0 && (rc = nb_hf_f64(c, r->parameters, "beta_fast", &fast)) == 0 && fast > 0)
        rc = nb_hf_put_f32(c, "rope.scaling.yarn_beta_fast", fast);
    if (rc == 0 && (rc = nb_hf_f64(c, r->parameters, "beta_slow", &slow)) == 0 && slow > 0)
        rc = nb_hf_put_f32(c, "rope.scaling.yarn_beta_slow", slow);
    return rc;
}

// Llama 3.1: slow pairs are interpolated, fast ones not, with a ramp between. GGUF has what each
// pair's frequency is divided by.
static int put_llama3(struct nb_hf_config *c, const struct rope *r)
{
    double factor = 0, low = 0, high = 0, original = 0;
    int rc = required(c, r, "factor", &factor);
    if (rc == 0)
        rc = required(c, r, "low_freq_factor", &low);
    if (rc == 0)
        rc = required(c, r, "high_freq_factor", &high);
    if (rc == 0)
        rc = required(c, r, "original_max_position_embeddings", &original);
    float *values = rc == 0 ? nb_hf_add_vector(c, "rope_freqs.weight", r->dims / 2) : NULL;
    if (!values)
        return rc < 0 ? rc : -ENOMEM;
    for (uint32_t i = 0; i < r->dims / 2; i++) {
        const double wavelength = 2 * M_PI * pow(r->base, 2.0 * i / r->dims);
        const double smooth = (original / wavelength - low) / (high - low);
        if (wavelength < original / high)
            values[i] = 1;
        else if (wavelength > original / low)
            values[i] = (float)factor;
        else
            values[i] = (float)(1 / ((1 - smooth) / factor + smooth));
    }
    return 0;
}

static int put_factors(struct nb_hf_config *c, const struct rope *r, const char *key,
                       const char *name)
{
    const json_t *list = nb_hf_get(r->parameters, key);
    if (json_array_size(list) != r->dims / 2)
        return NB_HF_FAIL(c, -EINVAL, "its rope_scaling needs %s, a list of %u numbers", key,
                          r->dims / 2);
    float *values = nb_hf_add_vector(c, name, r->dims / 2);
    for (uint32_t i = 0; values && i < r->dims / 2; i++) {
        const json_t *value = json_array_get(list, i);
        values[i] = (float)json_number_value(value);
        if (!json_is_number(value) || !(values[i] > 0) || !isfinite(values[i]))
            return NB_HF_FAIL(c, -EINVAL, "number %u of %s in its rope_scaling is none above 0", i,
                              key);
    }
    return values ? 0 : -ENOMEM;
}

// LongRoPE (arXiv 2402.13753): a factor for each pair, other ones beyond the original context.
static int put_longrope(struct nb_hf_config *c, const struct rope *r)
{
    uint32_t original = 0;
    int rc =
        nb_hf_u32(c, r->parameters, "original_max_position_embeddings", 2, INT32_MAX, &original);
    if (rc == 0)
        rc = nb_hf_u32(c, c->root, "original_max_position_embeddings", 2, INT32_MAX, &original);
    if (rc == 0 && !original)
        rc = nb_hf_lacks(c, "original_max_position_embeddings");
    if (rc < 0)
        return rc;
    const double scale = (double)c->context / original;
    const double usual = scale > 1 ? sqrt(1 + log(scale) / log(original)) : 1;
    double attention = usual;
    rc = nb_hf_f64(c, r->parameters, "attention_factor", &attention);
    if (rc == 0)
        rc = nb_hf_put_text(c, "rope.scaling.type", "longrope");
    if (rc == 0)
        rc = nb_hf_put_u32(c, "rope.scaling.original_context_length", original);
    if (rc == 0)
        rc = nb_hf_put_f32(c, "rope.scaling.attn_factor", attention);
    if (rc == 0)
        rc = put_factors(c, r, "long_factor", "rope_factors_long.weight");
    return rc < 0 ? rc : put_factors(c, r, "short_factor", "rope_factors_short.weight");
}

// The kinds, and what each has beside rope_type and rope_theta.
static const struct kind {
    const char *name;
    int (*put)(struct nb_hf_config *c, const struct rope *r);
    const char *keys[6];
} kinds[] = {
    {"default", put_none, {NULL}},
    {"linear", put_linear, {"factor"}},
    {"yarn",
     put_yarn,
     {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"}},
    {"llama3",
     put_llama3,
     {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}},
    {"longrope",
     put_longrope,
     {"short_factor", "long_factor", "factor", "original_max_position_embeddings",
      "attention_factor"}},
    {"su", put_longrope, {"short_factor", "long_factor"}}, // LongRoPE's first name
};

static int find_kind(const struct nb_hf_config *c, const json_t *parameters,
                     const struct kind **ret)
{
    char shown[NB_HF_SHOWN_MAX];
    struct nb_str name = nb_hf_str(parameters, "rope_type");
    if (!name.data)
        name = nb_hf_str(parameters, "type");
    if (!name.data)
        name = (struct nb_str){"default", 7};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (nb_hf_is(name, kinds[i].name)) {
            *ret = &kinds[i];
            return 0;
        }
    return NB_HF_FAIL(c, -ENOTSUP, "its RoPE is scaled by %s, which Nibble does not compute",
                      nb_hf_shown(name, shown));
}

static int check_keys(const struct nb_hf_config *c, const json_t *parameters,
                      const struct kind *kind)
{
    static const char *const any[] = {"rope_type", "type", "rope_theta"};
    const char *name;
    const json_t *value;
    char shown[NB_HF_SHOWN_MAX];
    json_t *object = (json_t *)(uintptr_t)parameters; // the iterator writes nothing
    json_object_foreach(object, name, value) {
        // This one stands here or beside, in a family that has it.
        const bool is_part = !strcmp(name, "partial_rotary_factor");
        bool known = json_is_null(value) || (is_part && nb_hf_knows(c, name));
        for (size_t i = 0; i < sizeof(any) / sizeof(any[0]) && !known; i++)
            known = !strcmp(name, any[i]);
        for (size_t i = 0; i < 6 && kind->keys[i] && !known; i++)
            known = !strcmp(name, kind->keys[i]);
        if (!known)
            return NB_HF_FAIL(c, -ENOTSUP,
                              "%s in its rope_scaling (%s) is a key that Nibble does not know, so "
                              "it may change what the model computes; remove it if it does not",
                              nb_hf_shown((struct nb_str){name, strlen(name)}, shown), kind->name);
    }
    return 0;
}

// rope_parameters has an object for each kind of layer, or is one for all.
static int find_parameters(const struct nb_hf_config *c, const json_t **ret,
                           const json_t **ret_local)
{
    const json_t *parameters = nb_hf_get(c->root, "rope_parameters");
    if (!parameters)
        parameters = nb_hf_get(c->root, "rope_scaling");
    if (parameters && !json_is_object(parameters))
        return NB_HF_FAIL(c, -EINVAL, "its rope_scaling is no object");
    const json_t *full = nb_hf_get(parameters, "full_attention");
    *ret_local = nb_hf_get(parameters, "sliding_attention");
    *ret = full ? full : parameters;
    return 0;
}

// Layers with a window turn unscaled, at a base of their own.
static int put_local(struct nb_hf_config *c, const json_t *local)
{
    double base = 0;
    const struct kind *kind = &kinds[0];
    int rc = local ? find_kind(c, local, &kind) : 0;
    if (rc == 0 && kind != &kinds[0])
        rc = NB_HF_FAIL(c, -ENOTSUP,
                        "the RoPE of its layers with windows is scaled (%s), which "
                        "Nibble does not compute",
                        kind->name);
    if (rc == 0)
        rc = nb_hf_f64(c, c->root, "rope_local_base_freq", &base);
    if (rc == 0)
        rc = nb_hf_f64(c, local, "rope_theta", &base);
    return rc < 0 || base <= 0 ? rc : nb_hf_put_f32(c, "rope.freq_base_swa", base);
}

int nb_hf_rope(struct nb_hf_config *c, uint32_t dims, double base)
{
    struct rope r = {.dims = dims, .base = base};
    const json_t *local = NULL;
    const struct kind *kind = &kinds[0];
    int rc = find_parameters(c, &r.parameters, &local);
    if (rc == 0)
        rc = find_kind(c, r.parameters, &kind);
    if (rc == 0)
        rc = check_keys(c, r.parameters, kind);
    if (rc == 0)
        rc = nb_hf_f64(c, c->root, "rope_theta", &r.base);
    if (rc == 0)
        rc = nb_hf_f64(c, r.parameters, "rope_theta", &r.base);
    if (rc == 0 && !(r.base > 0))
        rc = NB_HF_FAIL(c, -EINVAL, "rope_theta is %g, not a number above 0", r.base);
    if (rc == 0)
        rc = nb_hf_put_f32(c, "rope.freq_base", r.base);
    if (rc == 0)
        rc = put_local(c, local);
    return rc < 0 ? rc : kind->put(c, &r);
}
