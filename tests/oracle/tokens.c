// Our tokenizer as a filter for test_tokens.py. stdin: records of u8 verb, u32 length, bytes;
// stdout: an answer each.
//   'e', 'E' encode without, with special tokens parsed: i32 status, u32 n, n x i32
//   'w' encode the whole, with what goes before and after a text: the same
//   'p', 'P' the pieces of i32 ids, without and with special tokens: u32 length, bytes
//   'c' a conversation (JSON) by the model's template as ids, 'r' as text (i32 status, u32 length,
//   bytes)
//   'i' what is known: i32 vocab, bos, eos, add_bos, add_eos, then a byte for each id that ends
//   generation
// usage: tokens MODEL.gguf
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/text/chat_template.h"
#include "tensor/fail.h"

static struct nb_tokenizer *tokenizer;
static struct nb_chat_template *template; // or NULL

static void put_u32(uint32_t v)
{
    fwrite(&v, sizeof(v), 1, stdout);
}

static void encode(const char *text, uint32_t len, bool special, bool ends)
{
    struct nb_tokens out = {0};
    int rc = nb_tokenizer_encode(tokenizer, text, len, special, ends, &out);

    put_u32((uint32_t)rc);
    put_u32((uint32_t)out.n);
    fwrite(out.id, sizeof(*out.id), out.n, stdout);
    nb_tokens_finish(&out);
}

static void pieces(const char *data, uint32_t len, bool special)
{
    const int32_t *id = (const int32_t *)data;
    uint32_t total = 0;

    for (uint32_t i = 0; i < len / 4; i++)
        total += (uint32_t)nb_tokenizer_piece(tokenizer, id[i], special).len;
    put_u32(total);
    for (uint32_t i = 0; i < len / 4; i++) {
        struct nb_str piece = nb_tokenizer_piece(tokenizer, id[i], special);
        fwrite(piece.data, 1, piece.len, stdout);
    }
}

static void chat(const char *data, uint32_t len)
{
    struct nb_tokens out = {0};
    struct nb_error error;

    put_u32((uint32_t)nb_chat_template_encode(template, tokenizer, (struct nb_str){data, len}, 0,
                                              NULL, &out, &error));
    put_u32((uint32_t)out.n);
    fwrite(out.id, sizeof(*out.id), out.n, stdout);
    nb_tokens_finish(&out);
}

static void rendered(const char *data, uint32_t len)
{
    struct nb_rendering r = {0};
    struct nb_error error;

    put_u32((uint32_t)nb_chat_template_render(template, tokenizer, (struct nb_str){data, len}, 0,
                                              NULL, &r, &error));
    put_u32((uint32_t)r.len);
    fwrite(r.text, 1, r.len, stdout);
    nb_rendering_finish(&r);
}

static void info(void)
{
    uint32_t n = nb_tokenizer_vocab(tokenizer);

    put_u32(n);
    put_u32((uint32_t)nb_tokenizer_bos(tokenizer));
    put_u32((uint32_t)nb_tokenizer_eos(tokenizer));
    put_u32(nb_tokenizer_add_bos(tokenizer));
    put_u32(nb_tokenizer_add_eos(tokenizer));
    for (uint32_t i = 0; i < n; i++)
        putchar(nb_tokenizer_is_eog(tokenizer, (int32_t)i));
}

static void answer(int verb, const char *data, uint32_t len)
{
    if (verb == 'e' || verb == 'E' || verb == 'w')
        encode(data, len, verb == 'E', verb == 'w');
    else if (verb == 'p' || verb == 'P')
        pieces(data, len, verb == 'P');
    else if (verb == 'i')
        info();
    else if (verb == 'c')
        chat(data, len);
    else
        rendered(data, len);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct nb_gguf *meta = NULL;
    struct nb_error error = {"usage: tokens MODEL.gguf"};
    int fd = argc == 2 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;

    if (fd < 0 || nb_gguf_open(fd, &meta, &error) < 0 ||
        nb_tokenizer_create(meta, &tokenizer, &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    close(fd);
    if (nb_chat_template_create(meta, &template, &error) < 0)
        fprintf(stderr, "%s\n", error.text);
    nb_gguf_close(meta);
    for (int verb; (verb = getchar()) != EOF;) {
        uint32_t len;
        if (fread(&len, sizeof(len), 1, stdin) != 1)
            break;
        char *data = malloc((size_t)len + 1);
        if (!data || fread(data, 1, len, stdin) != len)
            return 1;
        answer(verb, data, len);
        free(data);
    }
    nb_chat_template_destroy(template);
    nb_tokenizer_destroy(tokenizer);
    return 0;
}
