// Chat templates: a model's templates, and conversations put through them. The language itself is
// jinja/.
#include "engine/text/chat_template.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja/chars.h"
#include "engine/text/jinja/json.h"
#include "engine/text/jinja/run.h"
#include "tensor/fail.h"

#define TEMPLATE_MAX   ((size_t)1 << 20)
#define TEMPLATES_MAX  32
#define NAME_MAX_BYTES 64
#define PARSED_MAX     ((size_t)64 << 20)  // bytes of one parsed template
#define RENDERING_MAX  ((size_t)256 << 20) // bytes of memory for one rendering
#define TEXT_MAX       ((size_t)32 << 20)
#define MESSAGES_MAX   65536

struct template
{
    char name[NAME_MAX_BYTES + 2]; // "" for the one that is taken by itself
    struct nb_jmem mem;
    struct nb_jnode *body; // NULL: fault says why
    struct nb_error fault;
};

struct nb_chat_template {
    struct template template[TEMPLATES_MAX];
    size_t n;
};

static int fail(int error, struct nb_error *ret_error, const char *what)
{
    return nb_fail(ret_error, error, "chat template: %s", what);
}

// What a template failed with: its own sentence, or ours with the line.
static void say(const struct nb_jmem *m, const char *name, struct nb_error *ret_error)
{
    char where[32] = "";

    if (m->line)
        snprintf(where, sizeof(where), "line %u: ", m->line);
    if (m->line || *name)
        nb_fail(ret_error, 0, "chat template%s%s: %s%s", *name ? " " : "", name, where, m->error);
    else
        nb_fail(ret_error, 0, "%s", m->error);
}

// --- A model's templates.

struct source {
    struct nb_str text;
    struct nb_jnode *body;
};

static void parse(struct nb_jmem *m, void *user)
{
    struct source *s = user;

    m->line = 1;
    if (s->text.len > TEMPLATE_MAX)
        nb_jfail(m, -E2BIG, "it is longer than %zu KiB", TEMPLATE_MAX >> 10);
    if (nb_jchars_valid(s->text.data, s->text.len) < s->text.len)
        nb_jfail(m, -EINVAL, "byte %zu is no UTF-8", nb_jchars_valid(s->text.data, s->text.len));
    s->body = nb_jparse(m, s->text.data, s->text.len);
}

// An empty template is a template that renders nothing: its body is one node that does.
static int add_template(struct nb_chat_template *c, const char *name, struct nb_str text)
{
    struct source s = {.text = text};

    if (c->n == TEMPLATES_MAX)
        return 0; // more are of no use: two names have a meaning
    struct template *t = &c->template[c->n++];
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->mem.limit = PARSED_MAX;
    int rc = nb_jtry(&t->mem, parse, &s);
    if (rc < 0)
        say(&t->mem, name, &t->fault);
    t->body = s.body;
    return rc == -ENOMEM ? rc : 0;
}

// All keys that hold one: tokenizer.chat_template, and tokenizer.chat_template.NAME.
static int load(struct nb_chat_template *c, const struct nb_gguf *meta)
{
    static const char prefix[] = "tokenizer.chat_template";
    char key[sizeof(prefix) + NAME_MAX_BYTES];
    struct nb_str text;

    for (uint64_t i = 0; i < nb_gguf_n_keys(meta); i++) {
        enum nb_gguf_type type;
        struct nb_str k = nb_gguf_key(meta, i, &type);
        if (k.len < sizeof(prefix) - 1 || k.len >= sizeof(key) ||
            memcmp(k.data, prefix, sizeof(prefix) - 1) != 0)
            continue;
        snprintf(key, sizeof(key), "%.*s", (int)k.len, k.data);
        const char *rest = key + sizeof(prefix) - 1;
        if ((*rest && *rest != '.') || nb_gguf_str(meta, key, &text) < 0 || text.len == 0)
            continue;
        const char *name = *rest ? rest + 1 : "";
        int rc = add_template(c, strcmp(name, "default") == 0 ? "" : name, text);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int nb_chat_template_create(const struct nb_gguf *meta, struct nb_chat_template **ret,
                            struct nb_error *ret_error)
{
    struct nb_chat_template *c = calloc(1, sizeof(*c));
    int rc = c ? load(c, meta) : -ENOMEM;

    if (rc < 0)
        fail(rc, ret_error, "no memory");
    else if (c->n == 0)
        rc = fail(-ENOENT, ret_error, "the model has none (tokenizer.chat_template)");
    if (rc < 0) {
        nb_chat_template_destroy(c);
        return rc;
    }
    *ret = c;
    return 0;
}

void nb_chat_template_destroy(struct nb_chat_template *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n; i++)
        nb_jmem_finish(&c->template[i].mem);
    free(c);
}

static const struct template *named(const struct nb_chat_template *c, const char *name)
{
    for (size_t i = 0; c && i < c->n; i++)
        if (strcmp(c->template[i].name, name) == 0)
            return &c->template[i];
    return NULL;
}

const char *nb_chat_template_fault(const struct nb_chat_template *c)
{
    const struct template *t = named(c, "");

    return t && t->fault.text[0] ? t->fault.text : NULL;
}

// --- A conversation.

struct work {
    const struct nb_chat_template *c;
    const struct nb_tokenizer *t;
    struct nb_str conversation;
    time_t now;
    const char *name; // of the template that is rendered
    struct nb_jbuild out;
};

// A role that we know is our word from here on, not the client's: templates make tokens of it
// ('<|' + role + '|>'). Any other stays the client's.
static void know_role(struct nb_jmem *m, const struct nb_jv *message)
{
    static const struct nb_jstr roles[] = {NB_JSTR_INIT("system"),    NB_JSTR_INIT("user"),
                                           NB_JSTR_INIT("assistant"), NB_JSTR_INIT("tool"),
                                           NB_JSTR_INIT("developer"), NB_JSTR_INIT("function")};
    struct nb_jv *role = nb_jdict_find(m, message->dict, "role");

    for (size_t i = 0; role && role->kind == NB_J_STR && i < sizeof(roles) / sizeof(*roles); i++)
        if (nb_jstr_eq(role->s, &roles[i])) {
            *role = nb_jv_str(&roles[i]);
            return;
        }
}

static void check_messages(struct nb_jmem *m, const struct nb_jv *messages)
{
    if (!messages || messages->kind != NB_J_LIST)
        nb_jfail(m, -EINVAL, "the conversation lacks \"messages\", an array");
    if (messages->list->n > MESSAGES_MAX)
        nb_jfail(m, -E2BIG, "the conversation has more than %d messages", MESSAGES_MAX);
    for (size_t i = 0; i < messages->list->n; i++) {
        if (messages->list->v[i].kind != NB_J_DICT)
            nb_jfail(m, -EINVAL, "message %zu is no object", i + 1);
        know_role(m, &messages->list->v[i]);
    }
}

static void add_tokens(struct nb_jmem *m, struct nb_jdict *context, const struct nb_tokenizer *t)
{
    static const struct nb_jstr names[] = {
        [NB_SPECIAL_BOS] = NB_JSTR_INIT("bos_token"),
        [NB_SPECIAL_EOS] = NB_JSTR_INIT("eos_token"),
        [NB_SPECIAL_UNK] = NB_JSTR_INIT("unk_token"),
        [NB_SPECIAL_SEP] = NB_JSTR_INIT("sep_token"),
        [NB_SPECIAL_PAD] = NB_JSTR_INIT("pad_token"),
        [NB_SPECIAL_CLS] = NB_JSTR_INIT("cls_token"),
        [NB_SPECIAL_MASK] = NB_JSTR_INIT("mask_token"),
    };

    for (int i = 0; i < NB_SPECIALS; i++) {
        int32_t id = nb_tokenizer_special(t, (enum nb_special)i);
        struct nb_str text = nb_tokenizer_piece(t, id, true);
        if (id != NB_TOKEN_NONE)
            nb_jdict_set(m, context, nb_jv_str(&names[i]),
                         nb_jv_str(nb_jstr_view(m, text.data, text.len, false)));
    }
}

// The names that the conversation's own keys give.
static void add_variable(struct nb_jmem *m, struct nb_jdict *context, const struct nb_jdict *all,
                         const char *key, struct nb_jv otherwise)
{
    const struct nb_jv *there = nb_jdict_find(m, all, key);
    struct nb_jv name = nb_jv_str(nb_jstr_view(m, key, strlen(key), false));

    if (nb_jdict_get(m, context, name))
        nb_jfail(m, -EINVAL, "a variable cannot be named \"%s\"", key);
    nb_jdict_set(m, context, name, there ? *there : otherwise);
}

static struct nb_jv optional(struct nb_jmem *m, const struct nb_jdict *all, const char *key,
                             enum nb_jkind kind, const char *what)
{
    const struct nb_jv *there = nb_jdict_find(m, all, key);

    if (!there || there->kind == NB_J_NONE)
        return (struct nb_jv){0};
    if (there->kind != kind)
        nb_jfail(m, -EINVAL, "\"%s\" of a conversation is %s", key, what);
    return *there;
}

static struct nb_jdict *read_conversation(struct nb_jmem *m, const struct work *w)
{
    static const char *const known[] = {"messages",  "tools",    "documents",
                                        "variables", "template", "add_generation_prompt"};
    struct nb_jv v = nb_jjson_read(m, w->conversation.data, w->conversation.len);

    if (v.kind != NB_J_DICT)
        nb_jfail(m, -EINVAL, "a conversation is an object");
    for (size_t i = 0; i < v.dict->n; i++) {
        size_t k = 0;
        while (k < sizeof(known) / sizeof(*known) && !nb_jstr_is(v.dict->key[i].s, known[k]))
            k++;
        if (k == sizeof(known) / sizeof(*known))
            nb_jfail(m, -EINVAL, "a conversation has no key %s", nb_jv_repr_c(m, v.dict->key[i]));
    }
    check_messages(m, nb_jdict_find(m, v.dict, "messages"));
    optional(m, v.dict, "tools", NB_J_LIST, "an array");
    optional(m, v.dict, "documents", NB_J_LIST, "an array");
    optional(m, v.dict, "add_generation_prompt", NB_J_BOOL, "true or false");
    return v.dict;
}

static struct nb_jdict *make_context(struct nb_jmem *m, const struct work *w,
                                     const struct nb_jdict *all)
{
    struct nb_jdict *context = nb_jdict_new(m);
    struct nb_jv variables = optional(m, all, "variables", NB_J_DICT, "an object");

    for (size_t i = 0; variables.kind == NB_J_DICT && i < variables.dict->n; i++)
        nb_jdict_set(m, context, variables.dict->key[i], variables.dict->value[i]);
    add_variable(m, context, all, "messages", nb_jv_none());
    add_variable(m, context, all, "tools", nb_jv_none());
    add_variable(m, context, all, "documents", nb_jv_none());
    add_variable(m, context, all, "add_generation_prompt", nb_jv_bool(true));
    struct nb_jdict *tokens = nb_jdict_new(m);
    add_tokens(m, tokens, w->t);
    for (size_t i = 0; i < tokens->n; i++)
        if (!nb_jdict_get(m, context, tokens->key[i]))
            nb_jdict_set(m, context, tokens->key[i], tokens->value[i]);
    return context;
}

// The template for this conversation: its own, the one for tools, or the model's.
static const struct nb_jnode *choose(struct nb_jmem *m, struct work *w, const struct nb_jdict *all)
{
    struct nb_jv own = optional(m, all, "template", NB_J_STR, "a string");
    struct nb_jv tools = optional(m, all, "tools", NB_J_LIST, "an array");
    const struct template *t = tools.kind == NB_J_LIST ? named(w->c, "tool_use") : NULL;
    struct source s;

    if (own.kind == NB_J_STR) {
        s = (struct source){.text = {own.s->data, own.s->len}};
        parse(m, &s);
        return s.body;
    }
    if (!t)
        t = named(w->c, "");
    m->line = 0;
    if (!t && w->c)
        nb_jfail(m, -ENOENT,
                 "the model has several chat templates and none is the default; bring "
                 "one of your own");
    if (!t)
        nb_jfail(m, -ENOENT,
                 "the model has no chat template: send the text as it is (--raw), or "
                 "bring a template");
    if (t->fault.text[0])
        nb_jfail(m, -EINVAL, "%s", t->fault.text);
    w->name = t->name;
    return t->body;
}

static void render(struct nb_jmem *m, void *user)
{
    struct work *w = user;
    struct nb_jrun r = {.m = m, .out = &w->out, .now = w->now};

    if (w->conversation.len > TEXT_MAX)
        nb_jfail(m, -E2BIG, "the conversation is longer than %zu MiB", TEXT_MAX >> 20);
    const struct nb_jdict *all = read_conversation(m, w);
    const struct nb_jnode *body = choose(m, w, all);
    m->line = 0;
    r.context = make_context(m, w, all);
    nb_jbuild_init(&w->out, m);
    w->out.limit = TEXT_MAX;
    nb_jscope_push(&r, NULL);
    nb_jexec(&r, body);
}

// --- The result.

static bool is_client(const struct nb_jbuild *b, size_t at)
{
    return b->from ? b->from[at] : b->client;
}

static size_t part_end(const struct nb_jbuild *b, size_t at)
{
    if (!b->from)
        return b->len;
    const uint8_t *other = memchr(b->from + at, b->from[at] ? 0 : 1, b->len - at);
    return other ? (size_t)(other - b->from) : b->len;
}

static int copy_out(const struct nb_jbuild *b, struct nb_rendering *ret)
{
    struct nb_rendering r = {.len = b->len};

    for (size_t at = 0; at < b->len; at = part_end(b, at))
        r.n_parts++;
    r.text = malloc(b->len + 1);
    r.part = malloc((r.n_parts + 1) * sizeof(*r.part));
    if (!r.text || !r.part) {
        nb_rendering_finish(&r);
        return -ENOMEM;
    }
    if (b->len)
        memcpy(r.text, b->data, b->len);
    r.text[b->len] = '\0';
    r.n_parts = 0;
    for (size_t at = 0, end; at < b->len; at = end) {
        end = part_end(b, at);
        r.part[r.n_parts++] = (struct nb_text_part){r.text + at, end - at, !is_client(b, at)};
    }
    *ret = r;
    return 0;
}

void nb_rendering_finish(struct nb_rendering *r)
{
    free(r->text);
    free(r->part);
    *r = (struct nb_rendering){0};
}

int nb_chat_template_render(const struct nb_chat_template *c, const struct nb_tokenizer *t,
                            struct nb_str conversation, time_t now, const atomic_bool *stop,
                            struct nb_rendering *ret, struct nb_error *ret_error)
{
    struct nb_jmem *m = calloc(1, sizeof(*m));
    struct work w = {.c = c, .t = t, .conversation = conversation, .now = now, .name = ""};

    if (!m)
        return fail(-ENOMEM, ret_error, "no memory");
    m->limit = RENDERING_MAX;
    m->stop = stop;
    int rc = nb_jtry(m, render, &w);
    if (rc < 0)
        say(m, m->line ? w.name : "", ret_error);
    else if ((rc = copy_out(&w.out, ret)) < 0)
        fail(rc, ret_error, "no memory");
    nb_jmem_finish(m);
    free(m);
    return rc;
}

// The BOS token stands once: the template's, or ours.
static int encode(const struct nb_tokenizer *t, const struct nb_rendering *r, struct nb_tokens *out)
{
    size_t start = out->n;
    bool add = nb_tokenizer_add_bos(t);
    int32_t bos = nb_tokenizer_bos(t);
    int status = add ? nb_tokens_push(out, bos) : 0;

    if (status == 0)
        status = nb_tokenizer_encode_parts(t, r->part, r->n_parts, false, out);
    if (status < 0) {
        out->n = start;
        return status;
    }
    if (add && out->n > start + 1 && out->id[start + 1] == bos) {
        memmove(out->id + start, out->id + start + 1, (out->n - start - 1) * sizeof(*out->id));
        out->n--;
    }
    return 0;
}

int nb_chat_template_encode(const struct nb_chat_template *c, const struct nb_tokenizer *t,
                            struct nb_str conversation, time_t now, const atomic_bool *stop,
                            struct nb_tokens *out, struct nb_error *ret_error)
{
    struct nb_rendering rendering = {0};
    int rc = nb_chat_template_render(c, t, conversation, now, stop, &rendering, ret_error);

    if (rc < 0)
        return rc;
    rc = encode(t, &rendering, out);
    nb_rendering_finish(&rendering);
    if (rc < 0)
        fail(rc, ret_error,
             rc == -E2BIG ? "the rendering is too long to tokenize" : "cannot tokenize");
    return rc;
}
