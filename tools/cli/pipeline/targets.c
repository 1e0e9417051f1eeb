// Targets: a row of the table for each figure that one may ask for.
#include <math.h>
#include <string.h>

#include "tools/cli/pipeline/pipeline.h"

enum needs { NOTHING, TEXT, PASSAGES, COST };

static const struct target {
    const char *key;
    const char *part, *figure; // where a judged model has it; part NULL: at its top
    bool at_least;             // else at most
    enum needs needs;
    const char *unit;
} known[] = {
    {"size", NULL, "file_bytes", false, NOTHING, "bytes"},
    {"memory", "cost", "memory_bytes", false, COST, "bytes"},
    {"token_ms", "cost", "ms_per_token", false, COST, "ms"},
    {"request_seconds", "cost", "request_seconds", false, COST, "s"},
    {"kld", NULL, "kld_mean", false, TEXT, "nats"},
    {"perplexity", NULL, "perplexity", false, TEXT, ""},
    {"top1", NULL, "top1", true, TEXT, ""},
    {"cosine", "vectors", "cosine", true, PASSAGES, ""},
    {"recall10", "vectors", "recall10", true, PASSAGES, ""},
};
#define N_KNOWN (sizeof(known) / sizeof(known[0]))

static const struct target *find(const char *key)
{
    for (size_t i = 0; i < N_KNOWN; i++)
        if (!strcmp(known[i].key, key))
            return &known[i];
    return NULL;
}

// "72M" as a number.
static void read_size(json_t *targets, const char *key, const json_t *value)
{
    uint64_t size;
    if (json_is_string(value) && cli_parse_size(json_string_value(value), &size) == 0)
        json_object_set_new(targets, key, json_integer((json_int_t)size));
}

static int read_target(json_t *targets, const struct target *t, struct eval *judge)
{
    if (!strcmp(t->unit, "bytes"))
        read_size(targets, t->key, json_object_get(targets, t->key));
    const double value = json_number_value(json_object_get(targets, t->key));
    if (!(value > 0) || !isfinite(value))
        return cli_error("the target \"%s\" is a number above 0%s", t->key,
                         strcmp(t->unit, "bytes") ? "" : ", or a size as \"72M\"");
    if (t->needs == TEXT && !judge->text_files.n)
        return cli_error("the target \"%s\" needs text that is judged on: \"judge\": {\"text\": "
                         "[...]}, or --judge FILE",
                         t->key);
    if (t->needs == PASSAGES && !judge->passages_file)
        return cli_error("the target \"%s\" needs \"judge\": {\"passages\": FILE}", t->key);
    judge->cost = judge->cost || t->needs == COST;
    return CLI_OK;
}

int pipeline_targets_read(json_t *targets, struct eval *judge)
{
    int status = json_is_object(targets)
                     ? CLI_OK
                     : cli_error("\"targets\" is an object, as {\"size\": \"72M\", \"kld\": 0.1}");
    for (size_t i = 0; i < N_KNOWN && status == CLI_OK; i++)
        if (json_object_get(targets, known[i].key))
            status = read_target(targets, &known[i], judge);
    const char *key;
    json_t *value;
    json_object_foreach(targets, key, value)
        if (status == CLI_OK && !find(key))
            status = cli_error("\"targets\" has a key \"%.60s\" that is none: size, memory, "
                               "token_ms, request_seconds, kld, perplexity, top1, cosine, recall10",
                               key);
    return status;
}

static void miss(const struct target *t, double wanted, double found, json_t *missed)
{
    const char *bound = t->at_least ? "at least" : "at most";
    if (!strcmp(t->unit, "bytes"))
        json_array_append_new(missed, json_sprintf("%s is %s, %s %s was wanted", t->key,
                                                   cli_bytes((uint64_t)found), bound,
                                                   cli_bytes((uint64_t)wanted)));
    else if (isfinite(found))
        json_array_append_new(missed,
                              json_sprintf("%s is %.4g%s%s, %s %.4g was wanted", t->key, found,
                                           *t->unit ? " " : "", t->unit, bound, wanted));
    else
        json_array_append_new(missed, json_sprintf("%s is none of this model", t->key));
}

void pipeline_targets_missed(const json_t *targets, const json_t *judged, json_t *missed)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)targets, key, value) {
        const struct target *t = find(key);
        const json_t *figure =
            json_object_get(t->part ? json_object_get(judged, t->part) : judged, t->figure);
        const double wanted = json_number_value(value),
                     found = json_is_number(figure) ? json_number_value(figure) : NAN;
        if (!(t->at_least ? found >= wanted : found <= wanted))
            miss(t, wanted, found, missed);
    }
}
