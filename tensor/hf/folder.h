// Sources of every kind, by their files: a GGUF, its parts, or a Hugging Face folder.
#pragma once

#include "tensor/source.h"
#include "tensor/fail.h"

// A folder's files come in any order, with config.json or modules.json among them; the parts of a
// GGUF in theirs; adapters (tensor/adapters.h) anywhere among them, and are part of the model. On
// failure `ret_error` says in one line what is wrong, and in which file where there are several.
// -EINVAL malformed, -ENOENT a file that is missing, -ENOTSUP what Nibble does not load, -EFBIG
// over a limit, -ENOMEM, or an errno of pread.
int nb_source_open(const struct nb_source_file *files, uint32_t n_files, struct nb_source **ret,
                   struct nb_error *ret_error);
