// config.json as GGUF metadata, by the tables of family.h: every key is written, judged or known to
// change nothing; any other is refused by its name. Private to tensor/hf.
#pragma once

#include "tensor/gguf_kvs.h"
#include "tensor/fail.h"
#include "tensor/hf/family.h"
#include "tensor/hf/json.h"

#define NB_HF_LAYERS_MAX  1024
#define NB_HF_EXPERTS_MAX 4096

// A tensor that the configuration has and no file.
struct nb_hf_vector {
    const char *name;
    float *values;
    uint32_t n;
};

struct nb_hf_config {
    const struct nb_hf_family *family;
    const json_t *root;
    const char *file; // its name
    struct nb_gguf_kvs *kvs;
    struct nb_error *ret_error;
    uint32_t n_layers, n_heads, n_kv_heads, n_experts, embedding, head_dim, context, vocab;
    bool headless; // "...Model": what an encoder is made of
    bool tied;     // the head is the embedding, or there is none
    struct nb_hf_vector vectors[2];
    uint32_t n_vectors;
};

// Writes the keys to `kvs`. -EINVAL of a value or a key that lacks, -ENOTSUP of what is not
// computed. `root` and `file` must live as long as *ret, which the caller finishes on success.
int nb_hf_config_read(const json_t *root, const char *file, struct nb_gguf_kvs *kvs,
                      struct nb_hf_config *ret, struct nb_error *ret_error);
void nb_hf_config_finish(struct nb_hf_config *c);

// ---- For what reads beside the tables

#define NB_HF_FAIL(c, code, format, ...)                                                           \
    nb_fail((c)->ret_error, code, "%s: " format, (c)->file, ##__VA_ARGS__)

// A member; null counts as absent (NULL).
const json_t *nb_hf_get(const json_t *object, const char *key);
// A member that leaves *ret, the default, as it is where it is absent. -EINVAL.
int nb_hf_u32(const struct nb_hf_config *c, const json_t *object, const char *key, uint32_t min,
              uint32_t max, uint32_t *ret);
int nb_hf_f64(const struct nb_hf_config *c, const json_t *object, const char *key, double *ret);
int nb_hf_lacks(const struct nb_hf_config *c, const char *key);
// A value as JSON, cut to the buffer.
const char *nb_hf_value(const json_t *value, char buffer[NB_HF_SHOWN_MAX]);

// Whether the tables have the key for this family.
bool nb_hf_knows(const struct nb_hf_config *c, const char *key);

// "ARCHITECTURE.name". 0 or -ENOMEM with its line.
int nb_hf_put_u32(struct nb_hf_config *c, const char *name, uint32_t value);
int nb_hf_put_f32(struct nb_hf_config *c, const char *name, double value);
int nb_hf_put_bool(struct nb_hf_config *c, const char *name, bool value);
int nb_hf_put_text(struct nb_hf_config *c, const char *name, const char *text);
int nb_hf_put_u32s(struct nb_hf_config *c, const char *name, const uint32_t *values, uint32_t n);
// The vector has room for n values, which the caller fills. NULL without memory.
float *nb_hf_add_vector(struct nb_hf_config *c, const char *name, uint32_t n);

// rope.c: positions. `dims` are rotated of each head; `base` where config.json says none.
int nb_hf_rope(struct nb_hf_config *c, uint32_t dims, double base);

// extras.c: what a family's table does not say.
int nb_hf_llama(struct nb_hf_config *c);
int nb_hf_qwen(struct nb_hf_config *c);
int nb_hf_gemma3(struct nb_hf_config *c);
int nb_hf_phi3(struct nb_hf_config *c);
int nb_hf_bert(struct nb_hf_config *c);
