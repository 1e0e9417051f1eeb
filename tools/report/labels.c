// A greedy search: nearest places first, to the right before above, below and left.
#include "tools/report/labels.h"

#include <math.h>

#define DIRECTIONS 16
#define RINGS      24
#define NEAR       9.0  // from the point to the nearest ring
#define STEP       11.0 // between rings

static double overlap(const struct label_box *a, const struct label_box *b)
{
    double width = fmin(a->right, b->right) - fmax(a->left, b->left);
    double height = fmin(a->bottom, b->bottom) - fmax(a->top, b->top);
    return width > 0 && height > 0 ? width * height : 0;
}

static double outside(const struct label_box *frame, const struct label_box *b)
{
    return (b->right - b->left) * (b->bottom - b->top) - overlap(frame, b);
}

static struct label_box candidate(const struct label *l, int ring, int direction)
{
    // 0, 1, -1, 2, -2, ... sixteenths of a turn from the right.
    int turn = direction % 2 ? (direction + 1) / 2 : -direction / 2;
    double angle = 2 * M_PI * turn / DIRECTIONS, off = NEAR + ring * STEP;
    double x = l->x + cos(angle) * (off + l->width / 2);
    double y = l->y + sin(angle) * (off + l->height / 2);
    return (struct label_box){x - l->width / 2, y - l->height / 2, x + l->width / 2,
                              y + l->height / 2};
}

static double badness(const struct label_box *frame, const struct label_box *obstacles, size_t n,
                      const struct label *labels, size_t placed, const struct label_box *box)
{
    double sum = 4 * outside(frame, box);
    for (size_t i = 0; i < n; i++)
        sum += overlap(&obstacles[i], box);
    for (size_t i = 0; i < placed; i++)
        sum += 4 * overlap(&labels[i].box, box);
    return sum;
}

static void place(const struct label_box *frame, const struct label_box *obstacles, size_t n,
                  struct label *labels, size_t at)
{
    double least = INFINITY;
    for (int i = 0; i < RINGS * DIRECTIONS && least > 0; i++) {
        struct label_box box = candidate(&labels[at], i / DIRECTIONS, i % DIRECTIONS);
        double bad = badness(frame, obstacles, n, labels, at, &box);
        if (bad >= least)
            continue;
        least = bad;
        labels[at].box = box;
        labels[at].led = i / DIRECTIONS > 1;
    }
}

void labels_place(const struct label_box *frame, const struct label_box *obstacles, size_t n,
                  struct label *labels, size_t n_labels)
{
    for (size_t i = 0; i < n_labels; i++)
        place(frame, obstacles, n, labels, i);
}
