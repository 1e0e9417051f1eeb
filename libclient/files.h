// The files of a model, opened by whoever asks for it, with his own rights: one GGUF, its parts, or
// what a Hugging Face folder has for a model.
#pragma once

#include "libclient/wire.h"

struct nb_model_file {
    char name[NB_WIRE_FILE_NAME]; // within the folder
    int fd;                       // O_RDONLY
};

struct nb_model_files {
    struct nb_model_file *items; // parts in their order; a folder's by name
    size_t n;
};

// Opens what `path` says: a GGUF file, the first of a GGUF's parts (NAME-00001-of-0000N.gguf), or a
// folder. Links are followed. -errno, with a sentence that goes on from the path.
int nb_model_files_open(const char *path, struct nb_model_files *ret, char *ret_error,
                        size_t error_size);
// Opens one more file, which a job takes beside the model; in the list its name begins with
// `prefix`. As above; on failure the list stays as it was.
int nb_model_files_add(struct nb_model_files *files, const char *path, const char *prefix,
                       char *ret_error, size_t error_size);
// The same of adapters: each a path, perhaps with ":SCALE" behind it.
int nb_model_files_add_adapters(struct nb_model_files *files, const char *const *adapters, size_t n,
                                char *ret_error, size_t error_size);
// The same of text: a file, or all those of a folder and the folders in it that are named as text
// is
// (.txt, .md, .rst, .jsonl, .ndjson), by name. -ENOENT: a folder has none.
int nb_model_files_add_texts(struct nb_model_files *files, const char *path, const char *prefix,
                             char *ret_error, size_t error_size);
// An adapter alone, as a path, perhaps with ":SCALE" behind it, which goes to *ret_scale (else 1).
int nb_model_files_open_adapter(const char *path, struct nb_model_files *ret, float *ret_scale,
                                char *ret_error, size_t error_size);
void nb_model_files_close(struct nb_model_files *files); // all zero is fine
