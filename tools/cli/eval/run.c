// Measures models beside their reference: everything that eval knows, of each of them in turn.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/eval/cost.h"
#include "tools/cli/eval/eval.h"
#include "tools/cli/eval/grid.h"
#include "tools/cli/eval/scoring.h"
#include "tools/cli/eval/tasks.h"
#include "tools/cli/eval/vectors.h"

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
        e->texts[i] = (struct eval_input){0};
        e->tasks[i] = NULL;
    }
    free(e->passages.data);
    e->passages = (struct eval_input){0};
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

// --- What was found

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

void eval_label(json_t *models)
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

struct eval eval_usual(void)
{
    return (struct eval){
        .window = 512, .prompt = 512, .gen = 64, .runs = 3, .queries = 1000, .seed = 1};
}

int eval_run(struct eval *e, char *const *names, int n, json_t **ret_found)
{
    struct reference r = {0};
    json_t *models = json_array();
    int status = read_inputs(e);
    if (status == CLI_OK && e->reference)
        status = open_reference(e, &r);
    for (int i = 0; i < n && status == CLI_OK; i++)
        status = eval_model(e, names[i], e->reference ? &r : NULL, models);
    close_reference(&r);
    free_inputs(e);
    eval_label(models);
    *ret_found = json_pack("{s:o, s:o}", "method", describe_method(e), "models", models);
    if (e->reference)
        json_object_set_new(*ret_found, "reference", json_string(e->reference));
    return status;
}
