// Listings by libsmartcols and jansson.
#include "tools/cli/table.h"

#include <inttypes.h>
#include <libsmartcols/libsmartcols.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli/cli.h"

static const void *field(const struct column *c, const void *row)
{
    return (const char *)row + c->offset;
}

static json_t *curve_json(const float *curve)
{
    json_t *points = json_array();
    for (size_t i = 0; i < COLUMN_POINTS; i++)
        json_array_append_new(points,
                              isfinite(curve[i]) ? json_real((double)curve[i]) : json_null());
    return points;
}

void table_curve(const float *curve, char ret[TABLE_CURVE])
{
    static const char *const heights[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    float least = INFINITY, most = -INFINITY;
    char *at = ret;
    *at = '\0';
    for (size_t i = 0; i < COLUMN_POINTS; i++) {
        least = curve[i] < least ? curve[i] : least;
        most = curve[i] > most ? curve[i] : most;
    }
    for (size_t i = 0; i < COLUMN_POINTS; i++) {
        if (!isfinite(curve[i]))
            continue;
        const float part = most > least ? (curve[i] - least) / (most - least) : 0;
        at = stpcpy(at, heights[(int)(part * 7 + 0.5f)]);
    }
}

static json_t *field_json(const struct column *c, const void *row)
{
    switch (c->kind) {
    case COLUMN_TEXT:
        return json_string(field(c, row));
    case COLUMN_FLAG:
        return json_boolean(*(const int32_t *)field(c, row));
    case COLUMN_U32:
        return json_integer(*(const uint32_t *)field(c, row));
    case COLUMN_U64:
    case COLUMN_BYTES:
        return json_integer((json_int_t) * (const uint64_t *)field(c, row));
    case COLUMN_F64:
        return json_real(*(const double *)field(c, row));
    case COLUMN_CURVE:
        return curve_json(field(c, row));
    }
    return json_null();
}

static void field_text(const struct column *c, const void *row, char *ret, size_t size)
{
    char curve[TABLE_CURVE];
    switch (c->kind) {
    case COLUMN_TEXT:
        snprintf(ret, size, "%s", (const char *)field(c, row));
        break;
    case COLUMN_FLAG:
        snprintf(ret, size, "%s", *(const int32_t *)field(c, row) ? "yes" : "no");
        break;
    case COLUMN_U32:
        snprintf(ret, size, "%" PRIu32, *(const uint32_t *)field(c, row));
        break;
    case COLUMN_U64:
        snprintf(ret, size, "%" PRIu64, *(const uint64_t *)field(c, row));
        break;
    case COLUMN_BYTES:
        snprintf(ret, size, "%s", cli_bytes(*(const uint64_t *)field(c, row)));
        break;
    case COLUMN_F64:
        snprintf(ret, size, "%g", *(const double *)field(c, row));
        break;
    case COLUMN_CURVE:
        table_curve(field(c, row), curve);
        snprintf(ret, size, "%s", curve);
        break;
    }
}

static json_t *row_json(const struct column *columns, const void *row)
{
    json_t *object = json_object();
    for (const struct column *c = columns; c->key; c++)
        json_object_set_new(object, c->key, field_json(c, row));
    return object;
}

static int print_table(const struct column *columns, const char *rows, size_t n, size_t size)
{
    scols_init_debug(0);
    struct libscols_table *table = scols_new_table();
    if (!table)
        return cli_error("out of memory");
    for (const struct column *c = columns; c->key; c++)
        if (c->title)
            scols_table_new_column(table, c->title, 0, c->kind <= COLUMN_FLAG ? 0 : SCOLS_FL_RIGHT);
    for (size_t i = 0; i < n; i++) {
        struct libscols_line *line = scols_table_new_line(table, NULL);
        size_t at = 0;
        char text[256];
        for (const struct column *c = columns; c->key; c++) {
            if (!c->title)
                continue;
            field_text(c, rows + i * size, text, sizeof(text));
            scols_line_set_data(line, at++, text);
        }
    }
    int rc = scols_print_table(table);
    scols_unref_table(table);
    return rc < 0 ? cli_error("cannot print the table") : CLI_OK;
}

int table_print(const char *list, const struct column *columns, const void *rows, size_t n,
                size_t size, bool json)
{
    if (!json)
        return print_table(columns, rows, n, size);
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(array, row_json(columns, (const char *)rows + i * size));
    return cli_print_json(json_pack("{s:o}", list, array), JSON_INDENT(2));
}

int record_print(const struct column *columns, const void *row, bool json)
{
    if (json)
        return cli_print_json(row_json(columns, row), JSON_INDENT(2));
    char text[256];
    for (const struct column *c = columns; c->key; c++) {
        field_text(c, row, text, sizeof(text));
        if (c->title)
            printf("%-16s %s\n", c->title, text);
    }
    return CLI_OK;
}
