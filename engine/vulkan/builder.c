// What a dispatch is made of: its pipelines, its set of buffers, and what it is told.
#include "engine/vulkan/builder.h"

#include <errno.h>
#include <string.h>

// --- Values

const struct nb_vulkan_buffer *build_buffer(const struct builder *b, enum nb_value v)
{
    const struct nb_vulkan_buffers *all = &b->m->buffers;
    return b->count == STEP_WANTED && all->tail[v].buffer ? &all->tail[v] : &all->value[v];
}

uint32_t build_column(const struct builder *b, const struct nb_slice *s)
{
    const struct nb_hparams *hp = &b->m->plan->hp;
    if (s->value != NB_VALUE_QKV || s->at == 0)
        return s->at;
    return s->at == hp->dim[NB_DIM_Q] ? b->k : b->v;
}

// Vectors lie one after the other in a buffer of their own: they are small.
uint32_t build_vector(struct builder *b, const float *v, uint32_t n)
{
    const uint32_t at = b->n_vectors, padded = nb_vulkan_pad(n, NB_VULKAN_VECTOR_PAD);
    if ((at + (size_t)padded) * sizeof(*v) > b->m->buffers.vectors.bytes) {
        b->rc = -EOVERFLOW; // buffers.c counts them
        return NONE;
    }
    memcpy(b->vectors + at, v, n * sizeof(*v));
    b->n_vectors += padded;
    return at;
}

void build_wrote(struct builder *b, enum nb_value v)
{
    for (int i = 0; i < 2; i++)
        if (b->made[i].value == v)
            b->made[i].value = NB_VALUE_NONE;
}

// --- Dispatches

struct nb_vulkan_dispatch *build_add(struct builder *b, enum nb_vulkan_shape shape, enum nb_value v,
                                     uint32_t units)
{
    struct nb_vulkan_program *program = &b->m->program;
    if (program->n == NB_VULKAN_DISPATCHES)
        b->rc = -EOVERFLOW;
    // After an error the first one serves for the rest; nothing of it is used.
    struct nb_vulkan_dispatch *p = &program->dispatches[b->rc < 0 ? 0 : program->n++];
    *p = (struct nb_vulkan_dispatch){.op = b->stage.first,
                                     .shape = shape,
                                     .each = nb_plan_rows(b->m->plan, v, 1),
                                     .units = units,
                                     .few_units = units,
                                     .teams = 1,
                                     .cols = 1};
    return p;
}

void build_push(struct nb_vulkan_dispatch *p, const void *data, size_t bytes)
{
    memcpy(p->push, data, bytes);
}

// The device's tier says how many tokens each of the tiles has, and in which module.
void build_specialise(struct builder *b, struct nb_vulkan_dispatch *p, enum nb_shader shader,
                      uint32_t c[CONST_TIER])
{
    const uint32_t mode = c[CONST_MODE];
    p->shader = shader;
    for (uint32_t t = 0; t < NB_TIER_TILES; t++) {
        const struct nb_tier_variant *v = &b->m->device->tier->variant[shader][t];
        c[CONST_TOKENS] = v->tokens;
        if (!v->finishes && (shader == NB_SHADER_GEMM || shader == NB_SHADER_GEMM_FLOATS))
            c[CONST_MODE] = mode % MODE_FINISH;
        else
            c[CONST_MODE] = mode;
        int i = nb_vulkan_pipeline_name(&b->m->pipelines, v, c);
        if (i < 0)
            b->rc = i;
        else
            p->pipeline[t] = (uint16_t)i;
        p->stand_in[t] = (uint8_t)t;
    }
}

void build_bind(struct builder *b, struct nb_vulkan_dispatch *p,
                const struct nb_vulkan_window *weights, bindings buffers)
{
    struct nb_device_model *m = b->m;
    bindings all;
    for (uint32_t i = 0; i < BINDINGS; i++)
        all[i] = buffers[i];
    all[BIND_STEP] = &m->buffers.step;
    if (b->rc == 0)
        b->rc =
            nb_vulkan_sets_bind(m->device, &m->sets, weights ? &weights->what : NULL, all, &p->set);
}

// --- Rows that are normalized and quantized

struct nb_vulkan_dispatch *build_rows(struct builder *b, const struct rows *r)
{
    const struct nb_device_model *m = b->m;
    const struct nb_op *norm = r->norm;
    const bool centres = norm && m->plan->hp.arch->norm == NB_NORM_LAYER;
    struct push_quantize push = {.count = b->count,
                                 .each = nb_plan_rows(m->plan, r->value, 1),
                                 .gather1 = r->gather,
                                 .cols = r->cols,
                                 .in4 = r->width / 4,
                                 .out4 = r->width / 4,
                                 .act4 = nb_vulkan_record_words4(r->cols, r->terms),
                                 .norm1 = NONE,
                                 .bias1 = NONE,
                                 .eps = m->plan->hp.norm_eps,
                                 .range = r->range};
    if (norm)
        push.norm1 = b->finisher ? b->norm1 : build_vector(b, norm->weight, r->cols);
    if (norm && norm->bias)
        push.bias1 = build_vector(b, norm->bias, r->cols);
    struct nb_vulkan_dispatch *p = build_add(b, NB_VULKAN_ROWS, r->value, 2);
    p->few_units = (r->cols + 31) / 32;
    build_push(p, &push, sizeof(push));
    static const uint32_t scales[] = {
        [NB_INPUT_BLOCK] = 0, [NB_INPUT_ROW] = MODE_ROW_SCALE, [NB_INPUT_FIXED] = MODE_RANGE};
    uint32_t c[CONST_TIER] = {[CONST_TERMS] = r->records ? r->terms : 1};
    c[CONST_MODE] = (norm ? MODE_NORM : 0) | (centres ? MODE_MEAN : 0) |
                    (r->floats ? MODE_FLOAT : 0) |
                    (r->records ? MODE_QUANTIZED | scales[r->scaled] : 0);
    build_specialise(b, p, NB_SHADER_QUANTIZE, c);
    // What a mode does not write is bound nevertheless.
    build_bind(b, p, NULL,
               (bindings){[BIND_VECTORS] = &m->buffers.vectors,
                          [BIND_IN] = r->from,
                          [BIND_OUT2] = r->records ? r->records : &m->buffers.records[0],
                          [BIND_FLOATS] = r->floats ? r->floats : &m->buffers.sync});
    return p;
}
