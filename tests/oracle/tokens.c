// Our tokenizer as a filter for test_tokens.py. stdin: records of u8 verb, u32 length, bytes;
// stdout: an answer each.
//   'e', 'E' encode without, with special tokens parsed: i32 status, u32 n, n x i32
//   'p', 'P' the pieces of i32 ids, without and with special tokens: u32 length, bytes
//   'c', 'C' a chat without and with the assistant's prompt, as ids; 'r', 'R' as text (i32 status,
//   u32 length, bytes):
//       messages, each u32 role_len, u32 content_len, role, content
//   'i' what is known: i32 vocab, bos, eos, add_bos, add_eos, then a byte for each id that ends
//   generation
// usage: tokens MODEL.gguf
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/chat_template.h"

static struct nb_tokenizer *tokenizer;
static struct nb_chat_template *template; // or NULL

static void put_u32(uint32_t v)
{
    fwrite(&v, sizeof v, 1, stdout);
}

static void encode(const char *text, uint32_t len, bool special)
{
    struct nb_tokens out = {0};
    int r = nb_tokenizer_encode(tokenizer, text, len, special, false, &out);

    put_u32((uint32_t)r);
    put_u32((uint32_t)out.n);
    fwrite(out.id, sizeof *out.id, out.n, stdout);
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

static uint32_t read_messages(const char *data, uint32_t len, struct nb_chat_message *m,
                              uint32_t max)
{
    uint32_t n = 0;

    for (uint32_t at = 0; at < len && n < max; n++) {
        uint32_t size[2];
        memcpy(size, data + at, sizeof size);
        m[n].role = (struct nb_str){data + at + 8, size[0]};
        m[n].content = (struct nb_str){data + at + 8 + size[0], size[1]};
        at += 8 + size[0] + size[1];
    }
    return n;
}

static void put_text(const struct nb_text_part *part, size_t n)
{
    size_t total = 0;

    for (size_t i = 0; i < n; i++)
        total += part[i].len;
    put_u32((uint32_t)total);
    for (size_t i = 0; i < n; i++)
        fwrite(part[i].text, 1, part[i].len, stdout);
}

static void chat(int verb, const char *data, uint32_t len)
{
    struct nb_chat_message m[64];
    uint32_t n = read_messages(data, len, m, 64);
    bool prompt = verb == 'C' || verb == 'R';
    char error[256];

    if (verb == 'c' || verb == 'C') {
        struct nb_tokens out = {0};
        put_u32((uint32_t)nb_chat_template_encode(template, tokenizer, m, n, prompt, &out, error,
                                                  sizeof error));
        put_u32((uint32_t)out.n);
        fwrite(out.id, sizeof *out.id, out.n, stdout);
        nb_tokens_finish(&out);
    } else {
        struct nb_text_part *part = NULL;
        size_t n_parts = 0;
        put_u32((uint32_t)nb_chat_template_render(template, m, n, prompt, &part, &n_parts, error,
                                                  sizeof error));
        put_text(part, n_parts);
        free(part);
    }
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
    if (verb == 'e' || verb == 'E')
        encode(data, len, verb == 'E');
    else if (verb == 'p' || verb == 'P')
        pieces(data, len, verb == 'P');
    else if (verb == 'i')
        info();
    else if (template)
        chat(verb, data, len);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct nb_gguf *meta = NULL;
    char error[256] = "usage: tokens MODEL.gguf";
    int fd = argc == 2 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;

    if (fd < 0 || nb_gguf_open(fd, &meta, error, sizeof error) < 0 ||
        nb_tokenizer_create(meta, &tokenizer, error, sizeof error) < 0) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    close(fd);
    if (nb_chat_template_create(meta, tokenizer, &template, error, sizeof error) < 0)
        fprintf(stderr, "%s\n", error);
    nb_gguf_close(meta);
    for (int verb; (verb = getchar()) != EOF;) {
        uint32_t len;
        if (fread(&len, sizeof len, 1, stdin) != 1)
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
