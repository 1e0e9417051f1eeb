// Any template on any conversation: the bytes up to the first NUL are the template, the rest is the
// conversation's JSON. What comes out must be whole: parts that follow each other and differ in
// origin, and ids for them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/text/chat_template.h"
#include "tensor/fail.h"
#include "tensor/gguf_write.h"
#include "tests/fuzz/check.h"

#define STR(s) ((struct nb_str){(s), strlen(s)})

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// A vocabulary of the bytes that SentencePiece falls back to, and special tokens.
static struct nb_tokenizer *make_tokenizer(void)
{
    static char bytes[256][8];
    struct nb_str token[261] = {STR("<unk>"), STR("<s>"), STR("</s>"), STR("<|im_start|>"),
                                STR("<|im_end|>")};
    int32_t type[261] = {2, 3, 3, 3, 3};
    float score[261] = {0};
    struct nb_gguf_writer *w;
    struct nb_gguf *g;
    struct nb_tokenizer *t;
    struct nb_error error;
    int fd = memfd_create("vocabulary", MFD_CLOEXEC);

    for (unsigned b = 0; b < 256; b++) {
        snprintf(bytes[b], sizeof(bytes[b]), "<0x%02X>", b);
        token[5 + b] = STR(bytes[b]);
        type[5 + b] = 6;
    }
    check(fd >= 0 && nb_gguf_writer_create(&w) == 0, "no writer");
    nb_gguf_put_str(w, "tokenizer.ggml.model", STR("llama"));
    nb_gguf_put_strs(w, "tokenizer.ggml.tokens", token, 261);
    nb_gguf_put_array(w, "tokenizer.ggml.token_type", NB_GGUF_I32, type, 261);
    nb_gguf_put_array(w, "tokenizer.ggml.scores", NB_GGUF_F32, score, 261);
    check(nb_gguf_begin(w, fd) == 0 && nb_gguf_end(w) == 0, "not written");
    nb_gguf_writer_destroy(w);
    check(nb_gguf_open(fd, &g, &error) == 0, error.text);
    check(nb_tokenizer_create(g, &t, &error) == 0, error.text);
    nb_gguf_close(g);
    close(fd);
    return t;
}

// The conversation with the template in it, as the last of its keys.
static struct nb_str with_template(const char *template, size_t n, const char *json, size_t len)
{
    char *out = malloc(n * 6 + len + 32);
    size_t at = 0;

    while (len && json[len - 1] != '}')
        len--;
    memcpy(out, json, len ? len - 1 : 0);
    at += len ? len - 1 : 0;
    at += (size_t)sprintf(out + at, ",\"template\":\"");
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)template[i];
        if (c < ' ' || c == '"' || c == '\\')
            at += (size_t)sprintf(out + at, "\\u%04x", c);
        else
            out[at++] = template[i];
    }
    at += (size_t)sprintf(out + at, "\"}");
    return (struct nb_str){out, at};
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct nb_tokenizer *t;
    const char *template = (const char *)data, *json = memchr(data, 0, size);
    size_t n = json ? (size_t)(json - template) : size, at = 0;
    struct nb_rendering r;
    struct nb_tokens ids = {0};
    struct nb_error error;

    if (!t)
        t = make_tokenizer();
    struct nb_str conversation =
        with_template(template, n, json ? json + 1 : "{\"messages\":[]}", json ? size - n - 1 : 15);
    if (nb_chat_template_render(NULL, t, conversation, 1000000000, NULL, &r, &error) == 0) {
        for (size_t i = 0; i < r.n_parts; at += r.part[i++].len)
            check(r.part[i].text == r.text + at && r.part[i].len &&
                      (i == 0 || r.part[i].literal != r.part[i - 1].literal),
                  "parts that do not follow each other");
        check(at == r.len, "parts that are not all");
        if (r.len < 4096)
            check(nb_chat_template_encode(NULL, t, conversation, 1000000000, NULL, &ids, &error) ==
                      0,
                  error.text);
        nb_rendering_finish(&r);
        nb_tokens_finish(&ids);
    }
    free((char *)conversation.data);
    return 0;
}
