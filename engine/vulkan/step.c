// Steps: the rows go into the step buffer, the recording's submissions to the queue one after the
// other, and the results come back.
#include "engine/vulkan/model.h"

#include <string.h>

static void write_step(struct nb_device_model *m, const struct nb_rows *rows)
{
    const struct nb_vulkan_tables *t = &m->tables;
    const struct nb_hparams *hp = &m->plan->hp;
    uint32_t *word = m->step.map;
    word[0] = rows->n;
    memcpy(word + t->token, rows->token, rows->n * sizeof(*word));
    memcpy(word + t->position, rows->position, rows->n * sizeof(*word));
    memcpy(word + t->sequence, rows->sequence, rows->n * sizeof(*word));
    for (uint32_t i = 0; i < rows->n; i++) {
        nb_rope_row(hp, rows->position[i], (float *)(word + t->rope + i * hp->rope_dims));
        uint32_t s = rows->sequence[i];
        if (i + 1 == rows->n || rows->sequence[i + 1] != s)
            memcpy(word + t->blocks + s * t->block_stride, rows->blocks[s],
                   (rows->position[i] / NB_VULKAN_KV_TILE + 1) * sizeof(*word));
    }
}

// What a recording took, when it was timed.
static void read_times(struct nb_device_model *m, struct nb_vulkan_recording *r, uint32_t bucket)
{
    const struct nb_vk *vk = &m->device->vk;
    const struct nb_vulkan_segment *last = &r->segments[r->n - 1];
    uint32_t first = r->segments[0].query, n = last->query + last->n_queries - first;
    if (vk->GetQueryPoolResults(m->device->device, m->queries, first, n, n * sizeof(*m->ticks),
                                m->ticks, sizeof(*m->ticks), VK_QUERY_RESULT_64_BIT) != VK_SUCCESS)
        return;
    memset(r->times, 0, sizeof(r->times));
    for (const struct nb_vulkan_segment *s = r->segments; s <= last; s++) {
        const uint64_t *tick = m->ticks + (s->query - first);
        for (uint32_t i = s->first; i < s->end; i++) {
            uint32_t op = m->dispatches[i].op;
            struct nb_op_time *time = &r->times[m->plan->ops[op].kind];
            time->dispatches += !nb_vulkan_skips(m, &m->dispatches[i], bucket, false);
            if (i > s->first && op == m->dispatches[i - 1].op)
                continue;
            m->op_ns[op] = (uint64_t)((double)(tick[1] - tick[0]) * m->device->tick_ns);
            time->ns += m->op_ns[op];
            tick++;
        }
    }
}

static void count(struct nb_device_model *m, const struct nb_vulkan_recording *r)
{
    for (int i = 0; i < NB_OP_KINDS; i++) {
        m->times[i].ns += r->times[i].ns;
        m->times[i].dispatches += r->times[i].dispatches;
    }
}

static const struct nb_op *first_op(const struct nb_device_model *m,
                                    const struct nb_vulkan_segment *s)
{
    return &m->plan->ops[m->dispatches[s->first].op];
}

// A part of a step that the queue has.
struct going {
    enum nb_vulkan_part part;
    uint32_t rows, bucket;
    struct nb_vulkan_recording *recording;
    bool timed;
    uint64_t before; // submissions
};

static int start(struct nb_device_model *m, uint32_t rows, enum nb_vulkan_part part,
                 struct going *ret)
{
    struct nb_vulkan_device *d = m->device;
    struct nb_vulkan_recording *r;
    uint64_t before = d->compute.submitted, last;
    uint32_t bucket = nb_vulkan_bucket(rows);
    int rc = nb_vulkan_recording_get(m, bucket, part, &r);
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
        *ret = (struct going){part, rows, bucket, r, timed, before};
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
    if (g->timed)
        read_times(m, r, g->bucket);
    count(m, r);
    return nb_vulkan_recording_learn(m, g->bucket, g->part, r);
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
    if (!nb_plan_has(m->plan, NB_OP_EMBED))
        copy_rows(m->carry.map, nb_vulkan_pad(n, 32), rows->hidden, n, rows->n, n);
    return start(m, rows->n, NB_VULKAN_BODY, ret);
}

static int end_body(struct nb_device_model *m, const struct nb_rows *rows, const struct going *g)
{
    const uint32_t n = m->plan->hp.embedding;
    int rc = end(m, g);
    if (rc == 0 && !nb_plan_has(m->plan, NB_OP_HEAD))
        copy_rows(rows->hidden, n, m->carry.map, nb_vulkan_pad(n, 32), rows->n, n);
    return rc;
}

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
    const uint32_t vocab = m->plan->hp.vocab, *word = m->step.map;
    const float *from = m->brings ? m->best.map : m->logits.map;
    const float *row = from + (size_t)n * nb_vulkan_pad(vocab, 16);
    float *to = m->host_logits + (size_t)i * vocab;
    uint32_t k = word[m->tables.candidates + n];
    if (rows->candidates)
        rows->candidates[i] = k;
    if (k && !m->brings)
        nb_vulkan_top(row, vocab, (const uint32_t *)m->best.map + (size_t)n * NB_VULKAN_STRIPES,
                      (struct nb_candidate *)to, k);
    else
        memcpy(to, row, k ? k * sizeof(struct nb_candidate) : vocab * sizeof(*to));
}

// Logits or candidates of those wanted from `first` on, as many as go out together.
static int start_head(struct nb_device_model *m, const struct nb_rows *rows, uint32_t first,
                      struct going *ret)
{
    uint32_t *word = m->step.map, any = 0, n = rows->n_logits - first;
    n = n < m->head_rows ? n : m->head_rows;
    word[1] = n;
    memcpy(word + m->tables.logits_row, rows->logits_row + first, n * sizeof(*word));
    for (uint32_t i = 0; i < n; i++)
        any |= word[m->tables.candidates + i] = candidates_of(m, rows, first + i);
    return start(m, n, any || m->brings ? NB_VULKAN_BEST : NB_VULKAN_LOGITS, ret);
}

static int end_head(struct nb_device_model *m, const struct nb_rows *rows, uint32_t first,
                    const struct going *g)
{
    int rc = end(m, g);
    for (uint32_t i = 0; i < g->rows && rc == 0; i++)
        bring(m, rows, first + i, i);
    return rc;
}

int nb_vulkan_step(struct nb_device_model *m, const struct nb_rows *rows, float **ret_logits)
{
    struct nb_vulkan_device *d = m->device;
    struct going body, head;
    nb_vulkan_doing(d, "a step of %u rows", rows->n);
    int rc = start_body(m, rows, &body);
    // The queue has the head's first rows before the body ends, so that it waits for no host.
    if (rc == 0 && rows->n_logits > 0)
        rc = start_head(m, rows, 0, &head);
    if (rc == 0)
        rc = end_body(m, rows, &body);
    for (uint32_t first = 0; rc == 0 && first < rows->n_logits; first += head.rows) {
        if (first > 0)
            rc = start_head(m, rows, first, &head);
        if (rc == 0)
            rc = end_head(m, rows, first, &head);
    }
    // Out of memory leaves the device as it is, so what it was given must end before others write.
    if (rc < 0 && !d->gone)
        (void)nb_vulkan_wait(d, &d->compute, d->compute.submitted);
    if (rc == 0)
        *ret_logits = m->host_logits;
    return rc;
}

void nb_vulkan_kv_clear(struct nb_device_model *m, uint32_t block)
{
    size_t bytes = nb_vulkan_kv_block_bytes(&m->device->base, m->plan) / m->plan->n_layers;
    VkCommandBuffer c;
    nb_vulkan_doing(m->device, "clearing a KV block");
    if (nb_vulkan_begin(m->device, true, &c) < 0)
        return;
    for (uint32_t i = 0; i < m->plan->n_layers; i++)
        m->device->vk.CmdFillBuffer(c, m->kv[i].buffer, block * bytes, bytes, 0);
    (void)nb_vulkan_run_once(m->device, c);
}

void nb_vulkan_times(const struct nb_device_model *m, struct nb_op_time *ret)
{
    memcpy(ret, m->times, sizeof(m->times));
}
