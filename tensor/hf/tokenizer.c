// From tokenizer.json to key-values: see tokenizer.h.
#include "tensor/hf/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/hf/tokenizer_private.h"

#define VOCAB_MAX (1u << 20)

// What changes a text or a token in a way that no GGUF says, and the value that changes nothing.
static int check_model(const struct nb_hf_tokens *t)
{
    static const char *const unsaid[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *dropout = json_object_get(t->model, "dropout");

    for (size_t i = 0; i < sizeof(unsaid) / sizeof(*unsaid); i++)
        if (nb_hf_str(t->model, unsaid[i]).len)
            return NB_HF_FAIL(t, -ENOTSUP, "tokenizer.json: BPE with %s, which no GGUF says",
                              unsaid[i]);
    if (json_is_number(dropout) && json_number_value(dropout) != 0)
        return NB_HF_FAIL(t, -ENOTSUP, "tokenizer.json: BPE with dropout, which is for training");
    return 0;
}

static int check_wordpiece(const struct nb_hf_tokens *t)
{
    struct nb_str prefix = nb_hf_str(t->model, "continuing_subword_prefix");
    int64_t longest = nb_hf_id(t->model, "max_input_chars_per_word");

    if (prefix.data && !nb_hf_is(prefix, "##"))
        return NB_HF_FAIL(t, -ENOTSUP,
                          "tokenizer.json: WordPiece whose continuing_subword_prefix is not ##");
    if (longest >= 0 && longest != 100)
        return NB_HF_FAIL(t, -ENOTSUP,
                          "tokenizer.json: WordPiece with words of up to %lld characters; 100 is "
                          "what a GGUF means",
                          (long long)longest);
    return 0;
}

static int put_tokens(struct nb_hf_tokens *t)
{
    const struct nb_hf_pipeline *p = t->pipeline;
    int rc = nb_gguf_kvs_put_str(t->kvs, "tokenizer.ggml.model",
                                 (struct nb_str){p->model, strlen(p->model)});

    if (rc == 0)
        rc = nb_gguf_kvs_put_str(t->kvs, "tokenizer.ggml.pre",
                                 (struct nb_str){p->pre, strlen(p->pre)});
    if (rc == 0)
        rc = nb_gguf_kvs_put_strs(t->kvs, "tokenizer.ggml.tokens", t->text, t->n);
    if (rc == 0)
        rc = nb_gguf_kvs_put_array(t->kvs, "tokenizer.ggml.token_type", NB_GGUF_I32, t->type, t->n);
    return rc < 0 ? NB_HF_FAIL(t, rc, "no memory for the tokens of tokenizer.json") : 0;
}

static int put_all(struct nb_hf_tokens *t)
{
    bool wordpiece = strcmp(t->pipeline->type, "WordPiece") == 0;
    int rc = wordpiece ? check_wordpiece(t) : check_model(t);

    if (rc == 0)
        rc = nb_hf_tokens_load(t);
    if (rc == 0)
        rc = put_tokens(t);
    if (rc == 0 && !wordpiece)
        rc = t->pipeline->sentencepiece ? nb_hf_put_scores(t) : nb_hf_put_merges(t);
    return rc < 0 ? rc : nb_hf_put_specials(t);
}

static int check_type(const struct nb_hf_tokens *t)
{
    struct nb_str type = nb_hf_str(t->model, "type");
    char shown[NB_HF_SHOWN_MAX];

    if (!json_is_object(t->vocab) && !nb_hf_is(type, "Unigram"))
        return NB_HF_FAIL(t, -EINVAL, "tokenizer.json: its model has no vocabulary");
    if (nb_hf_is(type, "BPE") || nb_hf_is(type, "WordPiece"))
        return 0;
    return NB_HF_FAIL(
        t, -ENOTSUP, "tokenizer.json: its model is of type \"%s\"; BPE and WordPiece are converted",
        type.data ? nb_hf_shown(type, shown) : "");
}

int nb_hf_tokenizer(const struct nb_hf_texts *texts, uint32_t vocab, struct nb_gguf_kvs *kvs,
                    struct nb_error *ret_error)
{
    struct nb_hf_tokens t = {.texts = texts, .n = vocab, .kvs = kvs, .error = ret_error};

    if (!texts->tokenizer.data)
        return NB_HF_FAIL(&t, -EINVAL, "the folder has no tokenizer.json");
    if (vocab == 0 || vocab > VOCAB_MAX)
        return NB_HF_FAIL(&t, -EFBIG, "the embedding has %u rows; the limit for tokens is %u",
                          vocab, VOCAB_MAX);
    int rc = nb_hf_json(texts->tokenizer, "tokenizer.json", &t.root, ret_error);
    if (rc < 0)
        return rc;
    t.model = json_object_get(t.root, "model");
    t.vocab = json_object_get(t.model, "vocab");
    rc = check_type(&t);
    if (rc == 0)
        rc = nb_hf_pipeline_find(t.root, &t.pipeline, ret_error);
    if (rc == 0)
        rc = put_all(&t);
    free(t.text);
    free(t.type);
    free(t.spelled);
    json_decref(t.root);
    return rc;
}
