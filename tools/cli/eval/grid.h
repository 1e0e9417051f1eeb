// A table of texts that is printed for people or written as Markdown.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define GRID_COLUMNS 16

struct grid {
    const char *title;
    const char *heads[GRID_COLUMNS];
    size_t columns, n; // n: cells
    char **cells;
};

// `heads` ends with NULL; the first column is a name, the others are figures.
struct grid grid_create(const char *title, const char *const *heads);
void grid_destroy(struct grid *g);
// The next cell, row by row.
void grid_add(struct grid *g, const char *format, ...) __attribute__((format(printf, 2, 3)));
// On stdout; an exit status.
int grid_print(const struct grid *g);
void grid_write_markdown(const struct grid *g, FILE *out);
// A file's name without its folder and its last extension; freed by the caller.
char *grid_short_name(const char *path);
// A text as Markdown shows it: what would be markup is escaped.
void grid_write_text(const char *text, FILE *out);
