// `nibble eval`: how good models are and what they cost. This file reads what is asked and prints;
// tools/cli/eval/ measures.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/cli.h"
#include "tools/cli/eval/eval.h"
#include "tools/cli/eval/report.h"

#define MODELS_MAX 64

// Names go into JSON and charts, which are UTF-8.
static int check_name(const char *name)
{
    json_t *value = name ? json_string(name) : json_null();
    int status = value ? CLI_OK : cli_usage_error("a name is not UTF-8: %s", name);
    json_decref(value);
    return status;
}

// A path that leads nowhere is told before hours of work, not after.
static int check_path(const char *model)
{
    if (!strchr(model, '/') || access(model, R_OK) == 0)
        return CLI_OK;
    return cli_error("%s: %s", model, strerror(errno));
}

static int check_names(const struct eval *e, char **models, int n)
{
    int status = check_name(e->reference);
    if (status == CLI_OK)
        status = check_name(e->passages_file);
    for (int i = 0; i < n && status == CLI_OK; i++)
        if ((status = check_name(models[i])) == CLI_OK)
            status = check_path(models[i]);
    for (size_t i = 0; i < e->text_files.n && status == CLI_OK; i++)
        status = check_name(e->text_files.items[i]);
    for (size_t i = 0; i < e->task_files.n && status == CLI_OK; i++)
        status = check_name(e->task_files.items[i]);
    return status;
}

static int check_asked(struct eval *e)
{
    char rest;
    if (e->request) {
        if (sscanf(e->request, "%u,%u%c", &e->prompt, &e->gen, &rest) != 2 || !e->prompt ||
            e->prompt > 1u << 20 || e->gen < 2 || e->gen > 1u << 20)
            return cli_usage_error("--request: '%s' is no PROMPT,GEN, as 512,64, from 1 and 2 to "
                                   "1048576 tokens",
                                   e->request);
        e->cost = true;
    }
    e->cost = e->cost || e->price > 0;
    if (!e->text_files.n && !e->task_files.n && !e->passages_file && !e->cost)
        return cli_usage_error("--text FILE is required, or --tasks, --passages or --cost");
    if (e->passages_file && !e->reference)
        return cli_usage_error("--passages compares with a reference: --reference NAME|FILE");
    return CLI_OK;
}

// One model's members come first-hand; several are a list.
static int print_json(const json_t *found)
{
    json_t *models = json_object_get(found, "models");
    if (json_array_size(models) > 1)
        return cli_print_json(json_deep_copy(found), JSON_COMPACT);
    json_t *one = json_copy((json_t *)found);
    json_object_update(one, json_array_get(models, 0));
    json_object_del(one, "models");
    return cli_print_json(one, JSON_COMPACT);
}

static int output(const struct eval *e, json_t *found)
{
    int status = e->report ? report_write(found, e->report) : CLI_OK;
    if (status != CLI_OK)
        return status;
    if (e->common.json)
        return print_json(found);
    status = report_print(found);
    if (status == CLI_OK && e->report)
        printf("\nreport: %s/report.md\n", e->report);
    return status;
}

int verb_eval(const struct verb *verb, int argc, char **argv)
{
    struct eval e = eval_usual();
    const struct option_spec specs[] = {
        {"text", 't', OPTION_LIST(OPTION_LIST_MAX), &e.text_files, "FILE",
         "a text (may be given again; -: standard input): perplexity. Intervals: 95 %, windows as "
         "the observations"},
        {"ctx", 'c', OPTION_UINT(4, UINT32_MAX), &e.window, "N",
         "tokens of a window (default: 512)"},
        {"windows", 'w', OPTION_UINT(0, UINT32_MAX), &e.max_windows, "M",
         "windows of a text at most (default: the whole text)"},
        {"reference", 'r', OPTION_STRING, &e.reference, "NAME|FILE",
         "also KL divergence and paired differences from this model"},
        {"tasks", 0, OPTION_LIST(OPTION_LIST_MAX), &e.task_files, "FILE",
         "JSON lines of multiple choice, cloze or similarity (may be given again)"},
        {"passages", 0, OPTION_STRING, &e.passages_file, "FILE",
         "passages, one a line: cosine and recall@10 of their vectors beside the reference's"},
        {"queries", 0, OPTION_UINT(0, UINT32_MAX), &e.queries, "N",
         "passages whose nearest are searched for (default: 1000; 0: all)"},
        {"cost", 0, OPTION_FLAG, &e.cost, NULL, "also time, memory and energy"},
        {"request", 0, OPTION_STRING, &e.request, "P,G",
         "tokens of a request's prompt and answer, for --cost (default: 512,64)"},
        {"price", 0, OPTION_FLOAT(0, 1e9), &e.price, "X",
         "what the machine costs an hour, for --cost"},
        {"runs", 0, OPTION_UINT(1, 1000), &e.runs, "R",
         "requests whose median counts, for --cost (default: 3)"},
        {"seed", 0, OPTION_U64, &e.seed, "S", "of the bootstrap (default: 1)"},
        {"report", 0, OPTION_STRING, &e.report, "DIR",
         "write report.md, report.json and charts there"},
        {"precision", 0, OPTION_STRING, &e.how.precision, "P",
         "fast, balanced or exact, for a FILE (references: exact)"},
        {"device", 0, OPTION_STRING, &e.how.device, "D",
         "the device, for a FILE (default, and for references: cpu)"},
        {"kv-type", 0, OPTION_STRING, &e.how.kv_type, "T",
         "of its KV cache, for a FILE: f16 (default), q8_0 or f32 (of references, and of exact)"},
        {0},
    };
    char **args;
    int n = cli_parse(verb, specs, &e.common, argc, argv, 1, MODELS_MAX, &args);
    if (n < 0)
        return CLI_EXIT(n);
    int status = check_asked(&e);
    if (status == CLI_OK)
        status = check_names(&e, args, n);
    json_t *found = NULL;
    if (status == CLI_OK)
        status = eval_run(&e, args, n, &found);
    if (status == CLI_OK)
        status = output(&e, found);
    json_decref(found);
    return status;
}
