// Chat templates: whose each byte of a rendering is, limits, refusals, special tokens, BOS. What
// the language means is compared with jinja2 in the oracle.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tensor/gguf_write.h"
#include "tensor/fail.h"
#include "text_model.h"

static const char *const extra[] = {"<|im_start|>", "<|im_end|>", "<|user|>", NULL};
static const int32_t extra_types[] = {3, 3, 3};

static struct text_model model_of(const char *template)
{
    return (struct text_model){.model = "gpt2",
                               .pre = "gpt-2",
                               .extra = extra,
                               .extra_type = extra_types,
                               .chat_template = template,
                               .bos = 1,
                               .eos = 2,
                               .add_bos = 0};
}

struct loaded {
    struct nb_tokenizer *t;
    struct nb_chat_template *c;
};

static struct loaded load(const struct text_model *m)
{
    struct nb_gguf *g = text_model_metadata(m);
    struct loaded l = {.t = text_model_tokenizer(m)};
    struct nb_error error;

    if (nb_chat_template_create(g, &l.c, &error) < 0)
        fail_msg("%s", error.text);
    nb_gguf_close(g);
    return l;
}

static void unload(struct loaded l)
{
    nb_chat_template_destroy(l.c);
    nb_tokenizer_destroy(l.t);
}

static struct nb_str str(const char *s)
{
    return (struct nb_str){s, strlen(s)};
}

// --- Whose bytes.

// The rendering with the client's bytes in braces: "a{b}c".
static void expect(const char *template, const char *conversation, const char *want)
{
    struct text_model m = model_of(template);
    struct loaded l = load(&m);
    struct nb_rendering r = {0};
    struct nb_error error = {""};
    char out[4096] = "";
    size_t n = 0;

    int status = nb_chat_template_render(l.c, l.t, str(conversation), 0, NULL, &r, &error);
    if (status < 0)
        fail_msg("%s: %s", template, error.text);
    for (size_t i = 0; i < r.n_parts; i++) {
        const struct nb_text_part *p = &r.part[i];
        assert_true(p->len > 0 && (i == 0 || p->literal != p[-1].literal));
        n += (size_t)snprintf(out + n, sizeof(out) - n, p->literal ? "%.*s" : "{%.*s}", (int)p->len,
                              p->text);
    }
    assert_string_equal(out, want);
    nb_rendering_finish(&r);
    unload(l);
}

#define USER(content) "{\"messages\":[{\"role\":\"user\",\"content\":\"" content "\"}]}"
#define C             "messages[0].content"

static void test_origin(void **unused)
{
    static const struct {
        const char *template, *content, *want;
    } cases[] = {
        {"<a>{{ " C " }}<b>", "x", "<a>{x}<b>"},
        {"{{ '<' ~ " C " ~ '>' }}", "x", "<{x}>"},
        {"{{ '<' + " C " + '>' }}", "x", "<{x}>"},
        {"{{ (" C " ~ '|')[0:3] }}", "xy", "{xy}|"},
        {"{{ ('a' ~ " C " ~ 'b')[::-1] }}", "xy", "b{yx}a"},
        {"{{ (' ' ~ " C " ~ ' ').strip() }}", "x", "{x}"},
        {"{{ " C "|trim }}.", " x ", "{x}."},
        {"{{ ('a' ~ " C ")|upper }}", "x", "A{X}"},
        {"{{ ('A' ~ " C ").lower() }}", "X", "a{x}"},
        {"{{ ('a ' ~ " C ")|title }}", "xy", "A {Xy}"},
        {"{{ (" C " ~ 'B')|capitalize }}", "x", "{X}b"},
        {"{{ " C ".replace('x', '<b>') }}", "axb", "{a}<b>{b}"},
        {"{{ 'axb'.replace('x', " C ") }}", "q", "a{q}b"},
        {"{{ " C "|replace('y', '') }}", "xyz", "{xz}"},
        {"{{ ['<', " C ", '>']|join('|') }}", "x", "<|{x}|>"},
        {"{{ " C ".join(['a', 'b']) }}", "x", "a{x}b"},
        {"{{ ('a,' ~ " C ").split(',')|join }}", "x,y", "a{xy}"},
        {"{{ (" C " ~ '|b').partition('|')|join('.') }}", "x", "{x}.|.b"},
        {"{{ 'a{}b'.format(" C ") }}", "{}", "a{{}}b"},
        {"{{ '%s|' % " C " }}", "x", "{x}|"},
        {"{{ '%s'|format(" C ") }}", "%s", "{%s}"},
        {"{{ '{a:>3}'.format(a=" C ") }}", "x", "{  x}"},
        {"{{ {'k': " C "} }}", "x", "{{'}k{': 'x'}}"},
        {"{{ [" C "]|tojson }}", "x", "{[\"x\"]}"},
        {"{{ {'k': 'v'}|tojson }}", "x", "{{\"}k{\": \"}v{\"}}"},
        {"{{ messages[0]|tojson }}", "x", "{{\"role\": \"}user{\", \"content\": \"x\"}}"},
        {"{{ " C "|e }}", "<", "{&lt;}"},
        {"{{ ('<'|safe) + " C " }}", "<", "<{&lt;}"},
        {"{{ " C "|indent(1) }}", "a\\nb", "{a\n b}"},
        {"{{ 'a\n'|indent('--') }}", "", "a\n"},
        {"{{ " C " * 2 ~ 'a' * 2 }}", "x", "{xx}aa"},
        {"{{ " C "|truncate(5, true) }}", "abcdefghijkl", "{ab}..."},
        {"{{ " C "|urlencode }}", "a b", "{a%20b}"},
        {"{{ " C "|list|join('') ~ " C "|first ~ " C "|reverse }}", "xy", "{xyxyx}"},
        {"{{ " C ".center(4, '*') }}", "xy", "*{xy}*"},
        {"{{ '5'.zfill(3) ~ " C ".zfill(3) }}", "5", "{00}5{005}"},
        {"{% set x %}<{{ " C " }}>{% endset %}{{ x }}{{ x|length }}", "y", "<{y}>3"},
        {"{% macro f(a) %}<{{ a }}>{% endmacro %}{{ f(" C ") }}", "y", "<{y}>"},
        {"{% filter upper %}a{{ " C " }}{% endfilter %}", "y", "A{Y}"},
        {"{% set n = namespace(t='') %}{% for c in " C
         " %}{% set n.t = n.t ~ '<' ~ c %}{% endfor %}"
         "{{ n.t }}",
         "xy", "<{x}<{y}"},
        {"{{ messages[0].role }}{{ messages|map(attribute='content')|join }}", "x", "user{x}"},
        {"{{ " C "|int + 1 }}{{ 1 + 1 }}{{ loop }}", "41", "{42}2"},
        {"{{ strftime_now('%Y') }}{{ strftime_now(" C ") }}", "q", "1970{q}"},
        {"{{ bos_token ~ " C " ~ eos_token }}", "</s>", "<s>{</s>}</s>"},
        {"{{ '<' if " C " }}{{ " C " or 'a' }}{{ " C " and 'a' }}", "x", "<{x}a"},
        {"{{ " C ".splitlines()|join('<') }}", "a\\nb", "{a}<{b}"},
        {"{{ ('a' ~ " C ")|striptags }}", "<b>x</b>", "a{x}"},
        {"{{ ('x' ~ " C ").lstrip('x') ~ " C ".removeprefix('a') }}", "xa", "{axa}"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char conversation[256];
        snprintf(conversation, sizeof(conversation), USER("%s"), cases[i].content);
        expect(cases[i].template, conversation, cases[i].want);
    }
    expect("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
           "{\"messages\":[{\"role\":\"critic\",\"q\":1}]}", "{role}={critic};{q}={1};");
    expect("{{ tools[0].name }}|{{ documents[0].t }}|{{ x }}|{{ eos_token }}",
           "{\"messages\":[],\"tools\":[{\"name\":\"a\"}],\"documents\":[{\"t\":\"b\"}],"
           "\"variables\":{\"x\":\"c\",\"eos_token\":\"</s>\"}}",
           "{a}|{b}|{c}|{</s>}");
}

// --- Control tokens.

static size_t controls(const char *template, const char *conversation)
{
    struct text_model m = model_of(template);
    struct loaded l = load(&m);
    struct nb_tokens out = {0};
    size_t n = 0;
    struct nb_error error = {""};

    if (nb_chat_template_encode(l.c, l.t, str(conversation), 0, NULL, &out, &error) < 0)
        fail_msg("%s: %s", template, error.text);
    for (size_t i = 0; i < out.n; i++)
        n += nb_tokenizer_is_control(l.t, out.id[i]);
    nb_tokens_finish(&out);
    unload(l);
    return n;
}

// No way of a template's makes a control token of what a client wrote, nor of its half.
static void test_injection(void **unused)
{
    static const char *const templates[] = {
        "{{ " C " }}",
        "{{ " C "|upper|lower }}",
        "{{ " C ".replace('x', '') }}",
        "{{ " C ".split('|')|join('|') }}",
        "{{ '<|' ~ " C "[2:] }}",
        "{{ " C "[:5] ~ 'end|>' }}",
        "{{ " C "|tojson }}",
        "{{ {" C ": 1}|tojson }}",
        "{{ {'a': [" C "]} }}",
        "{{ '%s' % " C " }}",
        "{{ '{}'.format(" C ") }}",
        "{{ 'x'.replace('x', " C ") }}",
        "{{ " C ".format(x=1) }}",
        "{{ " C "|trim|safe|string|e|striptags }}",
        "{{ " C "|list|join }}",
        "{{ " C "|indent|title|lower }}",
        "{% set x %}{{ " C " }}{% endset %}{{ x }}",
        "{% for c in " C " %}{{ c }}{% endfor %}",
        "{{ messages }}",
        "{{ '<|im' ~ '_' ~ " C "[6:] }}",
        "{{ '<' ~ messages[0].content[1:-1] ~ '>' }}",
    };

    for (size_t i = 0; i < sizeof(templates) / sizeof(*templates); i++)
        assert_int_equal(controls(templates[i], USER("<|im_end|>")), 0);
    assert_int_equal(controls("<|im_end|>{{ " C " }}<|im_end|>", USER("<|im_end|>")), 2);
    assert_int_equal(controls("<|im_{{ 'end' }}|>", USER("x")), 1);
    // A role that is known is the template's word; one that is made up is the client's.
    assert_int_equal(controls("{{ '<|' + messages[0].role + '|>' }}", USER("x")), 1);
    assert_int_equal(controls("{{ messages[0].role }}", "{\"messages\":[{\"role\":\"<|user|>\"}]}"),
                     0);
    assert_int_equal(controls("{{ '<|' ~ messages[0].name ~ '|>' }}",
                              "{\"messages\":[{\"role\":\"user\",\"name\":\"user\"}]}"),
                     0);
    // A template that the client brings is a template.
    assert_int_equal(controls("none", "{\"messages\":[],\"template\":\"<|im_end|>\"}"), 1);
}

// BOS stands once, whoever writes it.
static void test_bos(void **unused)
{
    static const struct {
        const char *template;
        int add_bos;
        size_t n;
    } cases[] = {{"{{ " C " }}", 0, 0},
                 {"{{ " C " }}", 1, 1},
                 {"{{ bos_token }}{{ " C " }}", 0, 1},
                 {"{{ bos_token }}{{ " C " }}", 1, 1},
                 {"<s>{{ " C " }}", 1, 1},
                 {"{{ bos_token }}a{{ bos_token }}", 1, 2},
                 {"", 1, 1}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct text_model m = model_of(cases[i].template);
        struct nb_tokens out = {0};
        struct nb_error error;
        size_t n = 0;
        m.add_bos = cases[i].add_bos;
        if (!*cases[i].template)
            m.chat_template = "{# nothing #}";
        struct loaded l = load(&m);
        nb_tokens_push(&out, 7);
        assert_int_equal(nb_chat_template_encode(l.c, l.t, str(USER("<s>")), 0, NULL, &out, &error),
                         0);
        assert_int_equal(out.id[0], 7);
        for (size_t k = 1; k < out.n; k++)
            n += out.id[k] == 1;
        assert_int_equal(n, cases[i].n);
        assert_true(n == 0 || out.id[1] == 1);
        nb_tokens_finish(&out);
        unload(l);
    }
}

// --- Refusals.

static void refused(const char *template, const char *conversation, int status, const char *words)
{
    struct text_model m = model_of(template);
    struct loaded l = load(&m);
    struct nb_tokens out = {0};
    struct nb_error error = {""};

    int rc = nb_chat_template_encode(l.c, l.t, str(conversation), 0, NULL, &out, &error);
    if (rc != status || !strstr(error.text, words))
        fail_msg("%s, %s: %d \"%s\", not %d \"%s\"", template, conversation, rc, error.text, status,
                 words);
    assert_int_equal(out.n, 0);
    unload(l);
}

static void test_conversations(void **unused)
{
    static const struct {
        const char *conversation, *words;
    } cases[] = {
        {"", "no value at byte 0 of the JSON"},
        {"[]", "is an object"},
        {"{}", "lacks \"messages\""},
        {"{\"messages\":{}}", "lacks \"messages\""},
        {"{\"messages\":[1]}", "message 1 is no object"},
        {"{\"messages\":[],\"model\":1}", "no key 'model'"},
        {"{\"messages\":[],\"tools\":{}}", "\"tools\" of a conversation is an array"},
        {"{\"messages\":[],\"variables\":[]}", "\"variables\" of a conversation is an object"},
        {"{\"messages\":[],\"variables\":{\"messages\":1}}", "cannot be named \"messages\""},
        {"{\"messages\":[],\"variables\":{\"tools\":1}}", "cannot be named \"tools\""},
        {"{\"messages\":[],\"add_generation_prompt\":1}", "true or false"},
        {"{\"messages\":[],\"template\":1}", "\"template\" of a conversation is a string"},
        {"{\"messages\":[],\"template\":\"{{ x\"}", "line 1: expected '}}'"},
        {"{\"messages\":[]} x", "more after the value at byte 16"},
        {"{\"messages\":[],}", "a key is missing"},
        {"{\"messages\":[01]}", "no value"},
        {"{\"messages\":[9223372036854775808]}", "does not fit 64 bits"},
        {"{\"messages\":[\"\\ud800\"]}", "half of a surrogate pair"},
        {"{\"messages\":[\"\n\"]}", "a control character in a string"},
        {"{\"messages\":[\"\xc3(\"]}", "no UTF-8 at byte 14"},
        {"{\"messages\":[\"\xed\xa0\x80\"]}", "no UTF-8"},
        {"{\"messages\":[\"x", "a string has no end"},
        {"{\"messages\":[tru", "no value"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        refused("x", cases[i].conversation, -EINVAL, cases[i].words);
}

static void test_sentences(void **unused)
{
    refused("\n\n{{ raise_exception('Own words: ' ~ " C ") }}", USER("x\\ny"), -EINVAL,
            "Own words: x y");
    refused("a\n{{ messages.x.y }}", USER("x"), -EINVAL,
            "chat template: line 2: 'list object' has no attribute 'x'");
    refused("{{ none_such + 1 }}", USER("x"), -EINVAL, "'none_such' is undefined");
    refused("a\nb\n{% foo %}", USER("x"), -EINVAL, "line 3: unknown tag 'foo'");
    refused("{% include 'x' %}", USER("x"), -EINVAL, "no other templates");
    refused("{{ " C ".append(1) }}", USER("x"), -EINVAL, "has no attribute 'append'");
    refused("{{ messages.append(1) }}", USER("x"), -EINVAL,
            "access to attribute 'append' of 'list' object is unsafe.");
    refused("{{ 'a'|nofilter }}", USER("x"), -EINVAL, "no filter named 'nofilter'");
    refused("\xff", USER("x"), -EINVAL, "byte 0 is no UTF-8");
}

static char *repeated(const char *head, const char *unit, size_t n)
{
    size_t len = strlen(head) + n * strlen(unit) + 1, at = 0;
    char *text = malloc(len);

    at += (size_t)snprintf(text, len, "%s", head);
    while (n-- > 0)
        at += (size_t)snprintf(text + at, len - at, "%s", unit);
    return text;
}

// Each limit names itself and its figure, and none takes long.
static void test_limits(void **unused)
{
    refused(
        "{% set l = range(99999)|list %}{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}",
        USER("x"), -E2BIG, "the template takes more than");
    refused("{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}"
            "{% endfor %}",
            USER("x"), -E2BIG, "more than 256 MiB of memory");
    refused("{% set x = 'x' * 1000000 %}{% for i in range(70) %}{{ x }}{% endfor %}", USER("x"),
            -E2BIG, "longer than 32 MiB");
    refused("{{ 'x' * 9223372036854775807 }}", USER("x"), -E2BIG, "more than 256 MiB of memory");
    refused("{{ range(100001) }}", USER("x"), -E2BIG, "MAX_RANGE (100000)");
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", USER("x"), -E2BIG,
            "deeper than 800 levels");
    refused("{% set n = namespace(l=[]) %}{% for i in range(1000) %}{% set n.l = [n.l] %}"
            "{% endfor %}{{ n.l }}",
            USER("x"), -E2BIG, "deeper than 800 levels");
    refused("{% set n = namespace() %}{% set n.n = n %}{{ n }}", USER("x"), -E2BIG,
            "deeper than 800 levels");
    refused("{{ '%99999d' % 1 }}", USER("x"), -E2BIG, "wider than 10000");
    refused("{{ '{:99999}'.format(1) }}", USER("x"), -E2BIG, "wider than 10000");
    char *parentheses = repeated("{{ ", "(", 7000), *minus = repeated("{{ ", "-", 7000),
         *nots = repeated("{{ ", "not ", 1700), *arrays = repeated("{\"messages\":", "[", 1000);
    refused(parentheses, USER("x"), -EINVAL, "deeper than 256");
    refused(minus, USER("x"), -EINVAL, "deeper than 800 levels");
    refused(nots, USER("x"), -EINVAL, "deeper than 800 levels");
    refused("x", arrays, -E2BIG, "deeper than 128 levels");
    free(parentheses);
    free(minus);
    free(nots);
    free(arrays);
}

// What one step of a template does is bounded: each of these would take minutes.
static void test_work(void **unused)
{
    static const char *const each[] = {
        "l|sum",
        "l|select",
        "l|unique",
        "l|min",
        "l|sort",
        "g|groupby('x')",
        "l|join",
        "l|first ~ l|last ~ (l|reverse)",
        "-1 in l",
        "l == l2",
        "s == s2 and s < s2",
        "s.isalpha()",
        "s.isidentifier()",
        "s.isascii()",
        "s.istitle()",
        "s.islower()",
        "u|length",
        "u[-1] ~ u[1:-1]",
        "s|wordcount",
        "s|title",
        "s|upper",
        "s|e",
        "s|striptags",
        "s|urlencode",
        "(s ~ 'b').find('b') ~ s.rfind('b')",
        "s.count('b') ~ s.count('')",
        "s.split()",
        "s.split('b')",
        "s.splitlines()",
        "s.replace('b', 'c')",
        "s.center(10)",
        "'b' in s",
        "'{}'.format(s)",
        "'%s' % s",
        "s|tojson",
        "{'k': s}|string",
        "d[s]",
        "(t in d) ~ (t in {})",
        "f|string",
        "f|tojson",
        "'%r %e' % (0.1, 0.1)",
        "strftime_now('%c%c%c%c')",
    };
    char template[1024];

    for (size_t i = 0; i < sizeof(each) / sizeof(*each); i++) {
        snprintf(template, sizeof(template),
                 "{%% set l = range(100000)|list %%}{%% set l2 = range(100000)|list %%}"
                 "{%% set s = 'a' * 1000000 %%}{%% set s2 = 'a' * 1000000 %%}"
                 "{%% set u = '\xc3\xa9' * 500000 %%}{%% set d = dict(a=1) %%}"
                 "{%% set t = (1,) * 100000 %%}{%% set f = [0.1] * 1000 %%}{%% set g = [{'x': 1}] "
                 "* 1000 %%}"
                 "{%% for a in range(100000) %%}{%% for b in range(100000) %%}"
                 "{%% if %s %%}{%% endif %%}{%% endfor %%}{%% endfor %%}",
                 each[i]);
        refused(template, USER("x"), -E2BIG, "the template takes more than");
    }
}

static void test_stop(void **unused)
{
    struct text_model m = model_of("x");
    struct loaded l = load(&m);
    struct nb_rendering r = {0};
    struct nb_tokens out = {0};
    const atomic_bool stop = true;
    struct nb_error error = {""};

    assert_int_equal(nb_chat_template_render(l.c, l.t, str(USER("x")), 0, &stop, &r, &error),
                     -ECANCELED);
    assert_string_equal(error.text, "nobody waits for the rendering any more");
    assert_int_equal(nb_chat_template_encode(l.c, l.t, str(USER("x")), 0, &stop, &out, &error),
                     -ECANCELED);
    assert_int_equal(out.n, 0);
    unload(l);
}

// A conversation of four megabytes.
static void test_size(void **unused)
{
    struct text_model m = model_of("{% for m in messages %}<|im_start|>{{ m.role + '\n' + "
                                   "m.content|trim + '<|im_end|>\n' }}{% endfor %}");
    struct loaded l = load(&m);
    struct nb_rendering r;
    size_t n = 0, turns = 4000;
    struct nb_error error;
    char *json = malloc(8u << 20);

    n += (size_t)sprintf(json, "{\"messages\":[");
    for (size_t i = 0; i < turns; i++) {
        n += (size_t)sprintf(json + n, "%s{\"role\":\"user\",\"content\":\"", i ? "," : "");
        memset(json + n, 'x', 1000);
        n += 1000;
        n += (size_t)sprintf(json + n, "\"}");
    }
    n += (size_t)sprintf(json + n, "]}");
    assert_int_equal(
        nb_chat_template_render(l.c, l.t, (struct nb_str){json, n}, 0, NULL, &r, &error), 0);
    assert_int_equal(r.len, turns * (12 + 5 + 1000 + 11));
    assert_int_equal(r.n_parts, turns * 2 + 1);
    nb_rendering_finish(&r);
    free(json);
    unload(l);
}

// --- Files.

static struct nb_gguf *file_with(const char *const *keys, size_t n)
{
    struct nb_gguf_writer *w = NULL;
    struct nb_gguf *g = NULL;
    struct nb_error error;

    assert_int_equal(nb_gguf_writer_create(&w), 0);
    for (size_t i = 0; i < n; i += 2)
        assert_int_equal(nb_gguf_put_str(w, keys[i], str(keys[i + 1])), 0);
    int fd = memfd_create("templates", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(nb_gguf_begin(w, fd), 0);
    assert_int_equal(nb_gguf_end(w), 0);
    nb_gguf_writer_destroy(w);
    if (nb_gguf_open(fd, &g, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    return g;
}

static void rendered(const struct nb_chat_template *c, const struct nb_tokenizer *t,
                     const char *conversation, int status, const char *want)
{
    struct nb_rendering r = {0};
    struct nb_error error = {""};

    assert_int_equal(nb_chat_template_render(c, t, str(conversation), 0, NULL, &r, &error), status);
    assert_string_equal(status < 0 ? error.text : r.text, want);
    nb_rendering_finish(&r);
}

static void test_files(void **unused)
{
    static const char *const several[] = {"tokenizer.chat_template",          "default",
                                          "tokenizer.chat_template.tool_use", "{{ tools|length }}",
                                          "tokenizer.chat_template.rag",      "{% broken %}"};
    struct text_model m = model_of(NULL);
    struct nb_tokenizer *t = text_model_tokenizer(&m);
    struct nb_chat_template *c = NULL;
    struct nb_error error;

    struct nb_gguf *g = text_model_metadata(&m);
    assert_int_equal(nb_chat_template_create(g, &c, &error), -ENOENT);
    assert_non_null(strstr(error.text, "tokenizer.chat_template"));
    assert_null(c);
    nb_gguf_close(g);
    rendered(NULL, t, "{\"messages\":[],\"template\":\"{{ bos_token }}\"}", 0, "<s>");
    rendered(NULL, t, "{\"messages\":[]}", -ENOENT,
             "the model has no chat template: send the text as it is (--raw), or bring a template");

    g = file_with(several, 6);
    assert_int_equal(nb_chat_template_create(g, &c, &error), 0);
    nb_gguf_close(g);
    assert_null(nb_chat_template_fault(c));
    rendered(c, t, "{\"messages\":[]}", 0, "default");
    rendered(c, t, "{\"messages\":[],\"tools\":[{}]}", 0, "1");
    rendered(c, t, "{\"messages\":[],\"tools\":null}", 0, "default");
    nb_chat_template_destroy(c);

    g = file_with(several + 2, 4); // none is the default
    assert_int_equal(nb_chat_template_create(g, &c, &error), 0);
    nb_gguf_close(g);
    rendered(c, t, "{\"messages\":[]}", -ENOENT,
             "the model has several chat templates and none is the default; bring one of your own");
    nb_chat_template_destroy(c);

    m = model_of("a\n{% if %}");
    struct loaded l = load(&m);
    assert_string_equal(nb_chat_template_fault(l.c),
                        "chat template: line 2: expected an expression, found '%}'");
    rendered(l.c, l.t, "{\"messages\":[],\"template\":\"x\"}", 0, "x");
    rendered(l.c, l.t, "{\"messages\":[]}", -EINVAL, nb_chat_template_fault(l.c));
    unload(l);
    nb_tokenizer_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_origin),    cmocka_unit_test(test_injection),
        cmocka_unit_test(test_bos),       cmocka_unit_test(test_conversations),
        cmocka_unit_test(test_sentences), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_work),      cmocka_unit_test(test_stop),
        cmocka_unit_test(test_size),      cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
