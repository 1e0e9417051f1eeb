// Any bytes as a file of lessons: what is opened has the windows that its header says, and each of
// them is read or refused.
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "distill/lessons.h"
#include "tests/fuzz/hf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Of three tokens.
static struct nb_tokenizer *tokenizer(void)
{
    static struct nb_tokenizer *t;
    static const char text[] = "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":"
                               "false},\"model\":{\"type\":\"BPE\",\"merges\":[\"a b\"],"
                               "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}}}";
    struct nb_gguf_kvs kvs = {.n = 0};
    const struct nb_hf_texts texts = {.tokenizer = {text, sizeof(text) - 1}};
    struct nb_error error = {""};
    if (t)
        return t;
    check(nb_hf_tokenizer(&texts, 3, &kvs, &error) == 0, error.text);
    t = read_tokenizer(&kvs);
    nb_gguf_kvs_finish(&kvs);
    return t;
}

static void read_all(struct nb_lessons *l)
{
    const struct nb_lessons_header *h = nb_lessons_header(l);
    struct nb_windows w;
    struct nb_lesson *sums = malloc(h->length * sizeof(*sums));
    struct nb_kept_logit *kept = malloc((size_t)h->length * h->kept * sizeof(*kept));
    check(sums && kept && nb_lessons_windows(l, &w) == 0, "memory");
    check(w.n == h->windows && w.length == h->length, "windows");
    for (uint32_t i = 0; i < w.n; i++) {
        int rc = nb_lessons_read(l, w.tokens + (size_t)i * w.length, sums, kept);
        check(rc == 0 || rc == -EBADMSG, "a window is not there");
        for (size_t j = 0; rc == 0 && j < (size_t)h->length * h->kept; j++)
            check(kept[j].id < h->vocab, "a token is none");
    }
    nb_windows_finish(&w);
    free(sums);
    free(kept);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nb_error error = {""};
    struct nb_lessons *l;
    const struct nb_source_file file = {"F.lessons", memfd_create("lessons", MFD_CLOEXEC)};
    check(file.fd >= 0 && write(file.fd, data, size) == (ssize_t)size, "memfd");
    (void)nb_lessons_are(&file, 1);
    if (nb_lessons_open(&file, tokenizer(), &l, &error) == 0) {
        read_all(l);
        nb_lessons_close(l);
    } else {
        check(*error.text, "lessons are refused without a sentence");
    }
    close(file.fd);
    return 0;
}
