// `nibble tokenize`: the ids of a text, as the daemon's tokenizer has them.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli/cli.h"

static int print_ids(const int32_t *ids, size_t n, bool json)
{
    if (!json) {
        for (size_t i = 0; i < n; i++)
            printf("%s%" PRId32, i ? " " : "", ids[i]);
        putchar('\n');
        return CLI_OK;
    }
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(array, json_integer(ids[i]));
    return cli_print_json(json_pack("{s:o}", "tokens", array), JSON_COMPACT);
}

static int tokenize(nibble *connection, const char *model, const char *text, size_t len,
                    unsigned flags, bool json)
{
    // Room for the text, three ids for each byte, and the channel's alignment.
    nibble_session *session =
        cli_session(connection, model, NULL, len + 12 * len + 65536, NIBBLE_DRAFTS_OFF);
    int32_t *ids = NULL;
    int n = session ? cli_tokenize(connection, session, model, text, len, flags, &ids) : -1;
    int status = n < 0 ? CLI_FAILED : print_ids(ids, (size_t)n, json);
    free(ids);
    nibble_session_close(session);
    return status;
}

int verb_tokenize(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    bool special = false, bos = false;
    const char *file = NULL;
    const struct option_spec specs[] = {
        {"file", 'f', OPTION_STRING, &file, "FILE", "the text is the file's (-: standard input)"},
        {"special", 0, OPTION_FLAG, &special, NULL, "special tokens in the text count as such"},
        {"bos", 0, OPTION_FLAG, &bos, NULL, "begin as the model wants a text to begin"},
        {0},
    };
    char **args, name[CLI_NAME_SIZE];
    int n = cli_parse(verb, specs, &common, argc, argv, 1, 2, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if ((n == 2) == (file != NULL))
        return cli_usage_error("give the text either as TEXT or by --file");
    int status = cli_name(args[0], name);
    if (status != CLI_OK)
        return status;
    size_t len = 0;
    char *text = file ? cli_read_file(file, &len) : strdup(args[1]);
    nibble *connection = text ? cli_connect(&common) : NULL;
    if (!file && text)
        len = strlen(text);
    unsigned flags = (special ? NIBBLE_TOKENIZE_SPECIAL : 0) | (bos ? NIBBLE_TOKENIZE_BOS : 0);
    status = connection ? tokenize(connection, name, text, len, flags, common.json) : CLI_FAILED;
    nibble_close(connection);
    free(text);
    return status;
}
