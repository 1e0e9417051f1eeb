// Steps: the rows go into the step buffer, the recording's submissions to the queue one after the
// other, and the results come back.
#include <string.h>

#include "engine/vulkan/adapters.h"
#include "engine/vulkan/model.h"

void nb_vulkan_tables_lay(const struct nb_plan *plan, uint32_t max_rows, struct nb_vulkan_tables *t)
{
    const struct nb_hparams *hp = &plan->hp;
    const uint32_t padded = nb_vulkan_pad(max_rows, 4);
    uint32_t *const rows[] = {&t->token,  &t->position,   &t->sequence, &t->end,
                              &t->wanted, &t->candidates, &t->adapter};
    uint32_t at = STEP_WANTED + 1;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++, at += padded)
        *rows[i] = at;
    t->rope = nb_vulkan_pad(at, 4); // read as texels
    t->ropes = hp->n_ropes * hp->rope_dims;
    t->blocks = t->rope + max_rows * t->ropes;
    t->block_stride = (hp->context + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS;
    t->groups = t->blocks + max_rows * t->block_stride;
    t->words = nb_vulkan_pad(
        t->groups + NB_VULKAN_DISPATCHES * sizeof(VkDispatchIndirectCommand) / sizeof(uint32_t), 4);
}

static void write_step(struct nb_device_model *m, const struct nb_rows *rows)
{
    const struct nb_vulkan_tables *t = &m->tables;
    const struct nb_hparams *hp = &m->plan->hp;
    uint32_t *word = m->buffers.step.map, end = 0;
    word[STEP_ROWS] = rows->n;
    memcpy(word + t->token, rows->token, rows->n * sizeof(*word));
    memcpy(word + t->position, rows->position, rows->n * sizeof(*word));
    memcpy(word + t->sequence, rows->sequence, rows->n * sizeof(*word));
    for (uint32_t i = rows->n; i-- > 0;) {
        const uint32_t s = rows->sequence[i], position = rows->position[i];
        nb_rope_row(hp, position, (float *)(word + t->rope + i * t->ropes));
        if (i + 1 == rows->n || rows->sequence[i + 1] != s) {
            memcpy(word + t->blocks + s * t->block_stride, rows->blocks[s],
                   (position / NB_KV_POSITIONS + 1) * sizeof(*word));
            end = position + 1;
        }
        word[t->end + i] = hp->causal ? position + 1 : end;
    }
}

static const struct nb_op *first_op(const struct nb_device_model *m,
                                    const struct nb_vulkan_segment *s)
{
    return &m->plan->ops[m->program.dispatches[s->first].op];
}

// A part of a step that the queue has.
struct going {
    enum nb_vulkan_scope scope;
    uint32_t rows, bucket;
    struct nb_vulkan_recording *recording;
    uint64_t before; // submissions
};

static int start(struct nb_device_model *m, uint32_t rows, enum nb_vulkan_scope scope,
                 struct going *ret)
{
    struct nb_vulkan_device *d = m->device;
    struct nb_vulkan_recording *r;
    uint64_t before = d->compute.submitted, last;
    uint32_t bucket = nb_vulkan_bucket(rows);
    int rc = nb_vulkan_recording_get(m, bucket, scope, &r);
    if (rc < 0)
        return rc;
    const bool timed = nb_vulkan_recording_is_timed(r);
    nb_vulkan_recording_size(m, r, rows);
    for (uint32_t i = 0; rc == 0 && i < r->n; i++) {
        const struct nb_vulkan_segment *s = &r->segments[i];
        if ((rc = nb_vulkan_submit(d, &d->compute, timed ? s->commands : s->untimed, &last)) < 0)
            nb_vulkan_fault_at(d, first_op(m, s));
    }
    if (rc == 0)
        *ret = (struct going){scope, rows, bucket, r, before};
    return rc;
}

static int end(struct nb_device_model *m, const struct going *g)
{
    struct nb_vulkan_device *d = m->device;
    struct nb_vulkan_recording *r = g->recording;
    int rc = 0;
    // One after the other, so that the time allowed is a submission's.
    for (uint32_t i = 0; rc == 0 && i < r->n; i++)
        if ((rc = nb_vulkan_wait(d, &d->compute, g->before + 1 + i)) < 0)
            nb_vulkan_fault_at(d, first_op(m, &r->segments[i]));
    if (rc < 0)
        return rc;
    return nb_vulkan_recording_learn(m, g->bucket, g->scope, r);
}

static void copy_rows(float *to, size_t to_width, const float *from, size_t from_width,
                      uint32_t rows, size_t n)
{
    for (uint32_t i = 0; i < rows; i++)
        memcpy(to + i * to_width, from + i * from_width, n * sizeof(*to));
}

static int start_body(struct nb_device_model *m, const struct nb_rows *rows, struct going *ret)
{
    const uint32_t n = m->plan->hp.embedding;
    write_step(m, rows);
    if (!m->plan->begins)
        copy_rows(m->buffers.carry.map, nb_vulkan_stride(m->plan, NB_VALUE_X), rows->hidden, n,
                  rows->n, n);
    return start(m, rows->n, NB_VULKAN_BODY, ret);
}

static int end_body(struct nb_device_model *m, const struct nb_rows *rows, const struct going *g)
{
    const uint32_t n = m->plan->hp.embedding;
    int rc = end(m, g);
    if (rc == 0 && !m->plan->ends)
        copy_rows(rows->hidden, n, m->buffers.carry.map, nb_vulkan_stride(m->plan, NB_VALUE_X),
                  rows->n, n);
    return rc;
}

// --- Of the rows whose result is wanted

// How many candidates a row of logits gives: they must fit in its place.
static uint32_t candidates_of(const struct nb_device_model *m, const struct nb_rows *rows,
                              uint32_t i)
{
    const size_t row = m->plan->hp.vocab * sizeof(float);
    uint32_t n = rows->candidates ? rows->candidates[i] : 0;
    return n <= NB_CANDIDATES_MAX && n * sizeof(struct nb_candidate) <= row ? n : 0;
}

// The results of the row that was the n-th of a submission and is the i-th of those wanted.
static void bring(struct nb_device_model *m, const struct nb_rows *rows, uint32_t i, uint32_t n)
{
    const struct nb_vulkan_buffers *b = &m->buffers;
    const uint32_t vocab = m->plan->hp.vocab, k = candidates_of(m, rows, i);
    const bool brings = m->extent.brings;
    const float *from = brings ? b->best.map : b->value[NB_VALUE_LOGITS].map;
    const float *row = from + (size_t)n * nb_vulkan_stride(m->plan, NB_VALUE_LOGITS);
    float *to = m->host_logits + (size_t)i * vocab;
    if (rows->candidates)
        rows->candidates[i] = k;
    if (k && !brings)
        nb_vulkan_top(row, vocab, (const uint32_t *)b->best.map + (size_t)n * STRIPES,
                      (struct nb_candidate *)to, k);
    else
        memcpy(to, row, k ? k * sizeof(struct nb_candidate) : vocab * sizeof(*to));
}

// The rows from `first` on that go out together: first their vectors, where these are wanted, then
// their logits or candidates.
struct wanted {
    const struct nb_rows *rows;
    uint32_t first;
    bool vectors;
};

static bool has_logits(const struct nb_device_model *m, const struct nb_rows *rows)
{
    return !rows->no_logits && m->buffers.value[NB_VALUE_LOGITS].buffer;
}

// False: that was all.
static bool next_wanted(const struct nb_device_model *m, struct wanted *w)
{
    const struct nb_rows *rows = w->rows;
    if (w->vectors && has_logits(m, rows)) {
        w->vectors = false;
        return true;
    }
    w->vectors = rows->vectors;
    w->first += m->extent.wanted_rows;
    return w->first < rows->n_logits;
}

static int start_wanted(struct nb_device_model *m, const struct wanted *w, struct going *ret)
{
    const struct nb_rows *rows = w->rows;
    uint32_t *word = m->buffers.step.map, any = 0, n = rows->n_logits - w->first;
    n = n < m->extent.wanted_rows ? n : m->extent.wanted_rows;
    word[STEP_WANTED] = n;
    memcpy(word + m->tables.wanted, rows->logits_row + w->first, n * sizeof(*word));
    for (uint32_t i = 0; i < n; i++)
        any |= word[m->tables.candidates + i] = candidates_of(m, rows, w->first + i);
    return start(m, n,
                 w->vectors                ? NB_VULKAN_SHOWN
                 : any || m->extent.brings ? NB_VULKAN_BEST
                                           : NB_VULKAN_LOGITS,
                 ret);
}

static int end_wanted(struct nb_device_model *m, const struct wanted *w, const struct going *g)
{
    const uint32_t n = m->plan->hp.embedding;
    int rc = end(m, g);
    if (rc == 0 && w->vectors)
        copy_rows(w->rows->vectors + (size_t)w->first * n, n, m->buffers.shown.map,
                  nb_vulkan_stride(m->plan, NB_VALUE_X), g->rows, n);
    for (uint32_t i = 0; i < g->rows && rc == 0 && !w->vectors; i++)
        bring(m, w->rows, w->first + i, i);
    return rc;
}

static int run(struct nb_device_model *m, const struct nb_rows *rows, float **ret_logits)
{
    struct nb_vulkan_device *d = m->device;
    struct wanted w = {.rows = rows, .vectors = rows->vectors};
    struct going body, going;
    bool wants = rows->n_logits > 0 && (w.vectors || has_logits(m, rows));
    int rc = start_body(m, rows, &body);
    // The queue has the first of the wanted rows before the body ends, so that it waits for no
    // host.
    if (rc == 0 && wants)
        rc = start_wanted(m, &w, &going);
    if (rc == 0)
        rc = end_body(m, rows, &body);
    while (rc == 0 && wants) {
        rc = end_wanted(m, &w, &going);
        wants = next_wanted(m, &w);
        if (rc == 0 && wants)
            rc = start_wanted(m, &w, &going);
    }
    // Out of memory leaves the device as it is, so what it was given must end before others write.
    if (rc < 0 && !d->gone)
        (void)nb_vulkan_wait(d, &d->compute, d->compute.submitted);
    if (rc == 0)
        *ret_logits = m->host_logits;
    return rc;
}

int nb_vulkan_step(struct nb_device_model *m, const struct nb_rows *rows, float **ret_logits)
{
    struct nb_device_model *form;
    nb_vulkan_doing(m->device, "a step of %u rows", rows->n);
    int rc = nb_vulkan_adapters_form(m, rows, &form);
    return rc < 0 ? rc : run(form, rows, ret_logits);
}

int nb_vulkan_kv_clear(struct nb_device_model *m, uint32_t block)
{
    size_t bytes = nb_vulkan_kv_block_bytes(&m->device->base, m->plan) / m->plan->n_layers;
    VkCommandBuffer c;
    nb_vulkan_doing(m->device, "clearing a KV block");
    int rc = nb_vulkan_begin(m->device, true, &c);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < m->plan->n_layers; i++)
        m->device->vk.CmdFillBuffer(c, m->buffers.kv[i].buffer, block * bytes, bytes, 0);
    return nb_vulkan_run_once(m->device, c);
}

void nb_vulkan_times(const struct nb_device_model *m, struct nb_op_time *ret)
{
    memcpy(ret, m->recordings.times, sizeof(m->recordings.times));
    nb_vulkan_adapters_times(m, ret);
}
