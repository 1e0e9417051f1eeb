// The listings: models, devices, status, and who holds which memory.
#include <stdlib.h>

#include "tools/cli/cli.h"
#include "tools/cli/table.h"

#define AT(member) offsetof(struct nibble_model, member)
static const struct column model_columns[] = {
    {"name", "NAME", COLUMN_TEXT, AT(name)},
    {"base", "BASE", COLUMN_TEXT, AT(base)},
    {"scale", NULL, COLUMN_F64, AT(scale)},
    {"is_drafter", NULL, COLUMN_FLAG, AT(is_drafter)},
    {"architecture", "ARCH", COLUMN_TEXT, AT(architecture)},
    {"type", "TYPE", COLUMN_TEXT, AT(type)},
    {"parameters", NULL, COLUMN_U64, AT(parameters)},
    {"device", "DEVICE", COLUMN_TEXT, AT(device)},
    {"precision", "PRECISION", COLUMN_TEXT, AT(precision)},
    {"state", "STATE", COLUMN_TEXT, AT(state)},
    {"context", "CONTEXT", COLUMN_U32, AT(context)},
    {"vocab", NULL, COLUMN_U32, AT(vocab)},
    {"layers", NULL, COLUMN_U32, AT(layers)},
    {"embedding", NULL, COLUMN_U32, AT(embedding)},
    {"packed_bytes", "WEIGHTS", COLUMN_BYTES, AT(packed_bytes)},
    {"kv_type", "KV TYPE", COLUMN_TEXT, AT(kv_type)},
    {"kv_bytes", "KV", COLUMN_BYTES, AT(kv_bytes)},
    {"has_template", "TEMPLATE", COLUMN_FLAG, AT(has_template)},
    {"template_reason", NULL, COLUMN_TEXT, AT(template_reason)},
    {"embeds_only", NULL, COLUMN_FLAG, AT(embeds_only)},
    {"longest_embedded", NULL, COLUMN_U32, AT(longest_embedded)},
    {"sessions", "SESSIONS", COLUMN_U32, AT(sessions)},
    {"worker_restarts", NULL, COLUMN_U32, AT(worker_restarts)},
    {0},
};
#undef AT

#define AT(member) offsetof(struct nibble_device, member)
static const struct column device_columns[] = {
    {"name", "NAME", COLUMN_TEXT, AT(name)},
    {"description", "DESCRIPTION", COLUMN_TEXT, AT(description)},
    {"kind", "KIND", COLUMN_TEXT, AT(kind)},
    {"isa", "TIER", COLUMN_TEXT, AT(isa)},
    {"state", "STATE", COLUMN_TEXT, AT(state)},
    {"threads", NULL, COLUMN_U32, AT(threads)},
    {"memory_bytes", "MEMORY", COLUMN_BYTES, AT(memory_bytes)},
    {"used_bytes", "USED", COLUMN_BYTES, AT(used_bytes)},
    {"models", "MODELS", COLUMN_U32, AT(models)},
    {"driver", NULL, COLUMN_TEXT, AT(driver)},
    {"uuid", NULL, COLUMN_TEXT, AT(uuid)},
    {"node", "NODE", COLUMN_TEXT, AT(node)},
    {"reason", "REASON", COLUMN_TEXT, AT(reason)},
    {0},
};
#undef AT

#define AT(member) offsetof(struct nibble_holder, member)
static const struct column holder_columns[] = {
    {"role", "ROLE", COLUMN_TEXT, AT(role)},
    {"pid", "PID", COLUMN_U32, AT(pid)},
    {"uid", "UID", COLUMN_U32, AT(uid)},
    {"model", "MODEL", COLUMN_TEXT, AT(model)},
    {"sessions", "SESSIONS", COLUMN_U32, AT(sessions)},
    {"jobs", "JOBS", COLUMN_U32, AT(jobs)},
    {"shared_bytes", "SHARED", COLUMN_BYTES, AT(shared_bytes)},
    {"private_bytes", "OWN", COLUMN_BYTES, AT(private_bytes)},
    {"tokens", "TOKENS", COLUMN_U64, AT(tokens)},
    {0},
};
#undef AT

#define AT(member) offsetof(struct nibble_status, member)
static const struct column status_columns[] = {
    {"version", "version", COLUMN_TEXT, AT(version)},
    {"numerics", "numerics", COLUMN_TEXT, AT(numerics)},
    {"uptime_ms", "uptime, ms", COLUMN_U64, AT(uptime_ms)},
    {"models", "models", COLUMN_U32, AT(models)},
    {"clients", "clients", COLUMN_U32, AT(clients)},
    {"sessions", "sessions", COLUMN_U32, AT(sessions)},
    {"jobs", "jobs", COLUMN_U32, AT(jobs)},
    {"weights_bytes", "weights", COLUMN_BYTES, AT(weights_bytes)},
    {"kv_bytes", "KV set aside", COLUMN_BYTES, AT(kv_bytes)},
    {"kv_used_bytes", "KV in use", COLUMN_BYTES, AT(kv_used_bytes)},
    {"channel_bytes", "channels", COLUMN_BYTES, AT(channel_bytes)},
    {"steps", "steps", COLUMN_U64, AT(steps)},
    {"mixed_steps", "mixed steps", COLUMN_U64, AT(mixed_steps)},
    {"prefill_tokens", "prefill tokens", COLUMN_U64, AT(prefill_tokens)},
    {"decode_tokens", "decode tokens", COLUMN_U64, AT(decode_tokens)},
    {"worker_restarts", "worker restarts", COLUMN_U32, AT(worker_restarts)},
    {0},
};
#undef AT

static nibble *start(const struct verb *verb, int argc, char **argv, struct common *common,
                     int *ret_status)
{
    const struct option_spec none[] = {{0}};
    char **args;
    int n = cli_parse(verb, none, common, argc, argv, 0, 0, &args);
    nibble *connection = n < 0 ? NULL : cli_connect(common);
    *ret_status = n < 0 ? CLI_EXIT(n) : connection ? CLI_OK : CLI_FAILED;
    return connection;
}

// A verb that prints the rows which `fetch` brings.
#define DEFINE_LIST_VERB(function, row, fetch, list, columns)                                      \
    int function(const struct verb *verb, int argc, char **argv)                                   \
    {                                                                                              \
        struct common common = {0};                                                                \
        int status;                                                                                \
        nibble *connection = start(verb, argc, argv, &common, &status);                            \
        if (!connection)                                                                           \
            return status;                                                                         \
        size_t n = 0;                                                                              \
        struct row *rows = fetch(connection, &n);                                                  \
        status =                                                                                   \
            rows ? table_print(list, columns, rows, n, sizeof(*rows), common.json) : CLI_FAILED;   \
        free(rows);                                                                                \
        nibble_close(connection);                                                                  \
        return status;                                                                             \
    }
DEFINE_LIST_VERB(verb_models, nibble_model, cli_models, "models", model_columns)
DEFINE_LIST_VERB(verb_devices, nibble_device, cli_devices, "devices", device_columns)
DEFINE_LIST_VERB(verb_top, nibble_holder, cli_holders, "holders", holder_columns)

int verb_status(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    int status;
    nibble *connection = start(verb, argc, argv, &common, &status);
    if (!connection)
        return status;
    struct nibble_status s;
    int rc = nibble_get_status(connection, &s);
    status = rc < 0 ? cli_failed(connection, "status", rc)
                    : record_print(status_columns, &s, common.json);
    nibble_close(connection);
    return status;
}
