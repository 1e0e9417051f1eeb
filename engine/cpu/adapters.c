// The rows of a step that have adapters: behind each product W x comes by * B (A x), by the kernels
// of float weights. Rows are taken in runs of one adapter, so that its factors are read once for
// all of them; a row's result depends on no other.
#include "engine/cpu/device.h"

// That a run's rows are divided into, where there are as many threads: its A may be one row group.
#define PARTS 8

// Cuts the adapter's rows, of rows[0..n) or of all (NULL), into runs that no tile of tokens cuts.
static void cut(struct nb_cpu_runs *r, const struct nb_rows *rows, const uint32_t *row, uint32_t n)
{
    r->n = 0;
    for (uint32_t i = 0; rows->adapters && i < n; i++) {
        const struct nb_adapter *adapter = rows->adapters[rows->sequence[row ? row[i] : i]];
        struct nb_cpu_run *last = r->n ? &r->run[r->n - 1] : NULL;
        if (!adapter)
            continue;
        if (last && last->adapter == adapter && last->row + last->n == i && i % NB_CPU_TOKEN_TILE)
            last->n++;
        else
            r->run[r->n++] = (struct nb_cpu_run){i, 1, adapter};
    }
}

void nb_cpu_adapters_prepare(struct nb_device_model *m, const struct nb_rows *rows)
{
    uint32_t rank = 0;
    cut(&m->all_runs, rows, NULL, rows->n);
    cut(&m->wanted_runs, rows, rows->logits_row, rows->n_logits);
    for (uint32_t i = 0; i < m->all_runs.n; i++)
        if (m->all_runs.run[i].adapter->rank > rank)
            rank = m->all_runs.run[i].adapter->rank;
    m->thin_groups = (rank + NB_GROUP_ROWS - 1) / NB_GROUP_ROWS;
}

static const struct nb_cpu_runs *runs_of(const struct nb_cpu_walk *w)
{
    return w->in_tail ? &w->m->wanted_runs : &w->m->all_runs;
}

static size_t thin_stride(const struct nb_device_model *m)
{
    return (size_t)m->thin_groups * NB_GROUP_ROWS;
}

// A x of a row, for the nth product of its stage.
static float *thin_row(const struct nb_device_model *m, uint32_t product, uint32_t row)
{
    return m->thin + ((size_t)product * m->max_rows + row) * thin_stride(m);
}

static bool has_pairs(const struct nb_cpu_walk *w, const struct nb_op *products, uint32_t n)
{
    const struct nb_cpu_runs *runs = runs_of(w);
    for (uint32_t i = 0; i < runs->n; i++)
        for (uint32_t j = 0; j < n; j++)
            if (nb_adapter_pair(runs->run[i].adapter, w->plan, &products[j]))
                return true;
    return false;
}

// by * A x, of a row group of A and some rows of a run.
static void make_thin(const struct nb_cpu_walk *w, const struct nb_cpu_run *run,
                      const struct nb_op *product, uint32_t nth, uint32_t group,
                      const struct nb_act *a)
{
    const struct nb_adapter_pair *pair = nb_adapter_pair(run->adapter, w->plan, product);
    const uint32_t first = group * NB_GROUP_ROWS;
    if (!pair || first >= pair->a.rows)
        return;
    const struct nb_act x = {.n = run->n, .k = a->k, .x = a->x + (size_t)run->row * a->k};
    w->k->gemm(&pair->a, &x, group, group + 1, NULL, false, thin_row(w->m, nth, run->row),
               thin_stride(w->m), w->s->kernel);
    for (uint32_t t = run->row; t < run->row + run->n; t++)
        w->k->cap(thin_row(w->m, nth, t) + first, pair->by, 0.0f,
                  nb_cpu_min(NB_GROUP_ROWS, pair->a.rows - first));
}

void nb_cpu_adapters_begin(struct nb_cpu_walk *w, const struct nb_op *products, uint32_t n,
                           const struct nb_act *a)
{
    const struct nb_cpu_runs *runs = runs_of(w);
    if (!has_pairs(w, products, n))
        return;
    const uint32_t parts = nb_cpu_min(nb_team_size(w->m->device->team), PARTS);
    const uint32_t groups = w->m->thin_groups, each = n * groups * parts;
    struct nb_share share = nb_cpu_share(w, runs->n * each, 1);
    for (uint32_t u, end; nb_cpu_take(w, &share, &u, &end);)
        for (; u < end; u++) {
            const uint32_t nth = u % each / (groups * parts), part = u % parts;
            struct nb_cpu_run run = runs->run[u / each];
            const uint32_t rows = (run.n + parts - 1) / parts, first = part * rows;
            run.row += first;
            run.n = first < run.n ? nb_cpu_min(rows, run.n - first) : 0;
            if (run.n)
                make_thin(w, &run, &products[nth], nth, u / parts % groups, a);
        }
    nb_team_barrier(w->m->device->team);
}

void nb_cpu_adapters_add(const struct nb_cpu_walk *w, const struct nb_op *product, uint32_t nth,
                         const struct nb_cpu_tile *tile, uint32_t group0, uint32_t group1)
{
    const struct nb_cpu_runs *runs = runs_of(w);
    for (uint32_t i = 0; i < runs->n; i++) {
        const struct nb_cpu_run *run = &runs->run[i];
        const struct nb_adapter_pair *pair = run->row >= tile->row && run->row < tile->row + tile->n
                                                 ? nb_adapter_pair(run->adapter, w->plan, product)
                                                 : NULL;
        if (!pair)
            continue;
        const struct nb_act thin = {
            .n = run->n, .k = (uint32_t)thin_stride(w->m), .x = thin_row(w->m, nth, run->row)};
        w->k->gemm(&pair->b, &thin, group0, group1, NULL, true,
                   nb_cpu_row(w->m, &product->out, run->row), product->out.stride, w->s->kernel);
    }
}
