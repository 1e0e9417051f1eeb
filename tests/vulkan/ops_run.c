// Runs the harness's plans, through the interface that every device has.
#include "tests/vulkan/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"

void op_open(struct op_machine *m, struct nb_device *d, const struct op_plan *p)
{
    const struct nb_device_model_options o = {.kv_blocks = OP_KV_BLOCKS, .max_rows = OP_ROWS};
    struct nb_error error = {""};
    m->device = d;
    if (d->ops->model_open(d, &p->plan, &o, &m->model, &error) < 0) {
        fprintf(stderr, "ops-check: %s\n", error.text);
        exit(1);
    }
}

float *op_step(const struct op_machine *m, const struct nb_rows *rows)
{
    float *logits;
    int rc = m->device->ops->step(m->model, rows, &logits);
    if (rc < 0) {
        fprintf(stderr, "ops-check: a step of %u rows failed: %s\n", rows->n, strerror(-rc));
        exit(1);
    }
    return logits;
}

const float *op_result(const struct op_machine *m, const struct op_case *c,
                       const struct nb_rows *rows, uint32_t *ret_width)
{
    static float vectors[OP_ROWS * OP_WIDEST];
    struct nb_rows asked = *rows;
    asked.vectors = c->vectors ? vectors : NULL;
    asked.no_logits = c->vectors;
    *ret_width = c->vectors || !c->vocab ? c->embedding : c->vocab;
    const float *logits = op_step(m, &asked);
    return c->vectors ? vectors : logits;
}

// Block tables out of order, each sequence's apart from the others'.
void op_batch_init(struct op_batch *b)
{
    *b = (struct op_batch){.rows = {.token = b->token,
                                    .position = b->position,
                                    .sequence = b->sequence,
                                    .blocks = b->blocks,
                                    .logits_row = b->logits_row}};
    for (uint32_t s = 0; s < OP_SEQUENCES; s++) {
        b->blocks[s] = b->block[s];
        for (uint32_t i = 0; i < OP_KV_BLOCKS; i++)
            b->block[s][i] = (i * OP_SEQUENCES + s) * 29 % OP_KV_BLOCKS;
    }
}

void op_batch_fill(struct op_batch *b, const uint32_t rows[OP_SEQUENCES], uint32_t at[OP_SEQUENCES])
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < OP_SEQUENCES; s++)
        for (uint32_t i = 0; i < rows[s]; i++, n++) {
            b->position[n] = at[s]++;
            b->token[n] = (int32_t)((b->position[n] + 13 * s) % OP_TOKENS);
            b->sequence[n] = s;
            b->logits_row[n] = n;
        }
    b->rows.n = b->rows.n_logits = n;
}

void op_run_begin(struct op_run *r, struct nb_device *d, const struct op_case *c)
{
    op_plan_init(&r->plan, c);
    op_open(&r->machine, d, &r->plan);
    op_batch_init(&r->batch);
}

void op_run_rows(struct op_run *r, uint32_t rows, uint32_t at)
{
    op_batch_fill(&r->batch, (uint32_t[OP_SEQUENCES]){rows}, (uint32_t[OP_SEQUENCES]){at});
}

void op_run_end(struct op_run *r)
{
    r->machine.device->ops->model_close(r->machine.model);
    op_plan_finish(&r->plan);
}
