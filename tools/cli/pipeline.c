// `nibble pipeline`: a model made smaller in steps, each a job of the service and each judged, to
// given targets. What is made lies in a folder, from which the same command goes on.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/eval/report.h"
#include "tools/cli/jobs.h"
#include "tools/cli/pipeline/pipeline.h"

struct asked {
    const char *recipe, *to;
    struct option_list texts, judge;
    uint64_t size;       // 0: not said
    uint64_t tokens;     // UINT64_MAX: not said
    uint32_t windows;    // 0: not said
    float token_ms, kld; // NAN: not said
};

// What is done without a recipe: types alone beside a student in one type, at the same size.
static json_t *usual_recipe(const struct asked *a)
{
    json_t *student =
        json_pack("{s:{s:i, s:s}, s:{s:[f, f, f], s:i}}", "distill", "tokens", 0, "weights", "fit",
                  "search", "layers", 0.99, 0.8, 0.6, "tokens", 16384);
    json_t *healed = json_pack("{s:{s:I}}", "distill", "tokens",
                               (json_int_t)(a->tokens != UINT64_MAX ? a->tokens : 1000000));
    json_t *types = json_pack("{s:{s:s, s:s}}", "compress", "target", "fit", "method", "gptq");
    json_t *rounded =
        json_pack("{s:{s:s, s:s}}", "compress", "to", a->to ? a->to : "Q4_0", "method", "gptq");
    return json_pack("{s:{s:o, s:o, s:o, s:o}, s:[[s], [s, s, s]]}", "steps", "types", types,
                     "student", student, "healed", healed, "rounded", rounded, "chains", "types",
                     "student", "healed", "rounded");
}

static void put_list(json_t *object, const char *key, const struct option_list *list)
{
    json_t *items = json_array();
    for (size_t i = 0; i < list->n; i++)
        json_array_append_new(items, json_string(list->items[i]));
    if (list->n)
        json_object_set(object, key, items);
    json_decref(items);
}

static json_t *part(json_t *recipe, const char *key)
{
    json_t *found = json_object_get(recipe, key);
    if (!found)
        json_object_set_new(recipe, key, found = json_object());
    return found;
}

// What the command's options say goes before the recipe's own.
static void put_options(const struct asked *a, json_t *recipe)
{
    put_list(recipe, "text", &a->texts);
    if (a->judge.n)
        put_list(part(recipe, "judge"), "text", &a->judge);
    if (a->windows)
        json_object_set_new(part(recipe, "judge"), "windows", json_integer(a->windows));
    if (a->size)
        json_object_set_new(part(recipe, "targets"), "size", json_integer((json_int_t)a->size));
    if (!isnan(a->token_ms))
        json_object_set_new(part(recipe, "targets"), "token_ms", json_real((double)a->token_ms));
    if (!isnan(a->kld))
        json_object_set_new(part(recipe, "targets"), "kld", json_real((double)a->kld));
}

static int make_recipe(const struct asked *a, json_t **ret)
{
    int status = CLI_OK;
    if (a->recipe && (a->to || a->tokens != UINT64_MAX))
        return cli_usage_error("--to and --tokens are of a pipeline without --recipe");
    if (!a->recipe && !a->size)
        return cli_usage_error("pipeline needs --recipe FILE, or --target-size SIZE and --text "
                               "FILE");
    if (a->recipe)
        status = jobs_read_recipe(a->recipe, ret);
    else if (!(*ret = usual_recipe(a)))
        status = cli_error("--to is UTF-8");
    if (status == CLI_OK)
        put_options(a, *ret);
    return status;
}

// What was run, as a recipe to change and run again.
static int write_recipe(const struct pipeline *p)
{
    char *path = pipeline_path(p, "recipe", ".json");
    int status = json_dump_file(p->recipe, path, JSON_INDENT(1)) < 0
                     ? cli_error("%s: %s", path, strerror(errno))
                     : CLI_OK;
    free(path);
    return status;
}

// Without `best` a line for each chain that says what it misses. An exit status.
static int conclude(const struct pipeline *p, const json_t *found)
{
    const char *best = json_string_value(json_object_get(found, "best"));
    size_t i;
    json_t *chain;
    if (best && !p->common.json)
        printf("\nbest: %s/%s.gguf; report: %s/report.md\n", p->folder, best, p->folder);
    if (best)
        return CLI_OK;
    json_array_foreach(json_object_get(found, "chains"), i, chain)
        cli_error("%s stopped at %s: %s", json_string_value(json_object_get(chain, "file")),
                  json_string_value(json_object_get(chain, "stopped_at")),
                  json_string_value(json_array_get(json_object_get(chain, "missed"), 0)));
    return cli_error("no chain meets its targets; report: %s/report.md", p->folder);
}

static int run(struct pipeline *p)
{
    json_t *found = NULL;
    int status = pipeline_run(p, &found);
    const bool any = json_array_size(json_object_get(found, "models")) > 0;
    if (status == CLI_OK && any)
        status = report_write(found, p->folder);
    if (status == CLI_OK && p->common.json)
        status = cli_print_json(json_incref(found), JSON_INDENT(1));
    else if (status == CLI_OK && any)
        status = report_print(found);
    if (status == CLI_OK)
        status = conclude(p, found);
    json_decref(found);
    return status;
}

int verb_pipeline(const struct verb *verb, int argc, char **argv)
{
    struct pipeline p = {.judge = eval_usual()};
    struct asked a = {.tokens = UINT64_MAX, .token_ms = NAN, .kld = NAN};
    const struct option_spec specs[] = {
        {"output", 'o', OPTION_STRING, &p.folder, "DIR",
         "a folder for what is made (required); with what an earlier run has made it goes on"},
        {"recipe", 0, OPTION_STRING, &a.recipe, "F.json",
         "steps, chains of them and targets; without it: types that fit, beside a student that "
         "fits, healed and rounded"},
        {"text", 't', OPTION_LIST(OPTION_LIST_MAX), &a.texts, "FILE",
         "what is learnt from: text, JSON lines with \"text\", or a folder of these"},
        {"judge", 'j', OPTION_LIST(OPTION_LIST_MAX), &a.judge, "FILE",
         "a text that is judged on, and should be none of these"},
        {"windows", 'w', OPTION_UINT(1, 1000000), &a.windows, "M",
         "windows of each such text at most (the whole text)"},
        {"target-size", 0, OPTION_SIZE, &a.size, "SIZE", "bytes of the last file, as 72M"},
        {"target-ms", 0, OPTION_FLOAT(1e-6, 1e9), &a.token_ms, "MS", "what a token may take"},
        {"max-kld", 0, OPTION_FLOAT(1e-9, 100), &a.kld, "X",
         "the divergence from the model on the text that is judged on"},
        {"to", 0, OPTION_STRING, &a.to, "T", "without a recipe: the student's type (Q4_0)"},
        {"tokens", 0, OPTION_U64, &a.tokens, "N", "without a recipe: to heal on (1000000)"},
        {0},
    };
    char **args;
    json_t *recipe = NULL;
    int n = cli_parse(verb, specs, &p.common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if (!p.folder)
        return cli_usage_error("pipeline needs -o DIR, a folder for what is made");
    p.model = p.judge.reference = args[0];
    p.judge.common = p.common;
    int status = make_recipe(&a, &recipe);
    if (status == CLI_OK)
        status = pipeline_read(recipe, &p);
    if (status == CLI_OK && access(p.model, R_OK) < 0)
        status = cli_error("%s: %s", p.model, strerror(errno));
    if (status == CLI_OK)
        status = pipeline_open_folder(&p, "");
    if (status == CLI_OK)
        status = write_recipe(&p);
    if (status == CLI_OK && !(p.connection = cli_connect(&p.common)))
        status = CLI_FAILED;
    if (status == CLI_OK)
        status = run(&p);
    nibble_close(p.connection);
    json_decref(recipe);
    return status;
}
