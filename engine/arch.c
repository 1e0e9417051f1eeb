// The reading of a model's hyperparameters from its metadata: every value is checked here, once, so
// that the plan and the devices may trust them.
#include "engine/arch.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arch_keys.h"
#include "tensor/fail.h"
#include "tensor/image.h"

#define COUNT(a) ((uint32_t)(sizeof(a) / sizeof((a)[0])))

const struct nb_arch *nb_arch_of(const struct nb_gguf *metadata)
{
    const struct nb_arch *arch;
    struct nb_str name;
    if (nb_gguf_str(metadata, "general.architecture", &name) < 0)
        return NULL;
    for (uint32_t i = 0; (arch = nb_arch_at(i)); i++)
        if (name.len == strlen(arch->name) && !memcmp(name.data, arch->name, name.len))
            break;
    return arch;
}

bool nb_arch_for_vectors(const struct nb_arch *arch, const struct nb_gguf *metadata)
{
    char key[128];
    uint64_t pooling = 0;
    snprintf(key, sizeof(key), "%s.pooling_type", arch->name);
    return arch->encoder || (nb_gguf_u64(metadata, key, &pooling) == 0 && pooling);
}

// What is known of families that are not computed.
static const struct {
    const char *names, *what; // words
} others[] = {
    {"clip mmproj", "it is the part of a model that sees or hears: load the language model's own "
                    "file"},
    {"mamba mamba2 jamba rwkv6 rwkv6qwen2 rwkv7 arwkv7 falcon-h1 granitehybrid lfm2 lfm2moe "
     "nemotron_h nemotron_h_moe plamo2 qwen3next qwen35 qwen35moe kimi-linear",
     "it has layers with a recurrent state"},
    {"qwen2vl qwen3vl qwen3vlmoe cogvlm chameleon hunyuan_vl", "it reads images among its tokens"},
    {"t5 t5encoder", "it has an encoder before its decoder"},
    {"gemma3n gemma4", "it has embeddings of each layer"},
};

static bool is_among(const char *words, struct nb_str name)
{
    for (const char *at = words; *at; at += strspn(at, " ")) {
        size_t n = strcspn(at, " ");
        if (n == name.len && !memcmp(at, name.data, n))
            return true;
        at += n;
    }
    return false;
}

static int refuse_arch(struct nb_str name, struct nb_error *error)
{
    char known[256] = "", why[160] = "", buffer[NB_SHOWN_MAX];
    const struct nb_arch *arch;
    for (uint32_t i = 0; (arch = nb_arch_at(i)); i++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof(known) - n, "%s%s", i ? ", " : "", arch->name);
    }
    for (uint32_t i = 0; i < COUNT(others); i++)
        if (is_among(others[i].names, name))
            snprintf(why, sizeof(why), " (%s)", others[i].what);
    return nb_fail(error, -ENOTSUP,
                   "Nibble does not compute the architecture '%s'%s; choose a model of one of "
                   "these: %s",
                   nb_shown(name, buffer), why, known);
}

const char *const nb_rope_factors[NB_ROPE_FACTORS] = {
    [NB_FACTORS] = "rope_freqs.weight",
    [NB_FACTORS_SHORT] = "rope_factors_short.weight",
    [NB_FACTORS_LONG] = "rope_factors_long.weight",
};

struct rope {
    double base, factor, attn_factor, beta_fast, beta_slow, ext_factor;
    uint32_t original_context;
    bool yarn;
    const float *factors; // of each pair, or NULL
};

// YaRN (arXiv 2309.00071): pairs that turn often over the original context keep their frequency,
// slow ones are interpolated, with a ramp between.
static double yarn_frequency(const struct nb_hparams *hp, const struct rope *r, uint32_t i,
                             double freq)
{
    double n = hp->rope_dims, turns = r->original_context / (2 * M_PI), log_base = 2 * log(r->base);
    double low = fmax(floor(n * log(turns / r->beta_fast) / log_base), 0);
    double high = fmin(ceil(n * log(turns / r->beta_slow) / log_base), n - 1);
    double ramp = fmin(fmax((i - low) / fmax(high - low, 0.001), 0), 1);
    double keep = (1 - ramp) * r->ext_factor;
    return freq / r->factor * (1 - keep) + freq * keep;
}

// The factors for any context, or those for as long a one as the model is to have.
static int find_factors(const struct nb_keys *rd, const struct nb_image *image,
                        const struct nb_hparams *hp, struct rope *r)
{
    const uint32_t n = hp->rope_dims / 2;
    const bool is_long = hp->context > r->original_context;
    const char *name = nb_rope_factors[NB_FACTORS];
    const struct nb_image_tensor *t = nb_image_find(image, name);
    if (!t) {
        name = nb_rope_factors[is_long ? NB_FACTORS_LONG : NB_FACTORS_SHORT];
        t = nb_image_find(image, name);
    }
    if (t && (!t->f32 || t->dims[0] != n))
        return nb_fail(rd->error, -EINVAL, "%s must be a vector of %u", name, n);
    for (uint32_t i = 0; t && i < n; i++)
        if (!(fabsf(t->f32[i]) > 0 && isfinite(t->f32[i])))
            return nb_fail(rd->error, -EINVAL, "%s holds a zero or no number", name);
    r->factors = t ? t->f32 : NULL;
    return 0;
}

static int make_rope(const struct nb_keys *rd, const struct nb_hparams *hp, const struct rope *r,
                     struct nb_rope *rope)
{
    uint32_t n = hp->rope_dims / 2;
    rope->freq = calloc(n, sizeof(*rope->freq));
    if (!rope->freq)
        return nb_fail(rd->error, -ENOMEM, "out of memory");
    rope->scale = r->attn_factor;
    if (r->yarn && r->ext_factor != 0 && r->factor > 1)
        rope->scale *= 1 + 0.1 * log(r->factor);
    for (uint32_t i = 0; i < n; i++) {
        double f = pow(r->base, -2.0 * i / hp->rope_dims);
        if (r->factors)
            f /= (double)r->factors[i];
        rope->freq[i] = r->yarn ? yarn_frequency(hp, r, i, f) : f / r->factor;
    }
    return 0;
}

// Of longrope the factors in the file are all there is.
enum scaling { SCALING_NONE, SCALING_LINEAR, SCALING_YARN, SCALING_LONGROPE, SCALINGS };

// Linear where a factor stands alone, as files from before there was a choice have it.
static int read_scaling_type(const struct nb_keys *rd, enum scaling *ret, bool *ret_is_said)
{
    static const char *const names[SCALINGS] = {"none", "linear", "yarn", "longrope"};
    const char *usual = names[SCALING_LINEAR];
    struct nb_str type = {usual, strlen(usual)};
    char buffer[NB_SHOWN_MAX];
    int rc = nb_keys_str(rd, "rope.scaling.type", &type);
    if (rc < 0)
        return rc;
    *ret_is_said = type.data != usual;
    for (enum scaling i = SCALING_NONE; i < SCALINGS; i++)
        if (type.len == strlen(names[i]) && !memcmp(type.data, names[i], type.len)) {
            *ret = i;
            return 0;
        }
    return nb_fail(rd->error, -ENOTSUP,
                   "%s.rope.scaling.type is '%s', which Nibble does not compute; choose a model "
                   "with none, linear, yarn or longrope here, or with its factors in %s",
                   rd->arch->name, nb_shown(type, buffer), nb_rope_factors[NB_FACTORS]);
}

// The factor, under its old name too; 0 says none.
static int read_factor(const struct nb_keys *rd, bool required, double *ret)
{
    double factor = -1;
    int rc;
    if ((rc = nb_keys_float(rd, "rope.scale_linear", false, 0, 1e6, &factor)) < 0 ||
        (rc = nb_keys_float(rd, "rope.scaling.factor", required && factor < 0, 0, 1e6, &factor)) <
            0)
        return rc;
    if (factor > 0 && factor < 1e-3)
        return nb_fail(rd->error, -EINVAL,
                       "%s.rope.scaling.factor is %g, not a number from 0.001 to 1000000",
                       rd->arch->name, factor);
    *ret = factor > 0 ? factor : 1;
    return 0;
}

static int read_scaling(const struct nb_keys *rd, struct rope *r)
{
    enum scaling type = SCALING_NONE;
    bool is_said = false;
    int rc;
    if ((rc = read_scaling_type(rd, &type, &is_said)) < 0 ||
        (rc = read_factor(rd, is_said && (type == SCALING_LINEAR || type == SCALING_YARN),
                          &r->factor)) < 0 ||
        (rc = nb_keys_u32(rd, "rope.scaling.original_context_length", false, 1, 1u << 24,
                          &r->original_context)) < 0 ||
        (rc = nb_keys_float(rd, "rope.scaling.attn_factor", false, 1e-3, 1e3, &r->attn_factor)) <
            0 ||
        (rc = nb_keys_float(rd, "rope.scaling.yarn_ext_factor", false, 0, 1, &r->ext_factor)) < 0 ||
        (rc = nb_keys_float(rd, "rope.scaling.yarn_beta_fast", false, 1e-3, 1e6, &r->beta_fast)) <
            0 ||
        (rc = nb_keys_float(rd, "rope.scaling.yarn_beta_slow", false, 1e-3, 1e6, &r->beta_slow)) <
            0)
        return rc;
    r->yarn = type == SCALING_YARN;
    if (type == SCALING_NONE || type == SCALING_LONGROPE)
        r->factor = 1;
    return 0;
}

static int read_rope(const struct nb_keys *rd, const struct nb_image *image, struct nb_hparams *hp)
{
    const struct nb_arch *arch = hp->arch;
    struct rope r = {10000, 1, 1, 32, 1, 1, hp->dim[NB_DIM_POSITIONS], false, NULL};
    double local = arch->local_rope_base;
    int rc;
    hp->rope_dims = hp->k_dim;
    if (arch->no_rope)
        return 0;
    if ((rc = nb_keys_float(rd, "rope.freq_base", false, 1.001, 1e12, &r.base)) < 0 ||
        (rc = nb_keys_u32(rd, "rope.dimension_count", false, 1, hp->k_dim, &hp->rope_dims)) < 0)
        return rc;
    if (hp->rope_dims % 2)
        return nb_fail(rd->error, -EINVAL, "rope.dimension_count %u is odd", hp->rope_dims);
    if ((rc = read_scaling(rd, &r)) < 0 || (rc = find_factors(rd, image, hp, &r)) < 0 ||
        (rc = make_rope(rd, hp, &r, &hp->rope[0])) < 0)
        return rc;
    hp->n_ropes = 1;
    if (!arch->has_local_rope)
        return 0;
    local = local != 0 ? local : r.base;
    if ((rc = nb_keys_float(rd, "rope.freq_base_swa", false, 1.001, 1e12, &local)) < 0)
        return rc;
    const struct rope unscaled = {local, 1, 1, 32, 1, 1, hp->context, false, NULL};
    hp->n_ropes = 2;
    return make_rope(rd, hp, &unscaled, &hp->rope[1]);
}

static void set_dims(struct nb_hparams *hp)
{
    uint32_t *dim = hp->dim;
    dim[NB_DIM_EMBEDDING] = hp->embedding;
    dim[NB_DIM_VOCAB] = hp->vocab;
    dim[NB_DIM_HEAD] = hp->k_dim;
    dim[NB_DIM_Q] = hp->n_heads * hp->k_dim;
    dim[NB_DIM_K] = hp->n_kv_heads * hp->k_dim;
    dim[NB_DIM_V] = hp->n_kv_heads * hp->v_dim;
    dim[NB_DIM_QKV] = dim[NB_DIM_Q] + dim[NB_DIM_K] + dim[NB_DIM_V];
    dim[NB_DIM_ATTN] = hp->n_heads * hp->v_dim;
    dim[NB_DIM_FFN] = hp->ffn;
    dim[NB_DIM_FFN_TWICE] = 2 * hp->ffn;
    dim[NB_DIM_EXPERTS] = hp->n_experts;
}

static int read_heads(const struct nb_keys *r, struct nb_hparams *hp)
{
    double cap = hp->arch->attn_softcap;
    int rc;
    if ((rc = nb_keys_u32(r, "attention.head_count", true, 1, 1024, &hp->n_heads)) < 0)
        return rc;
    hp->n_kv_heads = hp->n_heads;
    if ((rc = nb_keys_u32(r, "attention.head_count_kv", false, 1, 1024, &hp->n_kv_heads)) < 0)
        return rc;
    if (hp->n_heads % hp->n_kv_heads)
        return nb_fail(r->error, -EINVAL, "%u heads cannot share %u KV heads", hp->n_heads,
                       hp->n_kv_heads);
    hp->k_dim = hp->embedding / hp->n_heads;
    if ((rc = nb_keys_u32(r, "attention.key_length", false, 1, 1024, &hp->k_dim)) < 0)
        return rc;
    hp->v_dim = hp->k_dim;
    if ((rc = nb_keys_u32(r, "attention.value_length", false, 1, 1024, &hp->v_dim)) < 0)
        return rc;
    if (hp->k_dim < 2 || hp->k_dim > 1024)
        return nb_fail(r->error, -EINVAL, "a head of %u dimensions; the limits are 2 and 1024",
                       hp->k_dim);
    double scale = 1 / sqrt(hp->k_dim);
    if ((rc = nb_keys_float(r, "attention.scale", false, 0, 1e3, &scale)) < 0 ||
        (rc = nb_keys_float(r, "attn_logit_softcapping", false, 0, 1e6, &cap)) < 0)
        return rc;
    hp->attn_scale = (float)(scale != 0 ? scale : 1 / sqrt(hp->k_dim));
    hp->attn_softcap = (float)cap;
    return 0;
}

// 0 leaves a scale out.
static int read_scale(const struct nb_keys *r, const char *name, float *ret)
{
    double scale = 0;
    int rc = nb_keys_float(r, name, false, -1e6, 1e6, &scale);
    if (scale != 0)
        *ret = (float)scale;
    return rc;
}

static int read_scales(const struct nb_keys *r, struct nb_hparams *hp)
{
    double cap = hp->arch->logit_cap;
    int rc;
    hp->embedding_scale = hp->residual_scale = hp->logit_scale = 1.0f;
    if ((rc = read_scale(r, "embedding_scale", &hp->embedding_scale)) < 0 ||
        (rc = read_scale(r, "residual_scale", &hp->residual_scale)) < 0 ||
        (rc = read_scale(r, "logit_scale", &hp->logit_scale)) < 0 ||
        (rc = nb_keys_float(r, "final_logit_softcapping", false, 0, 1e6, &cap)) < 0)
        return rc;
    if (hp->arch->divides_logits)
        hp->logit_scale = 1.0f / hp->logit_scale;
    hp->logit_cap = (float)cap;
    return 0;
}

static int read_experts(const struct nb_keys *r, struct nb_hparams *hp)
{
    uint32_t ffn = hp->ffn, shared = 0, gating = 0;
    double scale = 0;
    int rc;
    hp->gating = hp->arch->gating;
    hp->expert_weights_norm = hp->arch->expert_weights_norm;
    if ((rc = nb_keys_u32(r, "expert_count", false, 0, NB_MAX_EXPERTS, &hp->n_experts)) < 0 ||
        hp->n_experts == 0)
        return rc;
    if ((rc = nb_keys_u32(r, "expert_used_count", true, 1, NB_MAX_CHOSEN, &hp->n_chosen)) < 0 ||
        (rc = nb_keys_u32(r, "expert_feed_forward_length", false, 1, 1u << 20, &ffn)) < 0 ||
        (rc = nb_keys_u32(r, "expert_shared_feed_forward_length", false, 0, 1u << 20, &shared)) <
            0 ||
        (rc = nb_keys_bool(r, "expert_weights_norm", &hp->expert_weights_norm)) < 0 ||
        (rc = nb_keys_u32(r, "expert_gating_func", false, 0, 3, &gating)) < 0 ||
        (rc = nb_keys_float(r, "expert_weights_scale", false, 0, 1e6, &scale)) < 0)
        return rc;
    if (hp->n_chosen > hp->n_experts)
        return nb_fail(r->error, -EINVAL, "%s.expert_used_count is %u, and there are %u experts",
                       hp->arch->name, hp->n_chosen, hp->n_experts);
    static const enum nb_gating gatings[] = {
        [1] = NB_GATING_SOFTMAX, [2] = NB_GATING_SIGMOID, [3] = NB_GATING_SOFTMAX_OF_CHOSEN};
    if (gating)
        hp->gating = gatings[gating];
    hp->expert_weights_scale = (float)(scale != 0 ? scale : 1);
    hp->dim[NB_DIM_EXPERT_FFN] = ffn;
    hp->dim[NB_DIM_SHARED_FFN] = shared;
    return 0;
}

// One layer's entry of a list of truth values or of numbers.
static int is_listed(const struct nb_gguf *g, const char *key, uint32_t layer, bool *ret)
{
    double number;
    int rc = nb_gguf_array_bool(g, key, layer, ret);
    if (rc == 0 || (rc = nb_gguf_array_f64(g, key, layer, &number)) < 0)
        return rc;
    *ret = number != 0;
    return 0;
}

// Which layers see all: the last of each period, or as a list in the file has it.
static int read_whole(const struct nb_keys *r, const struct nb_hparams *hp, uint32_t period,
                      uint32_t layer, bool *ret)
{
    char key[NB_KEY_MAX];
    enum nb_gguf_type type;
    uint64_t n;
    bool has_window;
    nb_keys_name(r, "attention.sliding_window_pattern", key);
    *ret = period && layer % period == period - 1;
    if (nb_gguf_array(r->g, key, &type, &n) < 0)
        return 0;
    if (n != hp->n_layers || is_listed(r->g, key, layer, &has_window) < 0)
        return nb_fail(r->error, -EINVAL, "%s has no truth value for each layer", key);
    *ret = !has_window;
    return 0;
}

static int read_period(const struct nb_keys *r, uint32_t *ret)
{
    char key[NB_KEY_MAX];
    enum nb_gguf_type type;
    uint64_t n;
    nb_keys_name(r, "attention.sliding_window_pattern", key);
    if (nb_gguf_array(r->g, key, &type, &n) == 0)
        return 0;
    return nb_keys_u32(r, "attention.sliding_window_pattern", false, 0, 1024, ret);
}

static int read_layers(const struct nb_keys *r, struct nb_hparams *hp)
{
    const struct nb_arch *arch = hp->arch;
    uint32_t window = arch->window, period = arch->window_period;
    int rc;
    hp->layer = calloc(hp->n_layers, sizeof(*hp->layer));
    if (!hp->layer)
        return nb_fail(r->error, -ENOMEM, "out of memory");
    if ((rc = nb_keys_u32(r, "attention.sliding_window", false, 0, UINT32_MAX, &window)) < 0 ||
        (rc = read_period(r, &period)) < 0)
        return rc;
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const bool still =
            arch->no_rope || (arch->rope_period && i % arch->rope_period == arch->rope_period - 1);
        bool whole = false;
        if ((rc = read_whole(r, hp, period, i, &whole)) < 0)
            return rc;
        hp->layer[i].window = whole ? 0 : window;
        hp->layer[i].rope = still ? NB_NO_ROPE : hp->n_ropes > 1 && hp->layer[i].window ? 1 : 0;
    }
    return 0;
}

static int read_pooling(const struct nb_keys *r, struct nb_hparams *hp)
{
    const uint32_t usual = hp->arch->encoder ? NB_POOLING_MEAN : NB_POOLING_LAST;
    uint32_t pooling = 0; // not said
    int rc;
    hp->causal = !hp->arch->encoder;
    if ((rc = nb_keys_u32(r, "pooling_type", false, 0, NB_POOLING_LAST, &pooling)) < 0 ||
        (rc = nb_keys_bool(r, "attention.causal", &hp->causal)) < 0)
        return rc;
    hp->pooling = (enum nb_pooling)(pooling ? pooling : usual);
    hp->for_vectors = nb_arch_for_vectors(hp->arch, r->g);
    // Of a sentence-transformers folder: whether its modules end in Normalize.
    bool normalises = true;
    if (nb_gguf_bool(r->g, "nibble.embedding.normalize", &normalises) == -EINVAL)
        return nb_fail(r->error, -EINVAL, "nibble.embedding.normalize is no truth value");
    hp->any_length = !normalises;
    return 0;
}

static int read_vocab(const struct nb_keys *r, const struct nb_image *image, struct nb_hparams *hp)
{
    const struct nb_image_tensor *embedding = nb_image_find(image, "token_embd.weight");
    if (!embedding || embedding->n_dims != 2 || embedding->dims[1] < 1 ||
        embedding->dims[1] > 1u << 22)
        return nb_fail(r->error, -EINVAL,
                       "token_embd.weight is missing, or not a matrix of at most %u rows",
                       1u << 22);
    hp->vocab = (uint32_t)embedding->dims[1];
    return 0;
}

static int read_eps(const struct nb_keys *r, struct nb_hparams *hp)
{
    static const char *const names[] = {
        [NB_NORM_RMS] = "attention.layer_norm_rms_epsilon",
        [NB_NORM_LAYER] = "attention.layer_norm_epsilon",
    };
    double eps = 0;
    int rc = nb_keys_float(r, names[hp->arch->norm], true, 0, 1, &eps);
    hp->norm_eps = (float)eps;
    return rc;
}

static int read_context(const struct nb_keys *r, uint32_t max_context, struct nb_hparams *hp)
{
    int rc = nb_keys_u32(r, "context_length", true, 1, 1u << 24, &hp->context);
    if (rc < 0)
        return rc;
    if (max_context > hp->context)
        return nb_fail(r->error, -EINVAL,
                       "a context of %u was asked for, but the model's limit is %u", max_context,
                       hp->context);
    hp->dim[NB_DIM_POSITIONS] = hp->context;
    hp->context = max_context ? max_context : hp->context;
    return 0;
}

static int read_all(struct nb_keys *r, const struct nb_image *image, uint32_t max_context,
                    struct nb_hparams *hp)
{
    int rc;
    if ((rc = nb_keys_check(r)) < 0 ||
        (rc = nb_keys_u32(r, "block_count", true, 1, 1024, &hp->n_layers)) < 0)
        return rc;
    r->n_layers = hp->n_layers;
    if ((rc = read_context(r, max_context, hp)) < 0 ||
        (rc = nb_keys_u32(r, "embedding_length", true, 1, 1u << 16, &hp->embedding)) < 0 ||
        (rc = nb_keys_u32(r, "feed_forward_length", true, 1, 1u << 20, &hp->ffn)) < 0 ||
        (rc = read_eps(r, hp)) < 0 || (rc = read_heads(r, hp)) < 0 ||
        (rc = read_scales(r, hp)) < 0 || (rc = read_experts(r, hp)) < 0 ||
        (rc = read_vocab(r, image, hp)) < 0 || (rc = read_pooling(r, hp)) < 0 ||
        (rc = read_rope(r, image, hp)) < 0 || (rc = read_layers(r, hp)) < 0)
        return rc;
    set_dims(hp);
    if (hp->arch->adjust)
        hp->arch->adjust(hp);
    return 0;
}

int nb_hparams_read(const struct nb_image *image, uint32_t max_context, struct nb_hparams *ret,
                    struct nb_error *ret_error)
{
    struct nb_keys k = {.g = nb_image_metadata(image), .error = ret_error};
    struct nb_str name;
    if (nb_gguf_str(k.g, "general.architecture", &name) < 0)
        return nb_fail(ret_error, -EINVAL, "the model's metadata lacks general.architecture");
    k.arch = nb_arch_of(k.g);
    if (!k.arch)
        return refuse_arch(name, ret_error);
    struct nb_hparams hp = {.arch = k.arch};
    int rc = read_all(&k, image, max_context, &hp);
    if (rc < 0) {
        nb_hparams_finish(&hp);
        return rc;
    }
    *ret = hp;
    return 0;
}

void nb_hparams_finish(struct nb_hparams *hp)
{
    for (uint32_t i = 0; i < NB_ROPES; i++)
        free(hp->rope[i].freq);
    free(hp->layer);
}

void nb_rope_row(const struct nb_hparams *hp, uint32_t position, float *ret_cos_sin)
{
    uint32_t n = hp->rope_dims / 2;
    for (uint32_t r = 0; r < hp->n_ropes; r++, ret_cos_sin += hp->rope_dims)
        for (uint32_t i = 0; i < n; i++) {
            double angle = position * hp->rope[r].freq[i];
            ret_cos_sin[i] = (float)(cos(angle) * hp->rope[r].scale);
            ret_cos_sin[n + i] = (float)(sin(angle) * hp->rope[r].scale);
        }
}
