// Our chat templates as a filter for test_templates.py. stdin: records of i64 time, u32 length, a
// conversation as JSON; stdout: an answer each: i32 status, u32 number of parts, and for each part
// u8 literal, u32 length, bytes. After a failure the one part is its sentence.
// usage: templates MODEL.gguf
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/text/chat_template.h"
#include "tensor/fail.h"

static void put(const void *data, size_t n)
{
    fwrite(data, 1, n, stdout);
}

static void put_part(bool literal, const char *text, size_t len)
{
    uint8_t flag = literal;
    uint32_t n = (uint32_t)len;

    put(&flag, 1);
    put(&n, sizeof(n));
    put(text, len);
}

static void answer(const struct nb_chat_template *c, const struct nb_tokenizer *t, int64_t now,
                   struct nb_str conversation)
{
    struct nb_rendering r = {0};
    struct nb_error error = {""};
    int32_t status = nb_chat_template_render(c, t, conversation, now, NULL, &r, &error);
    uint32_t n = status < 0 ? 1 : (uint32_t)r.n_parts;

    put(&status, sizeof(status));
    put(&n, sizeof(n));
    if (status < 0)
        put_part(true, error.text, strlen(error.text));
    for (size_t i = 0; i < r.n_parts; i++)
        put_part(r.part[i].literal, r.part[i].text, r.part[i].len);
    fflush(stdout);
    nb_rendering_finish(&r);
}

int main(int argc, char **argv)
{
    struct nb_gguf *meta = NULL;
    struct nb_tokenizer *t = NULL;
    struct nb_chat_template *c = NULL;
    struct nb_error error = {"usage: templates MODEL.gguf"};
    int fd = argc == 2 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
    int64_t now;
    uint32_t len;

    if (fd < 0 || nb_gguf_open(fd, &meta, &error) < 0 ||
        nb_tokenizer_create(meta, &t, &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    close(fd);
    nb_chat_template_create(meta, &c, &error); // without: conversations bring theirs
    nb_gguf_close(meta);
    while (fread(&now, sizeof(now), 1, stdin) == 1 && fread(&len, sizeof(len), 1, stdin) == 1) {
        char *data = malloc((size_t)len + 1);
        if (!data || fread(data, 1, len, stdin) != len)
            return 1;
        answer(c, t, now, (struct nb_str){data, len});
        free(data);
    }
    nb_chat_template_destroy(c);
    nb_tokenizer_destroy(t);
    return 0;
}
