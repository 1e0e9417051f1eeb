// See relations.h.
#include "distill/relations.h"

#include <math.h>

#include "grad/gemm.h"
#include "grad/loss.h"

size_t nb_relations_scratch(uint32_t n)
{
    return 2 * (size_t)NB_RELATIONS_TILE * n;
}

// x becomes the logarithms of its softmax; n > 0.
static void log_softmax(float *x, uint32_t n, float scale)
{
    float most = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        x[i] *= scale;
        most = fmaxf(most, x[i]);
    }
    double sum = (double)expf(x[0] - most);
    for (uint32_t i = 1; i < n; i++)
        sum += (double)expf(x[i] - most);
    const float less = most + (float)log(sum);
    for (uint32_t i = 0; i < n; i++)
        x[i] -= less;
}

// The divergence of a row's n products from the teacher's. What is taught is overwritten, and x
// becomes the gradient of `weight` times it in the products.
static double compare(float *taught, float taught_scale, float *x, float scale, uint32_t n,
                      float weight)
{
    double sum = 0;
    log_softmax(taught, n, taught_scale);
    log_softmax(x, n, scale);
    for (uint32_t i = 0; i < n; i++) {
        const float p = expf(taught[i]);
        sum += (double)(p * (taught[i] - x[i]));
        x[i] = weight * scale * (expf(x[i]) - p);
    }
    return sum;
}

// What a tile of rows and those that they are related to are, of one head.
struct tile {
    uint32_t first, n, others;
    const float *taught, *x; // [first + n][width] of the head
    float *d;
};

static void compare_tile(const struct nb_relations *r, struct nb_team *team, const struct tile *t,
                         const int32_t *label, float *ret, float *scratch)
{
    const uint32_t length = r->width / r->heads, taught_length = r->taught_width / r->heads,
                   all = t->others;
    const float scale = 1 / sqrtf((float)length), taught_scale = 1 / sqrtf((float)taught_length);
    const float *x = t->x + (size_t)t->first * r->width,
                *taught = t->taught + (size_t)t->first * r->taught_width;
    float *of_teacher = scratch, *products = scratch + (size_t)NB_RELATIONS_TILE * all;
    nb_sgemm(team, false, true, t->n, all, taught_length, taught, r->taught_width, t->taught,
             r->taught_width, 0, of_teacher, all);
    nb_sgemm(team, false, true, t->n, all, length, x, r->width, t->x, r->width, 0, products, all);
    for (uint32_t i = 0; i < t->n; i++) {
        const uint32_t row = t->first + i, related = label[row] == NB_LEFT_OUT ? 0
                                                     : r->causal               ? row + 1
                                                                               : all;
        float *p = products + (size_t)i * all;
        if (related)
            ret[row] += (float)compare(of_teacher + (size_t)i * all, taught_scale, p, scale,
                                       related, r->weight / (float)r->heads) /
                        (float)r->heads;
        for (uint32_t j = related; j < all; j++)
            p[j] = 0;
    }
    if (!t->d)
        return;
    nb_sgemm(team, false, false, t->n, length, all, products, all, t->x, r->width, 1,
             t->d + (size_t)t->first * r->width, r->width);
    nb_sgemm(team, true, false, all, length, t->n, products, all, x, r->width, 1, t->d, r->width);
}

void nb_relations(const struct nb_relations *r, struct nb_team *team, uint32_t n,
                  const float *taught, const float *x, const int32_t *label, float *d, float *ret,
                  float *scratch)
{
    const size_t length = r->width / r->heads, taught_length = r->taught_width / r->heads;
    for (uint32_t h = 0; h < r->heads; h++)
        for (uint32_t first = 0; first < n; first += NB_RELATIONS_TILE) {
            struct tile t = {.first = first,
                             .n = n - first < NB_RELATIONS_TILE ? n - first : NB_RELATIONS_TILE,
                             .taught = taught + h * taught_length,
                             .x = x + h * length};
            t.d = d ? d + h * length : NULL;
            t.others = r->causal ? first + t.n : n;
            compare_tile(r, team, &t, label, ret, scratch);
        }
}
