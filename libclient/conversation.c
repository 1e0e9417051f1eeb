// Conversations: what a caller says of one, as the single JSON text that the worker takes
// (docs/protocol.md). Messages and templates are escaped; JSON of the caller's own is checked and
// spliced in as it is. What any of it means is not looked at.
#include "libclient/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "libclient/json.h"
#include "libclient/sentence.h"

// Written twice: first to nowhere, for the size.
struct out {
    char *at; // NULL: nowhere
    uint64_t n;
};

static void put(struct out *out, const char *bytes, size_t n)
{
    if (out->at)
        memcpy(out->at + out->n, bytes, n);
    out->n += n;
}

static void put_text(struct out *out, const char *text)
{
    put(out, text, strlen(text));
}

static void put_string(struct out *out, const char *text)
{
    put(out, "\"", 1);
    while (*text) {
        size_t plain = 0;
        while ((unsigned char)text[plain] >= 0x20 && text[plain] != '"' && text[plain] != '\\')
            plain++;
        put(out, text, plain);
        text += plain;
        if (!*text)
            break;
        char escape[7];
        bool quoted = *text == '"' || *text == '\\';
        snprintf(escape, sizeof(escape), quoted ? "\\%c" : "\\u%04x", (unsigned char)*text++);
        put_text(out, escape);
    }
    put(out, "\"", 1);
}

static void put_messages(struct out *out, const struct nibble_chat *chat)
{
    for (size_t i = 0; i < chat->n_messages; i++) {
        put_text(out, i ? ",{\"role\":" : "[{\"role\":");
        put_string(out, chat->messages[i].role);
        put_text(out, ",\"content\":");
        put_string(out, chat->messages[i].content);
        put_text(out, "}");
    }
    put_text(out, chat->n_messages ? "]" : "[]");
}

// The members that are JSON already.
#define JSON_PARTS 4
struct json_part {
    const char *key, *name, *text;
    char opens;
};

static void json_parts(const struct nibble_chat *chat, struct json_part ret[JSON_PARTS])
{
    const struct json_part parts[JSON_PARTS] = {
        {"{\"messages\":", "messages_json", chat->messages_json, '['},
        {",\"tools\":", "tools_json", chat->tools_json, '['},
        {",\"documents\":", "documents_json", chat->documents_json, '['},
        {",\"variables\":", "variables_json", chat->variables_json, '{'},
    };
    memcpy(ret, parts, sizeof(parts));
}

static void put_conversation(struct out *out, const struct nibble_chat *chat)
{
    struct json_part parts[JSON_PARTS];
    json_parts(chat, parts);
    for (size_t i = 0; i < JSON_PARTS; i++) {
        if (i && !parts[i].text)
            continue;
        put_text(out, parts[i].key);
        if (parts[i].text)
            put_text(out, parts[i].text);
        else
            put_messages(out, chat);
    }
    if (chat->template_text) {
        put_text(out, ",\"template\":");
        put_string(out, chat->template_text);
    }
    if (chat->no_generation_prompt)
        put_text(out, ",\"add_generation_prompt\":false");
    put_text(out, "}");
}

// ---- Checks ----

static int check_utf8(nibble *c, const char *text, const char *what, size_t which)
{
    size_t n = strlen(text), valid = nb_utf8_valid(text, n);
    if (valid == n)
        return 0;
    char number[40] = "";
    if (which)
        snprintf(number, sizeof(number), " of message %zu", which);
    return nb_fail(c, -EILSEQ, "the %s%s is not UTF-8 from its byte %zu on: convert it", what,
                   number, valid + 1);
}

static int check_messages(nibble *c, const struct nibble_chat *chat)
{
    for (size_t i = 0; i < chat->n_messages; i++) {
        const struct nibble_message *message = &chat->messages[i];
        if (!message->role || !message->content)
            return nb_fail(c, -EINVAL, "message %zu has no %s", i + 1,
                           message->role ? "content" : "role");
        int rc = check_utf8(c, message->role, "role", i + 1);
        if (rc == 0)
            rc = check_utf8(c, message->content, "content", i + 1);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int check_json(nibble *c, const struct json_part *part)
{
    struct nb_json_fault fault;
    int rc = part->text ? nb_json_check(part->text, strlen(part->text), part->opens, &fault) : 0;
    if (rc < 0)
        nb_fail(c, rc, "%s, line %zu, column %zu: %s", part->name, fault.line, fault.column,
                fault.what);
    return rc;
}

static int check(nibble *c, const struct nibble_chat *chat)
{
    if (!chat->messages == !chat->messages_json)
        return nb_fail(c, -EINVAL, "a conversation has exactly one of messages and messages_json");
    struct json_part parts[JSON_PARTS];
    json_parts(chat, parts);
    int rc = chat->messages ? check_messages(c, chat) : 0;
    for (size_t i = 0; i < JSON_PARTS && rc == 0; i++)
        rc = check_json(c, &parts[i]);
    if (rc == 0 && chat->template_text)
        rc = check_utf8(c, chat->template_text, "template", 0);
    return rc;
}

int nb_conversation_write(nibble *c, const struct nibble_chat *given, char **ret_text,
                          uint64_t *ret_size)
{
    struct nibble_chat own, *chat = &own;
    int rc = nb_options_read(c, NB_OPTIONS_CHAT, given, chat);
    if (rc == 0)
        rc = check(c, chat);
    if (rc < 0)
        return rc;
    struct out out = {0};
    put_conversation(&out, chat);
    if (out.n > NB_TEXT_MAX)
        return nb_fail(c, NIBBLE_E_QUOTA,
                       "the conversation has %llu bytes as JSON, at most %u: leave out its oldest "
                       "messages",
                       (unsigned long long)out.n, NB_TEXT_MAX);
    out = (struct out){.at = malloc(out.n + 1)};
    if (!out.at)
        return nb_fail(c, -ENOMEM, "out of memory");
    put_conversation(&out, chat);
    *ret_text = out.at;
    *ret_size = out.n;
    return 0;
}
