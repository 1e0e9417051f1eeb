// The tokenizer of a Hugging Face folder, of which targets that have metadata make one.
#pragma once

#include <stdlib.h>

#include "engine/text/tokenizer.h"
#include "tensor/fail.h"
#include "tensor/hf/tokenizer.h"
#include "tests/fuzz/check.h"

static inline struct nb_tokenizer *read_tokenizer(const struct nb_gguf_kvs *kvs)
{
    struct nb_gguf *meta = NULL;
    struct nb_tokenizer *t;
    struct nb_error error = {""};
    size_t len;
    void *section = nb_gguf_kvs_section(kvs, 0, &len);
    check(section && nb_gguf_parse_metadata(section, len, &meta, &error) == 0, error.text);
    check(nb_tokenizer_create(meta, &t, &error) == 0, error.text);
    nb_gguf_close(meta);
    free(section);
    return t;
}
