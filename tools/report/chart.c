// Drawing: the frame with its ticks, the series, their labels, the legend.
#include "tools/report/chart.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/report/cairo.h"
#include "tools/report/labels.h"
#include "tools/report/scale.h"

#define PNG_SCALE  2
#define MARKER     5.0 // half of a marker's width
#define CAP        4.0 // half of an error bar's end
#define FONT       14.0
#define FONT_TITLE 19.0
#define LEFT       96.0
#define RIGHT      24.0
#define BOTTOM     66.0
#define ROW        22.0 // of the legend

// Okabe and Ito's colours: told apart with any sight.
static const double colours[CHART_SERIES][3] = {
    {0, 0.447, 0.698}, {0.835, 0.369, 0}, {0, 0.62, 0.451},      {0.8, 0.475, 0.655},
    {0.902, 0.624, 0}, {0.2, 0.2, 0.2},   {0.337, 0.706, 0.914}, {0.55, 0.34, 0.1},
};

static const struct cairo_calls *cairo; // from the first chart on

struct drawing {
    const struct chart *chart;
    cairo_t *cr;
    struct scale x, y;
    struct chart_frame frame;
};

// --- Ranges

static bool is_drawn(const struct chart_point *p)
{
    return isfinite(p->x) && isfinite(p->y);
}

static void widen(double *low, double *high, double value, bool log)
{
    if (!isfinite(value) || (log && value <= 0))
        return;
    *low = fmin(*low, value);
    *high = fmax(*high, value);
}

static int find_ranges(const struct chart *c, struct scale *x, struct scale *y)
{
    double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
    if (!c->n || c->n > CHART_SERIES)
        return -EINVAL;
    for (size_t s = 0; s < c->n; s++)
        for (size_t i = 0; i < c->series[s].n; i++) {
            const struct chart_point *p = &c->series[s].points[i];
            if (!is_drawn(p))
                continue;
            if ((c->x.log && p->x <= 0) || (c->y.log && p->y <= 0))
                return -EINVAL;
            widen(&x_low, &x_high, p->x, c->x.log);
            widen(&y_low, &y_high, p->y, c->y.log);
            // A bar's end below 0 goes to the edge of a logarithmic axis.
            widen(&y_low, &y_high, p->low, c->y.log);
            widen(&y_low, &y_high, p->high, c->y.log);
        }
    if (!isfinite(x_low))
        return -EINVAL;
    *x = scale_of(x_low, x_high, c->x.log);
    *y = scale_of(y_low, y_high, c->y.log);
    return 0;
}

static double to_x(const struct drawing *d, double x)
{
    return d->frame.left + scale_at(&d->x, x) * (d->frame.right - d->frame.left);
}

static double to_y(const struct drawing *d, double y)
{
    double at = y <= 0 && d->y.log ? 0 : scale_at(&d->y, y);
    return d->frame.bottom - fmin(fmax(at, 0), 1) * (d->frame.bottom - d->frame.top);
}

double chart_x(const struct chart *c, const struct chart_frame *f, double x)
{
    struct drawing d = {.x = {.low = f->x_low, .high = f->x_high, .log = c->x.log}, .frame = *f};
    return to_x(&d, x);
}

double chart_y(const struct chart *c, const struct chart_frame *f, double y)
{
    struct drawing d = {.y = {.low = f->y_low, .high = f->y_high, .log = c->y.log}, .frame = *f};
    return to_y(&d, y);
}

// --- Text and lines

static double text_width(cairo_t *cr, const char *text)
{
    cairo_text_extents_t extents;
    cairo->text_extents(cr, text, &extents);
    return extents.x_advance;
}

// `align`: 0 left, 0.5 middle, 1 right of x.
static void show(cairo_t *cr, double x, double y, double align, const char *text)
{
    cairo->move_to(cr, x - align * text_width(cr, text), y);
    cairo->show_text(cr, text);
}

static void line(cairo_t *cr, double x0, double y0, double x1, double y1)
{
    cairo->move_to(cr, x0, y0);
    cairo->line_to(cr, x1, y1);
    cairo->stroke(cr);
}

static void grey(cairo_t *cr, double level)
{
    cairo->set_source_rgb(cr, level, level, level);
}

// --- The frame

static void draw_ticks(const struct drawing *d)
{
    cairo_t *cr = d->cr;
    const struct chart_frame *f = &d->frame;
    char text[32];
    for (size_t i = 0; i < d->x.n; i++) {
        double x = to_x(d, d->x.ticks[i]);
        grey(cr, 0.9);
        line(cr, x, f->top, x, f->bottom);
        grey(cr, 0.15);
        show(cr, x, f->bottom + 20, 0.5, scale_text(d->x.ticks[i], text, sizeof(text)));
    }
    for (size_t i = 0; i < d->y.n; i++) {
        double y = to_y(d, d->y.ticks[i]);
        grey(cr, 0.9);
        line(cr, f->left, y, f->right, y);
        grey(cr, 0.15);
        show(cr, f->left - 8, y + 5, 1, scale_text(d->y.ticks[i], text, sizeof(text)));
    }
}

static void draw_frame(const struct drawing *d)
{
    cairo_t *cr = d->cr;
    const struct chart *c = d->chart;
    const struct chart_frame *f = &d->frame;
    cairo->set_line_width(cr, 1);
    draw_ticks(d);
    grey(cr, 0.35);
    cairo->rectangle(cr, f->left, f->top, f->right - f->left, f->bottom - f->top);
    cairo->stroke(cr);
    grey(cr, 0.15);
    show(cr, (f->left + f->right) / 2, CHART_HEIGHT - 18, 0.5, c->x.title);
    cairo->save(cr);
    cairo->translate(cr, 22, (f->top + f->bottom) / 2);
    cairo->rotate(cr, -M_PI / 2);
    show(cr, 0, 0, 0.5, c->y.title);
    cairo->restore(cr);
    if (c->note)
        show(cr, LEFT, 54, 0, c->note);
    cairo->set_font_size(cr, FONT_TITLE);
    show(cr, LEFT, 32, 0, c->title);
    cairo->set_font_size(cr, FONT);
}

// --- The series

static void trace_marker(cairo_t *cr, size_t series, double x, double y)
{
    static const double turns[] = {0, 0, 0.5, 0}; // of the first corner, in corners
    static const unsigned corners[] = {0, 3, 4, 4};
    size_t kind = series % 4;
    cairo->new_path(cr);
    if (!corners[kind])
        cairo->arc(cr, x, y, MARKER, 0, 2 * M_PI);
    for (unsigned i = 0; i < corners[kind]; i++) {
        double angle = 2 * M_PI * (i + turns[kind]) / corners[kind] - M_PI / 2;
        cairo->line_to(cr, x + 1.2 * MARKER * cos(angle), y + 1.2 * MARKER * sin(angle));
    }
    cairo->close_path(cr);
}

static void draw_marker(cairo_t *cr, size_t series, double x, double y)
{
    const double *rgb = colours[series];
    cairo->set_source_rgb(cr, rgb[0], rgb[1], rgb[2]);
    trace_marker(cr, series, x, y);
    cairo->fill(cr);
}

static void draw_bar(const struct drawing *d, const struct chart_point *p)
{
    double x = to_x(d, p->x), low = to_y(d, p->low), high = to_y(d, p->high);
    line(d->cr, x, low, x, high);
    line(d->cr, x - CAP, low, x + CAP, low);
    line(d->cr, x - CAP, high, x + CAP, high);
}

static void draw_series(const struct drawing *d, size_t at)
{
    const struct chart_series *s = &d->chart->series[at];
    const double *rgb = colours[at];
    cairo_t *cr = d->cr;
    cairo->set_source_rgb(cr, rgb[0], rgb[1], rgb[2]);
    cairo->set_line_width(cr, 1.4);
    for (size_t i = 0; i < s->n && s->line; i++)
        if (is_drawn(&s->points[i]))
            cairo->line_to(cr, to_x(d, s->points[i].x), to_y(d, s->points[i].y));
    cairo->stroke(cr);
    for (size_t i = 0; i < s->n; i++)
        if (is_drawn(&s->points[i]) && isfinite(s->points[i].low) && isfinite(s->points[i].high))
            draw_bar(d, &s->points[i]);
    for (size_t i = 0; i < s->n; i++)
        if (is_drawn(&s->points[i]))
            draw_marker(cr, at, to_x(d, s->points[i].x), to_y(d, s->points[i].y));
}

// --- Labels

static struct label_box box_around(double x, double top, double bottom, double half)
{
    return (struct label_box){x - half, top - half, x + half, bottom + half};
}

// Markers and bars, which labels keep off, and the labels with their sizes.
static void gather(const struct drawing *d, struct label_box *obstacles, size_t *ret_n,
                   struct label *labels, const char **texts, size_t *ret_labels)
{
    cairo_font_extents_t font;
    cairo->font_extents(d->cr, &font);
    for (size_t s = 0; s < d->chart->n; s++)
        for (size_t i = 0; i < d->chart->series[s].n; i++) {
            const struct chart_point *p = &d->chart->series[s].points[i];
            if (!is_drawn(p))
                continue;
            double x = to_x(d, p->x), y = to_y(d, p->y);
            bool barred = isfinite(p->low) && isfinite(p->high);
            obstacles[(*ret_n)++] = box_around(x, y, y, MARKER + 2);
            obstacles[(*ret_n)++] =
                box_around(x, barred ? to_y(d, p->high) : y, barred ? to_y(d, p->low) : y, CAP);
            if (!p->label)
                continue;
            texts[*ret_labels] = p->label;
            labels[(*ret_labels)++] = (struct label){.x = x,
                                                     .y = y,
                                                     .width = text_width(d->cr, p->label) + 4,
                                                     .height = font.ascent + font.descent};
        }
}

static void draw_label(cairo_t *cr, const struct label *l, const char *text)
{
    cairo_font_extents_t font;
    cairo->font_extents(cr, &font);
    if (l->led) {
        grey(cr, 0.6);
        cairo->set_line_width(cr, 0.8);
        line(cr, l->x, l->y, fmin(fmax(l->x, l->box.left), l->box.right),
             fmin(fmax(l->y, l->box.top), l->box.bottom));
    }
    grey(cr, 0.1);
    show(cr, l->box.left + 2, l->box.bottom - font.descent, 0, text);
}

static int draw_labels(const struct drawing *d)
{
    size_t most = 1, n = 0, n_labels = 0;
    for (size_t s = 0; s < d->chart->n; s++)
        most += d->chart->series[s].n;
    struct label_box *obstacles = calloc(2 * most, sizeof(*obstacles));
    struct label *labels = calloc(most, sizeof(*labels));
    const char **texts = calloc(most, sizeof(*texts));
    const struct chart_frame *f = &d->frame;
    int rc = obstacles && labels && texts ? 0 : -ENOMEM;
    if (rc == 0) {
        struct label_box inside = {f->left + 2, f->top + 2, f->right - 2, f->bottom - 2};
        gather(d, obstacles, &n, labels, texts, &n_labels);
        labels_place(&inside, obstacles, n, labels, n_labels);
    }
    for (size_t i = 0; i < n_labels; i++)
        draw_label(d->cr, &labels[i], texts[i]);
    free(obstacles);
    free(labels);
    free(texts);
    return rc;
}

// --- The legend: a row of entries below the title, as many rows as they need.

static double legend_step(cairo_t *cr, const struct chart_series *s)
{
    return text_width(cr, s->name) + 44;
}

// Draws it from `top` on, or only measures it; returns its height.
static double legend(cairo_t *cr, const struct chart *c, double top, bool drawn)
{
    double x = LEFT, y = top;
    for (size_t i = 0; i < c->n; i++) {
        double step = legend_step(cr, &c->series[i]);
        if (x > LEFT && x + step > CHART_WIDTH - RIGHT) {
            x = LEFT;
            y += ROW;
        }
        if (drawn) {
            draw_marker(cr, i, x + MARKER, y + ROW / 2);
            grey(cr, 0.1);
            show(cr, x + 18, y + ROW / 2 + 5, 0, c->series[i].name);
        }
        x += step;
    }
    return y + ROW - top;
}

static int draw(cairo_t *cr, const struct chart *c, struct chart_frame *ret)
{
    struct drawing d = {.chart = c, .cr = cr};
    int rc = find_ranges(c, &d.x, &d.y);
    if (rc < 0)
        return rc;
    cairo->select_font_face(cr, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
    cairo->set_font_size(cr, FONT);
    double top = c->note ? 64 : 44;
    d.frame = (struct chart_frame){LEFT,
                                   top + legend(cr, c, top, false) + 8,
                                   CHART_WIDTH - RIGHT,
                                   CHART_HEIGHT - BOTTOM,
                                   d.x.low,
                                   d.x.high,
                                   d.y.low,
                                   d.y.high};
    cairo->set_source_rgb(cr, 1, 1, 1);
    cairo->paint(cr);
    draw_frame(&d);
    for (size_t i = c->n; i-- > 0;) // the first series lies above the others
        draw_series(&d, i);
    legend(cr, c, top, true);
    *ret = d.frame;
    return draw_labels(&d);
}

int chart_write(const struct chart *c, const char *path, struct chart_frame *ret_frame)
{
    size_t len = strlen(path);
    bool png = len > 4 && !strcmp(path + len - 4, ".png");
    struct chart_frame frame;
    cairo = cairo_open();
    if (!cairo)
        return -ELIBACC;
    cairo_surface_t *surface =
        png ? cairo->image_surface_create(CAIRO_FORMAT_RGB24, PNG_SCALE * CHART_WIDTH,
                                          PNG_SCALE * CHART_HEIGHT)
            : cairo->svg_surface_create(path, CHART_WIDTH, CHART_HEIGHT);
    cairo_t *cr = cairo->create(surface);
    if (png)
        cairo->scale(cr, PNG_SCALE, PNG_SCALE);
    int rc = draw(cr, c, &frame);
    if (rc == 0 && png && cairo->surface_write_to_png(surface, path) != CAIRO_STATUS_SUCCESS)
        rc = -EIO;
    cairo_status_t status = cairo->status(cr);
    cairo->destroy(cr);
    cairo->surface_finish(surface);
    if (rc == 0 &&
        (status != CAIRO_STATUS_SUCCESS || cairo->surface_status(surface) != CAIRO_STATUS_SUCCESS))
        rc = -EIO;
    cairo->surface_destroy(surface);
    if (rc == 0 && ret_frame)
        *ret_frame = frame;
    return rc;
}
