// Cairo, opened by the first chart: with its two dozen libraries it would be the most of what any
// other command loads.
#pragma once

#include <cairo-svg.h>
#include <cairo.h>

#define CAIRO_CALLS(X)                                                                             \
    X(arc)                                                                                         \
    X(close_path)                                                                                  \
    X(create)                                                                                      \
    X(destroy)                                                                                     \
    X(fill)                                                                                        \
    X(font_extents)                                                                                \
    X(image_surface_create)                                                                        \
    X(line_to)                                                                                     \
    X(move_to)                                                                                     \
    X(new_path)                                                                                    \
    X(paint)                                                                                       \
    X(rectangle)                                                                                   \
    X(restore)                                                                                     \
    X(rotate)                                                                                      \
    X(save)                                                                                        \
    X(scale)                                                                                       \
    X(select_font_face)                                                                            \
    X(set_font_size)                                                                               \
    X(set_line_width)                                                                              \
    X(set_source_rgb)                                                                              \
    X(show_text)                                                                                   \
    X(status)                                                                                      \
    X(stroke)                                                                                      \
    X(surface_destroy)                                                                             \
    X(surface_finish)                                                                              \
    X(surface_status)                                                                              \
    X(surface_write_to_png)                                                                        \
    X(svg_surface_create)                                                                          \
    X(text_extents)                                                                                \
    X(translate)

struct cairo_calls {
#define MEMBER(name) __typeof__(cairo_##name) *name;
    CAIRO_CALLS(MEMBER)
#undef MEMBER
};

// The same each time, and never closed. NULL: libcairo.so.2 is missing, or lacks a call.
const struct cairo_calls *cairo_open(void);
