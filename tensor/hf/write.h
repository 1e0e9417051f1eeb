// A source as a Hugging Face folder, which transformers and our own reader load: config.json, the
// tokenizer's files, one model.safetensors. From a folder the texts are copied; from a GGUF they
// are made of its metadata, for the families of family.c, and read back at once: what would not
// come back as it was is refused by its name.
//
// Linear layers may be NF4 with double quantization, as bitsandbytes writes it ("QLoRA", Dettmers
// et al., 2023), or INT8 with a scale for each row, as compressed-tensors does ("int-quantized").
#pragma once

#include <jansson.h>

#include "tensor/fail.h"
#include "tensor/source.h"

#define NB_HF_WRITE_KEEP UINT32_MAX

struct nb_hf_text {
    char name[NB_SOURCE_NAME]; // in the folder; may have a folder's name before it
    char *text;
    size_t len;
};

struct nb_hf_written {
    uint64_t bytes; // of tensors
    uint32_t n_tensors;
    // Linear layers whose rows are no whole blocks of the type, which are F16; the first one's
    // name.
    uint32_t n_unfit;
    char unfit[NB_SOURCE_NAME];
};

struct nb_hf_writer;

// `to`: F32, F16, BF16, INT8 or NF4 of enum nb_type, or NB_HF_WRITE_KEEP: float types as they are,
// quantized ones as F16. With INT8 and NF4 the embedding, the head and what else is no linear layer
// are BF16 where they were, else F16. What is NF4 already keeps its codes. Vectors are F32 always.
// The source is borrowed. -errno with its line.
int nb_hf_writer_create(const struct nb_source *s, uint32_t to, struct nb_hf_writer **ret,
                        struct nb_error *ret_error);
void nb_hf_writer_destroy(struct nb_hf_writer *w); // NULL is fine

// The small files, which live as long as the writer; and what the tensors' file is called.
const struct nb_hf_text *nb_hf_writer_texts(const struct nb_hf_writer *w, uint32_t *ret_n);
const char *nb_hf_writer_name(const struct nb_hf_writer *w);
uint64_t nb_hf_writer_size(const struct nb_hf_writer *w); // of the tensors' file
// What becomes of each tensor, with the keys of a compression's report (docs/rooms/quant.md); and
// {"tensors": NAME, "texts": {NAME: TEXT}}, the folder but for its tensors. The caller owns both;
// NULL without memory, or where a text is not UTF-8.
json_t *nb_hf_writer_report(const struct nb_hf_writer *w);
json_t *nb_hf_writer_list(const struct nb_hf_writer *w);
// Writes the tensors' file by pwrite: what comes before its first tensor, then tensors in any
// order. They block. Refuse what is no number and what is too large for the type, by tensor and
// row. -errno with their line.
int nb_hf_writer_begin(const struct nb_hf_writer *w, int fd, struct nb_error *ret_error);
int nb_hf_writer_tensor(const struct nb_hf_writer *w, uint32_t tensor, int fd,
                        struct nb_error *ret_error);

#define NB_HF_WRITER_EXTENTS 6
struct nb_hf_extent {
    uint64_t offset, bytes;
};
// Where a tensor lies in the file; returns how many pieces there are.
uint32_t nb_hf_writer_extents(const struct nb_hf_writer *w, uint32_t tensor,
                              struct nb_hf_extent ret[NB_HF_WRITER_EXTENTS]);
struct nb_hf_written nb_hf_writer_written(const struct nb_hf_writer *w);
