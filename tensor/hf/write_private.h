// What the writer's files share: see write.h. Private to tensor/hf/write*.c.
#pragma once

#include "tensor/hf/family.h"
#include "tensor/hf/json.h"
#include "tensor/hf/write.h"
#include "tensor/type.h"

#define NB_HF_OUT_NAME  256
#define NB_HF_PARTS     NB_HF_WRITER_EXTENTS
#define NB_HF_NF4_EACH  64  // codes under one scale
#define NB_HF_NF4_OUTER 256 // scales under one scale

// One entry of the safetensors' header.
struct nb_hf_part {
    const char *suffix; // behind the tensor's name
    const char *dtype;
    uint32_t n_dims, size; // size: bytes of an element
    uint64_t shape[2];
    uint64_t bytes, offset; // in the data
};

// A tensor of the folder: rows of one of the source.
struct nb_hf_out {
    char name[NB_HF_OUT_NAME]; // with ".weight" or ".bias"
    const struct nb_source_tensor *t;
    uint64_t first, rows;
    uint32_t heads; // its rows are permuted for the rotary pairs of so many heads; 0: they are not
    float add;      // that the source adds to what the folder has
    uint32_t type;
    bool linear;
    struct nb_hf_part parts[NB_HF_PARTS];
    uint32_t n_parts;
};

struct nb_hf_writer {
    const struct nb_source *s;
    uint32_t to;
    const struct nb_hf_family *family;
    char name[NB_SOURCE_NAME]; // of the tensors' file
    struct nb_hf_out *outs;
    uint32_t n_outs;
    struct nb_hf_text texts[NB_SOURCE_FILES + 8];
    uint32_t n_texts;
    char *header; // of the tensors' file, with its length before it
    size_t header_len;
    uint64_t data; // bytes behind the header
    struct nb_hf_written done;
};

struct nb_gguf_kvs;

// write_tensors.c: outs, with names and types, from a folder's pieces or by a family's table.
int nb_hf_write_tensors(struct nb_hf_writer *w, struct nb_error *ret_error);
// write_codes.c: the parts of a tensor without their places, and its data.
void nb_hf_write_parts(struct nb_hf_out *out);
int nb_hf_write_data(const struct nb_hf_writer *w, const struct nb_hf_out *out, int fd,
                     struct nb_error *ret_error);
// write_texts.c: of a folder the files, of a GGUF what write_config.c and write_tokenizer.c make.
int nb_hf_write_texts(struct nb_hf_writer *w, struct nb_error *ret_error);
int nb_hf_write_json(struct nb_hf_writer *w, const char *name, json_t *root,
                     struct nb_error *ret_error); // takes root
// config.json's quantization_config, and what dtype it names, for `to`.
int nb_hf_write_quantization(const struct nb_hf_writer *w, json_t *config);
// Of a GGUF. The folder's config.json; the family must be known.
int nb_hf_write_config(struct nb_hf_writer *w, struct nb_error *ret_error);
int nb_hf_write_tokenizer(struct nb_hf_writer *w, struct nb_error *ret_error);
// write_check.c: refuses by its name a key of the source below `prefix` that did not come back.
int nb_hf_write_check(const struct nb_hf_writer *w, const struct nb_gguf_kvs *kvs,
                      const char *prefix, struct nb_error *ret_error);
// The family that a GGUF's metadata names.
int nb_hf_write_family(struct nb_hf_writer *w, struct nb_error *ret_error);
bool nb_hf_write_is_folder(const struct nb_source *s);
