// `nibble render`: what a conversation becomes by the model's template, as text and as token ids.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/run.h"

#define ROOM (1 << 16) // bytes, and ids, that are enough for most

struct rendering {
    char *text;
    size_t len;
    int32_t *ids;
    size_t n_ids;
};

static int print_rendering(const struct rendering *r, bool json)
{
    if (json) {
        json_t *ids = json_array();
        for (size_t i = 0; i < r->n_ids; i++)
            json_array_append_new(ids, json_integer(r->ids[i]));
        return cli_print_json(
            json_pack("{s:o, s:o}", "text", json_stringn(r->text, r->len), "ids", ids),
            JSON_COMPACT);
    }
    fwrite(r->text, 1, r->len, stdout);
    if (isatty(STDOUT_FILENO)) // to a file go the bytes alone
        putchar('\n');
    return CLI_OK;
}

static int render(nibble *connection, nibble_session *session, const struct nibble_chat *chat,
                  bool json)
{
    size_t room = ROOM, ids_room = ROOM;
    for (;;) {
        struct rendering r = {.text = cli_alloc(room, 1),
                              .ids = cli_alloc(ids_room, sizeof(*r.ids))};
        int n = nibble_render(session, chat, r.text, room, r.ids, ids_room, &r.n_ids);
        bool fits = n < 0 || ((size_t)n <= room && r.n_ids <= ids_room);
        int status = CLI_OK;
        r.len = n > 0 ? (size_t)n : 0;
        if (n < 0)
            status = cli_failed(connection, "render", n);
        else if (fits)
            status = print_rendering(&r, json);
        room = r.len > room ? r.len : room;
        ids_room = r.n_ids > ids_room ? r.n_ids : ids_room;
        free(r.text);
        free(r.ids);
        if (fits)
            return status;
    }
}

static int render_prompt(const struct common *common, const char *name, struct conversation *c,
                         const char *text, bool open)
{
    int status = text ? conversation_add(c, "user", text, NULL) : CLI_OK;
    if (status != CLI_OK)
        return status;
    nibble *connection = cli_connect(common);
    nibble_session *session =
        connection ? cli_session(connection, name, NULL, conversation_room(c), NIBBLE_DRAFTS_OFF)
                   : NULL;
    status = session ? conversation_check(c, nibble_session_model(session)) : CLI_FAILED;
    struct nibble_chat chat = conversation_chat(c);
    chat.no_generation_prompt = open;
    if (status == CLI_OK)
        status = render(connection, session, &chat, common->json);
    nibble_session_close(session);
    nibble_close(connection);
    return status;
}

int verb_render(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    struct conversation_options about = {0};
    struct conversation conversation = {0};
    bool open = false;
    const struct option_spec specs[] = {
        CONVERSATION_OPTIONS(&about),
        {"no-generation-prompt", 0, OPTION_FLAG, &open, NULL,
         "end after the last message, without the words that begin the answer"},
        {0},
    };
    char **args, name[CLI_NAME_SIZE], *text = NULL;
    size_t len = 0;
    int n = cli_parse(verb, specs, &common, argc, argv, 1, 2, &args);
    if (n < 0)
        return CLI_EXIT(n);
    const char *prompt = n == 2 ? args[1] : NULL;
    int status = cli_name(args[0], name);
    if (status == CLI_OK)
        status = prompt_check(prompt, &about);
    if (status == CLI_OK)
        status = conversation_init(&conversation, &about);
    if (status == CLI_OK)
        status = prompt_read(prompt, &about, &text, &len);
    if (status == CLI_OK && !text && !about.messages_file)
        status = cli_error("there is no PROMPT, and standard input is empty");
    if (status == CLI_OK)
        status = render_prompt(&common, name, &conversation, text, open);
    conversation_finish(&conversation);
    free(text);
    return status;
}
