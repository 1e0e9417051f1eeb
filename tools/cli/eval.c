// `nibble eval`: how good models are and what they cost. This file reads what is asked, opens the
// models one after the other and prints; tools/cli/eval/ measures.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/cli.h"
#include "tools/cli/eval/cost.h"
#include "tools/cli/eval/eval.h"
#include "tools/cli/eval/grid.h"
#include "tools/cli/eval/report.h"
#include "tools/cli/eval/scoring.h"
#include "tools/cli/eval/tasks.h"
#include "tools/cli/eval/vectors.h"

#define MODELS_MAX 64

// What the reference has answered, once for all models.
struct reference {
    struct eval_model model;
    struct eval_answers *answers[OPTION_LIST_MAX];
};

// --- Input

static int read_input(const char *name, struct eval_input *ret)
{
    ret->name = name;
    ret->data = cli_read_file(name, &ret->len);
    return ret->data ? CLI_OK : CLI_FAILED;
}

static int read_inputs(struct eval *e)
{
    int status = CLI_OK;
    for (size_t i = 0; i < e->text_files.n && status == CLI_OK; i++)
        status = read_input(e->text_files.items[i], &e->texts[i]);
    for (size_t i = 0; i < e->task_files.n && status == CLI_OK; i++)
        if (!(e->tasks[i] = eval_task_read(e->task_files.items[i])))
            status = CLI_FAILED;
    if (status == CLI_OK && e->passages_file)
        status = read_input(e->passages_file, &e->passages);
    return status;
}

static void free_inputs(struct eval *e)
{
    for (size_t i = 0; i < OPTION_LIST_MAX; i++) {
        free(e->texts[i].data);
        eval_task_destroy(e->tasks[i]);
    }
    free(e->passages.data);
}

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

// --- Models

static int answer_tasks(const struct eval *e, struct reference *r)
{
    for (size_t i = 0; i < e->task_files.n; i++)
        if (!(r->answers[i] = eval_task_run(e->tasks[i], &r->model)))
            return CLI_FAILED;
    return CLI_OK;
}

static int open_reference(const struct eval *e, struct reference *r)
{
    const struct nibble_load_options how = {.precision =
                                                access(e->reference, R_OK) ? NULL : "exact"};
    int status = eval_model_open(e, e->reference, "the reference", &how, &r->model);
    return status == CLI_OK ? answer_tasks(e, r) : status;
}

static void close_reference(struct reference *r)
{
    for (size_t i = 0; i < OPTION_LIST_MAX; i++)
        eval_answers_destroy(r->answers[i]);
    eval_model_close(&r->model);
}

static json_t *describe_model(const struct eval_model *m)
{
    uint64_t bytes = eval_file_bytes(m);
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:o, s:I}", "model", m->given,
                     "architecture", m->about.architecture, "type", m->about.type, "device",
                     m->about.device, "precision", m->about.precision, "kv_type", m->about.kv_type,
                     "parameters", (json_int_t)m->about.parameters, "file_bytes",
                     bytes ? json_integer((json_int_t)bytes) : json_null(), "weights_bytes",
                     (json_int_t)m->about.packed_bytes);
}

static int run_tasks(const struct eval *e, struct eval_model *m, const struct reference *r,
                     json_t *result)
{
    json_t *rows = json_array();
    int status = CLI_OK;
    for (size_t i = 0; i < e->task_files.n && status == CLI_OK; i++) {
        struct eval_answers *answers = eval_task_run(e->tasks[i], m);
        if (answers)
            json_array_append_new(
                rows, eval_task_describe(e->tasks[i], answers, r ? r->answers[i] : NULL, e->seed));
        else
            status = CLI_FAILED;
        eval_answers_destroy(answers);
    }
    json_object_set_new(result, "tasks", rows);
    return status;
}

static int measure(const struct eval *e, struct eval_model *m, struct reference *r, json_t *result)
{
    struct eval_model *reference = r ? &r->model : NULL;
    int status = CLI_OK;
    if (e->text_files.n)
        status = eval_texts(e, m, reference, result);
    if (status == CLI_OK && e->task_files.n)
        status = run_tasks(e, m, r, result);
    if (status == CLI_OK && e->passages_file)
        status = eval_vectors(e, m, reference, result);
    if (status == CLI_OK && e->cost)
        status = eval_cost(e, m, result);
    return status == CLI_OK ? cli_stayed(m->session, m->about.device) : status;
}

static int eval_model(const struct eval *e, const char *name, struct reference *r, json_t *models)
{
    struct eval_model m;
    int status = eval_model_open(e, name, "the model", &e->how, &m);
    if (status == CLI_OK) {
        json_t *result = describe_model(&m);
        status = measure(e, &m, r, result);
        json_array_append_new(models, result);
    }
    eval_model_close(&m);
    return status;
}

// --- Output

static json_t *describe_method(const struct eval *e)
{
    json_t *method = json_object();
    if (e->text_files.n)
        json_object_update_new(
            method,
            json_pack("{s:s, s:i, s:s, s:s}", "scored", "the second half of each window's tokens",
                      "window", (int)e->window, "intervals",
                      "95 %; a window is one observation (cluster-robust): mean of the windows' "
                      "means, Student t; differences of the same windows, paired",
                      "kld_99 and kld_max",
                      "percentile bootstrap of whole windows; no sample exceeds the maximum seen"));
    if (e->task_files.n)
        json_object_set_new(method, "tasks",
                            json_string("shares by Wilson; differences by Agresti and Min; p by "
                                        "McNemar's exact test; means by Student t; Spearman by "
                                        "percentile bootstrap of pairs"));
    if (e->passages_file)
        json_object_set_new(method, "vectors",
                            json_string("passages are the observations, Student t; recall of the "
                                        "reference's ten nearest, the passage itself left out"));
    if (e->cost)
        json_object_set_new(method, "cost",
                            json_string("medians; requests alone, one after the other; memory: "
                                        "weights and what is set aside for KV"));
    json_object_update_new(
        method, json_pack("{s:i, s:I}", "resamples", STATS_RESAMPLES, "seed", (json_int_t)e->seed));
    return method;
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

// What tables and charts call the models: their short names, or what was given where two are alike.
static void set_labels(json_t *models)
{
    size_t n = json_array_size(models);
    char **names = cli_alloc(n, sizeof(*names));
    for (size_t i = 0; i < n; i++)
        names[i] =
            grid_short_name(json_string_value(json_object_get(json_array_get(models, i), "model")));
    for (size_t i = 0; i < n; i++) {
        json_t *model = json_array_get(models, i);
        bool alone = true;
        for (size_t k = 0; k < n; k++)
            alone = alone && (k == i || strcmp(names[i], names[k]) != 0);
        json_object_set_new(model, "label",
                            alone ? json_string(names[i])
                                  : json_incref(json_object_get(model, "model")));
    }
    for (size_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

static int eval_all(struct eval *e, char **names, int n)
{
    struct reference r = {0};
    json_t *models = json_array();
    int status = e->reference ? open_reference(e, &r) : CLI_OK;
    for (int i = 0; i < n && status == CLI_OK; i++)
        status = eval_model(e, names[i], e->reference ? &r : NULL, models);
    close_reference(&r);
    set_labels(models);
    json_t *found = json_pack("{s:o, s:o}", "method", describe_method(e), "models", models);
    if (e->reference)
        json_object_set_new(found, "reference", json_string(e->reference));
    if (status == CLI_OK)
        status = output(e, found);
    json_decref(found);
    return status;
}

int verb_eval(const struct verb *verb, int argc, char **argv)
{
    struct eval e = {
        .window = 512, .prompt = 512, .gen = 64, .runs = 3, .queries = 1000, .seed = 1};
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
    if (status == CLI_OK)
        status = read_inputs(&e);
    if (status == CLI_OK)
        status = eval_all(&e, args, n);
    free_inputs(&e);
    return status;
}
