// The tokenizer of a Hugging Face folder as a GGUF file without tensors, for tests.
// usage: hf-tokenizer FOLDER ROWS OUT.gguf
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/hf/tokenizer.h"
#include "tensor/fail.h"

static struct nb_str read_file(const char *folder, const char *name)
{
    char path[4096];
    struct stat st;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return (struct nb_str){NULL, 0};
    char *data = fstat(fd, &st) < 0 ? NULL : malloc((size_t)st.st_size + 1);
    if (!data || read(fd, data, (size_t)st.st_size) != st.st_size)
        exit(1);
    close(fd);
    return (struct nb_str){data, (size_t)st.st_size};
}

static int write_gguf(const struct nb_gguf_kvs *kvs, const char *path)
{
    size_t len;
    void *section = nb_gguf_kvs_section(kvs, 0, &len);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int rc = section && fd >= 0 && write(fd, section, len) == (ssize_t)len ? 0 : 1;

    close(fd);
    free(section);
    return rc;
}

int main(int argc, char **argv)
{
    struct nb_gguf_kvs kvs = {.n = 0};
    struct nb_error error = {"usage: hf-tokenizer FOLDER ROWS OUT.gguf"};

    if (argc != 4) {
        fprintf(stderr, "%s\n", error.text);
        return 2;
    }
    struct nb_hf_texts texts = {
        .tokenizer = read_file(argv[1], "tokenizer.json"),
        .tokenizer_config = read_file(argv[1], "tokenizer_config.json"),
        .special_tokens_map = read_file(argv[1], "special_tokens_map.json"),
        .config = read_file(argv[1], "config.json"),
        .generation_config = read_file(argv[1], "generation_config.json"),
        .chat_template = read_file(argv[1], "chat_template.jinja"),
    };
    int rc = nb_gguf_kvs_put_str(&kvs, "general.architecture", (struct nb_str){"llama", 5});
    if (rc == 0)
        rc = nb_hf_tokenizer(&texts, (uint32_t)strtoul(argv[2], NULL, 10), &kvs, &error);
    if (rc < 0)
        fprintf(stderr, "%s\n", error.text);
    rc = rc < 0 ? 1 : write_gguf(&kvs, argv[3]);
    nb_gguf_kvs_finish(&kvs);
    return rc;
}
