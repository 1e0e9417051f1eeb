// From the files of a folder to metadata and tensors: config.json by the family's tables, the
// tokenizer's files, the safetensors.
#include "tensor/hf/folder.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/adapters.h"
#include "tensor/fail.h"
#include "tensor/hf/modules.h"
#include "tensor/hf/tensors.h"
#include "tensor/hf/tokenizer.h"

#define FAIL(code, ...) nb_fail(ret_error, code, __VA_ARGS__)

// What must live as long as the source.
struct folder {
    struct nb_hf_shards shards;
    struct nb_hf_config config;
    json_t *root; // config.json
    char (*names)[NB_HF_NAME];
    struct nb_hf_modules modules;
    struct nb_hf_texts texts;
    struct nb_gguf_kvs kvs;
};

// The texts, and the names of their files.
static const struct {
    const char *name;
    size_t place; // in struct nb_hf_texts
} text_files[] = {
    {"config.json", offsetof(struct nb_hf_texts, config)},
    {"tokenizer.json", offsetof(struct nb_hf_texts, tokenizer)},
    {"tokenizer_config.json", offsetof(struct nb_hf_texts, tokenizer_config)},
    {"special_tokens_map.json", offsetof(struct nb_hf_texts, special_tokens_map)},
    {"generation_config.json", offsetof(struct nb_hf_texts, generation_config)},
    {"chat_template.jinja", offsetof(struct nb_hf_texts, chat_template)},
};
#define N_TEXTS (sizeof(text_files) / sizeof(text_files[0]))

static struct nb_str *text_at(struct folder *f, size_t i)
{
    return (struct nb_str *)(void *)((char *)&f->texts + text_files[i].place);
}

// Tokenizers are large: the texts go as soon as the metadata is made.
static void free_texts(struct folder *f)
{
    for (size_t i = 0; i < N_TEXTS; i++) {
        free((char *)(uintptr_t)text_at(f, i)->data);
        *text_at(f, i) = (struct nb_str){NULL, 0};
    }
    nb_gguf_kvs_finish(&f->kvs);
}

static void free_folder(void *kept)
{
    struct folder *f = kept;
    free_texts(f);
    nb_hf_shards_finish(&f->shards);
    nb_hf_config_finish(&f->config);
    json_decref(f->root);
    free(f->names);
    free(f);
}

static int read_texts(const struct nb_source *s, struct folder *f, struct nb_error *ret_error)
{
    int rc = 0;
    for (size_t i = 0; i < N_TEXTS && rc == 0; i++)
        rc = nb_hf_text(s, f->modules.base, text_files[i].name, text_at(f, i), ret_error);
    if (rc == 0 && !f->texts.config.data)
        rc = FAIL(-ENOENT, "the folder has no %sconfig.json", f->modules.base);
    if (rc == 0 && !f->texts.tokenizer.data)
        rc = FAIL(-ENOENT,
                  "the folder has no %stokenizer.json; other files of tokenizers are not read",
                  f->modules.base);
    return rc;
}

static int read_config(const struct nb_source *s, struct folder *f, struct nb_error *ret_error)
{
    const int64_t file = nb_hf_file(s, f->modules.base, "config.json");
    const char *name = s->files[file].name;
    int rc = nb_hf_json(f->texts.config, name, &f->root, ret_error);
    if (rc == 0)
        rc = nb_hf_config_read(f->root, name, &f->kvs, &f->config, ret_error);
    if (rc == 0 && f->modules.pooling)
        rc = nb_hf_put_u32(&f->config, "pooling_type", f->modules.pooling);
    if (rc == 0 && f->modules.there &&
        nb_gguf_kvs_put(&f->kvs, "nibble.embedding.normalize", NB_GGUF_BOOL,
                        &f->modules.normalize) < 0)
        rc = FAIL(-ENOMEM, "no memory for the metadata");
    return rc;
}

// The type that most bytes of matrices have, by llama.cpp's numbers of file types.
static int put_file_type(const struct nb_source *s, struct nb_gguf_kvs *kvs)
{
    static const struct {
        uint32_t type, number;
    } numbers[] = {{NB_TYPE_F32, 0}, {NB_TYPE_F16, 1}, {NB_TYPE_BF16, 32}};
    uint64_t bytes[3] = {0};
    size_t most = 0;
    for (uint32_t i = 0; i < s->n_tensors; i++)
        for (size_t k = 0; k < 3; k++)
            if (s->tensors[i].type == numbers[k].type && s->tensors[i].n_dims > 1)
                bytes[k] += s->tensors[i].bytes;
    for (size_t k = 1; k < 3; k++)
        most = bytes[k] > bytes[most] ? k : most;
    return nb_gguf_kvs_put(kvs, "general.file_type", NB_GGUF_U32, &numbers[most].number);
}

static int make_metadata(struct nb_source *s, struct folder *f, struct nb_error *ret_error)
{
    if (put_file_type(s, &f->kvs) < 0)
        return FAIL(-ENOMEM, "no memory for the metadata");
    return nb_gguf_kvs_parse(&f->kvs, s->n_tensors, &s->metadata, ret_error);
}

static int open_folder(struct nb_source *s, struct nb_error *ret_error)
{
    struct folder *f = calloc(1, sizeof(*f));
    if (!f)
        return FAIL(-ENOMEM, "no memory");
    s->kept = f;
    s->free_kept = free_folder;
    int rc = nb_hf_modules_read(s, &f->modules, ret_error);
    if (rc == 0)
        rc = read_texts(s, f, ret_error);
    if (rc == 0)
        rc = read_config(s, f, ret_error);
    if (rc == 0)
        rc = nb_hf_shards_open(s, f->modules.base, &f->shards, ret_error);
    if (rc == 0)
        rc = nb_hf_tensors(s, &f->config, &f->shards, &f->names);
    if (rc == 0)
        rc = nb_hf_tokenizer(&f->texts, f->config.vocab, &f->kvs, ret_error);
    if (rc == 0)
        rc = make_metadata(s, f, ret_error);
    free_texts(f);
    return rc;
}

static bool is_folder(const struct nb_source_file *files, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!strcmp(files[i].name, "config.json") || !strcmp(files[i].name, "modules.json"))
            return true;
    return false;
}

static bool is_safetensors(const char *name)
{
    const char *end = strrchr(name, '.');
    return end && !strcmp(end, ".safetensors");
}

static int open_model(const struct nb_source_file *files, uint32_t n_files, struct nb_source **ret,
                      struct nb_error *ret_error)
{
    struct nb_source *s;
    if (n_files == 1 && is_safetensors(files[0].name))
        return FAIL(-EINVAL,
                    "a safetensors file has no model's metadata: give the folder it lies in");
    if (!is_folder(files, n_files))
        return nb_source_open_gguf(files, n_files, ret, ret_error);
    int rc = nb_source_create(files, n_files, &s, ret_error);
    if (rc < 0)
        return rc;
    rc = open_folder(s, ret_error);
    if (rc < 0)
        nb_source_close(s);
    else
        *ret = s;
    return rc;
}

int nb_source_open(const struct nb_source_file *files, uint32_t n_files, struct nb_source **ret,
                   struct nb_error *ret_error)
{
    struct nb_source_file model[NB_SOURCE_FILES], adapters[NB_SOURCE_FILES];
    struct nb_source *s = NULL;
    uint32_t n = 0, n_adapters = 0;
    if (n_files > NB_SOURCE_FILES)
        return FAIL(-EINVAL, "a model has %d files at most", NB_SOURCE_FILES);
    for (uint32_t i = 0; i < n_files; i++)
        if (nb_is_adapter_file(&files[i]))
            adapters[n_adapters++] = files[i];
        else
            model[n++] = files[i];
    int rc = open_model(model, n, &s, ret_error);
    if (rc == 0 && n_adapters)
        rc = nb_adapters_add(s, adapters, n_adapters, ret_error);
    if (rc < 0)
        nb_source_close(s);
    else
        *ret = s;
    return rc;
}
