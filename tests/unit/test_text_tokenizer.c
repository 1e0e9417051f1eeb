// Tokenizers on vocabularies small enough to know the answers. Whole models are in the oracle.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text_model.h"
#include "tensor/fail.h"

#define X(i)    (TEXT_ALPHABET + (i))
#define BYTE(c) (3 + (unsigned char)(c))

static const char *const words[] = {"ab",      "abc", "bc",     "\u0120ab",
                                    "<|end|>", "<u>", "<u><u>", NULL};
static const int32_t types[] = {1, 1, 1, 1, 3, 4, 4};
static const char *const merges[] = {"b c", "a b", "ab c", "\u0120 ab", NULL};
static const struct text_model bpe = {.model = "gpt2",
                                      .pre = "gpt-2",
                                      .extra = words,
                                      .extra_type = types,
                                      .merges = merges,
                                      .bos = 1,
                                      .eos = 2,
                                      .add_bos = 1};

static const char *const pieces[] = {"\u2581", "a", "b", "ab", "\u2581ab", "\u2581a", "bb", NULL};
static const float scores[] = {-5, -6, -7, -2, -1, -3, -2};
static const struct text_model spm = {
    .model = "llama", .extra = pieces, .extra_score = scores, .bos = 1, .eos = 2, .add_bos = -1};

static void expect(const struct nb_tokenizer *t, const char *text, bool literal, bool special,
                   const int32_t *ids, size_t n)
{
    struct nb_tokens out = {0};

    assert_int_equal(nb_tokenizer_encode(t, text, strlen(text), literal, special, &out), 0);
    assert_int_equal(out.n, n);
    assert_memory_equal(out.id, ids, n * sizeof(*ids));
    nb_tokens_finish(&out);
}
#define EXPECT(t, text, literal, special, ...)                                                     \
    expect(t, text, literal, special, (const int32_t[]){__VA_ARGS__},                              \
           sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

// The token, its characters, and what they merge to on the way.
static void expect_parts(const struct nb_tokenizer *t, int32_t id, const int32_t *ids, size_t n)
{
    struct nb_tokens parts = {0};
    assert_int_equal(nb_tokenizer_parts(t, id, &parts), 0);
    assert_int_equal(parts.n, n);
    assert_memory_equal(parts.id, ids, n * sizeof(*ids));
    nb_tokens_finish(&parts);
}
#define EXPECT_PARTS(t, id, ...)                                                                   \
    expect_parts(t, id, (const int32_t[]){__VA_ARGS__},                                            \
                 sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void test_bpe(void **unused)
{
    struct nb_tokenizer *t = text_model_tokenizer(&bpe);

    // "b c" ranks before "a b": so abc is a, bc, which has no merge.
    EXPECT(t, "abc", false, false, BYTE('a'), X(2));
    EXPECT(t, "ab ab", false, false, X(0), X(3));
    EXPECT(t, "abab", false, true, 1, X(0), X(0));
    expect(t, "", false, false, NULL, 0);
    EXPECT(t, "\xff", false, false, BYTE(0xef), BYTE(0xbf), BYTE(0xbd));
    EXPECT_PARTS(t, X(3), X(3), BYTE(' '), BYTE('a'), BYTE('b'), X(0), X(3));
    EXPECT_PARTS(t, BYTE('a'), BYTE('a'), BYTE('a'));
    nb_tokenizer_destroy(t);
}

static void test_special(void **unused)
{
    struct nb_tokenizer *t = text_model_tokenizer(&bpe);

    EXPECT(t, "ab<|end|>", true, false, X(0), X(4));
    // What the user wrote stays text; user-defined tokens are words of the vocabulary, the longest
    // first.
    EXPECT(t, "</s>", false, false, BYTE('<'), BYTE('/'), BYTE('s'), BYTE('>'));
    EXPECT(t, "<u><u><u>", false, false, X(6), X(5));
    assert_true(nb_tokenizer_is_eog(t, 2));
    assert_true(nb_tokenizer_is_eog(t, X(4)));
    assert_false(nb_tokenizer_is_eog(t, -1));
    assert_false(nb_tokenizer_is_eog(t, 100000));
    nb_tokenizer_destroy(t);
}

// A boundary between parts changes no id, but no special token may reach across it.
static void test_parts(void **unused)
{
    struct nb_tokenizer *t = text_model_tokenizer(&bpe);
    const struct nb_text_part joined[] = {{"a", 1, true}, {"b", 1, false}, {"<|end|>", 7, true}};
    const struct nb_text_part across[] = {{"<|e", 3, false}, {"nd|>", 4, true}};
    const struct nb_text_part both[] = {{"<|e", 3, true}, {"", 0, false}, {"nd|>", 4, true}};
    struct nb_tokens out = {0};

    assert_int_equal(nb_tokenizer_encode_parts(t, joined, 3, false, &out), 0);
    assert_int_equal(out.n, 2);
    assert_int_equal(out.id[0], X(0));
    assert_int_equal(nb_tokenizer_encode_parts(t, across, 2, false, &out), 0);
    assert_int_equal(out.n, 2 + 7);
    assert_int_equal(nb_tokenizer_encode_parts(t, both, 3, false, &out), 0);
    assert_int_equal(out.n, 2 + 7 + 1);
    nb_tokens_finish(&out);
    nb_tokenizer_destroy(t);
}

static void test_pieces(void **unused)
{
    struct nb_tokenizer *t = text_model_tokenizer(&bpe);

    struct nb_str space = nb_tokenizer_piece(t, X(3), false);
    assert_int_equal(space.len, 3);
    assert_memory_equal(space.data, " ab", 3);
    assert_int_equal(nb_tokenizer_text(t, X(3)).len, 4);
    assert_int_equal(nb_tokenizer_piece(t, X(4), false).len, 0);
    assert_int_equal(nb_tokenizer_piece(t, X(4), true).len, 7);
    assert_int_equal(nb_tokenizer_piece(t, -1, true).len, 0);
    assert_int_equal(nb_tokenizer_piece(t, X(7), true).len, 0);
    assert_int_equal(nb_tokenizer_find(t, "abc", 3), X(1));
    assert_int_equal(nb_tokenizer_find(t, "abcd", 4), NB_TOKEN_NONE);
    for (int b = 0; b < 256; b++) {
        struct nb_str piece = nb_tokenizer_piece(t, BYTE(b), false);
        assert_int_equal(piece.len, 1);
        assert_int_equal((unsigned char)*piece.data, b);
    }
    nb_tokenizer_destroy(t);
}

static void test_sentencepiece(void **unused)
{
    struct nb_tokenizer *t = text_model_tokenizer(&spm);

    EXPECT(t, "ab", false, true, 1, X(4));
    EXPECT(t, "abb ", false, false, X(4), X(2), X(0));
    EXPECT(t, "\xe2\x82", false, false, X(0), BYTE(0xe2), BYTE(0x82)); // bytes, as they are
    EXPECT(t, "</s>ab", true, false, 2, X(4));
    EXPECT(t, "</s>ab", false, false, X(0), BYTE('<'), BYTE('/'), BYTE('s'), BYTE('>'), X(3));
    struct nb_str piece = nb_tokenizer_piece(t, X(4), false);
    assert_int_equal(piece.len, 3);
    assert_memory_equal(piece.data, " ab", 3);
    assert_int_equal(*nb_tokenizer_piece(t, BYTE(200), false).data, (char)200);
    nb_tokenizer_destroy(t);
}

// A megabyte that merges in every way: quadratic work would take hours.
static void test_wordpiece(void **unused)
{
    static const char *const parts[] = {"\u2581a", "\u2581ab", "xyz", "\u2581", NULL};
    static const int32_t part_types[] = {1, 1, 3, 1};
    struct nb_tokenizer *t = text_model_tokenizer(&(struct text_model){.model = "bert",
                                                                       .extra = parts,
                                                                       .extra_type = part_types,
                                                                       .bos = 1,
                                                                       .eos = 2,
                                                                       .add_bos = -1});
    const int32_t unknown = 100, separator = 102;

    EXPECT(t, "A\u0301b\tabb", false, false, X(1), X(1), BYTE('b'));
    EXPECT(t, "a.a\u200dbb", false, true, 1, X(0), unknown, X(1), BYTE('b'), separator);
    EXPECT(t, "bb", false, false, unknown);
    // A word never becomes a control token, but for a template's.
    EXPECT(t, "axyz", false, false, X(0), BYTE('x'), BYTE('y'), BYTE('z'));
    EXPECT(t, "axyz", true, false, X(0), X(2));
    // The mark of the vocabulary, in a text.
    EXPECT(t, "a\u2581", false, false, X(0), X(3));
    EXPECT(t, "a\u2581a", false, false, X(0), X(3), BYTE('a'));
    nb_tokenizer_destroy(t);
}

static void test_long(void **unused)
{
    static const char *const doubled[] = {"aa", "aaaa", "aaaaaaaa", "  ", "    ", NULL};
    static const char *const doubling[] = {"a a", "aa aa", "aaaa aaaa", NULL};
    static const float rising[] = {1, 2, 3, 1, 2};
    const struct text_model models[] = {
        {.model = "gpt2",
         .pre = "smollm",
         .extra = doubled,
         .merges = doubling,
         .bos = -1,
         .eos = -1,
         .add_bos = -1},
        {.model = "gpt2",
         .pre = "tekken",
         .extra = doubled,
         .merges = doubling,
         .bos = -1,
         .eos = -1,
         .add_bos = 0},
        {.model = "gpt2",
         .pre = "deepseek-llm",
         .extra = doubled,
         .merges = doubling,
         .bos = -1,
         .eos = -1,
         .add_bos = 0},
        {.model = "llama",
         .extra = doubled,
         .extra_score = rising,
         .bos = -1,
         .eos = -1,
         .add_bos = 0},
    };
    const char fillers[] = {'a', 'A', ' ', '\n', '1', '\'', (char)0xff};
    char *text = malloc(1 << 20);

    for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++) {
        struct nb_tokenizer *t = text_model_tokenizer(&models[i]);
        for (size_t k = 0; k < sizeof(fillers); k++) {
            struct nb_tokens out = {0};
            size_t len = k == 0 && i % 3 == 0 ? 1 << 20 : 1 << 16; // 0 and 3: both kinds
            memset(text, fillers[k], len);
            text[len - 1] = '1';
            assert_int_equal(nb_tokenizer_encode(t, text, len, false, false, &out), 0);
            assert_true(out.n >= len / 8);
            nb_tokens_finish(&out);
        }
        nb_tokenizer_destroy(t);
    }
    free(text);
}

static void test_too_long(void **unused)
{
    struct nb_tokenizer *t = text_model_tokenizer(&bpe);
    struct nb_text_part parts[] = {{"x", 1, false}, {"x", NB_TOKENIZE_BYTES_MAX, false}};
    struct nb_tokens out = {0};

    assert_int_equal(nb_tokenizer_encode_parts(t, parts, 2, true, &out), -E2BIG);
    assert_int_equal(out.n, 0);
    nb_tokenizer_destroy(t);
}

static void refused(const struct text_model *m, int error, const char *says)
{
    struct nb_gguf *g = text_model_metadata(m);
    struct nb_tokenizer *t = NULL;
    struct nb_error line = {""};

    assert_int_equal(nb_tokenizer_create(g, &t, &line), error);
    assert_null(t);
    if (!strstr(line.text, says))
        fail_msg("\"%s\" does not say \"%s\"", line.text, says);
    nb_gguf_close(g);
}

static void test_refusals(void **unused)
{
    static const char *const twice[] = {"ab", "cd", "ab", NULL};
    static const char *const byte[] = {"<0xZZ>", NULL};
    static const int32_t byte_type[] = {6};
    static const float nan_score[] = {NAN};
    static const char *const one[] = {"ab", NULL};

    refused(
        &(struct text_model){.model = "gpt2", .pre = "klingon", .bos = 1, .eos = 2, .add_bos = -1},
        -ENOTSUP, "klingon");
    refused(&(struct text_model){.model = "t5", .bos = 1, .eos = 2, .add_bos = -1}, -ENOTSUP, "t5");
    refused(&(struct text_model){.bos = 1, .eos = 2, .add_bos = -1}, -EINVAL,
            "tokenizer.ggml.model");
    refused(
        &(struct text_model){
            .model = "gpt2", .pre = "gpt-2", .extra = twice, .bos = 1, .eos = 2, .add_bos = -1},
        -EINVAL, "same text");
    refused(&(struct text_model){.model = "gpt2",
                                 .extra = byte,
                                 .extra_type = byte_type,
                                 .bos = 1,
                                 .eos = 2,
                                 .add_bos = -1},
            -EINVAL, "<0xHH>");
    refused(&(struct text_model){.model = "llama",
                                 .extra = one,
                                 .extra_score = nan_score,
                                 .bos = 1,
                                 .eos = 2,
                                 .add_bos = -1},
            -EINVAL, "scores");
    refused(&(struct text_model){.model = "gpt2", .pre = "glm4", .bos = -1, .eos = 2, .add_bos = 1},
            -EINVAL, "BOS");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bpe),           cmocka_unit_test(test_special),
        cmocka_unit_test(test_parts),         cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_sentencepiece), cmocka_unit_test(test_wordpiece),
        cmocka_unit_test(test_long),          cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
