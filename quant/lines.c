// Lines as windows (windows.h), of unequal lengths: texts of which a vector is made, conversations.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/chat_template.h"
#include "quant/windows.h"

#define DATE 1767225600 // of all conversations: 1 January 2026, so that a job goes on as it began

struct taking {
    const struct nb_tokenizer *tokenizer;
    const struct nb_chat_template *template; // of conversations
    uint32_t length;
    struct nb_tokens tokens;
    uint32_t *end; // [room]
    bool *answers; // [answers_room]; NULL of texts
    size_t answers_room;
    uint32_t n, room;
    uint32_t longest;
    uint64_t taken; // conversations so far
    struct nb_error *error;
};

// Windows and where they end are counted in 32 bits.
static int make_room(struct taking *t)
{
    if (t->tokens.n > UINT32_MAX / 2 || t->room > UINT32_MAX / 2)
        return -ENOMEM;
    if (t->n < t->room)
        return 0;
    const uint32_t room = t->room ? 2 * t->room : 1024;
    uint32_t *end = realloc(t->end, room * sizeof(*end));
    if (!end)
        return -ENOMEM;
    t->end = end;
    t->room = room;
    return 0;
}

// What is too long is cut as `nibble embed --truncate` does.
static void cut(struct taking *t, size_t first)
{
    struct nb_tokens *all = &t->tokens;
    if (all->n - first <= t->length)
        return;
    if (nb_tokenizer_add_eos(t->tokenizer))
        all->id[first + t->length - 1] = all->id[all->n - 1];
    all->n = first + t->length;
}

static void end_window(struct taking *t, size_t first)
{
    const size_t n = t->tokens.n - first;
    if (n)
        t->end[t->n++] = (uint32_t)t->tokens.n;
    t->longest = n > t->longest ? (uint32_t)n : t->longest;
}

static int take_line(struct taking *t, const char *line, size_t len)
{
    const size_t first = t->tokens.n;
    if (strspn(line, " \t\r") >= len)
        return 0;
    int rc = make_room(t);
    if (rc == 0)
        rc = nb_tokenizer_encode(t->tokenizer, line, len, false, true, &t->tokens);
    if (rc < 0)
        return nb_fail(t->error, rc, "the text cannot be tokenized: %s", strerror(-rc));
    cut(t, first);
    end_window(t, first);
    return 0;
}

static int take_piece(void *user, const char *text, size_t len)
{
    const char *end = text + len;
    int rc = 0;
    for (const char *at = text, *stop; at < end && rc == 0; at = stop + 1) {
        stop = memchr(at, '\n', (size_t)(end - at));
        stop = stop ? stop : end;
        rc = take_line(user, at, (size_t)(stop - at));
    }
    return rc;
}

// --- Conversations

// The first n messages of a conversation as ids; `asked`: with what begins an answer.
static int encode(const struct taking *t, const json_t *chat, size_t n, bool asked,
                  struct nb_tokens *ret)
{
    json_t *part = json_copy((json_t *)chat), *messages = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append(messages, json_array_get(json_object_get(chat, "messages"), i));
    json_object_set_new(part, "messages", messages);
    json_object_set_new(part, "add_generation_prompt", json_boolean(asked));
    json_object_del(part, "template"); // the model's own is learnt
    char *text = json_dumps(part, JSON_COMPACT);
    json_decref(part);
    const struct nb_str conversation = {text, text ? strlen(text) : 0};
    int rc = text ? nb_chat_template_encode(t->template, t->tokenizer, conversation, DATE, NULL,
                                            ret, t->error)
                  : -ENOMEM;
    free(text);
    return rc;
}

// How many tokens two renderings have in common at their begin.
static size_t common(const int32_t *a, size_t n_a, const int32_t *b, size_t n_b)
{
    size_t n = 0;
    while (n < n_a && n < n_b && a[n] == b[n])
        n++;
    return n;
}

// Marks the answer that is message i: what the whole has in common with the conversation up to it,
// less what it has in common with that before it. A template may have rewritten it: then it is
// none.
static int mark(struct taking *t, const json_t *chat, size_t i, size_t first)
{
    struct nb_tokens before = {0}, upto = {0};
    const int32_t *whole = t->tokens.id + first;
    const size_t n = t->tokens.n - first;
    int rc = encode(t, chat, i, true, &before);
    if (rc == 0)
        rc = encode(t, chat, i + 1, false, &upto);
    const size_t from = common(before.id, before.n, whole, n),
                 to = common(upto.id, upto.n, whole, n);
    for (size_t at = from; rc == 0 && at < to; at++)
        t->answers[first + at] = true;
    nb_tokens_finish(&before);
    nb_tokens_finish(&upto);
    return rc;
}

static int make_answers(struct taking *t, size_t first)
{
    if (t->tokens.n > t->answers_room) {
        const size_t room = 2 * t->tokens.n;
        bool *answers = realloc(t->answers, room * sizeof(*answers));
        if (!answers)
            return -ENOMEM;
        t->answers = answers;
        t->answers_room = room;
    }
    memset(t->answers + first, 0, (t->tokens.n - first) * sizeof(*t->answers));
    return 0;
}

static bool is_answer(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    return role && !strcmp(role, "assistant");
}

static int mark_answers(struct taking *t, const json_t *chat, size_t first)
{
    const json_t *messages = json_object_get(chat, "messages");
    int rc = make_answers(t, first);
    for (size_t i = 0; i < json_array_size(messages) && rc == 0; i++)
        if (is_answer(json_array_get(messages, i)))
            rc = mark(t, chat, i, first);
    return rc;
}

// The first token is no label.
static bool has_answer(const struct taking *t, size_t first)
{
    for (size_t i = first + 1; i < t->tokens.n; i++)
        if (t->answers[i])
            return true;
    return false;
}

static int take_chat(void *user, const json_t *chat)
{
    struct taking *t = user;
    const size_t first = t->tokens.n;
    char why[sizeof(t->error->text)];
    t->taken++;
    int rc = make_room(t);
    if (rc == 0)
        rc = encode(t, chat, json_array_size(json_object_get(chat, "messages")), false, &t->tokens);
    if (rc == 0)
        rc = mark_answers(t, chat, first);
    if (rc == -ENOMEM)
        return nb_fail(t->error, rc, "no memory for the conversations");
    if (rc < 0) {
        memcpy(why, t->error->text, sizeof(why));
        return nb_fail(t->error, rc, "conversation %llu: %.400s", (unsigned long long)t->taken,
                       why);
    }
    if (t->tokens.n - first > t->length)
        t->tokens.n = first + t->length;
    if (has_answer(t, first))
        end_window(t, first);
    else
        t->tokens.n = first;
    return 0;
}

// --- Both

// Takes over what was taken, or lets go of it.
static int finish(struct taking *t, int rc, struct nb_windows *ret)
{
    const struct nb_windows all = {t->n, t->longest, t->tokens.id, t->end, t->answers, 0};
    if (rc == 0 && t->n > NB_WINDOWS_MAX && nb_windows_spread(&all, NB_WINDOWS_MAX, ret) < 0)
        rc = nb_fail(t->error, -ENOMEM, "no memory for the text");
    if (rc == 0 && t->n > NB_WINDOWS_MAX)
        ret->left = t->n - NB_WINDOWS_MAX;
    if (rc == 0 && t->n <= NB_WINDOWS_MAX) {
        *ret = all;
        return 0;
    }
    nb_tokens_finish(&t->tokens);
    free(t->end);
    free(t->answers);
    return rc;
}

int nb_windows_lines(const struct nb_tokenizer *tokenizer, const struct nb_source_file *files,
                     uint32_t n_files, uint32_t length, struct nb_windows *ret,
                     struct nb_error *ret_error)
{
    struct taking t = {.tokenizer = tokenizer, .length = length, .error = ret_error};
    int rc = nb_texts_read(files, n_files, take_piece, &t, ret_error);
    if (rc == 0 && t.n == 0)
        rc = nb_fail(ret_error, -EINVAL, "the text has no line to learn from: a text a line");
    return finish(&t, rc, ret);
}

int nb_windows_chats(const struct nb_tokenizer *tokenizer, const struct nb_chat_template *template,
                     const struct nb_source_file *files, uint32_t n_files, uint32_t length,
                     struct nb_windows *ret, struct nb_error *ret_error)
{
    struct taking t = {
        .tokenizer = tokenizer, .template = template, .length = length, .error = ret_error};
    int rc = nb_texts_chats(files, n_files, take_chat, &t, ret_error);
    if (rc == 0 && t.n == 0)
        rc = nb_fail(ret_error, -EINVAL,
                     "no conversation has an answer within %u tokens: give such, or longer windows "
                     "(--length)",
                     length);
    return finish(&t, rc, ret);
}
