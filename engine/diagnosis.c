// Why a row's logits are not finite: the sequence is computed once more on one core, by the CPU's
// kernels from the same weights, each op's result is looked at, and the first that is not finite is
// named. A few rows at a time between steps, so that others go on. Changes nothing of the model.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"
#include "tensor/fail.h"

#define ROWS     16            // of a turn; the first has one, because most faults are in every row
#define KV_BYTES (64ull << 20) // bounds the rows that are looked at
#define ADVICE   "the file is damaged or was made wrongly: load another"

struct nb_diagnosis {
    struct nb_sequence *of;
    struct nb_device *cpu;
    struct nb_device_model *dm;
    uint32_t done, end, most; // rows of the log, and of one turn
    uint32_t *blocks;
    uint32_t *position, *sequence; // of a turn's rows
};

void nb_diagnosis_drop(struct nb_model *m, const struct nb_sequence *s)
{
    struct nb_diagnosis *d = m->diagnosis;
    if (!d || (s && d->of != s))
        return;
    if (d->dm)
        d->cpu->ops->model_close(d->dm);
    if (d->cpu)
        d->cpu->ops->destroy(d->cpu);
    free(d->blocks);
    free(d->position);
    free(d->sequence);
    free(d);
    m->diagnosis = NULL;
}

static int begin(struct nb_model *m, struct nb_sequence *s)
{
    struct nb_diagnosis *d = m->diagnosis = calloc(1, sizeof(*d));
    if (!d)
        return -ENOMEM;
    d->of = s;
    int rc = nb_cpu_device_create(1, NULL, &d->cpu);
    if (rc < 0)
        return rc;
    d->cpu->on_beat = m->device->on_beat;
    d->cpu->user = m->device->user;
    const bool causal = m->plan->hp.causal;
    uint64_t fit = KV_BYTES / d->cpu->ops->kv_block_bytes(d->cpu, m->plan);
    const uint32_t rows = causal ? s->failed_at + 1 : s->length;
    uint32_t blocks = (rows - 1) / NB_KV_POSITIONS + 1;
    blocks = fit < blocks ? (uint32_t)(fit ? fit : 1) : blocks;
    d->end = min_u32(rows, blocks * NB_KV_POSITIONS);
    d->most = causal ? ROWS : d->end;
    d->blocks = calloc(blocks, sizeof(*d->blocks));
    d->position = calloc(d->most, sizeof(*d->position));
    d->sequence = calloc(d->most, sizeof(*d->sequence));
    if (!d->blocks || !d->position || !d->sequence)
        return -ENOMEM;
    for (uint32_t i = 0; i < blocks; i++)
        d->blocks[i] = i;
    const struct nb_device_model_options options = {.kv_blocks = blocks, .max_rows = d->most};
    struct nb_error error;
    rc = d->cpu->ops->model_open(d->cpu, m->plan, &options, &d->dm, &error);
    if (rc == 0)
        nb_cpu_watch(d->dm);
    return rc;
}

// The next rows of the log, and the result of the one that failed. Tokens that see those after them
// are computed together.
static int compute(struct nb_diagnosis *d)
{
    const bool causal = d->of->model->plan->hp.causal;
    const uint32_t first = d->done, n = min_u32(first || !causal ? d->most : 1, d->end - first);
    const uint32_t *const blocks[] = {d->blocks}, failed = d->of->failed_at - first;
    float *logits;
    for (uint32_t i = 0; i < n; i++)
        d->position[i] = first + i;
    d->done += n;
    const struct nb_rows rows = {.n = n,
                                 .token = d->of->log + first,
                                 .position = d->position,
                                 .sequence = d->sequence,
                                 .blocks = blocks,
                                 .adapters = &d->of->adapter,
                                 .n_logits = d->done > d->of->failed_at,
                                 .logits_row = &failed};
    return d->cpu->ops->step(d->dm, &rows, &logits);
}

static void name_op(const struct nb_op *op, char *ret, size_t size)
{
    if (op->section == NB_SECTION_EMBED || op->section == NB_SECTION_HEAD)
        snprintf(ret, size, "the %s", op->section == NB_SECTION_EMBED ? "embedding" : "head");
    else
        snprintf(ret, size, "%s of layer %u", nb_section_names[op->section], op->layer);
}

static void explain(const struct nb_model *m, struct nb_sequence *s, int rc)
{
    const struct nb_diagnosis *d = m->diagnosis;
    const uint32_t odd = rc == 0 ? nb_cpu_first_odd(d->dm) : m->plan->n_ops;
    struct nb_device_info info;
    const char *results = s->request.embed ? "vectors" : "logits";
    char op[64];
    m->device->ops->info(m->device, &info);
    const bool is_cpu = !strcmp(info.name, "cpu");
    if (odd < m->plan->n_ops) {
        name_op(&m->plan->ops[odd], op, sizeof(op));
        snprintf(s->error, sizeof(s->error),
                 "the model's %s are not finite: %s is the first op whose result is not%s; %s",
                 results, op, is_cpu ? "" : " (computed again on the CPU)", ADVICE);
    } else if (rc < 0)
        snprintf(s->error, sizeof(s->error),
                 "the model's %s are not finite, and which op began it cannot be found out: %s",
                 results, strerror(-rc));
    else if (d->end <= s->failed_at)
        snprintf(s->error, sizeof(s->error),
                 "the model's %s are not finite at token %u, and no op's result is among the "
                 "first %u tokens, which are all that are looked at; %s",
                 results, s->failed_at, d->end, ADVICE);
    else
        snprintf(s->error, sizeof(s->error),
                 "the model's %s are not finite on %.63s, and finite on the CPU: its driver "
                 "computes something else; load the model with --device cpu",
                 results, info.name);
}

static struct nb_sequence *next_failed(const struct nb_model *m)
{
    struct nb_sequence *s = m->first;
    while (s && !(s->active && s->failed && !s->parked))
        s = s->next;
    return s;
}

bool nb_diagnose(struct nb_model *m)
{
    if (m->diagnosis && m->diagnosis->of->parked)
        nb_diagnosis_drop(m, NULL);
    struct nb_sequence *s = m->diagnosis ? m->diagnosis->of : next_failed(m);
    if (!s)
        return false;
    int rc = m->diagnosis ? 0 : begin(m, s);
    if (rc == 0)
        rc = compute(m->diagnosis);
    const bool found = rc == 0 && nb_cpu_first_odd(m->diagnosis->dm) < m->plan->n_ops;
    if (rc == 0 && !found && m->diagnosis->done < m->diagnosis->end)
        return true;
    explain(m, s, rc);
    nb_diagnosis_drop(m, s);
    nb_sequence_finish(s, NB_FINISH_ERROR, -EBADMSG);
    return true;
}
