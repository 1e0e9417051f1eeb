// One step on the CPU: every thread walks the plan's stages together, with one barrier after each
// (two where many rows are quantized first). Threads share row groups, rows or heads; a result
// never depends on who computed it.
#include <math.h>
#include <string.h>

#include "engine/cpu/device.h"
#include "machine/clock.h"

void nb_cpu_turn_row(const struct nb_device_model *m, uint32_t row)
{
    const struct nb_hparams *hp = &m->plan->hp;
    nb_rope_row(hp, m->rows->position[row], m->rope + (size_t)row * hp->n_ropes * hp->rope_dims);
}

// What stands for the embedding in a plan that lacks it.
static void take_hidden(struct nb_device_model *m, const struct nb_rows *rows)
{
    memcpy(m->value[NB_VALUE_X], rows->hidden,
           (size_t)rows->n * m->plan->hp.embedding * sizeof(float));
    for (uint32_t t = 0; t < rows->n; t++)
        nb_cpu_turn_row(m, t);
}

// --- Looking at results

static bool are_finite(const struct nb_device_model *m, const struct nb_slice *s, uint32_t n)
{
    bool odd = false;
    for (uint32_t t = 0; s->value && t < n; t++) {
        const float *x = nb_cpu_row(m, s, t);
        for (uint32_t i = 0; i < s->width; i++)
            odd |= !isfinite(x[i]);
    }
    return !odd;
}

// The first op of a stage whose result, as the stage has left it, is not finite.
static uint32_t first_odd(const struct nb_cpu_walk *w, const struct nb_cpu_stage *s)
{
    for (uint32_t i = s->first + s->has_norm; i < s->first + s->n; i++) {
        const struct nb_slice *out = &w->plan->ops[i].out;
        if (!are_finite(w->m, out, nb_plan_rows(w->plan, out->value, w->n)))
            return i;
    }
    return w->plan->n_ops;
}

void nb_cpu_watch(struct nb_device_model *m)
{
    m->watched = true;
    m->first_odd = m->plan->n_ops;
}

uint32_t nb_cpu_first_odd(const struct nb_device_model *m)
{
    return m->first_odd;
}

void nb_cpu_capture(struct nb_device_model *m, nb_cpu_capture_fn *fn, void *user)
{
    m->capture = fn;
    m->capture_user = user;
}

// Vectors that no stage has shown as it made the input of matrices.
static void take_vectors(const struct nb_cpu_walk *w, const struct nb_cpu_stage *s)
{
    const struct nb_plan *plan = w->plan;
    if (!w->m->rows->vectors || plan->result < s->first || plan->result >= s->first + s->n ||
        (s->has_norm && plan->result == s->first))
        return;
    memcpy(w->m->rows->vectors, nb_cpu_row(w->m, &plan->ops[plan->result].out, 0),
           (size_t)w->n * plan->hp.embedding * sizeof(float));
}

// --- The walk

static void (*const run[])(struct nb_cpu_walk *w, const struct nb_cpu_stage *s) = {
    [NB_CPU_ROWS] = nb_cpu_run_rows,
    [NB_CPU_PRODUCTS] = nb_cpu_run_products,
    [NB_CPU_ATTENTION] = nb_cpu_run_attention,
};

void nb_cpu_step_thread(void *model, uint32_t thread)
{
    struct nb_device_model *m = model;
    struct nb_cpu_walk w = {.m = m,
                            .k = m->device->kernels,
                            .plan = m->plan,
                            .s = &m->scratch[thread],
                            .thread = thread,
                            .n = m->rows->n,
                            .share_id = m->device->share_id};
    uint64_t before = nb_now_ns();
    for (uint32_t i = 0; i < m->n_stages && w.n > 0; i++) {
        const struct nb_cpu_stage *s = &m->stages[i];
        if (m->rows->no_logits && s->first > m->plan->result)
            break;
        run[s->kind](&w, s);
        nb_team_barrier(m->device->team);
        if (thread > 0)
            continue;
        take_vectors(&w, s);
        if (m->watched && m->first_odd >= s->first) {
            const uint32_t odd = first_odd(&w, s);
            m->first_odd = odd < m->first_odd ? odd : m->first_odd;
        }
        uint64_t now = nb_now_ns();
        m->times[m->plan->ops[s->first].section].ns += now - before;
        before = now;
        nb_device_beat(&m->device->base);
    }
    if (thread == 0)
        m->device->share_id = w.share_id;
}

// Past the last position of the sequence that row `r` belongs to.
static uint32_t end_of(const struct nb_rows *rows, uint32_t r)
{
    while (r + 1 < rows->n && rows->sequence[r + 1] == rows->sequence[r])
        r++;
    return rows->position[r] + 1;
}

// Cuts runs of consecutive rows of one sequence, out of rows[0..n) (or all, with NULL), into
// chunks.
static void cut(struct nb_cpu_chunks *c, const struct nb_rows *rows, const uint32_t *row,
                uint32_t n, bool causal)
{
    c->n = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t r = row ? row[i] : i;
        struct nb_cpu_chunk *last = c->n ? &c->chunk[c->n - 1] : NULL;
        if (last && last->n < NB_CPU_QUERY_TILE && r == last->row + last->n &&
            rows->sequence[r] == rows->sequence[last->row])
            last->n++;
        else
            c->chunk[c->n++] = (struct nb_cpu_chunk){r, 1, i, causal ? 0 : end_of(rows, r)};
    }
}

void nb_cpu_step_prepare(struct nb_device_model *m, const struct nb_rows *rows)
{
    const bool causal = m->plan->hp.causal;
    m->rows = rows;
    cut(&m->all, rows, NULL, rows->n, causal);
    cut(&m->wanted, rows, rows->logits_row, rows->n_logits, causal);
    nb_cpu_adapters_prepare(m, rows);
    if (!m->plan->begins)
        take_hidden(m, rows);
}

void nb_cpu_step_finish(struct nb_device_model *m, const struct nb_rows *rows)
{
    if (!m->plan->ends)
        memcpy(rows->hidden, m->value[NB_VALUE_X],
               (size_t)rows->n * m->plan->hp.embedding * sizeof(float));
}
