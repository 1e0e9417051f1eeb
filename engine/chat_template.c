// Chat templates: messages to the parts of a text, by a family's table.
#include "engine/chat_template.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat_template_table.h"
#include "engine/unicode.h"

#define TEMPLATE_MAX (1u << 20)

// A family's words with the model's own tokens in them.
struct turn {
    char *before, *after;
};

struct nb_chat_template {
    const struct nb_chat_family *family;
    struct turn turn[NB_CHAT_ROLES];
    char *start, *prompt, *next_user;
    char *default_system; // or NULL: what the template says when no system message is given
    bool bos;
};

static const char *const role_names[NB_CHAT_ROLES] = {"system", "user", "assistant"};

static int fail(int error, char *ret_error, size_t error_size, const char *what)
{
    snprintf(ret_error, error_size, "chat template: %s", what);
    return error;
}

// --- Recognising.

static bool fits(const struct nb_chat_family *f, const char *text)
{
    for (size_t i = 0; i < 3 && f->marks[i]; i++)
        if (!strstr(text, f->marks[i]))
            return false;
    for (size_t i = 0; i < 2 && f->absent[i]; i++)
        if (strstr(text, f->absent[i]))
            return false;
    return true;
}

static const struct nb_chat_family *recognise(const char *text)
{
    for (const struct nb_chat_family *f = nb_chat_families; f->name; f++)
        if (fits(f, text))
            return f;
    return NULL;
}

// The template as a string; \n in its literals is a line's end. NULs, which no template has, become
// spaces.
static char *template_text(struct nb_str raw)
{
    char *text = malloc(raw.len + 1);
    size_t n = 0;

    if (!text)
        return NULL;
    for (size_t i = 0; i < raw.len; i++) {
        bool escaped = raw.data[i] == '\\' && i + 1 < raw.len && raw.data[i + 1] == 'n';
        text[n] = raw.data[i];
        if (escaped)
            text[n] = '\n';
        else if (!text[n])
            text[n] = ' ';
        n++;
        i += escaped;
    }
    text[n] = '\0';
    return text;
}

// A system message that stands whole in the template is what it says when it is given none.
static int find_default_system(struct nb_chat_template *c, const char *text)
{
    const char *before = c->turn[NB_CHAT_SYSTEM].before, *after = c->turn[NB_CHAT_SYSTEM].after;

    if (c->family->system_in_user || !*before || !*after)
        return 0;
    for (const char *p = strstr(text, before); p; p = strstr(p, before)) {
        p += strlen(before);
        size_t len = strcspn(p, "'\"{}<");
        if (len == 0 || strncmp(p + len, after, strcspn(after, "\n")) != 0)
            continue;
        c->default_system = strndup(p, len);
        return c->default_system ? 0 : -ENOMEM;
    }
    return 0;
}

// --- Creation.

static char *with_tokens(const char *words, const struct nb_tokenizer *t)
{
    struct nb_str eos = nb_tokenizer_text(t, nb_tokenizer_eos(t)),
                  bos = nb_tokenizer_text(t, nb_tokenizer_bos(t));
    size_t n = 0;

    if (!words)
        words = "";
    char *out = malloc(strlen(words) * (1 + eos.len + bos.len) + 1);
    for (; out && *words; words++) {
        struct nb_str piece = *words == '\1'   ? eos
                              : *words == '\2' ? bos
                                               : (struct nb_str){words, 1};
        memcpy(out + n, piece.data, piece.len);
        n += piece.len;
    }
    if (out)
        out[n] = '\0';
    return out;
}

static int fill(struct nb_chat_template *c, const struct nb_tokenizer *t, const char *text)
{
    const struct nb_chat_family *f = c->family;
    bool ok = (c->start = with_tokens(f->start, t)) && (c->prompt = with_tokens(f->prompt, t)) &&
              (c->next_user = with_tokens(f->next_user, t));

    for (size_t i = 0; i < NB_CHAT_ROLES; i++)
        ok = ok && (c->turn[i].before = with_tokens(f->turn[i].before, t)) &&
             (c->turn[i].after = with_tokens(f->turn[i].after, t));
    if (!ok || find_default_system(c, text) < 0)
        return -ENOMEM;
    c->bos = nb_tokenizer_bos(t) != NB_TOKEN_NONE &&
             (nb_tokenizer_add_bos(t) || strstr(text, "bos_token"));
    return 0;
}

int nb_chat_template_create(const struct nb_gguf *meta, const struct nb_tokenizer *t,
                            struct nb_chat_template **ret, char *ret_error, size_t error_size)
{
    struct nb_str raw;

    if (nb_gguf_str(meta, "tokenizer.chat_template", &raw) < 0)
        return fail(-ENOENT, ret_error, error_size, "the model has none (tokenizer.chat_template)");
    if (raw.len > TEMPLATE_MAX)
        return fail(-ENOTSUP, ret_error, error_size, "longer than 1 MiB");
    char *text = template_text(raw);
    struct nb_chat_template *c = calloc(1, sizeof *c);
    int r = text && c ? 0 : fail(-ENOMEM, ret_error, error_size, "no memory");
    if (r == 0 && !(c->family = recognise(text)))
        r = fail(-ENOTSUP, ret_error, error_size,
                 "of no known family: send raw text or tokens instead");
    if (r == 0 && fill(c, t, text) < 0)
        r = fail(-ENOMEM, ret_error, error_size, "no memory");
    free(text);
    if (r < 0)
        nb_chat_template_destroy(c);
    else
        *ret = c;
    return r;
}

void nb_chat_template_destroy(struct nb_chat_template *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < NB_CHAT_ROLES; i++) {
        free(c->turn[i].before);
        free(c->turn[i].after);
    }
    free(c->start);
    free(c->prompt);
    free(c->next_user);
    free(c->default_system);
    free(c);
}

const char *nb_chat_template_family(const struct nb_chat_template *c)
{
    return c->family->name;
}

// --- Rendering.

struct rendering {
    const struct nb_chat_template *c;
    struct nb_text_part *part; // room for all
    size_t n;
    const struct nb_chat_message *system; // waits for the user's turn that it stands in
    bool any_user;
};

static void add_words(struct rendering *out, const char *words)
{
    if (*words)
        out->part[out->n++] = (struct nb_text_part){words, strlen(words), true};
}

static bool is_space(uint32_t cpt)
{
    return nb_unicode_class(cpt) == NB_UNICODE_SPACE || (cpt >= 0x1c && cpt <= 0x1f);
}

static struct nb_str trimmed(struct nb_str s)
{
    size_t first = s.len, last = s.len;

    for (size_t i = 0, used; i < s.len; i += used) {
        if (is_space(nb_unicode_decode(s.data + i, s.len - i, &used)))
            continue;
        first = first == s.len ? i : first;
        last = i + used;
    }
    return (struct nb_str){s.data + first, last - first};
}

static void add_content(struct rendering *out, enum nb_chat_role role, struct nb_str content)
{
    if (out->c->family->trim & 1u << role)
        content = trimmed(content);
    out->part[out->n++] = (struct nb_text_part){content.data, content.len, false};
}

static void add_turn(struct rendering *out, enum nb_chat_role role, struct nb_str content)
{
    const struct turn *turn = &out->c->turn[role];

    if (role == NB_CHAT_USER && out->any_user)
        add_words(out, out->c->next_user);
    add_words(out, turn->before);
    if (role == NB_CHAT_USER && out->system) {
        add_words(out, out->c->turn[NB_CHAT_SYSTEM].before);
        add_content(out, NB_CHAT_SYSTEM, out->system->content);
        add_words(out, out->c->turn[NB_CHAT_SYSTEM].after);
        out->system = NULL;
    }
    add_content(out, role, content);
    add_words(out, turn->after);
    out->any_user |= role == NB_CHAT_USER;
}

// A system message that nobody sent.
static void add_default_system(struct rendering *out)
{
    const char *text = out->c->default_system;
    const struct turn *turn = &out->c->turn[NB_CHAT_SYSTEM];

    if (!text && !out->c->family->empty_system)
        return;
    add_words(out, turn->before);
    add_words(out, text ? text : "");
    add_words(out, turn->after);
}

static enum nb_chat_role role_of(struct nb_str name)
{
    size_t i = 0;

    while (i < NB_CHAT_ROLES &&
           (strlen(role_names[i]) != name.len || memcmp(role_names[i], name.data, name.len) != 0))
        i++;
    return (enum nb_chat_role)i;
}

static const char *add_message(struct rendering *out, const struct nb_chat_message *m)
{
    enum nb_chat_role role = role_of(m->role);

    if (role == NB_CHAT_ROLES)
        return "a role is none of system, user, assistant";
    if (out->system && role != NB_CHAT_USER)
        return "this model's system message stands before a user's";
    if (role == NB_CHAT_SYSTEM && out->c->family->system_in_user)
        out->system = m;
    else
        add_turn(out, role, m->content);
    return NULL;
}

int nb_chat_template_render(const struct nb_chat_template *c,
                            const struct nb_chat_message *messages, size_t n, bool add_prompt,
                            struct nb_text_part **ret, size_t *ret_n, char *ret_error,
                            size_t error_size)
{
    struct rendering out = {.c = c};
    const char *wrong = NULL;

    if (n == 0 || n > NB_CHAT_MESSAGES_MAX)
        return fail(-EINVAL, ret_error, error_size, n ? "more than 4096 messages" : "no message");
    // At most 7 parts for a message, and 5 around them all.
    out.part = malloc((n * 7 + 5) * sizeof *out.part);
    if (!out.part)
        return fail(-ENOMEM, ret_error, error_size, "no memory");
    add_words(&out, c->start);
    if (role_of(messages[0].role) != NB_CHAT_SYSTEM)
        add_default_system(&out);
    for (size_t i = 0; i < n && !wrong; i++)
        wrong = add_message(&out, &messages[i]);
    if (!wrong && out.system)
        wrong = "this model's system message stands before a user's";
    if (wrong) {
        free(out.part);
        return fail(-EINVAL, ret_error, error_size, wrong);
    }
    if (add_prompt)
        add_words(&out, c->prompt);
    *ret = out.part;
    *ret_n = out.n;
    return 0;
}

int nb_chat_template_encode(const struct nb_chat_template *c, const struct nb_tokenizer *t,
                            const struct nb_chat_message *messages, size_t n, bool add_prompt,
                            struct nb_tokens *out, char *ret_error, size_t error_size)
{
    struct nb_text_part *part = NULL;
    size_t n_parts = 0, n_before = out->n;
    int r =
        nb_chat_template_render(c, messages, n, add_prompt, &part, &n_parts, ret_error, error_size);

    if (r < 0)
        return r;
    r = c->bos ? nb_tokens_push(out, nb_tokenizer_bos(t)) : 0;
    if (r == 0)
        r = nb_tokenizer_encode_parts(t, part, n_parts, false, out);
    free(part);
    if (r < 0) {
        out->n = n_before;
        return fail(r, ret_error, error_size,
                    r == -E2BIG ? "the messages are too long" : "cannot tokenize");
    }
    return 0;
}
