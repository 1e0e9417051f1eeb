// Places for labels beside their points, so that none lies on another.
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct label_box {
    double left, top, right, bottom;
};

struct label {
    double x, y, width, height; // of the point, and of the text
    struct label_box box;       // where the text goes
    bool led;                   // so far off that a line leads to it
};

// Places the labels one after the other inside `frame`, off the obstacles (points, bars) and off
// each other. Where no place is free, the one with the least overlap is taken.
void labels_place(const struct label_box *frame, const struct label_box *obstacles, size_t n,
                  struct label *labels, size_t n_labels);
