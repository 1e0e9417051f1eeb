// Any bytes as the tokenizer of a Hugging Face folder: a byte for the embedding's rows, then the
// files, a NUL between each two. What is converted must be metadata that parses, and a tokenizer
// that we read.
#include <string.h>

#include "tests/fuzz/hf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// The next file; data is NULL past the last.
static struct nb_str next(const char **at, const char *end)
{
    if (*at >= end)
        return (struct nb_str){NULL, 0};
    const char *start = *at, *stop = memchr(start, 0, (size_t)(end - start));
    size_t len = (size_t)((stop ? stop : end) - start);
    *at = start + len + 1;
    return (struct nb_str){start, len};
}

static void read_back(const struct nb_gguf_kvs *kvs)
{
    static const char text[] = "a b\xc3\xa9 \xe4\xb8\xad<s>[CLS] \n\n12 \xff";
    struct nb_tokens ids = {0};
    struct nb_tokenizer *t = read_tokenizer(kvs);
    // A vocabulary without an unknown token may lack a byte.
    (void)nb_tokenizer_encode(t, text, sizeof(text) - 1, true, true, &ids);
    nb_tokens_finish(&ids);
    nb_tokenizer_destroy(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *at = (const char *)data + 1, *end = (const char *)data + size;
    struct nb_gguf_kvs kvs = {.n = 0};
    struct nb_error error;

    if (size == 0)
        return 0;
    struct nb_hf_texts texts = {.tokenizer = next(&at, end)};
    texts.tokenizer_config = next(&at, end);
    texts.special_tokens_map = next(&at, end);
    texts.config = next(&at, end);
    texts.generation_config = next(&at, end);
    texts.chat_template = next(&at, end);
    // Rows beyond 255: SentencePiece has a token for each byte.
    if (nb_hf_tokenizer(&texts, data[0] * 4u, &kvs, &error) == 0)
        read_back(&kvs);
    nb_gguf_kvs_finish(&kvs);
    return 0;
}
