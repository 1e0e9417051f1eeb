// From a report's figures to the descriptions that tools/report/chart.h draws.
#include "tools/cli/eval/charts.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli/cli.h"
#include "tools/cli/eval/grid.h"
#include "tools/report/chart.h"

// A chart has a series for each text or task, and a point in it for each model.
struct plan {
    const char *name, *title, *unit;
    const char *rows; // the member of a model with the rows
    const char *row_name;
    const char *key;
    double scale;
    bool log; // where all are above 0
};

static const struct plan plans[] = {
    {"kl", "KL divergence from the reference", "mean KL divergence, nats a token", "texts", "text",
     "kld_mean", 1, true},
    {"perplexity", "Perplexity more than the reference's", "difference of perplexity", "texts",
     "text", "perplexity_difference", 1, false},
    {"perplexity-alone", "Perplexity", "perplexity", "texts", "text", "perplexity", 1, false},
    {"top", "Tokens whose likeliest successor is the reference's", "same top token, %", "texts",
     "text", "top1", 100, false},
    {"accuracy", "Tasks answered rightly", "accuracy, %", "tasks", "task", "accuracy", 100, false},
    {"spearman", "Similarity of pairs of texts", "Spearman's rank correlation", "tasks", "task",
     "spearman", 1, false},
    {"recall", "Nearest passages that are the reference's", "recall@10, %", "vectors",
     "passages_file", "recall10", 100, false},
};
#define N_PLANS (sizeof(plans) / sizeof(plans[0]))

// A series while it is gathered; names are owned.
struct gathered {
    char *name;
    struct chart_point *points;
};

struct gathering {
    const struct plan *plan;
    const json_t *models;
    const char *size; // the member of a model that is the size of all
    struct gathered series[CHART_SERIES];
    size_t n;
    bool more; // series than can be told apart
};

// The series of that row's name; NULL: there are too many.
static struct gathered *series_of(struct gathering *g, const char *row)
{
    char *name = grid_short_name(row);
    for (size_t i = 0; i < g->n; i++)
        if (!strcmp(g->series[i].name, name)) {
            free(name);
            return &g->series[i];
        }
    if (g->n == CHART_SERIES) {
        g->more = true;
        free(name);
        return NULL;
    }
    size_t models = json_array_size(g->models);
    struct gathered *found = &g->series[g->n++];
    *found = (struct gathered){name, cli_alloc(models, sizeof(*found->points))};
    for (size_t i = 0; i < models; i++)
        found->points[i] = (struct chart_point){NAN, NAN, NAN, NAN, NULL};
    return found;
}

static void add_point(struct gathering *g, size_t model, const json_t *row, const char *name)
{
    const json_t *value = json_object_get(row, g->plan->key);
    struct gathered *series = json_is_number(value) ? series_of(g, name) : NULL;
    char key_ci[64];
    if (!series)
        return;
    snprintf(key_ci, sizeof(key_ci), "%s_ci", g->plan->key);
    const json_t *ci = json_object_get(row, key_ci);
    const json_t *bytes = json_object_get(json_array_get(g->models, model), g->size);
    struct chart_point *p = &series->points[model];
    p->x = 1e-6 * json_number_value(bytes);
    p->y = g->plan->scale * json_number_value(value);
    if (json_is_array(ci)) {
        p->low = g->plan->scale * json_number_value(json_array_get(ci, 0));
        p->high = g->plan->scale * json_number_value(json_array_get(ci, 1));
    }
    // One label for each model: at its first series.
    if (series == g->series)
        p->label = json_string_value(json_object_get(json_array_get(g->models, model), "label"));
}

static void gather_model(struct gathering *g, size_t at, const json_t *model)
{
    const json_t *rows = json_object_get(model, g->plan->rows);
    size_t i;
    json_t *row;
    if (json_is_array(rows) && json_array_size(rows) > 1 && !strcmp(g->plan->rows, "texts"))
        add_point(g, at, model, "all texts together");
    json_array_foreach(rows, i, row)
        add_point(g, at, row, json_string_value(json_object_get(row, g->plan->row_name)));
    if (json_is_object(rows))
        add_point(g, at, rows, json_string_value(json_object_get(rows, g->plan->row_name)));
}

// The file's bytes are what a user compares; models that were loaded by name have those in memory
// alone.
static const char *size_of_all(const json_t *models)
{
    size_t i;
    json_t *model;
    json_array_foreach(models, i, model)
        if (!json_is_integer(json_object_get(model, "file_bytes")))
            return "weights_bytes";
    return "file_bytes";
}

static bool all_positive(const struct gathering *g)
{
    for (size_t s = 0; s < g->n; s++)
        for (size_t i = 0; i < json_array_size(g->models); i++)
            if (g->series[s].points[i].y <= 0)
                return false;
    return true;
}

static json_t *describe(const struct plan *plan, const struct chart *c, const struct chart_frame *f)
{
    return json_pack("{s:s, s:s, s:s, s:[f,f,f,f], s:[f,f], s:[f,f], s:b}", "name", plan->name,
                     "title", c->title, "figure", plan->key, "plot", f->left, f->top, f->right,
                     f->bottom, "x", f->x_low, f->x_high, "y", f->y_low, f->y_high, "y_log",
                     c->y.log);
}

static int write_chart(const struct chart *c, const char *folder, const char *name,
                       struct chart_frame *ret)
{
    static const char *const endings[] = {"png", "svg"};
    int status = CLI_OK;
    for (size_t i = 0; i < 2 && status == CLI_OK; i++) {
        char *path = NULL;
        if (asprintf(&path, "%s/%s.%s", folder, name, endings[i]) < 0)
            exit(cli_error("out of memory"));
        int rc = chart_write(c, path, ret);
        if (rc < 0)
            status = cli_error("%s: the chart cannot be written: %s", path,
                               rc == -ELIBACC ? "libcairo.so.2 is missing (libcairo2 in Debian)"
                                              : strerror(-rc));
        free(path);
    }
    return status;
}

static int draw(const struct gathering *g, const json_t *found, const char *folder, json_t *charts)
{
    struct chart_series series[CHART_SERIES];
    struct chart_frame frame;
    char note[256];
    const char *reference = json_string_value(json_object_get(found, "reference"));
    for (size_t i = 0; i < g->n; i++)
        series[i] = (struct chart_series){.name = g->series[i].name,
                                          .points = g->series[i].points,
                                          .n = json_array_size(g->models)};
    char *other = grid_short_name(reference ? reference : "");
    snprintf(note, sizeof(note), "%s%.100s%s95 %% confidence intervals%s",
             *other ? "reference: " : "", other,
             *other ? "; bars: " : "bars: ", g->more ? "; more rows are in the table" : "");
    free(other);
    bool file = !strcmp(g->size, "file_bytes");
    const struct chart c = {
        .title = g->plan->title,
        .note = note,
        .x = {file ? "size of the file, MB" : "weights in memory, MB", false},
        .y = {g->plan->unit, g->plan->log && all_positive(g)},
        .series = series,
        .n = g->n,
    };
    int status = write_chart(&c, folder, g->plan->name, &frame);
    if (status == CLI_OK)
        json_array_append_new(charts, describe(g->plan, &c, &frame));
    return status;
}

static int write_plan(struct gathering *g, const json_t *found, const char *folder, json_t *charts)
{
    size_t i;
    json_t *model;
    json_array_foreach(g->models, i, model)
        gather_model(g, i, model);
    int status = g->n ? draw(g, found, folder, charts) : CLI_OK;
    for (i = 0; i < g->n; i++) {
        free(g->series[i].name);
        free(g->series[i].points);
    }
    return status;
}

int charts_write(const json_t *found, const char *folder, json_t *charts)
{
    const json_t *models = json_object_get(found, "models");
    int status = CLI_OK;
    for (size_t i = 0; i < N_PLANS && status == CLI_OK; i++) {
        struct gathering g = {.plan = &plans[i], .models = models, .size = size_of_all(models)};
        status = write_plan(&g, found, folder, charts);
    }
    return status;
}
