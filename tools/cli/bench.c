// `nibble bench`: prefill, decode and aggregate decode of several clients, as a client sees them:
// wall time through daemon and channel, medians of the runs; and what each op takes on the
// device.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/cli.h"

#define PREPARED_MS 1000 // between two questions, so that the device is idle

struct client {
    nibble *connection;
    nibble_session *session;
    nibble_job *job;
    uint32_t tokens;
    double first, last; // when its first and its last token came
    int done, error;
};

struct bench {
    struct common common;
    const char *device;
    uint32_t prompt, gen, depth, clients, runs;
    struct option_list adapters; // the clients have them in turn
    int32_t *ids;
    struct client *c;
    char measured[32]; // device
};

static void on_event(nibble_job *job, const struct nibble_event *event, void *user)
{
    struct client *c = user;
    if (event->type == NIBBLE_EVENT_TOKEN) {
        c->last = cli_now();
        if (!c->tokens++)
            c->first = c->last;
    } else if (event->type == NIBBLE_EVENT_DONE) {
        c->done = 1;
        c->error = event->error;
    }
}

// Ids that no cache knows, the same for the same seed.
static void fill_ids(struct bench *b, uint32_t n, uint32_t vocab, uint32_t seed)
{
    uint64_t x = 0x9e3779b97f4a7c15u * (seed + 1);
    for (uint32_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        b->ids[i] = (int32_t)((x >> 33) % vocab);
    }
}

static int start(struct bench *b, struct client *c, uint32_t n, uint32_t gen, uint32_t seed)
{
    struct nibble_generate_options options;
    nibble_generate_options_init(&options, sizeof(options));
    options.max_tokens = gen;
    options.ignore_eos = 1;
    c->tokens = 0;
    c->done = c->error = 0;
    fill_ids(b, n, nibble_session_model(c->session)->vocab, seed);
    struct nibble_prompt prompt = {.size = sizeof(prompt), .tokens = b->ids, .n_tokens = n};
    int rc = nibble_generate(c->session, &prompt, &options, on_event, c, &c->job);
    return rc < 0 ? cli_failed(c->connection, "bench", rc) : 0;
}

static int wait_for(struct client *c)
{
    while (!c->done) {
        int rc = nibble_dispatch(c->connection, -1);
        if (rc < 0 && rc != -EINTR)
            return cli_failed(c->connection, "bench", rc);
    }
    nibble_job_free(c->job);
    c->job = NULL;
    return c->error ? cli_failed(c->connection, "bench", c->error) : 0;
}

static int run_prefill(struct bench *b, uint32_t seed, double *ret_tps)
{
    double began = cli_now();
    if (start(b, b->c, b->prompt, 1, seed) || wait_for(b->c))
        return 1;
    *ret_tps = b->prompt / (b->c->first - began);
    return 0;
}

static int run_decode(struct bench *b, uint32_t seed, double *ret_tps)
{
    if (start(b, b->c, b->depth, b->gen, seed) || wait_for(b->c))
        return 1;
    *ret_tps = (b->c->tokens - 1) / (b->c->last - b->c->first);
    return 0;
}

static int poll_clients(struct bench *b, struct pollfd *fds, uint32_t *running)
{
    for (uint32_t i = 0; i < b->clients; i++)
        fds[i] = (struct pollfd){b->c[i].done ? -1 : nibble_get_fd(b->c[i].connection), POLLIN, 0};
    if (poll(fds, b->clients, -1) < 0 && errno != EINTR)
        return cli_error("poll: %s", strerror(errno));
    for (uint32_t i = 0; i < b->clients; i++) {
        struct client *c = &b->c[i];
        if (c->done || !fds[i].revents)
            continue;
        int rc = nibble_dispatch(c->connection, 0);
        if (rc < 0)
            return cli_failed(c->connection, "bench", rc);
        *running -= (uint32_t)c->done;
    }
    return 0;
}

// Tokens of all clients, from the first one's first to the last one's last.
static int run_aggregate(struct bench *b, uint32_t seed, double *ret_tps)
{
    struct pollfd *fds = cli_alloc(b->clients, sizeof(*fds));
    uint32_t running = b->clients, tokens = 0;
    double first = 1e300, last = 0;
    int rc = 0;
    for (uint32_t i = 0; i < b->clients && !rc; i++)
        rc = start(b, &b->c[i], b->depth, b->gen, seed + i);
    while (running && !rc)
        rc = poll_clients(b, fds, &running);
    for (uint32_t i = 0; i < b->clients && !rc; i++) {
        struct client *c = &b->c[i];
        rc = wait_for(c);
        first = c->first < first ? c->first : first;
        last = c->last > last ? c->last : last;
        tokens += c->tokens - 1;
    }
    free(fds);
    if (!rc)
        *ret_tps = tokens / (last - first);
    return rc;
}

// Figures are of a device that has finished what it does for later steps while it is idle.
static int wait_until_prepared(struct bench *b)
{
    struct nibble_counters now = {.preparing = 1};
    bool told = !isatty(STDERR_FILENO);
    while (now.preparing) {
        int rc = nibble_model_counters(b->c->session, &now);
        if (rc < 0)
            return cli_failed(b->c->connection, "bench", rc);
        if (now.preparing && !told)
            fprintf(stderr, "waiting until %s is tuned for the model\n", now.device);
        told = true;
        if (now.preparing)
            poll(NULL, 0, PREPARED_MS);
    }
    return 0;
}

static int measure(struct bench *b, json_t *result)
{
    static const struct {
        const char *key;
        int (*run)(struct bench *, uint32_t, double *);
    } parts[] = {
        {"prefill_tps", run_prefill}, {"decode_tps", run_decode}, {"aggregate_tps", run_aggregate}};
    for (size_t p = 0; p < sizeof(parts) / sizeof(parts[0]); p++) {
        double *tps = cli_alloc(b->runs, sizeof(*tps)), warm = 0;
        int rc = parts[p].run(b, 1000000, &warm);
        for (uint32_t i = 0; i < b->runs && !rc; i++) {
            rc = parts[p].run(b, 1 + 100 * i, &tps[i]);
            cli_progress(parts[p].key, i + 1, b->runs);
        }
        if (!rc)
            json_object_set_new(result, parts[p].key, json_real(cli_median(tps, b->runs)));
        free(tps);
        if (rc)
            return rc;
    }
    return 0;
}

// --- Ops: what a prefill and single tokens cost on the device, apart from the speeds above.

static int counters(struct bench *b, struct nibble_counters *ret)
{
    int rc = nibble_model_counters(b->c->session, ret);
    return rc < 0 ? cli_failed(b->c->connection, "bench", rc) : 0;
}

// One entry for each op, of the steps between two counts.
static json_t *ops(const struct nibble_counters *from, const struct nibble_counters *to,
                   uint32_t tokens)
{
    uint64_t steps = to->steps - from->steps, layered = 0;
    json_t *list = json_array();
    for (uint32_t i = 0; i < to->n_ops; i++) {
        const struct nibble_op_counter *was = &from->ops[i], *is = &to->ops[i];
        uint64_t dispatches = is->dispatches - was->dispatches;
        bool in_layer = i > 0 && i + 1 < to->n_ops; // all but the embedding and the head
        layered += in_layer ? dispatches : 0;
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:f, s:f}", "op", is->name, "device", to->device,
                            "us_per_token", (double)(is->ns - was->ns) * 1e-3 / tokens,
                            "dispatches_per_step", (double)dispatches / (double)steps));
    }
    return json_pack("{s:I, s:i, s:f, s:o}", "steps", (json_int_t)steps, "layers", (int)to->layers,
                     "dispatches_per_layer", (double)layered / (double)steps / to->layers, "ops",
                     list);
}

// The decoded tokens go on from a prompt that is in the cache, so that each of their steps is one
// row.
static int count_ops(struct bench *b, json_t *result)
{
    struct nibble_counters at[4];
    int rc = 0;
    if ((rc = counters(b, &at[0])) || (rc = start(b, b->c, b->prompt, 1, 2000000)) ||
        (rc = wait_for(b->c)) || (rc = counters(b, &at[1])) ||
        (rc = start(b, b->c, b->depth, 1, 2000001)) || (rc = wait_for(b->c)) ||
        (rc = counters(b, &at[2])) || (rc = start(b, b->c, b->depth, b->gen, 2000001)) ||
        (rc = wait_for(b->c)) || (rc = counters(b, &at[3])))
        return rc;
    if (at[1].steps == at[0].steps || at[3].steps == at[2].steps || !at[3].layers)
        return cli_error("bench: the worker was replaced while its ops were counted");
    json_object_set_new(result, "prefill", ops(&at[0], &at[1], b->prompt));
    json_object_set_new(result, "decode", ops(&at[2], &at[3], b->gen));
    return 0;
}

static void print_ops(const char *what, const json_t *part)
{
    size_t i;
    json_t *op;
    printf("%s: %lld steps, %.1f dispatches a layer\n", what,
           (long long)json_integer_value(json_object_get(part, "steps")),
           json_number_value(json_object_get(part, "dispatches_per_layer")));
    json_array_foreach(json_object_get(part, "ops"), i, op)
        printf("  %-10s %-10s %9.1f us a token, %6.1f dispatches a step\n",
               json_string_value(json_object_get(op, "op")),
               json_string_value(json_object_get(op, "device")),
               json_number_value(json_object_get(op, "us_per_token")),
               json_number_value(json_object_get(op, "dispatches_per_step")));
}

static void print_value(const char *key, const json_t *value)
{
    if (json_is_object(value))
        print_ops(key, value);
    else if (json_is_string(value))
        printf("%-14s %s\n", key, json_string_value(value));
    else
        printf("%-14s %.1f\n", key, json_number_value(value));
}

// Without drafts: each of a decode's steps has one row of each client.
static int open_clients(struct bench *b, const char *model)
{
    uint32_t longest = b->prompt > b->depth + b->gen ? b->prompt : b->depth + b->gen;
    for (uint32_t i = 0; i < b->clients; i++) {
        struct client *c = &b->c[i];
        const char *adapter = b->adapters.n ? b->adapters.items[i % b->adapters.n] : NULL;
        if (!(c->connection = cli_connect(&b->common)) ||
            !(c->session = cli_session(c->connection, model, adapter, 0, NIBBLE_DRAFTS_OFF)))
            return CLI_FAILED;
    }
    const struct nibble_model *m = nibble_session_model(b->c[0].session);
    if (cli_generates(m) != CLI_OK)
        return CLI_FAILED;
    if (longest + 1 > m->context)
        return cli_usage_error("%u tokens do not fit into the context of %u", longest + 1,
                               m->context);
    memcpy(b->measured, m->device, sizeof(b->measured));
    if (b->device && strcmp(b->device, m->device))
        return cli_usage_error("%s is on %s, not on %s; load it there first", model, m->device,
                               b->device);
    return CLI_OK;
}

static int bench_model(struct bench *b, const char *model)
{
    json_t *result = json_object();
    const char *key;
    json_t *value;
    b->c = cli_alloc(b->clients, sizeof(*b->c));
    b->ids = cli_alloc(b->prompt > b->depth ? b->prompt : b->depth, sizeof(*b->ids));
    int status = open_clients(b, model);
    if (status == CLI_OK && (wait_until_prepared(b) || measure(b, result) || count_ops(b, result)))
        status = CLI_FAILED;
    if (status == CLI_OK)
        status = cli_stayed(b->c[0].session, b->measured);
    if (status == CLI_OK) {
        const struct nibble_model *m = nibble_session_model(b->c[0].session);
        json_t *about = json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i}", "model", model,
                                  "device", m->device, "precision", m->precision, "kv_type",
                                  m->kv_type, "prompt", (int)b->prompt, "gen", (int)b->gen, "depth",
                                  (int)b->depth, "clients", (int)b->clients, "runs", (int)b->runs);
        json_object_update(result, about);
        json_decref(about);
        if (b->common.json)
            status = cli_print_json(json_incref(result), JSON_COMPACT);
        else
            json_object_foreach(result, key, value)
                print_value(key, value);
    }
    for (uint32_t i = 0; i < b->clients; i++)
        nibble_close(b->c[i].connection);
    json_decref(result);
    free(b->ids);
    free(b->c);
    return status;
}

int verb_bench(const struct verb *verb, int argc, char **argv)
{
    struct bench b = {.prompt = 512, .gen = 64, .depth = 16, .clients = 8, .runs = 5};
    const struct option_spec specs[] = {
        {"device", 0, OPTION_STRING, &b.device, "D", "fail unless the model is on this device"},
        {"prompt", 0, OPTION_UINT(1, UINT32_MAX), &b.prompt, "N",
         "tokens of the prefill (default: 512)"},
        {"gen", 0, OPTION_UINT(2, UINT32_MAX), &b.gen, "N", "tokens to decode (default: 64)"},
        {"depth", 0, OPTION_UINT(1, UINT32_MAX), &b.depth, "N",
         "tokens in the context before decoding (default: 16)"},
        {"clients", 0, OPTION_UINT(1, 1024), &b.clients, "N",
         "clients of the aggregate (default: 8)"},
        {"adapter", 0, OPTION_LIST(OPTION_LIST_MAX), &b.adapters, "NAME",
         "an adapter of the model; of several the clients have each in turn"},
        {"runs", 0, OPTION_UINT(1, UINT32_MAX), &b.runs, "R",
         "runs; the median counts (default: 5)"},
        {0},
    };
    char **args, name[CLI_NAME_SIZE];
    int n = cli_parse(verb, specs, &b.common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    int status = cli_name(args[0], name);
    return status == CLI_OK ? bench_model(&b, name) : status;
}
