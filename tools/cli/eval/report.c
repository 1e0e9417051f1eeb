// The tables of a report, on stdout or in Markdown, and the folder's files.
#include "tools/cli/eval/report.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/cli/cli.h"
#include "tools/cli/eval/charts.h"
#include "tools/cli/eval/grid.h"

#define CELL 96

// --- Cells

static const char *text(const json_t *row, const char *key)
{
    const char *found = json_string_value(json_object_get(row, key));
    return found ? found : "";
}

static double number(const json_t *row, const char *key)
{
    const json_t *value = json_object_get(row, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

// "1.234 (1.200 to 1.268)", times `scale`, with so many significant digits or decimals ("%.4g").
static void add_figure(struct grid *g, const json_t *row, const char *key, const char *format,
                       double scale)
{
    char cell[CELL], low[CELL], high[CELL], key_ci[64];
    double value = number(row, key);
    snprintf(key_ci, sizeof(key_ci), "%s_ci", key);
    const json_t *ci = json_object_get(row, key_ci);
    if (!isfinite(value)) {
        grid_add(g, "-");
        return;
    }
    // NOLINTBEGIN(clang-diagnostic-format-nonliteral): the formats are literals of this file
    snprintf(cell, sizeof(cell), format, scale * value);
    if (!json_is_array(ci)) {
        grid_add(g, "%s", cell);
        return;
    }
    snprintf(low, sizeof(low), format, scale * json_number_value(json_array_get(ci, 0)));
    snprintf(high, sizeof(high), format, scale * json_number_value(json_array_get(ci, 1)));
    // NOLINTEND(clang-diagnostic-format-nonliteral)
    grid_add(g, "%s (%s to %s)", cell, low, high);
}

static void add_bytes(struct grid *g, const json_t *row, const char *key)
{
    double value = number(row, key);
    grid_add(g, "%s", isfinite(value) ? cli_bytes((uint64_t)value) : "-");
}

static void add_name(struct grid *g, const char *path)
{
    char *name = grid_short_name(path);
    grid_add(g, "%s", name);
    free(name);
}

// --- Tables

static void add_text(struct grid *g, const json_t *model, const json_t *row, const char *name)
{
    grid_add(g, "%s", text(model, "label"));
    add_name(g, name);
    add_figure(g, row, "perplexity", "%.2f", 1);
    add_figure(g, row, "perplexity_difference", "%+.3f", 1);
    add_figure(g, row, "kld_mean", "%.4g", 1);
    add_figure(g, row, "kld_99", "%.3g", 1);
    add_figure(g, row, "kld_max", "%.3g", 1);
    add_figure(g, row, "top1", "%.2f", 100);
}

static struct grid texts_grid(const json_t *found)
{
    const json_t *models = json_object_get(found, "models");
    static const char *const heads[] = {"model",   "text",    "perplexity", "less the reference's",
                                        "KL mean", "KL 99 %", "KL maximum", "same top, %",
                                        NULL};
    struct grid g = grid_create("Text", heads);
    size_t i, k;
    json_t *model, *row;
    json_array_foreach(models, i, model) {
        const json_t *rows = json_object_get(model, "texts");
        json_array_foreach(rows, k, row)
            add_text(&g, model, row, text(row, "text"));
        if (json_array_size(rows) > 1)
            add_text(&g, model, model, "all together");
    }
    return g;
}

static void add_task(struct grid *g, const json_t *model, const json_t *row, const char *key,
                     const char *what)
{
    char difference[64], p[64];
    double scale = strncmp(key, "accuracy", 8) ? 1 : 100;
    const char *format = scale > 1 ? "%.1f" : "%.3f",
               *signed_format = scale > 1 ? "%+.1f" : "%+.3f";
    if (!json_object_get(row, key))
        return;
    snprintf(difference, sizeof(difference), "%s_difference", key);
    snprintf(p, sizeof(p), "%s_mcnemar_p", key);
    grid_add(g, "%s", text(model, "label"));
    add_name(g, text(row, "task"));
    grid_add(g, "%s", what);
    grid_add(g, "%.0f", number(row, "items"));
    add_figure(g, row, key, format, scale);
    add_figure(g, row, difference, signed_format, scale);
    add_figure(g, row, p, "%.2g", 1);
}

static struct grid tasks_grid(const json_t *found)
{
    const json_t *models = json_object_get(found, "models");
    static const char *const heads[] = {
        "model", "task", "measure", "items", "value", "less the reference's", "McNemar p", NULL};
    static const char *const measures[][2] = {
        {"accuracy", "accuracy, %"},
        {"accuracy_norm", "accuracy by log P per byte, %"},
        {"logprob", "log P of the last words"},
        {"spearman", "Spearman"},
    };
    struct grid g = grid_create("Tasks", heads);
    size_t i, k;
    json_t *model, *row;
    json_array_foreach(models, i, model)
        json_array_foreach(json_object_get(model, "tasks"), k, row)
            for (size_t at = 0; at < sizeof(measures) / sizeof(measures[0]); at++)
                add_task(&g, model, row, measures[at][0], measures[at][1]);
    return g;
}

static struct grid vectors_grid(const json_t *found)
{
    const json_t *models = json_object_get(found, "models");
    static const char *const heads[] = {"model",        "passages",     "cosine",
                                        "least cosine", "recall@10, %", NULL};
    struct grid g = grid_create("Vectors beside the reference's", heads);
    size_t i;
    json_t *model;
    json_array_foreach(models, i, model) {
        const json_t *row = json_object_get(model, "vectors");
        if (!row)
            continue;
        grid_add(&g, "%s", text(model, "label"));
        grid_add(&g, "%.0f", number(row, "passages"));
        add_figure(&g, row, "cosine", "%.6f", 1);
        add_figure(&g, row, "cosine_min", "%.6f", 1);
        add_figure(&g, row, "recall10", "%.2f", 100);
    }
    return g;
}

static struct grid cost_grid(const json_t *found)
{
    const json_t *models = json_object_get(found, "models");
    static const char *const heads[] = {"model",       "file",           "weights in memory",
                                        "with KV",     "prefill, t/s",   "decode, t/s",
                                        "ms a token",  "texts a second", "a request, s",
                                        "J a request", "1000 requests",  NULL};
    struct grid g = grid_create("Cost", heads);
    size_t i;
    json_t *model;
    json_array_foreach(models, i, model) {
        const json_t *row = json_object_get(model, "cost");
        if (!row)
            continue;
        grid_add(&g, "%s", text(model, "label"));
        add_bytes(&g, model, "file_bytes");
        add_bytes(&g, model, "weights_bytes");
        add_bytes(&g, row, "memory_bytes");
        add_figure(&g, row, "prefill_tps", "%.0f", 1);
        add_figure(&g, row, "decode_tps", "%.1f", 1);
        add_figure(&g, row, "ms_per_token", "%.2f", 1);
        add_figure(&g, row, "texts_per_second", "%.1f", 1);
        add_figure(&g, row, "request_seconds", "%.3f", 1);
        add_figure(&g, row, "joules_per_request", "%.1f", 1);
        add_figure(&g, row, "cost_of_1000_requests", "%.4g", 1);
    }
    return g;
}

// Of a pipeline: the files in the order in which they were made.
static struct grid steps_grid(const json_t *found)
{
    static const char *const heads[] = {"file",       "size",         "KL mean", "same top, %",
                                        "ms a token", "made in, min", NULL};
    struct grid g = grid_create("Steps", heads);
    size_t i;
    json_t *step;
    json_array_foreach(json_object_get(found, "steps"), i, step) {
        const json_t *model = json_array_get(json_object_get(found, "models"), i);
        grid_add(&g, "%s", text(step, "file"));
        add_bytes(&g, model, "file_bytes");
        add_figure(&g, model, "kld_mean", "%.4g", 1);
        add_figure(&g, model, "top1", "%.2f", 100);
        add_figure(&g, json_object_get(model, "cost"), "ms_per_token", "%.2f", 1);
        add_figure(&g, step, "seconds", "%.1f", 1. / 60);
    }
    return g;
}

static struct grid chains_grid(const json_t *found)
{
    static const char *const heads[] = {"chain", "stopped at", "misses", NULL};
    struct grid g = grid_create("Chains", heads);
    size_t i, k;
    json_t *chain, *missed;
    json_array_foreach(json_object_get(found, "chains"), i, chain) {
        const char *best = text(found, "best"), *file = text(chain, "file");
        const json_t *misses = json_object_get(chain, "missed");
        if (!json_array_size(misses)) {
            grid_add(&g, "%s", file);
            grid_add(&g, "-");
            grid_add(&g, "%s", strcmp(best, file) ? "nothing" : "nothing: the best of these");
        }
        json_array_foreach(misses, k, missed) {
            grid_add(&g, "%s", file);
            grid_add(&g, "%s", text(chain, "stopped_at"));
            grid_add(&g, "%s", json_string_value(missed));
        }
    }
    return g;
}

static struct grid shapes_grid(const json_t *found)
{
    static const char *const heads[] = {"shape of",   "layers",     "weights, millions",
                                        "rounded",    "ms a token", "tokens",
                                        "divergence", "left out",   NULL};
    struct grid g = grid_create("Shapes that were tried", heads);
    size_t i, k;
    json_t *step, *shape;
    json_array_foreach(json_object_get(found, "steps"), i, step)
        json_array_foreach(json_object_get(step, "shapes"), k, shape) {
            grid_add(&g, "%s", text(step, "file"));
            add_figure(&g, shape, "layers", "%.0f", 1);
            add_figure(&g, shape, "weights", "%.1f", 1e-6);
            add_bytes(&g, shape, "bytes");
            add_figure(&g, shape, "token_ms", "%.2f", 1);
            add_figure(&g, shape, "tokens", "%.0f", 1);
            add_figure(&g, shape, "divergence", "%.4g", 1);
            grid_add(&g, "%s",
                     json_is_true(json_object_get(shape, "chosen")) ? "chosen"
                                                                    : text(shape, "left_out"));
        }
    return g;
}

static struct grid (*const grids[])(const json_t *found) = {
    steps_grid, chains_grid, shapes_grid, texts_grid, tasks_grid, vectors_grid, cost_grid};
#define N_GRIDS (sizeof(grids) / sizeof(grids[0]))

int report_print(const json_t *found)
{
    int status = CLI_OK;
    bool first = true;
    for (size_t i = 0; i < N_GRIDS && status == CLI_OK; i++) {
        struct grid g = grids[i](found);
        if (g.n) {
            printf("%s", first ? "" : "\n");
            status = grid_print(&g);
            first = false;
        }
        grid_destroy(&g);
    }
    return status;
}

// --- The folder

static void write_head(const json_t *found, FILE *out)
{
    const json_t *models = json_object_get(found, "models");
    const char *reference = text(found, "reference"), *key;
    json_t *value;
    fprintf(out, "# Evaluation of %zu model%s\n\n", json_array_size(models),
            json_array_size(models) == 1 ? "" : "s");
    if (*reference) {
        fputs("Reference: ", out);
        grid_write_text(reference, out);
        fputs(".\n\n", out);
    }
    fputs("In brackets: 95 % confidence intervals.\n\n", out);
    json_object_foreach(json_object_get(found, "method"), key, value)
        if (json_is_string(value))
            fprintf(out, "- %s: %s\n", key, json_string_value(value));
}

static void write_markdown(const json_t *found, FILE *out)
{
    size_t i;
    json_t *chart;
    write_head(found, out);
    json_array_foreach(json_object_get(found, "charts"), i, chart)
        fprintf(out, "\n![%s](%s.svg)\n", text(chart, "title"), text(chart, "name"));
    for (i = 0; i < N_GRIDS; i++) {
        struct grid g = grids[i](found);
        if (g.n)
            grid_write_markdown(&g, out);
        grid_destroy(&g);
    }
}

static int write_file(const json_t *found, const char *folder, const char *name,
                      void (*write)(const json_t *found, FILE *out))
{
    char *path = NULL;
    if (asprintf(&path, "%s/%s", folder, name) < 0)
        exit(cli_error("out of memory"));
    FILE *out = fopen(path, "we");
    if (out)
        write(found, out);
    int status = out && !ferror(out) ? CLI_OK : CLI_FAILED;
    if (out && fclose(out) != 0)
        status = CLI_FAILED;
    if (status != CLI_OK)
        cli_error("%s: %s", path, strerror(errno));
    free(path);
    return status;
}

static void write_json(const json_t *found, FILE *out)
{
    json_dumpf(found, out, JSON_INDENT(2));
    fputc('\n', out);
}

int report_write(json_t *found, const char *folder)
{
    if (mkdir(folder, 0777) < 0 && errno != EEXIST)
        return cli_error("%s: %s", folder, strerror(errno));
    json_t *charts = json_array();
    int status = charts_write(found, folder, charts);
    json_object_set_new(found, "charts", charts);
    if (status == CLI_OK)
        status = write_file(found, folder, "report.md", write_markdown);
    if (status == CLI_OK)
        status = write_file(found, folder, "report.json", write_json);
    return status;
}
