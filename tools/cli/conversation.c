// A conversation as the library takes it, from options, files and turns. What it becomes is the
// template's.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli/run.h"

#define MARK_MAX 40 // bytes of a think mark

// A file that is text, or NULL after saying why not; *ret_status is set then.
static char *read_text(const char *path, int *ret_status)
{
    size_t len = 0;
    char *text = path ? cli_read_file(path, &len) : NULL;
    if (path && text && strlen(text) < len) {
        cli_error("%s has a NUL byte at offset %zu: it is no text", path, strlen(text));
        free(text);
        text = NULL;
    }
    if (path && !text)
        *ret_status = CLI_FAILED;
    return text;
}

// The array in a file of JSON, or NULL after saying what is wrong and where; *ret_status is set
// then.
static json_t *read_array(const char *path, const char *what, const char *example, int *ret_status)
{
    json_error_t error;
    char *text = read_text(path, ret_status);
    const char *name = path && !strcmp(path, "-") ? "standard input" : path;
    json_t *array = text ? json_loads(text, JSON_REJECT_DUPLICATES, &error) : NULL;
    if (text && !array)
        *ret_status = cli_error("%s, line %d, column %d: %s", name, error.line, error.column,
                                json_error_code(&error) == json_error_null_character
                                    ? "a NUL byte (\\u0000), which is not allowed"
                                    : error.text);
    if (array && !json_is_array(array)) {
        *ret_status = cli_error("%s: %s are a JSON array, as %s", name, what, example);
        json_decref(array);
        array = NULL;
    }
    free(text);
    return array;
}

static int read_messages(struct conversation *c, const struct conversation_options *options)
{
    int status = CLI_OK;
    c->messages = read_array(options->messages_file, "messages",
                             "[{\"role\": \"user\", \"content\": \"Hello\"}]", &status);
    if (status == CLI_OK && !c->messages)
        c->messages = json_array();
    return status;
}

// The array in a file as the library takes it, malloc'ed; NULL: there is none.
static char *read_list(const char *path, const char *what, const char *example, int *ret_status)
{
    json_t *array = read_array(path, what, example, ret_status);
    char *text = array ? json_dumps(array, JSON_COMPACT) : NULL;
    if (array && !text)
        exit(cli_error("out of memory"));
    json_decref(array);
    return text;
}

static int put_system(struct conversation *c, const char *system)
{
    const char *first = json_string_value(json_object_get(json_array_get(c->messages, 0), "role"));
    if (!system)
        return CLI_OK;
    if (first && !strcmp(first, "system"))
        return cli_usage_error("--system: the messages begin with a system message already");
    json_t *message = json_pack("{s:s, s:s}", "role", "system", "content", system);
    if (!message || json_array_insert_new(c->messages, 0, message) < 0)
        return cli_error("--system is no UTF-8");
    return CLI_OK;
}

// NAME=JSON. What is no JSON is a string, as people type it, unless it was meant as something else.
static int put_variable(json_t *variables, const char *item)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
    static const char *const python[] = {"True", "False", "None"};
    const char *equals = strchr(item, '='), *value = equals ? equals + 1 : "";
    size_t len = equals ? (size_t)(equals - item) : 0;
    if (!len || !strchr(letters, *item) || strcspn(item, " \t\n=") != len)
        return cli_usage_error("--template-var: '%s' is not NAME=JSON", item);
    for (size_t i = 0; i < 3; i++)
        if (!strcmp(value, python[i]))
            return cli_usage_error("--template-var %.*s: JSON writes %s", (int)len, item,
                                   (const char *[]){"true", "false", "null"}[i]);
    if (json_object_getn(variables, item, len))
        return cli_usage_error("--template-var %.*s is given twice", (int)len, item);
    json_error_t error;
    json_t *json = json_loads(value, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &error);
    if (!json && *value && strchr("{[\"", *value))
        return cli_usage_error("--template-var %.*s: '%s' is no JSON: %s", (int)len, item, value,
                               error.text);
    if (!json)
        json = json_string(value);
    if (!json || json_object_setn_new(variables, item, len, json) < 0)
        return cli_usage_error("--template-var %.*s is no UTF-8", (int)len, item);
    return CLI_OK;
}

static int put_variables(struct conversation *c, const struct option_list *items)
{
    json_t *variables = json_object();
    int status = CLI_OK;
    for (size_t i = 0; i < items->n && status == CLI_OK; i++)
        status = put_variable(variables, items->items[i]);
    if (status == CLI_OK && items->n)
        c->variables = json_dumps(variables, JSON_COMPACT);
    json_decref(variables);
    return status;
}

int conversation_init(struct conversation *c, const struct conversation_options *options)
{
    *c = (struct conversation){.has_raw = options->has_raw};
    int status = read_messages(c, options);
    if (status == CLI_OK)
        status = put_system(c, options->system);
    if (status == CLI_OK)
        status = put_variables(c, &options->variables);
    if (status == CLI_OK)
        c->tools =
            read_list(options->tools_file, "tools",
                      "[{\"type\": \"function\", \"function\": {\"name\": \"weather\"}}]", &status);
    if (status == CLI_OK)
        c->documents = read_list(options->documents_file, "documents",
                                 "[{\"title\": \"Skies\", \"text\": \"They are blue.\"}]", &status);
    if (status == CLI_OK)
        c->template_text = read_text(options->template_file, &status);
    if (status != CLI_OK)
        conversation_finish(c);
    return status;
}

int conversation_check(const struct conversation *c, const struct nibble_model *model)
{
    // Of one that is not ready the template is not known yet.
    if (cli_generates(model) != CLI_OK)
        return CLI_FAILED;
    if (model->has_template || c->template_text || strcmp(model->state, "ready") != 0)
        return CLI_OK;
    char lack[CLI_LACK_SIZE];
    return cli_error("%s %s: %s--template FILE brings a template", model->name,
                     cli_template_lack(model, lack),
                     c->has_raw ? "--raw goes on from a text as it is, " : "");
}

void conversation_finish(struct conversation *c)
{
    json_decref(c->messages);
    free(c->tools);
    free(c->documents);
    free(c->variables);
    free(c->template_text);
    free(c->written);
    *c = (struct conversation){0};
}

// How long a think mark is that the text begins with, as <think> or [/THINK]; 0: it begins with
// none.
static size_t mark_length(const char *text)
{
    static const char *const words[] = {"[THINK]", "[/THINK]"};
    for (size_t i = 0; i < 2; i++)
        if (!strncmp(text, words[i], strlen(words[i])))
            return strlen(words[i]);
    size_t n = *text == '<' ? strcspn(text, ">\n") : MARK_MAX;
    return n < MARK_MAX && text[n] == '>' ? n + 1 : 0;
}

// What was thought, malloc'ed, without the marks around it: templates write their own.
static char *without_marks(const char *reasoning)
{
    const char *from = reasoning + strspn(reasoning, " \n");
    from += mark_length(from);
    // gpt-oss: <|channel|>analysis<|message|>
    size_t word = strspn(from, "abcdefghijklmnopqrstuvwxyz");
    from += from[word] == '<' ? word + mark_length(from + word) : 0;
    from += strspn(from, " \n");
    char *text = strdup(from);
    size_t len = text ? strlen(text) : 0;
    for (size_t at = len; at > 0 && len - at < MARK_MAX; at--)
        if (mark_length(text + at - 1) == len - at + 1)
            text[len = at - 1] = '\0';
    while (len && strchr(" \n", text[len - 1]))
        text[--len] = '\0';
    return text;
}

int conversation_add(struct conversation *c, const char *role, const char *content,
                     const char *reasoning)
{
    char *thought = reasoning ? without_marks(reasoning) : NULL;
    json_t *message = json_pack("{s:s, s:s, s:s*}", "role", role, "content", content,
                                "reasoning_content", thought);
    free(thought);
    if (!message || json_array_append_new(c->messages, message) < 0)
        return cli_error("a message is UTF-8, and this one is not%s",
                         c->has_raw ? " (--raw takes any bytes)" : "");
    return CLI_OK;
}

void conversation_take_back(struct conversation *c)
{
    json_array_remove(c->messages, json_array_size(c->messages) - 1);
}

static bool is_of(const struct conversation *c, size_t i, const char *role)
{
    const char *is = json_string_value(json_object_get(json_array_get(c->messages, i), "role"));
    return is && !strcmp(is, role);
}

bool conversation_forget(struct conversation *c)
{
    size_t first = 0;
    while (is_of(c, first, "system"))
        first++;
    if (first == json_array_size(c->messages))
        return false;
    do
        json_array_remove(c->messages, first);
    while (first < json_array_size(c->messages) && !is_of(c, first, "user"));
    return true;
}

uint64_t conversation_room(struct conversation *c)
{
    const struct nibble_chat chat = conversation_chat(c);
    const char *parts[] = {chat.messages_json, chat.tools_json, chat.documents_json,
                           chat.variables_json, chat.template_text};
    uint64_t size = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        size += parts[i] ? strlen(parts[i]) : 0;
    return cli_room(size);
}

struct nibble_chat conversation_chat(struct conversation *c)
{
    free(c->written);
    c->written = json_dumps(c->messages, JSON_COMPACT);
    if (!c->written)
        exit(cli_error("out of memory"));
    return (struct nibble_chat){.size = sizeof(struct nibble_chat),
                                .messages_json = c->written,
                                .tools_json = c->tools,
                                .documents_json = c->documents,
                                .variables_json = c->variables,
                                .template_text = c->template_text};
}
