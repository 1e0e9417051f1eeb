// A pipeline's recipe: checked once, here, but for the jobs' own recipes, which the jobs check.
#include <limits.h>
#include <string.h>

#include "tools/cli/pipeline/pipeline.h"

#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyz0123456789-"

static int check_keys(const json_t *object, const char *what, const char *const *keys)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        size_t i = 0;
        while (keys[i] && strcmp(key, keys[i]) != 0)
            i++;
        if (!keys[i])
            return cli_error("%s has a key \"%.60s\" that no pipeline knows", what, key);
    }
    return CLI_OK;
}

// A string or a list of strings, after what is there.
static int read_list(const json_t *value, const char *what, struct option_list *ret)
{
    const size_t n = json_is_array(value) ? json_array_size(value) : value != NULL;
    bool good = ret->n + n <= OPTION_LIST_MAX;
    for (size_t i = 0; i < n && good; i++) {
        const char *text =
            json_string_value(json_is_array(value) ? json_array_get(value, i) : value);
        good = text && *text;
        ret->items[ret->n++] = text;
    }
    return good ? CLI_OK : cli_error("%s is a list of %d paths at most", what, OPTION_LIST_MAX);
}

static int read_number(const json_t *object, const char *key, double min, double max, uint32_t *ret)
{
    const json_t *value = json_object_get(object, key);
    const double number = json_number_value(value);
    if (!value)
        return CLI_OK;
    if (!json_is_integer(value) || !(number >= min && number <= max))
        return cli_error("\"%s\" is a whole number from %.0f to %.0f", key, min, max);
    *ret = (uint32_t)number;
    return CLI_OK;
}

static int read_judge(const json_t *judge, struct eval *e)
{
    static const char *const keys[] = {"text", "tasks",  "passages", "windows", "window", "queries",
                                       "cost", "prompt", "gen",      "runs",    NULL};
    const json_t *passages = json_object_get(judge, "passages");
    if (judge && !json_is_object(judge))
        return cli_error("\"judge\" is an object, as {\"text\": [\"novel.txt\"], \"windows\": 20}");
    int status = check_keys(judge, "\"judge\"", keys);
    if (status == CLI_OK)
        status = read_list(json_object_get(judge, "text"), "\"text\" of \"judge\"", &e->text_files);
    if (status == CLI_OK)
        status =
            read_list(json_object_get(judge, "tasks"), "\"tasks\" of \"judge\"", &e->task_files);
    if (status == CLI_OK && passages && !(e->passages_file = json_string_value(passages)))
        status = cli_error("\"passages\" of \"judge\" is a path");
    const struct {
        const char *key;
        double min, max;
        uint32_t *target;
    } numbers[] = {{"windows", 1, 1e6, &e->max_windows},
                   {"window", 4, 1e6, &e->window},
                   {"queries", 0, 1e9, &e->queries},
                   {"prompt", 1, 1e6, &e->prompt},
                   {"gen", 2, 1e6, &e->gen},
                   {"runs", 1, 1000, &e->runs}};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]) && status == CLI_OK; i++)
        status =
            read_number(judge, numbers[i].key, numbers[i].min, numbers[i].max, numbers[i].target);
    e->cost = e->cost || json_is_true(json_object_get(judge, "cost"));
    return status;
}

// --- Steps

static int read_shapes(struct pipeline_step *s, const json_t *search)
{
    static const char *const keys[] = {"layers", "tokens", NULL};
    const json_t *tokens = json_object_get(search, "tokens");
    uint32_t n = 16384;
    if (!search)
        return CLI_OK;
    s->layers = json_object_get(search, "layers");
    bool good = s->trains && json_is_array(s->layers) && json_array_size(s->layers) > 0 &&
                json_array_size(s->layers) <= PIPELINE_SHAPES;
    for (size_t i = 0; i < json_array_size(s->layers) && good; i++)
        good = json_number_value(json_array_get(s->layers, i)) > 0 &&
               json_number_value(json_array_get(s->layers, i)) < 100000;
    if (!good)
        return cli_error("step \"%s\": \"search\" is of a distillation, as {\"layers\": [24, 0.6], "
                         "\"tokens\": 16384}, with %d shapes at most: so many layers, or that part",
                         s->name, PIPELINE_SHAPES);
    int status = check_keys(search, "\"search\"", keys);
    if (status == CLI_OK && tokens)
        status = read_number(search, "tokens", 1, UINT32_MAX, &n);
    s->tokens = n;
    return status;
}

static int read_step(struct pipeline *p, const char *name, json_t *step)
{
    static const char *const keys[] = {"distill", "compress", "text", "search", "targets", NULL};
    struct pipeline_step *s = &p->steps[p->n_steps];
    json_t *trains = json_object_get(step, "distill"), *rounds = json_object_get(step, "compress"),
           *own = json_object_get(step, "text"), *targets = json_object_get(step, "targets");
    if (!*name || strlen(name) >= PIPELINE_NAME || name[strspn(name, NAME_CHARACTERS)])
        return cli_error("a step's name is 1 to %d of a-z, 0-9 and -: \"%.60s\" is none",
                         PIPELINE_NAME - 1, name);
    if (p->n_steps == PIPELINE_STEPS)
        return cli_error("a pipeline has %d steps at most", PIPELINE_STEPS);
    if (!json_is_object(trains ? trains : rounds) || (trains && rounds))
        return cli_error("step \"%s\" is either {\"distill\": RECIPE} or {\"compress\": RECIPE}",
                         name);
    *s = (struct pipeline_step){.name = name,
                                .trains = trains != NULL,
                                .recipe = trains ? trains : rounds,
                                .targets = targets};
    int status = check_keys(step, name, keys);
    if (status == CLI_OK && json_object_get(s->recipe, "adapter"))
        status = cli_error("step \"%s\": an adapter is no model for the next step: train all "
                           "weights",
                           name);
    if (status == CLI_OK)
        status = read_list(own ? own : json_object_get(p->recipe, "text"), "\"text\"", &s->texts);
    if (status == CLI_OK && s->trains && !s->texts.n)
        status = cli_error("step \"%s\" needs \"text\" to learn from, or --text FILE", name);
    if (status == CLI_OK)
        status = read_shapes(s, json_object_get(step, "search"));
    if (status == CLI_OK && targets)
        status = pipeline_targets_read(targets, &p->judge);
    p->n_steps++;
    return status;
}

static int read_steps(struct pipeline *p)
{
    const json_t *steps = json_object_get(p->recipe, "steps");
    const char *name;
    json_t *step;
    int status = json_object_size(steps)
                     ? CLI_OK
                     : cli_error("\"steps\" is an object, as {\"int4\": {\"compress\": {\"to\": "
                                 "\"Q4_0\"}}}");
    json_object_foreach((json_t *)steps, name, step)
        if (status == CLI_OK)
            status = read_step(p, name, step);
    return status;
}

// --- Chains

bool pipeline_fits(const json_t *recipe, const char *key)
{
    const char *word = json_string_value(json_object_get(recipe, key));
    return word && !strcmp(word, "fit");
}

static int read_link(struct pipeline *p, struct pipeline_chain *c, const json_t *name)
{
    const char *wanted = json_string_value(name) ? json_string_value(name) : "";
    size_t i = 0;
    while (i < p->n_steps && strcmp(p->steps[i].name, wanted) != 0)
        i++;
    if (i == p->n_steps || c->n == PIPELINE_STEPS)
        return cli_error("a chain is a list of 1 to %d steps, and \"%.60s\" is none",
                         PIPELINE_STEPS, wanted);
    const json_t *recipe = p->steps[i].recipe;
    if ((pipeline_fits(recipe, "weights") || pipeline_fits(recipe, "target")) &&
        !json_object_get(p->targets, "size"))
        return cli_error("step \"%s\" is to fit: \"targets\" has no \"size\"", wanted);
    c->step[c->n++] = i;
    return CLI_OK;
}

// Without chains: all steps as they are written.
static int read_chains(struct pipeline *p)
{
    const json_t *chains = json_object_get(p->recipe, "chains");
    const size_t n = json_array_size(chains);
    int status = CLI_OK;
    if (chains && (n < 1 || n > PIPELINE_CHAINS))
        return cli_error("\"chains\" is a list of 1 to %d lists of steps", PIPELINE_CHAINS);
    p->n_chains = chains ? n : 1;
    for (size_t i = 0; i < p->n_steps && !chains && status == CLI_OK; i++) {
        json_t *name = json_string(p->steps[i].name);
        status = read_link(p, &p->chains[0], name);
        json_decref(name);
    }
    for (size_t i = 0; i < n && status == CLI_OK; i++) {
        const json_t *list = json_array_get(chains, i);
        if (!json_array_size(list))
            return cli_error("\"chains\" is a list of lists of steps");
        for (size_t k = 0; k < json_array_size(list) && status == CLI_OK; k++)
            status = read_link(p, &p->chains[i], json_array_get(list, k));
    }
    return status;
}

// What is searched depends on what a chain ends in, so chains that begin alike end alike.
static int check_searches(const struct pipeline *p)
{
    const struct pipeline_step *searched[PIPELINE_STEPS] = {0};
    for (size_t i = 0; i < p->n_chains; i++) {
        const struct pipeline_chain *c = &p->chains[i];
        const struct pipeline_step *last = &p->steps[c->step[c->n - 1]];
        for (size_t k = 0; k < c->n; k++) {
            const size_t at = c->step[k];
            if (!p->steps[at].layers && !pipeline_fits(p->steps[at].recipe, "weights"))
                continue;
            if (searched[at] && !json_equal(searched[at]->recipe, last->recipe))
                return cli_error("step \"%s\" is fitted to what its chain ends in, and two chains "
                                 "of it end in \"%s\" and \"%s\": name two steps",
                                 p->steps[at].name, searched[at]->name, last->name);
            searched[at] = last;
        }
    }
    return CLI_OK;
}

int pipeline_read(json_t *recipe, struct pipeline *ret)
{
    static const char *const keys[] = {"text", "judge", "steps", "chains", "targets", NULL};
    ret->recipe = recipe;
    if (!json_object_get(recipe, "targets"))
        json_object_set_new(recipe, "targets", json_object());
    ret->targets = json_object_get(recipe, "targets");
    int status = check_keys(recipe, "the recipe", keys);
    if (status == CLI_OK)
        status = read_judge(json_object_get(recipe, "judge"), &ret->judge);
    if (status == CLI_OK)
        status = pipeline_targets_read(json_object_get(recipe, "targets"), &ret->judge);
    if (status == CLI_OK)
        status = read_steps(ret);
    if (status == CLI_OK)
        status = read_chains(ret);
    return status == CLI_OK ? check_searches(ret) : status;
}
