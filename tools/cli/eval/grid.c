// Tables: by libsmartcols for a terminal, by hand for Markdown.
#include "tools/cli/eval/grid.h"

#include <libsmartcols/libsmartcols.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli/cli.h"

struct grid grid_create(const char *title, const char *const *heads)
{
    struct grid g = {.title = title};
    for (; heads[g.columns] && g.columns < GRID_COLUMNS; g.columns++)
        g.heads[g.columns] = heads[g.columns];
    return g;
}

void grid_destroy(struct grid *g)
{
    for (size_t i = 0; i < g->n; i++)
        free(g->cells[i]);
    free(g->cells);
}

void grid_add(struct grid *g, const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    char **cells = length < 0 ? NULL : realloc(g->cells, (g->n + 1) * sizeof(*cells));
    if (!cells)
        exit(cli_error("out of memory"));
    g->cells = cells;
    g->cells[g->n++] = text;
}

int grid_print(const struct grid *g)
{
    scols_init_debug(0);
    struct libscols_table *table = scols_new_table();
    if (!table)
        return cli_error("out of memory");
    for (size_t i = 0; i < g->columns; i++)
        scols_table_new_column(table, g->heads[i], 0, i ? SCOLS_FL_RIGHT : 0);
    for (size_t i = 0; i < g->n; i += g->columns) {
        struct libscols_line *line = scols_table_new_line(table, NULL);
        for (size_t k = 0; k < g->columns && i + k < g->n; k++)
            scols_line_set_data(line, k, g->cells[i + k]);
    }
    printf("%s\n", g->title);
    int rc = scols_print_table(table);
    scols_unref_table(table);
    return rc < 0 ? cli_error("cannot print the table") : CLI_OK;
}

char *grid_short_name(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash && slash[1] ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    char *found = strndup(name, dot && dot != name ? (size_t)(dot - name) : strlen(name));
    if (!found)
        exit(cli_error("out of memory"));
    return found;
}

void grid_write_text(const char *text, FILE *out)
{
    for (; *text; text++) {
        if (strchr("\\`*_{}[]<>#|", *text))
            fputc('\\', out);
        fputc((unsigned char)*text < 0x20 ? ' ' : *text, out);
    }
}

void grid_write_markdown(const struct grid *g, FILE *out)
{
    fprintf(out, "\n## %s\n\n|", g->title);
    for (size_t i = 0; i < g->columns; i++)
        fprintf(out, " %s |", g->heads[i]);
    fputs("\n|", out);
    for (size_t i = 0; i < g->columns; i++)
        fputs(i ? " ---: |" : " --- |", out);
    for (size_t i = 0; i < g->n; i += g->columns) {
        fputs("\n|", out);
        for (size_t k = 0; k < g->columns && i + k < g->n; k++) {
            fputc(' ', out);
            grid_write_text(g->cells[i + k], out);
            fputs(" |", out);
        }
    }
    fputc('\n', out);
}
