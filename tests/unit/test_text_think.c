// Reasoning told from the answer: think marks in the worker's stream of text, however tokens cut
// them, as text and as control tokens, beside stop strings and broken UTF-8.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/worker/stream.h"
#include "engine/text/think.h"
#include "tensor/fail.h"
#include "text_model.h"

#define TOKENS_MAX 256
#define CONTROL    3

// --- which marks a model knows

static uint32_t pairs_of(const char *template)
{
    const struct text_model m = {
        .model = "gpt2", .pre = "gpt-2", .chat_template = template, .bos = -1, .eos = -1};
    struct nb_gguf *g = text_model_metadata(&m);
    uint32_t pairs = nb_think_pairs(g);
    nb_gguf_close(g);
    return pairs;
}

static void test_the_template_names_its_marks(void **unused)
{
    static const char *const some[] = {"{{ x.split('</think>')[-1] }}",
                                       "[THINK]{{ x }}[/THINK]",
                                       "<|END_THINKING|>",
                                       "{%- set end = \"</seed:think>\" %}",
                                       "<reasoning></reasoning>",
                                       "{{ '<|channel>thought\\n' + x + '<channel|>' }}",
                                       "<|start|>assistant<|channel|>analysis<|message|>",
                                       "\u25c1/think\u25b7",
                                       "[BEGIN FINAL RESPONSE]"};
    uint32_t all = 0;

    assert_int_equal(pairs_of(NULL), 0);
    assert_int_equal(pairs_of("<|im_start|>{{ role }} I think"), 0);
    assert_int_equal(pairs_of("<think>"), 0); // what never ends is no pair
    for (size_t i = 0; i < sizeof(some) / sizeof(*some); i++) {
        uint32_t pairs = pairs_of(some[i]);
        assert_int_equal(__builtin_popcount(pairs), 1);
        assert_int_equal(all & pairs, 0);
        all |= pairs;
    }
    assert_int_equal(__builtin_popcount(pairs_of("</think> <|END_THINKING|>")), 2);
}

// --- the stream

struct told {
    char text[1024];
    bool reasoning[1024];
    size_t n;
};

static void take(struct nb_stream *s, struct told *to)
{
    struct nb_str text;
    bool reasoning;

    while (nb_stream_next(s, &text, &reasoning)) {
        assert_true(to->n + text.len < sizeof(to->text));
        memcpy(to->text + to->n, text.data, text.len);
        for (size_t i = 0; i < text.len; i++)
            to->reasoning[to->n++] = reasoning;
    }
}

static struct nb_stream *stream_of(const struct nb_tokenizer *t, struct nb_stream_options options)
{
    struct nb_stream *s = NULL;
    struct nb_error error;

    if (nb_stream_create(t, &options, &s, &error) < 0)
        fail_msg("%s", error.text);
    return s;
}

// A vocabulary of the given tokens, of which those that begin with '\1' are control tokens.
static struct nb_tokenizer *tokenizer_of(const char *const *tokens)
{
    static const char *extra[TOKENS_MAX];
    static int32_t type[TOKENS_MAX];
    size_t n = 0;

    for (; tokens[n]; n++) {
        type[n] = *tokens[n] == '\1' ? CONTROL : 1;
        extra[n] = tokens[n] + (*tokens[n] == '\1');
    }
    extra[n] = NULL;
    const struct text_model m = {.model = "gpt2",
                                 .pre = "gpt-2",
                                 .extra = extra,
                                 .extra_type = type,
                                 .bos = -1,
                                 .eos = -1,
                                 .add_bos = -1};
    return text_model_tokenizer(&m);
}

static const struct nb_tokenizer *bytes(void)
{
    static struct nb_tokenizer *t;

    if (!t)
        t = tokenizer_of((const char *const[]){NULL});
    return t;
}

static int32_t byte_token(char byte)
{
    return 3 + (unsigned char)byte;
}

// Marks written as '{' and '}' about what is reasoning, the marks included: "a{<think>b</think>}c".
static void expect(const struct told *got, const char *marked)
{
    bool inside = false;
    size_t n = 0;

    for (; *marked; marked++) {
        if (*marked == '{' || *marked == '}') {
            inside = *marked == '{';
            continue;
        }
        assert_true(n < got->n);
        assert_int_equal(got->text[n], *marked);
        if (got->reasoning[n] != inside)
            fail_msg("byte %zu of %.*s", n, (int)got->n, got->text);
        n++;
    }
    assert_int_equal(n, got->n);
}

static void run(struct nb_stream *s, const int32_t *tokens, size_t n, struct told *ret)
{
    bool stopped = false;

    *ret = (struct told){.n = 0};
    for (size_t i = 0; i < n && !stopped; i++) {
        stopped = nb_stream_token(s, tokens[i]);
        take(s, ret);
    }
    if (!stopped) {
        nb_stream_end(s);
        take(s, ret);
    }
    nb_stream_destroy(s);
}

static void run_bytes(const char *text, struct nb_stream_options options, struct told *ret)
{
    int32_t tokens[1024];
    size_t n = 0;

    for (; text[n]; n++)
        tokens[n] = byte_token(text[n]);
    run(stream_of(bytes(), options), tokens, n, ret);
}

static void strip(const char *marked, char *ret)
{
    for (; *marked; marked++)
        if (*marked != '{' && *marked != '}')
            *ret++ = *marked;
    *ret = '\0';
}

static bool is_among(const char *const *list, size_t n, const char *text)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i], text) == 0)
            return true;
    return false;
}

// All substrings are tokens.
static struct nb_tokenizer *tokenizer_of_parts(const char *text)
{
    static char store[TOKENS_MAX][20];
    const char *tokens[TOKENS_MAX];
    size_t len = strlen(text), n = 0;

    assert_true(len <= 16);
    for (size_t from = 0; from < len; from++)
        for (size_t size = 2; size <= len - from; size++) {
            snprintf(store[n], sizeof(store[n]), "%.*s", (int)size, text + from);
            tokens[n] = store[n];
            n += !is_among(tokens, n, store[n]);
        }
    tokens[n] = NULL;
    return tokenizer_of(tokens);
}

// Every way to cut the text into tokens.
static void every_cut(const char *marked)
{
    char text[64];
    strip(marked, text);
    size_t len = strlen(text);
    struct nb_tokenizer *t = tokenizer_of_parts(text);
    uint32_t pairs = pairs_of("</think>");

    for (uint32_t cuts = 0; cuts < (1u << len) / 2; cuts++) {
        struct told got;
        int32_t ids[16];
        size_t n = 0;
        for (size_t from = 0, end; from < len; from = end) {
            for (end = from + 1; end < len && !(cuts >> (end - 1) & 1);)
                end++;
            ids[n++] = nb_tokenizer_find(t, text + from, end - from);
        }
        run(stream_of(t, (struct nb_stream_options){.think_pairs = pairs}), ids, n, &got);
        expect(&got, marked);
    }
    nb_tokenizer_destroy(t);
}

static void test_every_cut_tells_the_same(void **unused)
{
    every_cut("a{<think>b</");      // never closed
    every_cut("{<think></think>}"); // nothing in it
    every_cut("<<thi{<think>c");    // candidates that come to nothing
    every_cut("</think><thin");     // closed without being open; held to the end
    every_cut("plain<x>think");
}

// What the stream must hold back is a possible mark, no byte more.
static void test_it_holds_little(void **unused)
{
    static const char text[] = "ab<thi<think>c</think>d<th";
    static const size_t told[] = {1,  2,  2,  2,  2,  2,  6,  6,  6,  6,  6,  6,  13,
                                  14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 23, 23, 23};
    struct nb_stream *s =
        stream_of(bytes(), (struct nb_stream_options){.think_pairs = pairs_of("</think>")});
    struct told got = {.n = 0};

    for (size_t i = 0; i < sizeof(text) - 1; i++) {
        assert_false(nb_stream_token(s, byte_token(text[i])));
        take(s, &got);
        assert_int_equal(got.n, told[i]);
    }
    nb_stream_end(s);
    take(s, &got);
    expect(&got, "ab<thi{<think>c</think>}d<th");
    nb_stream_destroy(s);
}

static void test_without_marks_nothing_is_reasoning(void **unused)
{
    struct told got;

    run_bytes("a<think>b</think>c", (struct nb_stream_options){.skip = 0}, &got);
    expect(&got, "a<think>b</think>c");
    run_bytes("a<think>b</think>c", (struct nb_stream_options){.think_pairs = pairs_of("[/THINK]")},
              &got);
    expect(&got, "a<think>b</think>c");
}

// A pair is closed by its own mark, and others mean nothing within it.
static void test_pairs_do_not_mix(void **unused)
{
    struct told got;

    run_bytes("<think>[THINK]</think>x[THINK]</think>[/THINK]y<think>",
              (struct nb_stream_options){.think_pairs = pairs_of("</think>[/THINK]")}, &got);
    expect(&got, "{<think>[THINK]</think>}x{[THINK]</think>[/THINK]}y{<think>");
    run_bytes("\u25c1think\u25b7\u25c1x\u25c1/think\u25b7z",
              (struct nb_stream_options){.think_pairs = pairs_of("\u25c1/think\u25b7")}, &got);
    expect(&got, "{\u25c1think\u25b7\u25c1x\u25c1/think\u25b7}z");
}

static void test_broken_utf8_stays_on_its_side(void **unused)
{
    struct told got;
    const struct nb_stream_options options = {.think_pairs = pairs_of("</think>")};

    run_bytes("\xe2\x82<think>\xf0\x9f</think>\xff", options, &got);
    expect(&got, "\ufffd{<think>\ufffd</think>}\ufffd");
}

static void test_control_tokens_are_marks_without_text(void **unused)
{
    static const char *const tokens[] = {"\1<think>", "\1</think>", "hidden", "seen",
                                         "<thi",      "\1nk>",      NULL};
    enum { OPEN = TEXT_ALPHABET, CLOSE, HIDDEN, SEEN, THI, NK };
    static const int32_t ids[] = {SEEN, OPEN, HIDDEN, CLOSE, SEEN, THI, NK, HIDDEN, CLOSE};
    static const bool reasons[] = {false, true, true, true, false, false, true, true, true};
    struct nb_tokenizer *t = tokenizer_of(tokens);
    const struct nb_stream_options options = {.think_pairs = pairs_of("</think>")};
    struct nb_stream *s = stream_of(t, options);
    struct told got = {.n = 0};

    for (size_t i = 0; i < sizeof(ids) / sizeof(*ids); i++) {
        assert_false(nb_stream_token(s, ids[i]));
        assert_int_equal(nb_stream_reasons(s), reasons[i]);
        take(s, &got);
    }
    expect(&got, "seen{hidden}seen{<thihidden");
    nb_stream_destroy(s);
    nb_tokenizer_destroy(t);
}

static void test_harmony(void **unused)
{
    static const char *const tokens[] = {
        "\1<|channel|>", "\1<|message|>", "\1<|end|>", "\1<|start|>", "analysis", "final",
        "assistant",     "commentary",    "why",       "because",     NULL};
    enum {
        CHANNEL = TEXT_ALPHABET,
        MESSAGE,
        END,
        START,
        ANALYSIS,
        FINAL,
        ASSISTANT,
        COMMENTARY,
        WHY,
        BECAUSE
    };
    static const int32_t ids[] = {CHANNEL,   ANALYSIS,  MESSAGE,  WHY,     END,     START,
                                  ASSISTANT, CHANNEL,   ANALYSIS, MESSAGE, WHY,     END,
                                  START,     ASSISTANT, CHANNEL,  FINAL,   MESSAGE, BECAUSE};
    struct nb_tokenizer *t = tokenizer_of(tokens);
    const struct nb_stream_options options = {.think_pairs =
                                                  pairs_of("<|channel|>analysis<|message|>")};
    struct told got;

    run(stream_of(t, options), ids, sizeof(ids) / sizeof(*ids), &got);
    expect(&got, "{analysiswhyassistantanalysiswhyassistantfinal}because");
    run(stream_of(t, options), (int32_t[]){CHANNEL, FINAL, MESSAGE, BECAUSE}, 4, &got);
    expect(&got, "finalbecause");
    nb_tokenizer_destroy(t);
}

static void begins(const char *prompt, const char *marked)
{
    int32_t tokens[1024];
    size_t n = 0;
    char text[64];
    struct told got = {.n = 0};
    struct nb_stream *s = stream_of(
        bytes(),
        (struct nb_stream_options){.think_pairs = pairs_of("</think>[BEGIN FINAL RESPONSE]")});

    for (; prompt[n]; n++)
        tokens[n] = byte_token(prompt[n]);
    assert_int_equal(nb_stream_begin(s, tokens, n), 0);
    strip(marked, text);
    for (n = 0; text[n]; n++)
        tokens[n] = byte_token(text[n]);
    run(s, tokens, n, &got);
    expect(&got, marked);
}

static void test_the_prompts_end_may_have_opened(void **unused)
{
    char padded[400];

    begins("x<think>\n", "{why</think>}so");
    begins("x<think>", "{\n\nwhy</think>}so");
    begins("<think> \t\r\n\n", "{why");
    begins("Here are my reasoning steps:\n", "{why[BEGIN FINAL RESPONSE]}so");
    begins("<think>\n\n</think>\n\n", "so");
    begins("<think> is a mark.", "so");
    begins("x<thin", "k>so"); // half a mark is none
    begins("", "so");
    memset(padded, ' ', sizeof(padded) - 1);
    padded[sizeof(padded) - 1] = '\0';
    memcpy(padded, "<think>", 7);
    begins(padded, "so"); // too far from the end
}

static const char stop_list[] = "\4\0\0\0STOP";
#define STOPS .stops = stop_list, .stops_len = 8, .n_stops = 1

static void test_stop_strings_beside_marks(void **unused)
{
    const struct nb_stream_options options = {STOPS, .think_pairs = pairs_of("</think>")};
    struct told got;

    run_bytes("a<think>bSTO</think>cSTOPd", options, &got);
    expect(&got, "a{<think>bSTO</think>}c");
    run_bytes("a<think>STOP", options, &got); // also within reasoning
    expect(&got, "a{<think>");
    run_bytes("a<thiSTOP", options, &got); // what might have been a mark is text
    expect(&got, "a<thi");
    run_bytes("a<think>ST", options, &got);
    expect(&got, "a{<think>ST");
    run_bytes("aST<think>OP", options, &got);
    expect(&got, "aST{<think>OP");
}

// After a death the client has some of the text: the rest is what it would have been.
static void test_what_the_client_has_is_not_told_again(void **unused)
{
    static const char text[] = "ab<think>cST\xc3\xa9</think>dSTO<th";
    struct nb_stream_options options = {STOPS, .think_pairs = pairs_of("</think>")};
    struct told all, rest;

    run_bytes(text, options, &all);
    for (options.skip = 1; options.skip <= all.n; options.skip++) {
        run_bytes(text, options, &rest);
        assert_int_equal(rest.n, all.n - options.skip);
        assert_memory_equal(rest.text, all.text + options.skip, rest.n);
        assert_memory_equal(rest.reasoning, all.reasoning + options.skip, rest.n);
    }
}

// Against the definition, on random texts of the marks' letters.
static void define(const char *text, struct told *ret)
{
    static const char open[] = "<think>", close[] = "</think>";
    bool inside = false;
    size_t since = 0; // a mark does not begin within another one

    *ret = (struct told){.n = strlen(text)};
    memcpy(ret->text, text, ret->n);
    for (size_t end = 1; end <= ret->n; end++) {
        const char *mark = inside ? close : open;
        size_t len = strlen(mark);
        ret->reasoning[end - 1] = inside;
        if (end < since + len || memcmp(text + end - len, mark, len) != 0)
            continue;
        for (size_t i = end - len; i < end; i++)
            ret->reasoning[i] = true;
        inside = !inside;
        since = end;
    }
}

static void test_random(void **unused)
{
    static const char *const pieces[] = {"<",        "</",   "think", "think>", "<think>",
                                         "</think>", "<thi", ">",     "x",      "</thin"};
    const struct nb_stream_options options = {.think_pairs = pairs_of("</think>")};

    srand(4);
    for (int round = 0; round < 3000; round++) {
        char text[128] = "";
        struct told got, want;
        for (size_t i = 0, n = 1 + (size_t)rand() % 12; i < n; i++)
            snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s",
                     pieces[(size_t)rand() % (sizeof(pieces) / sizeof(*pieces))]);
        define(text, &want);
        run_bytes(text, options, &got);
        assert_int_equal(got.n, want.n);
        assert_memory_equal(got.text, want.text, got.n);
        assert_memory_equal(got.reasoning, want.reasoning, got.n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_template_names_its_marks),
        cmocka_unit_test(test_every_cut_tells_the_same),
        cmocka_unit_test(test_it_holds_little),
        cmocka_unit_test(test_without_marks_nothing_is_reasoning),
        cmocka_unit_test(test_pairs_do_not_mix),
        cmocka_unit_test(test_broken_utf8_stays_on_its_side),
        cmocka_unit_test(test_control_tokens_are_marks_without_text),
        cmocka_unit_test(test_harmony),
        cmocka_unit_test(test_the_prompts_end_may_have_opened),
        cmocka_unit_test(test_stop_strings_beside_marks),
        cmocka_unit_test(test_what_the_client_has_is_not_told_again),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
