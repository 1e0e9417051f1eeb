// Small vocabularies for tests of the text side.
#include "text_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/text/tokenizer_vocab.h"
#include "tensor/fail.h"
#include "tensor/gguf_write.h"

#define TOKENS_MAX 512

struct lists {
    struct nb_str text[TOKENS_MAX];
    int32_t type[TOKENS_MAX];
    float score[TOKENS_MAX];
    char bytes[256][8];
    uint64_t n;
};

static void add(struct lists *l, const char *text, size_t len, int32_t type, float score)
{
    assert_true(l->n < TOKENS_MAX);
    l->text[l->n] = (struct nb_str){text, len};
    l->type[l->n] = type;
    l->score[l->n++] = score;
}

static void fill(struct lists *l, const struct text_model *m, bool sentencepiece)
{
    add(l, "<unk>", 5, 2, 0);
    add(l, "<s>", 3, 3, 0);
    add(l, "</s>", 4, 3, 0);
    for (int b = 0; b < 256; b++) {
        size_t len = sentencepiece ? (size_t)sprintf(l->bytes[b], "<0x%02X>", (unsigned)b)
                                   : nb_byte_alphabet((uint8_t)b, l->bytes[b]);
        add(l, l->bytes[b], len, sentencepiece ? 6 : 1, 0);
    }
    for (size_t i = 0; m->extra && m->extra[i]; i++)
        add(l, m->extra[i], strlen(m->extra[i]), m->extra_type ? m->extra_type[i] : 1,
            m->extra_score ? m->extra_score[i] : 0);
}

static void put_text(struct nb_gguf_writer *w, const char *key, const char *text)
{
    if (text)
        assert_int_equal(nb_gguf_put_str(w, key, (struct nb_str){text, strlen(text)}), 0);
}

static void put_id(struct nb_gguf_writer *w, const char *key, int id)
{
    uint32_t value = (uint32_t)id;

    if (id >= 0)
        assert_int_equal(nb_gguf_put(w, key, NB_GGUF_U32, &value), 0);
}

static void put_merges(struct nb_gguf_writer *w, const char *const *merges)
{
    struct nb_str list[TOKENS_MAX];
    uint64_t n = 0;

    for (; merges && merges[n]; n++)
        list[n] = (struct nb_str){merges[n], strlen(merges[n])};
    assert_int_equal(nb_gguf_put_strs(w, "tokenizer.ggml.merges", list, n), 0);
}

struct nb_gguf *text_model_metadata(const struct text_model *m)
{
    static struct lists l;
    struct nb_gguf_writer *w = NULL;
    struct nb_gguf *g = NULL;
    bool sentencepiece = m->model && strcmp(m->model, "llama") == 0, add_bos = m->add_bos > 0;
    struct nb_error error;

    l.n = 0;
    fill(&l, m, sentencepiece);
    assert_int_equal(nb_gguf_writer_create(&w), 0);
    put_text(w, "general.architecture", "llama");
    put_text(w, "tokenizer.ggml.model", m->model);
    put_text(w, "tokenizer.ggml.pre", m->pre);
    put_text(w, "tokenizer.chat_template", m->chat_template);
    put_id(w, "tokenizer.ggml.bos_token_id", m->bos);
    put_id(w, "tokenizer.ggml.eos_token_id", m->eos);
    if (m->add_bos >= 0)
        assert_int_equal(nb_gguf_put(w, "tokenizer.ggml.add_bos_token", NB_GGUF_BOOL, &add_bos), 0);
    assert_int_equal(nb_gguf_put_strs(w, "tokenizer.ggml.tokens", l.text, l.n), 0);
    assert_int_equal(nb_gguf_put_array(w, "tokenizer.ggml.token_type", NB_GGUF_I32, l.type, l.n),
                     0);
    if (sentencepiece)
        assert_int_equal(nb_gguf_put_array(w, "tokenizer.ggml.scores", NB_GGUF_F32, l.score, l.n),
                         0);
    else
        put_merges(w, m->merges);
    int fd = memfd_create("vocabulary", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(nb_gguf_begin(w, fd), 0);
    assert_int_equal(nb_gguf_end(w), 0);
    nb_gguf_writer_destroy(w);
    if (nb_gguf_open(fd, &g, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    return g;
}

struct nb_tokenizer *text_model_tokenizer(const struct text_model *m)
{
    struct nb_gguf *g = text_model_metadata(m);
    struct nb_tokenizer *t = NULL;
    struct nb_error error;

    if (nb_tokenizer_create(g, &t, &error) < 0)
        fail_msg("%s", error.text);
    nb_gguf_close(g);
    return t;
}
