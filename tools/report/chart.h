// Charts of points with error bars, as SVG and PNG by cairo. Knows nothing of what it draws: a
// struct says it all.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define CHART_WIDTH  960 // of the SVG; the PNG has twice as many pixels
#define CHART_HEIGHT 600
#define CHART_SERIES 8 // at most: so many colours and markers can be told apart

struct chart_point {
    double x, y;       // a point that is not finite is left out
    double low, high;  // the error bar in y; NaN: none
    const char *label; // beside the point, UTF-8; NULL: none
};

struct chart_series {
    const char *name; // in the legend
    const struct chart_point *points;
    size_t n;
    bool line; // joins the points in their order
};

struct chart_axis {
    const char *title; // with its unit
    bool log;          // every value must be above 0
};

struct chart {
    const char *title, *note; // note: a line below the title; NULL: none
    struct chart_axis x, y;
    const struct chart_series *series;
    size_t n;
};

// Where the plot lies in the SVG and what its edges stand for.
struct chart_frame {
    double left, top, right, bottom;
    double x_low, x_high, y_low, y_high;
};

// The place of a value in the SVG.
double chart_x(const struct chart *c, const struct chart_frame *f, double x);
double chart_y(const struct chart *c, const struct chart_frame *f, double y);

// Writes the chart to a path that ends with ".svg" or ".png". ret_frame may be NULL. -EINVAL: no
// point, too many series, or a value at or below 0 on a logarithmic axis; -EIO: it cannot be
// written. -ELIBACC: libcairo is not installed.
int chart_write(const struct chart *c, const char *path, struct chart_frame *ret_frame);
