// Listings: one description of the columns gives the table for people and the JSON for programs.
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum column_kind {
    COLUMN_TEXT,
    COLUMN_FLAG,
    COLUMN_U32,
    COLUMN_U64,
    COLUMN_BYTES,
    COLUMN_F64,
    COLUMN_CURVE
};

// A curve is float[COLUMN_POINTS], NaN where there is none.
#define COLUMN_POINTS 32

// `key` names it in JSON, `title` in the table (NULL: JSON alone); the value lies at `offset` in a
// row.
struct column {
    const char *key;
    const char *title;
    enum column_kind kind;
    size_t offset;
};

// Prints n rows of `size` bytes by columns (ended by a NULL key): {"list": [...]} or a table. An
// exit status.
int table_print(const char *list, const struct column *columns, const void *rows, size_t n,
                size_t size, bool json);
// One row as an object, or as lines of "title: value".
int record_print(const struct column *columns, const void *row, bool json);
// A curve as blocks of UTF-8, as high as its points are between the least and the most.
#define TABLE_CURVE (COLUMN_POINTS * 3 + 1)
void table_curve(const float *curve, char ret[TABLE_CURVE]);
