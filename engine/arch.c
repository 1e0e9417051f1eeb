// The architecture table, and the reading of a model's hyperparameters from its metadata: every
// value is checked here, once, so that the plan and the devices may trust them.
#include "engine/arch.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/image.h"

const char *const nb_op_names[NB_OP_KINDS] = {
    [NB_OP_EMBED] = "embed", [NB_OP_QKV] = "qkv",         [NB_OP_ATTENTION] = "attention",
    [NB_OP_OUT] = "out",     [NB_OP_GATE_UP] = "gate_up", [NB_OP_DOWN] = "down",
    [NB_OP_HEAD] = "head",
};

#define COUNT(a) ((uint32_t)(sizeof(a) / sizeof((a)[0])))

static const struct nb_arch_tensor llama_tensors[] = {
    {NB_OP_EMBED, 0, "token_embd", NULL, NB_DIM_VOCAB, NB_DIM_EMBEDDING},
    {NB_OP_QKV, -1, "attn_norm", NULL, NB_DIM_EMBEDDING, NB_DIM_NONE},
    {NB_OP_QKV, 0, "attn_q", NULL, NB_DIM_Q, NB_DIM_EMBEDDING},
    {NB_OP_QKV, 1, "attn_k", NULL, NB_DIM_K, NB_DIM_EMBEDDING},
    {NB_OP_QKV, 2, "attn_v", NULL, NB_DIM_V, NB_DIM_EMBEDDING},
    {NB_OP_OUT, 0, "attn_output", NULL, NB_DIM_EMBEDDING, NB_DIM_ATTN},
    {NB_OP_GATE_UP, -1, "ffn_norm", NULL, NB_DIM_EMBEDDING, NB_DIM_NONE},
    {NB_OP_GATE_UP, 0, "ffn_gate", NULL, NB_DIM_FFN, NB_DIM_EMBEDDING},
    {NB_OP_GATE_UP, 1, "ffn_up", NULL, NB_DIM_FFN, NB_DIM_EMBEDDING},
    {NB_OP_DOWN, 0, "ffn_down", NULL, NB_DIM_EMBEDDING, NB_DIM_FFN},
    {NB_OP_HEAD, -1, "output_norm", NULL, NB_DIM_EMBEDDING, NB_DIM_NONE},
    {NB_OP_HEAD, 0, "output", "token_embd", NB_DIM_VOCAB, NB_DIM_EMBEDDING},
};

static const struct nb_arch architectures[] = {
    // Q and K rows are permuted in the file, so that rotary pairs are neighbours.
    {"llama", NB_NORM_RMS, NB_ACTIVATION_SWIGLU, false, llama_tensors, COUNT(llama_tensors)},
};

struct reader {
    const struct nb_gguf *g;
    const struct nb_arch *arch;
    char *error;
    size_t error_size;
};

static void key_of(const struct reader *r, const char *name, char key[128])
{
    snprintf(key, 128, "%s.%s", r->arch->name, name);
}

static int lacks(const struct reader *r, const char *key)
{
    nb_fail(r->error, r->error_size, -EINVAL, "the model's metadata lacks %s", key);
    return -EINVAL;
}

// An optional key leaves *ret (the default) as it is.
static int read_u32(const struct reader *r, const char *name, bool required, uint32_t max,
                    uint32_t *ret)
{
    char key[128];
    key_of(r, name, key);
    uint64_t value = 0;
    int rc = nb_gguf_u64(r->g, key, &value);
    if (rc == -ENOENT)
        return required ? lacks(r, key) : 0;
    if (rc < 0 || value < 1 || value > max) {
        nb_fail(r->error, r->error_size, -EINVAL, "%s is not a whole number from 1 to %u", key,
                max);
        return -EINVAL;
    }
    *ret = (uint32_t)value;
    return 0;
}

static int read_float(const struct reader *r, const char *name, bool required, double min,
                      double max, double *ret)
{
    char key[128];
    key_of(r, name, key);
    double value = 0;
    int rc = nb_gguf_f64(r->g, key, &value);
    if (rc == -ENOENT)
        return required ? lacks(r, key) : 0;
    if (rc < 0 || !(value >= min && value <= max)) {
        nb_fail(r->error, r->error_size, -EINVAL, "%s is not a number from %g to %g", key, min,
                max);
        return -EINVAL;
    }
    *ret = value;
    return 0;
}

static const struct nb_arch *find_arch(struct nb_str name)
{
    for (uint32_t i = 0; i < COUNT(architectures); i++)
        if (name.len == strlen(architectures[i].name) &&
            !memcmp(name.data, architectures[i].name, name.len))
            return &architectures[i];
    return NULL;
}

// A file's string as a user may see it: cut, and with no byte that could move the terminal.
static const char *shown(struct nb_str s, char buffer[64])
{
    size_t n = 0;
    for (; n < s.len && n < 63; n++) {
        char c = s.data[n];
        buffer[n] = '?';
        if (c >= 32 && c < 127)
            buffer[n] = c;
    }
    buffer[n] = 0;
    return buffer;
}

static int refuse_arch(struct nb_str name, char *error, size_t size)
{
    char known[256] = "", buffer[64];
    for (uint32_t i = 0; i < COUNT(architectures); i++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof(known) - n, "%s%s", i ? ", " : "", architectures[i].name);
    }
    return nb_fail(error, size, -ENOTSUP,
                   "Nibble does not compute the architecture '%s'; choose a model of one of "
                   "these: %s",
                   shown(name, buffer), known);
}

static int refuse_scaling(const struct reader *r, const char *key, struct nb_str type)
{
    char buffer[64];
    return nb_fail(r->error, r->error_size, -ENOTSUP,
                   "%s is '%s', which Nibble does not compute; choose a model with none, linear "
                   "or yarn here, or with its factors in rope_freqs.weight",
                   key, shown(type, buffer));
}

struct rope {
    double base, factor, attn_factor, beta_fast, beta_slow, ext_factor;
    uint32_t original_context;
    bool yarn;
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

static int rope_frequencies(const struct reader *rd, const struct nb_image *image,
                            struct nb_hparams *hp, const struct rope *r)
{
    uint32_t n = hp->rope_dims / 2;
    const struct nb_image_tensor *factors = nb_image_find(image, "rope_freqs.weight");
    if (factors && (!factors->f32 || factors->dims[0] != n))
        return nb_fail(rd->error, rd->error_size, -EINVAL,
                       "rope_freqs.weight must be a vector of %u", n);
    hp->rope_freq = calloc(n, sizeof(*hp->rope_freq));
    if (!hp->rope_freq)
        return -ENOMEM;
    hp->rope_scale = r->attn_factor;
    if (r->yarn && r->ext_factor != 0)
        hp->rope_scale *= 1 + 0.1 * log(r->factor);
    for (uint32_t i = 0; i < n; i++) {
        double f = pow(r->base, -2.0 * i / hp->rope_dims);
        if (factors)
            f /= factors->f32[i];
        f = r->yarn ? yarn_frequency(hp, r, i, f) : f / r->factor;
        if (!isfinite(f))
            return nb_fail(rd->error, rd->error_size, -EINVAL,
                           "rope_freqs.weight holds a zero or no number");
        hp->rope_freq[i] = f;
    }
    return 0;
}

static int read_rope(const struct reader *rd, const struct nb_image *image, struct nb_hparams *hp)
{
    struct rope r = {10000, 1, 1, 32, 1, 1, hp->context, false};
    char key[128];
    struct nb_str type = {"none", 4};
    key_of(rd, "rope.scaling.type", key);
    if (nb_gguf_str(rd->g, key, &type) == -EINVAL)
        return nb_fail(rd->error, rd->error_size, -EINVAL, "%s is not a string", key);
    r.yarn = type.len == 4 && !memcmp(type.data, "yarn", 4);
    bool linear = type.len == 6 && !memcmp(type.data, "linear", 6);
    if (!r.yarn && !linear && !(type.len == 4 && !memcmp(type.data, "none", 4)))
        return refuse_scaling(rd, key, type);
    hp->rope_dims = hp->k_dim;
    int rc;
    if ((rc = read_float(rd, "rope.freq_base", false, 1.001, 1e12, &r.base)) < 0 ||
        (rc = read_u32(rd, "rope.dimension_count", false, hp->k_dim, &hp->rope_dims)) < 0)
        return rc;
    if (hp->rope_dims % 2)
        return nb_fail(rd->error, rd->error_size, -EINVAL, "rope.dimension_count %u is odd",
                       hp->rope_dims);
    if ((r.yarn || linear) &&
        ((rc = read_float(rd, "rope.scaling.factor", true, 1e-3, 1e6, &r.factor)) < 0 ||
         (rc = read_u32(rd, "rope.scaling.original_context_length", false, 1u << 24,
                        &r.original_context)) < 0 ||
         (rc = read_float(rd, "rope.scaling.attn_factor", false, 1e-3, 1e3, &r.attn_factor)) < 0 ||
         (rc = read_float(rd, "rope.scaling.yarn_ext_factor", false, 0, 1, &r.ext_factor)) < 0 ||
         (rc = read_float(rd, "rope.scaling.yarn_beta_fast", false, 1e-3, 1e6, &r.beta_fast)) < 0 ||
         (rc = read_float(rd, "rope.scaling.yarn_beta_slow", false, 1e-3, 1e6, &r.beta_slow)) < 0))
        return rc;
    return rope_frequencies(rd, image, hp, &r);
}

// What other engines read from these keys and we do not compute: wrong text is worse than a
// refusal.
static int refuse_variants(const struct reader *r)
{
    char key[128];
    uint64_t experts = 0;
    key_of(r, "expert_count", key);
    (void)nb_gguf_u64(r->g, key, &experts);
    if (experts)
        return nb_fail(r->error, r->error_size, -ENOTSUP,
                       "%s is %llu: mixtures of experts are not supported; use a dense model", key,
                       (unsigned long long)experts);
    return 0;
}

// Every input of a matrix is quantized by blocks of 32.
static int check_dims(const struct reader *r, struct nb_hparams *hp)
{
    hp->dim[NB_DIM_NONE] = 1;
    hp->dim[NB_DIM_EMBEDDING] = hp->embedding;
    hp->dim[NB_DIM_VOCAB] = hp->vocab;
    hp->dim[NB_DIM_Q] = hp->n_heads * hp->k_dim;
    hp->dim[NB_DIM_K] = hp->n_kv_heads * hp->k_dim;
    hp->dim[NB_DIM_V] = hp->n_kv_heads * hp->v_dim;
    hp->dim[NB_DIM_ATTN] = hp->n_heads * hp->v_dim;
    hp->dim[NB_DIM_FFN] = hp->ffn;
    static const struct {
        enum nb_dim dim;
        const char *name;
    } inputs[] = {{NB_DIM_EMBEDDING, "embedding_length"},
                  {NB_DIM_FFN, "feed_forward_length"},
                  {NB_DIM_ATTN, "head_count times value length"}};
    for (uint32_t i = 0; i < COUNT(inputs); i++)
        if (hp->dim[inputs[i].dim] % 32)
            return nb_fail(r->error, r->error_size, -ENOTSUP, "%s.%s is %u, not a multiple of 32",
                           r->arch->name, inputs[i].name, hp->dim[inputs[i].dim]);
    return 0;
}

static int read_heads(const struct reader *r, struct nb_hparams *hp)
{
    int rc;
    if ((rc = read_u32(r, "attention.head_count", true, 1024, &hp->n_heads)) < 0)
        return rc;
    hp->n_kv_heads = hp->n_heads;
    if ((rc = read_u32(r, "attention.head_count_kv", false, 1024, &hp->n_kv_heads)) < 0)
        return rc;
    if (hp->n_heads % hp->n_kv_heads)
        return nb_fail(r->error, r->error_size, -EINVAL, "%u heads cannot share %u KV heads",
                       hp->n_heads, hp->n_kv_heads);
    hp->k_dim = hp->embedding / hp->n_heads;
    if ((rc = read_u32(r, "attention.key_length", false, 1024, &hp->k_dim)) < 0)
        return rc;
    hp->v_dim = hp->k_dim;
    if ((rc = read_u32(r, "attention.value_length", false, 1024, &hp->v_dim)) < 0)
        return rc;
    if (hp->k_dim < 2 || hp->k_dim > 1024)
        return nb_fail(r->error, r->error_size, -EINVAL,
                       "a head of %u dimensions; the limits are 2 and 1024", hp->k_dim);
    double scale = 1 / sqrt(hp->k_dim);
    if ((rc = read_float(r, "attention.scale", false, 0, 1e3, &scale)) < 0)
        return rc;
    hp->attn_scale = (float)(scale != 0 ? scale : 1 / sqrt(hp->k_dim));
    return 0;
}

static int read_all(const struct reader *r, const struct nb_image *image, struct nb_hparams *hp)
{
    double eps = 0;
    int rc;
    if ((rc = refuse_variants(r)) < 0 ||
        (rc = read_u32(r, "block_count", true, 1024, &hp->n_layers)) < 0 ||
        (rc = read_u32(r, "context_length", true, 1u << 24, &hp->context)) < 0 ||
        (rc = read_u32(r, "embedding_length", true, 1u << 16, &hp->embedding)) < 0 ||
        (rc = read_u32(r, "feed_forward_length", true, 1u << 20, &hp->ffn)) < 0 ||
        (rc = read_float(r, "attention.layer_norm_rms_epsilon", true, 0, 1, &eps)) < 0 ||
        (rc = read_heads(r, hp)) < 0)
        return rc;
    hp->norm_eps = (float)eps;
    const struct nb_image_tensor *embedding = nb_image_find(image, "token_embd.weight");
    if (!embedding || embedding->n_dims != 2 || embedding->dims[1] < 1 ||
        embedding->dims[1] > 1u << 22)
        return nb_fail(r->error, r->error_size, -EINVAL,
                       "token_embd.weight is missing, or not a matrix of at most %u rows",
                       1u << 22);
    hp->vocab = (uint32_t)embedding->dims[1];
    if ((rc = check_dims(r, hp)) < 0)
        return rc;
    return read_rope(r, image, hp);
}

int nb_hparams_read(const struct nb_image *image, struct nb_hparams *ret, char *ret_error,
                    size_t error_size)
{
    struct reader r = {.g = nb_image_metadata(image), .error = ret_error, .error_size = error_size};
    struct nb_str name;
    if (nb_gguf_str(r.g, "general.architecture", &name) < 0)
        return nb_fail(ret_error, error_size, -EINVAL,
                       "the model's metadata lacks general.architecture");
    r.arch = find_arch(name);
    if (!r.arch)
        return refuse_arch(name, ret_error, error_size);
    struct nb_hparams hp = {.arch = r.arch};
    int rc = read_all(&r, image, &hp);
    if (rc < 0) {
        nb_hparams_finish(&hp);
        return rc;
    }
    *ret = hp;
    return 0;
}

void nb_hparams_finish(struct nb_hparams *hp)
{
    free(hp->rope_freq);
    hp->rope_freq = NULL;
}

void nb_rope_row(const struct nb_hparams *hp, uint32_t position, float *ret_cos_sin)
{
    uint32_t n = hp->rope_dims / 2;
    for (uint32_t i = 0; i < n; i++) {
        double angle = position * hp->rope_freq[i];
        ret_cos_sin[i] = (float)(cos(angle) * hp->rope_scale);
        ret_cos_sin[n + i] = (float)(sin(angle) * hp->rope_scale);
    }
}
