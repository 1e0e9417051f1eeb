// Units of rows, each read, checked and encoded by one thread.
#include "quant/rows.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "quant/encode.h"
#include "quant/rounding.h"
#include "tensor/convert.h"
#include "tensor/type.h"

#define UNIT   (UINT64_C(1) << 14) // elements that a thread takes at a time; at least one row
#define STR(s) (int)(s).len, (s).data

struct worker {
    uint8_t *in;
    float *floats;
    uint64_t failed; // the first row that could not be done; UINT64_MAX: none
    int rc;
    float least, most; // of what it has seen
    uint64_t bins[NB_SPARSE_BINS];
    struct nb_error error;
};

struct nb_rows_encoder {
    const struct nb_source *s;
    struct nb_team *team;
    struct worker *workers; // one for each thread
    uint64_t room;          // elements of each
    // The call
    const struct nb_source_tensor *t;
    int (*what)(const struct nb_rows_encoder *r, struct worker *w, uint64_t first, uint64_t n);
    const struct nb_rows_type *how;
    uint8_t *out;
    const struct nb_sparse_search *search; // for magnitudes
    struct nb_sparse_cut *cuts;            // of all rows
    uint64_t first, n, unit;               // rows
    atomic_ulong next;                     // of them
};

int nb_rows_create(const struct nb_source *s, struct nb_team *team, struct nb_rows_encoder **ret,
                   struct nb_error *ret_error)
{
    struct nb_rows_encoder *r = calloc(1, sizeof(*r));
    if (r)
        r->workers = calloc(nb_team_size(team), sizeof(*r->workers));
    if (!r || !r->workers) {
        free(r);
        return nb_fail(ret_error, -ENOMEM, "no memory for the threads");
    }
    r->s = s;
    r->team = team;
    *ret = r;
    return 0;
}

void nb_rows_destroy(struct nb_rows_encoder *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < nb_team_size(r->team); i++) {
        free(r->workers[i].in);
        free(r->workers[i].floats);
    }
    free(r->workers);
    free(r);
}

static uint64_t row_bytes(const struct nb_rows_encoder *r)
{
    return nb_type_row_bytes(r->how->type, r->t->dims[0]);
}

static bool is_exact(const struct nb_rows_type *how)
{
    return !how->scheme || how->scheme->exact;
}

// What is so large that it becomes an infinity, or a scale that is one, is no weight any more.
static int check_range(const struct nb_rows_encoder *r, struct worker *w, const void *out,
                       uint64_t first, uint64_t n)
{
    const struct nb_type_info *to = nb_type_info(r->how->type);
    const uint64_t cols = r->t->dims[0], elements = n * cols;
    if (!nb_rounding_is_risky(r->how->type, w->floats, elements))
        return 0;
    to->dequantize(out, w->floats, elements / to->block);
    for (uint64_t i = 0; i < elements; i++)
        if (!isfinite(w->floats[i]))
            return nb_fail(&w->error, -ERANGE,
                           "tensor %.*s has numbers in row %" PRIu64
                           " that are too large for %s: name another type for it in a recipe",
                           STR(r->t->name), first + i / cols, to->name);
    return 0;
}

// The rows from `row` on that have the same importance: of a stack, those of one expert.
static uint64_t alike(const struct nb_rows_encoder *r, uint64_t row, uint64_t n)
{
    const uint64_t each = r->t->n_dims > 2 ? r->t->dims[1] : nb_source_rows(r->t);
    const uint64_t left = each - row % each;
    return left < n ? left : n;
}

static int fit_rows(const struct nb_rows_encoder *r, struct worker *w, uint64_t first, uint64_t n,
                    uint8_t *out)
{
    const uint64_t cols = r->t->dims[0];
    const float *x = w->floats, *weights = r->how->weights;
    int rc = 0;
    for (uint64_t some; n > 0 && rc == 0; first += some, n -= some, x += some * cols) {
        some = alike(r, first, n);
        const uint64_t expert = r->t->n_dims > 2 ? first / r->t->dims[1] : 0;
        const struct nb_encode how = {.type = r->how->type,
                                      .effort =
                                          r->how->search ? NB_EFFORT_SEARCH : NB_EFFORT_REFERENCE,
                                      .by_size = true,
                                      .importance = weights ? weights + expert * cols : NULL,
                                      .scheme = r->how->scheme,
                                      .least = r->how->least,
                                      .most = r->how->most};
        rc = nb_encode_rows(&how, x, some, cols, out);
        out += some * row_bytes(r);
    }
    return rc;
}

// Rows of the source as floats, which are numbers.
static int read_rows(const struct nb_rows_encoder *r, struct worker *w, uint64_t first, uint64_t n)
{
    const struct nb_type_info *from = nb_type_info(r->t->type);
    int rc = nb_source_read(r->s, r->t, first, n, w->in, &w->error);
    if (rc < 0)
        return rc;
    from->dequantize(w->in, w->floats, n * r->t->dims[0] / from->block);
    return nb_convert_check_numbers(r->s, r->t, w->floats, first, n, &w->error);
}

static int see_rows(const struct nb_rows_encoder *r, struct worker *w, uint64_t first, uint64_t n)
{
    int rc = read_rows(r, w, first, n);
    for (uint64_t i = 0; rc == 0 && i < n * r->t->dims[0]; i++) {
        w->least = fminf(w->least, w->floats[i]);
        w->most = fmaxf(w->most, w->floats[i]);
    }
    return rc;
}

static void make_positive(float *x, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        x[i] = fabsf(x[i]);
}

static int count_rows(const struct nb_rows_encoder *r, struct worker *w, uint64_t first, uint64_t n)
{
    const uint64_t elements = n * r->t->dims[0];
    int rc = read_rows(r, w, first, n);
    if (rc < 0)
        return rc;
    make_positive(w->floats, elements);
    nb_sparse_count(r->search, w->floats, elements, w->bins);
    return 0;
}

// How many of each row equal the cut.
static int count_ties(const struct nb_rows_encoder *r, struct worker *w, uint64_t first, uint64_t n)
{
    const uint64_t cols = r->t->dims[0];
    int rc = read_rows(r, w, first, n);
    if (rc < 0)
        return rc;
    for (uint64_t i = 0; i < n; i++) {
        struct nb_sparse_cut *cut = &r->cuts[first + i];
        for (uint64_t k = 0; k < cols; k++)
            cut->ties += fabsf(w->floats[i * cols + k]) == cut->at;
    }
    return 0;
}

// Of a row, where its least scores become zeros. The bytes that it was read from hold the scores.
static void make_zeros(const struct nb_rows_encoder *r, struct worker *w, uint64_t row, float *x)
{
    const uint64_t cols = r->t->dims[0];
    const struct nb_sparsity *s = r->how->sparse;
    const uint64_t expert = r->t->n_dims > 2 ? row / r->t->dims[1] : 0;
    float *scores = (float *)(void *)w->in;
    for (uint64_t k = 0; k < cols; k++)
        scores[k] = fabsf(x[k]);
    for (uint64_t k = 0; s->by == NB_SPARSE_WANDA && k < cols; k++)
        scores[k] *= sqrtf(r->how->weights[expert * cols + k]);
    if (s->of)
        nb_sparse_pattern(s->keep, s->of, scores, cols);
    else
        nb_sparse_keep(r->how->cuts ? r->how->cuts[row]
                                    : nb_sparse_cut_of(scores, cols, nb_sparsity_count(s, cols)),
                       scores, cols);
    for (uint64_t k = 0; k < cols; k++)
        x[k] = scores[k] > 0 ? x[k] : 0;
}

static int encode_rows(const struct nb_rows_encoder *r, struct worker *w, uint64_t first,
                       uint64_t n)
{
    const uint64_t cols = r->t->dims[0];
    uint8_t *out = r->out + (first - r->first) * row_bytes(r);
    int rc = read_rows(r, w, first, n);
    if (rc < 0)
        return rc;
    for (uint64_t i = 0; r->how->sparse && i < n; i++)
        make_zeros(r, w, first + i, w->floats + i * cols);
    if (r->t->type == r->how->type && is_exact(r->how) && !r->how->sparse) {
        memcpy(out, w->in, n * row_bytes(r));
        return 0;
    }
    if (r->how->search || !is_exact(r->how))
        rc = fit_rows(r, w, first, n, out);
    else
        rc = nb_rounding_rows(r->how->type, w->floats, n, cols, out);
    if (rc < 0)
        return nb_fail(&w->error, rc,
                       "tensor %.*s has numbers in rows from %" PRIu64
                       " on that are too large for %s: name another type for it in a recipe",
                       STR(r->t->name), first, nb_type_name(r->how->type));
    return check_range(r, w, out, first, n);
}

static void run_share(void *arg, uint32_t thread)
{
    struct nb_rows_encoder *r = arg;
    struct worker *w = &r->workers[thread];
    for (uint64_t at; (at = atomic_fetch_add(&r->next, r->unit)) < r->n;) {
        const uint64_t rows = r->n - at < r->unit ? r->n - at : r->unit;
        if (r->first + at >= w->failed)
            continue;
        int rc = r->what(r, w, r->first + at, rows);
        if (rc < 0) {
            w->failed = r->first + at;
            w->rc = rc;
        }
    }
}

// The failure of the first row that has one, whichever thread met it.
static int worst(const struct nb_rows_encoder *r, struct nb_error *ret_error)
{
    const struct worker *first = &r->workers[0];
    for (uint32_t i = 1; i < nb_team_size(r->team); i++)
        if (r->workers[i].failed < first->failed)
            first = &r->workers[i];
    if (first->failed == UINT64_MAX)
        return 0;
    return nb_fail(ret_error, first->rc, "%s", first->error.text);
}

static int reserve(struct nb_rows_encoder *r, uint64_t elements)
{
    for (uint32_t i = 0; i < nb_team_size(r->team); i++) {
        struct worker *w = &r->workers[i];
        w->failed = UINT64_MAX;
        if (elements <= r->room)
            continue;
        free(w->in);
        free(w->floats);
        w->in = malloc(4 * elements); // no type has more bytes an element
        w->floats = malloc(elements * sizeof(float));
        if (!w->in || !w->floats)
            return -ENOMEM;
    }
    r->room = elements > r->room ? elements : r->room;
    return 0;
}

// r->what on rows [first, first + n) of a tensor.
static int run(struct nb_rows_encoder *r, const struct nb_source_tensor *t, uint64_t first,
               uint64_t n, struct nb_error *ret_error)
{
    const uint64_t cols = t->dims[0];
    r->t = t;
    r->first = first;
    r->n = n;
    r->unit = UNIT / cols > 1 ? UNIT / cols : 1;
    if (reserve(r, r->unit * cols) < 0) {
        r->room = 0;
        return nb_fail(ret_error, -ENOMEM, "no memory for a part of a tensor");
    }
    atomic_store(&r->next, 0);
    nb_team_run(r->team, run_share, r);
    return worst(r, ret_error);
}

int nb_rows_extent(struct nb_rows_encoder *r, const struct nb_source_tensor *t, float *ret_least,
                   float *ret_most, struct nb_error *ret_error)
{
    const uint32_t threads = nb_team_size(r->team);
    r->what = see_rows;
    for (uint32_t i = 0; i < threads; i++)
        r->workers[i].least = r->workers[i].most = 0;
    int rc = run(r, t, 0, nb_source_rows(t), ret_error);
    if (rc < 0)
        return rc;
    *ret_least = *ret_most = 0;
    for (uint32_t i = 0; i < threads; i++) {
        *ret_least = fminf(*ret_least, r->workers[i].least);
        *ret_most = fmaxf(*ret_most, r->workers[i].most);
    }
    return 0;
}

// Passes over an expert's rows until the cut is found.
static int find_cut(struct nb_rows_encoder *r, const struct nb_source_tensor *t, uint64_t first,
                    uint64_t n, struct nb_sparse_search *search, struct nb_error *ret_error)
{
    const uint32_t threads = nb_team_size(r->team);
    int rc = 0;
    r->what = count_rows;
    r->search = search;
    while (rc == 0 && search->shift >= 0) {
        for (uint32_t i = 0; i < threads; i++)
            memset(r->workers[i].bins, 0, sizeof(r->workers[i].bins));
        rc = run(r, t, first, n, ret_error);
        uint64_t *bins = r->workers[0].bins;
        for (uint32_t i = 1; i < threads; i++)
            for (uint32_t k = 0; k < NB_SPARSE_BINS; k++)
                bins[k] += r->workers[i].bins[k];
        nb_sparse_narrow(search, bins);
    }
    return rc;
}

// Those that equal the cut go in the order of rows until there are enough.
static int find_ties(struct nb_rows_encoder *r, const struct nb_source_tensor *t, uint64_t first,
                     uint64_t n, struct nb_sparse_cut cut, struct nb_error *ret_error)
{
    for (uint64_t i = first; i < first + n; i++)
        r->cuts[i] = (struct nb_sparse_cut){.at = cut.at};
    r->what = count_ties;
    int rc = run(r, t, first, n, ret_error);
    for (uint64_t i = first; i < first + n; i++) {
        r->cuts[i].ties = r->cuts[i].ties < cut.ties ? r->cuts[i].ties : cut.ties;
        cut.ties -= r->cuts[i].ties;
    }
    return rc;
}

int nb_rows_cuts(struct nb_rows_encoder *r, const struct nb_source_tensor *t,
                 const struct nb_sparsity *sparse, struct nb_sparse_cut *ret,
                 struct nb_error *ret_error)
{
    const uint64_t rows = nb_source_rows(t), each = t->n_dims > 2 ? t->dims[1] : rows;
    int rc = 0;
    r->cuts = ret;
    for (uint64_t first = 0; first < rows && rc == 0; first += each) {
        struct nb_sparse_search s = nb_sparse_begin(nb_sparsity_count(sparse, each * t->dims[0]));
        rc = find_cut(r, t, first, each, &s, ret_error);
        if (rc == 0)
            rc = find_ties(r, t, first, each, nb_sparse_found(&s), ret_error);
    }
    return rc;
}

int nb_rows_encode(struct nb_rows_encoder *r, const struct nb_source_tensor *t,
                   const struct nb_rows_type *how, uint64_t first, uint64_t n, void *out,
                   struct nb_error *ret_error)
{
    r->what = encode_rows;
    r->how = how;
    r->out = out;
    return run(r, t, first, n, ret_error);
}
