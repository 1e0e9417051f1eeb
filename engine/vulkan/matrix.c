// Products and dequantization for clients: the shaders of a step on matrices and rows that are no
// step's. What they need beside the weights is the device's, made at first use and grown.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/program.h"

#define MAX_PIPELINES 192 // kept; a call names 5 at most
#define MAX_SETS      64  // windows of one call
#define STEP_BYTES    64
#define MAX_ROWS      (1u << (NB_VULKAN_BUCKETS - 1)) // of a dispatch

enum { TO_F32, TO_F16, TO_MOST, TO_INT8 }; // modes of dequantize.comp

struct nb_vulkan_bench {
    struct nb_device_model m; // device, pipelines, and the set of a call: nothing else of a model
    struct nb_vulkan_buffer step, vectors, x, act, y, most;
};

struct nb_device_matrix {
    struct nb_vulkan_device *device;
    const struct nb_packed *w;
    const struct nb_device_model *home; // whose pieces hold it
    struct nb_device_model *own;        // that, where it is no model's
    struct nb_plan plan;
    struct nb_op op;
};

// --- What every call needs

void nb_vulkan_bench_destroy(struct nb_vulkan_device *d)
{
    struct nb_vulkan_bench *b = d->bench;
    if (!b)
        return;
    nb_vulkan_pipelines_destroy(&b->m);
    struct nb_vulkan_buffer *const list[] = {&b->step, &b->vectors, &b->x,
                                             &b->act,  &b->y,       &b->most};
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
        nb_vulkan_buffer_finish(d, list[i]);
    free(b);
    d->bench = NULL;
}

static int reserve(struct nb_vulkan_device *d, struct nb_vulkan_buffer *b, VkDeviceSize bytes,
                   enum nb_vulkan_memory where)
{
    if (b->buffer && b->bytes >= bytes)
        return 0;
    nb_vulkan_buffer_finish(d, b);
    return nb_vulkan_buffer_init(d, bytes, where, b);
}

static int get_bench(struct nb_vulkan_device *d, struct nb_vulkan_bench **ret)
{
    if (!d->bench)
        d->bench = calloc(1, sizeof(*d->bench));
    struct nb_vulkan_bench *b = d->bench;
    if (!b)
        return -ENOMEM;
    b->m.device = d;
    if (b->m.n_pipelines > MAX_PIPELINES)
        nb_vulkan_pipelines_destroy(&b->m);
    int rc = reserve(d, &b->step, STEP_BYTES, NB_VULKAN_HOST);
    if (rc == 0)
        rc = reserve(d, &b->vectors, STEP_BYTES, NB_VULKAN_HOST);
    *ret = b;
    return rc;
}

// --- Matrices

// Is it one of the plan's, and so in the model's pieces? The image has others.
static bool holds(const struct nb_device_model *m, const struct nb_packed *w)
{
    for (uint32_t i = 0; i < m->plan->n_ops; i++)
        for (int j = 0; j < 3; j++)
            if (m->plan->ops[i].m[j].w && m->plan->ops[i].m[j].w->data == w->data)
                return true;
    return false;
}

// Its weights alone, as those of a plan with one op.
static int load_own(struct nb_device_matrix *m)
{
    static const struct nb_device_model_options silent;
    char error[256];
    m->own = calloc(1, sizeof(*m->own));
    if (!m->own)
        return -ENOMEM;
    m->op.m[0].w = m->w;
    m->plan.n_ops = 1;
    m->plan.ops = &m->op;
    *m->own = (struct nb_device_model){.device = m->device, .plan = &m->plan};
    int rc = nb_vulkan_weights_cut(m->own, error, sizeof(error));
    return rc < 0 ? rc : nb_vulkan_weights_load(m->own, &silent);
}

int nb_vulkan_matrix_open(struct nb_device *d, struct nb_device_model *dm,
                          const struct nb_packed *w, struct nb_device_matrix **ret)
{
    struct nb_device_matrix *m = calloc(1, sizeof(*m));
    if (!m)
        return -ENOMEM;
    m->device = (struct nb_vulkan_device *)d;
    m->w = w;
    m->home = dm;
    int rc = dm && holds(dm, w) ? 0 : load_own(m);
    if (m->own)
        m->home = m->own;
    if (rc < 0)
        nb_vulkan_matrix_close(m);
    else
        *ret = m;
    return rc;
}

void nb_vulkan_matrix_close(struct nb_device_matrix *m)
{
    if (!m)
        return;
    if (m->own && !m->device->hangs)
        nb_vulkan_weights_finish(m->own);
    free(m->own);
    free(m);
}

// --- A call: its sets and a command buffer

struct call {
    struct nb_device_matrix *matrix;
    struct nb_vulkan_device *d;
    struct nb_vulkan_bench *bench;
    VkCommandBuffer commands;
    struct nb_vulkan_sets sets;
    int rc;
};

static void begin(struct call *c, struct nb_device_matrix *m)
{
    *c = (struct call){.matrix = m, .d = m->device};
    c->rc = get_bench(c->d, &c->bench);
    if (c->rc == 0)
        c->rc = nb_vulkan_sets_init(c->d, MAX_SETS, &c->sets);
    if (c->rc == 0)
        c->rc = nb_vulkan_begin(c->d, true, &c->commands);
}

static int end(struct call *c)
{
    if (c->commands && c->rc == 0)
        c->rc = nb_vulkan_run_once(c->d, c->commands);
    else if (c->commands)
        nb_vulkan_release(c->d, &c->d->compute, &c->commands);
    if (!c->d->hangs)
        nb_vulkan_sets_finish(c->d, &c->sets);
    return c->rc;
}

// The window of a part, which is cut to the row groups that one holds.
static struct window window_at(const struct nb_device_matrix *m, struct part *p)
{
    struct window w = {0};
    uint32_t fit = nb_build_fitting(m->home, p->w, p->group0);
    p->groups = fit < p->groups ? fit : p->groups;
    (void)nb_build_window_of(m->home, p, 1, &w);
    return w;
}

typedef const struct nb_vulkan_buffer *bindings[NB_VULKAN_BINDINGS];

static VkDescriptorSet bind(struct call *c, const struct window *weights, bindings buffers)
{
    VkDescriptorSet set = VK_NULL_HANDLE;
    if (c->rc == 0)
        c->rc = nb_vulkan_sets_bind(c->d, &c->sets, weights ? &weights->what : NULL, buffers, &set);
    return set;
}

static void after_dispatch(const struct call *c)
{
    if (c->rc == 0)
        nb_vulkan_after_dispatch(&c->bench->m, c->commands);
}

// The smallest tile of tokens that takes so many rows, or the largest.
static uint32_t tile_for(const struct nb_vulkan_device *d, uint32_t rows)
{
    uint32_t tile = NB_TIER_TILES - 1;
    while (tile > 0 && d->tier->variant[NB_SHADER_GEMM][tile - 1].tokens >= rows)
        tile--;
    return tile;
}

// A dispatch for `rows` rows, its pipeline made if it is new.
static void dispatch(struct call *c, struct nb_vulkan_dispatch *p, uint32_t rows,
                     uint32_t constants[NB_VULKAN_CONSTANTS], const void *push, size_t bytes)
{
    struct nb_device_model *m = &c->bench->m;
    uint32_t tile = p->shape == NB_VULKAN_TOKENS ? tile_for(c->d, rows) : 0;
    const struct nb_tier_variant *v = &c->d->tier->variant[p->shader][tile];
    constants[CONST_TOKENS] = v->tokens;
    int i = c->rc < 0 ? c->rc : nb_vulkan_pipeline_name(m, v, constants);
    if (i >= 0 && !m->pipelines[i].pipeline)
        c->rc = nb_vulkan_pipelines_make(m, &(uint16_t){(uint16_t)i}, 1, NULL, NULL);
    if (i < 0)
        c->rc = i;
    if (c->rc < 0)
        return;
    p->stand_in[tile] = (uint8_t)tile;
    p->pipeline[tile] = (uint16_t)i;
    memcpy(p->push, push, bytes);
    nb_vulkan_dispatch(m, c->commands, rows, p, tile);
}

// --- Products

// Rows of x to the device, zeros past their columns.
static int load_rows(struct call *c, const struct nb_product *p, uint32_t rows)
{
    uint32_t width = nb_vulkan_pad(c->matrix->w->cols, 32);
    VkDeviceSize act = (VkDeviceSize)rows * (width / 32) * record_words4(p->terms) * 16;
    int rc =
        reserve(c->d, &c->bench->x, (VkDeviceSize)rows * width * sizeof(float), NB_VULKAN_HOST);
    if (rc == 0)
        rc = reserve(c->d, &c->bench->act, act, NB_VULKAN_DEVICE);
    for (uint32_t t = 0; t < p->n && rc == 0; t++) {
        float *to = (float *)c->bench->x.map + (size_t)t * width;
        memcpy(to, p->x + (size_t)t * p->cols, p->cols * sizeof(float));
        memset(to + p->cols, 0, (width - p->cols) * sizeof(float));
    }
    return rc;
}

static void quantize(struct call *c, const struct nb_product *p)
{
    uint32_t cols = c->matrix->w->cols, width = nb_vulkan_pad(cols, 32);
    struct {
        uint32_t lanes, count, gather, cols, in4, out4, act4, norm;
        float eps;
    } data = {.gather = NONE,
              .cols = cols,
              .in4 = width / 4,
              .out4 = width / 4,
              .act4 = cols / 32 * record_words4(p->terms)};
    uint32_t constants[NB_VULKAN_CONSTANTS] = {
        [CONST_TERMS] = p->terms, [CONST_MODE] = MODE_QUANTIZED};
    struct nb_vulkan_dispatch q = {.shader = NB_SHADER_QUANTIZE,
                                   .shape = NB_VULKAN_ROWS,
                                   .units = 2,
                                   .few_units = width / 32,
                                   .teams = 1};
    const struct nb_vulkan_bench *b = c->bench;
    q.set = bind(c, NULL,
                 (bindings){[BIND_VECTORS] = &b->vectors,
                            [BIND_STEP] = &b->step,
                            [BIND_IN] = &b->x,
                            [BIND_OUT2] = &b->act,
                            [BIND_FLOATS] = &b->y});
    dispatch(c, &q, p->n, constants, &data, sizeof(data));
    after_dispatch(c);
}

// `done`: row groups of the result before this part's.
static void product(struct call *c, const struct nb_product *p, const struct part *part,
                    const struct window *win, uint32_t done)
{
    const struct nb_packed *w = c->matrix->w;
    struct nb_vulkan_gemm_push data = {.in4 = nb_is_float(w)
                                                  ? nb_vulkan_pad(w->cols, 32) / 4
                                                  : w->cols / 32 * record_words4(p->terms),
                                       .out4 = p->groups * 4};
    nb_build_describe(&c->bench->m, part, 1, MODE_STORE, win, &data);
    data.column4[0] = done * 4;
    uint32_t constants[NB_VULKAN_CONSTANTS] = {0};
    nb_vulkan_constants(w, constants);
    constants[CONST_TERMS] = nb_is_float(w) ? 1 : p->terms;
    constants[CONST_MODE] = MODE_STORE;
    struct nb_vulkan_dispatch q = {.shader =
                                       nb_is_float(w) ? NB_SHADER_GEMM_FLOATS : NB_SHADER_GEMM,
                                   .shape = NB_VULKAN_TOKENS,
                                   .units = part->groups * 4};
    const struct nb_vulkan_bench *b = c->bench;
    q.set = bind(c, win,
                 (bindings){[BIND_VECTORS] = &b->vectors,
                            [BIND_STEP] = &b->step,
                            [BIND_IN] = &b->x,
                            [BIND_ACT] = &b->act,
                            [BIND_OUT] = &b->y,
                            // Declared and not used: what is stored here is no operator's input.
                            [BIND_OUT2] = &b->y,
                            [BIND_KV] = &b->step,
                            [BIND_FLOATS] = &b->y,
                            [BIND_SYNC] = &b->y});
    dispatch(c, &q, p->n, constants, &data, sizeof(data));
}

static void store_rows(const struct call *c, const struct nb_product *p)
{
    uint32_t row = p->group0 * 16, left = c->matrix->w->rows - row, width = p->groups * 16;
    uint32_t n = left < width ? left : width;
    for (uint32_t t = 0; t < p->n; t++)
        memcpy(p->y + t * p->ldy + row, (const float *)c->bench->y.map + (size_t)t * width,
               n * sizeof(float));
}

int nb_vulkan_gemm(struct nb_device_matrix *m, const struct nb_product *p)
{
    struct call c;
    begin(&c, m);
    if (c.rc == 0) {
        // A tile of tokens is computed whole.
        uint32_t tile = tile_for(c.d, p->n);
        uint32_t rows = nb_vulkan_pad(p->n, c.d->tier->variant[NB_SHADER_GEMM][tile].tokens);
        c.rc = load_rows(&c, p, rows);
        if (c.rc == 0)
            c.rc = reserve(c.d, &c.bench->y, (VkDeviceSize)rows * p->groups * 16 * sizeof(float),
                           NB_VULKAN_HOST);
    }
    if (c.rc == 0) {
        *(uint32_t *)c.bench->step.map = p->n;
        nb_vulkan_doing(c.d, "a client's product with %u x %u", m->w->rows, m->w->cols);
        if (!nb_is_float(m->w))
            quantize(&c, p);
    }
    struct part part = {.w = m->w};
    for (uint32_t done = 0; done < p->groups && c.rc == 0; done += part.groups) {
        part.group0 = p->group0 + done;
        part.groups = p->groups - done;
        struct window win = window_at(m, &part);
        product(&c, p, &part, &win, done);
    }
    int rc = end(&c);
    if (rc == 0)
        store_rows(&c, p);
    return rc;
}

// --- Rows as numbers

struct decode_push {
    uint32_t lanes, row0, rows, weight1, cols, stride1, high4, scale2, min2, sub1, out1;
};

// Rows of one window that begins with the group of `row`.
static void decode(struct call *c, const struct part *part, const struct window *win, uint32_t row,
                   uint32_t rows, const struct nb_decode *p, uint32_t mode)
{
    static const uint32_t per_word[] = {[TO_F32] = 1, [TO_F16] = 2, [TO_MOST] = 1, [TO_INT8] = 4};
    uint32_t blocks = (p->cols + 31) / 32;
    struct nb_vulkan_gemm_push d = {0};
    nb_build_describe(&c->bench->m, part, 1, MODE_STORE, win, &d);
    const struct decode_push data = {.row0 = row % 16,
                                     .rows = rows,
                                     .weight1 = d.weight1[0],
                                     .cols = p->cols,
                                     .stride1 = d.stride1,
                                     .high4 = d.high4,
                                     .scale2 = d.scale2,
                                     .min2 = d.min2,
                                     .sub1 = d.sub1,
                                     .out1 = blocks * 32 / per_word[mode]};
    uint32_t constants[NB_VULKAN_CONSTANTS] = {0};
    nb_vulkan_constants(part->w, constants);
    constants[CONST_TERMS] = 1;
    constants[CONST_MODE] = mode;
    struct nb_vulkan_dispatch q = {.shader = NB_SHADER_DEQUANTIZE, .shape = NB_VULKAN_ROWS};
    q.units = q.few_units = mode == TO_MOST ? 1 : blocks;
    const struct nb_vulkan_bench *b = c->bench;
    q.set = bind(c, win, (bindings){[BIND_OUT] = &b->y, [BIND_OUT2] = &b->most});
    dispatch(c, &q, rows, constants, &data, sizeof(data));
    if (mode == TO_MOST)
        after_dispatch(c);
}

static void store_numbers(const struct call *c, const struct nb_decode *p, uint32_t first,
                          uint32_t n, uint32_t size)
{
    size_t width = (size_t)nb_vulkan_pad(p->cols, 32) * size, row = (size_t)p->cols * size;
    for (uint32_t i = 0; i < n; i++)
        memcpy((uint8_t *)p->out + (first + i) * row, (const uint8_t *)c->bench->y.map + i * width,
               row);
    for (uint32_t i = 0; p->to == NB_NUMBER_INT8 && i < n; i++)
        p->scales[first + i] = ((const float *)c->bench->most.map)[i] / 127.0f;
}

// Of a dispatch that has an invocation for each block of 32 numbers.
static uint32_t most_rows(const struct nb_vulkan_device *d, uint32_t cols)
{
    uint32_t local = nb_vulkan_local(d, &d->tier->variant[NB_SHADER_DEQUANTIZE][0]);
    uint64_t rows = (uint64_t)d->max_groups * local / ((cols + 31) / 32);
    return rows < MAX_ROWS ? (uint32_t)rows : MAX_ROWS;
}

// Rows [p->row0 + first, ...) as far as one window goes; how many, or an errno.
static int decode_window(struct nb_device_matrix *m, const struct nb_decode *p, uint32_t first)
{
    static const struct {
        uint32_t mode, size;
    } numbers[] = {[NB_NUMBER_F32] = {TO_F32, 4},
                   [NB_NUMBER_F16] = {TO_F16, 2},
                   [NB_NUMBER_INT8] = {TO_INT8, 1}};
    uint32_t row = p->row0 + first, left = p->rows - first, size = numbers[p->to].size;
    struct part part = {.w = m->w, .group0 = row / 16, .groups = (row % 16 + left + 15) / 16};
    struct window win = window_at(m, &part);
    uint32_t n = part.groups * 16 - row % 16;
    n = n < left ? n : left;
    uint32_t most = most_rows(m->device, p->cols);
    n = n < most ? n : most;
    struct call c;
    begin(&c, m);
    if (c.rc == 0)
        c.rc = reserve(c.d, &c.bench->y, (VkDeviceSize)n * nb_vulkan_pad(p->cols, 32) * size,
                       NB_VULKAN_HOST);
    if (c.rc == 0)
        c.rc = reserve(c.d, &c.bench->most, (VkDeviceSize)n * sizeof(float), NB_VULKAN_HOST);
    if (c.rc == 0) {
        nb_vulkan_doing(c.d, "dequantizing %u x %u for a client", n, p->cols);
        if (p->to == NB_NUMBER_INT8)
            decode(&c, &part, &win, row, n, p, TO_MOST);
        decode(&c, &part, &win, row, n, p, numbers[p->to].mode);
    }
    int rc = end(&c);
    if (rc < 0)
        return rc;
    store_numbers(&c, p, first, n, size);
    return (int)n;
}

int nb_vulkan_dequantize(struct nb_device_matrix *m, const struct nb_decode *p)
{
    for (uint32_t first = 0; first < p->rows;) {
        int n = decode_window(m, p, first);
        if (n < 0)
            return n;
        first += (uint32_t)n;
    }
    return 0;
}
