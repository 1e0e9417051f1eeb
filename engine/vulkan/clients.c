// Matrices of clients: GEMMs and dequantization by the shaders of a step, on rows that are no
// step's. What they need beside the weights is the device's, made at first use and grown.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/model.h"
#include "tensor/fail.h"

#define MAX_PIPELINES 192 // kept; a call names 5 at most
#define MAX_SETS      64  // windows of one call
#define STEP_BYTES    64
#define MAX_ROWS      (1u << (NB_VULKAN_BUCKETS - 1)) // of a dispatch

struct nb_vulkan_clients {
    struct nb_vulkan_pipelines pipelines;
    struct nb_vulkan_buffer step, vectors, x, act, y, most;
};

struct nb_device_matrix {
    struct nb_vulkan_device *device;
    const struct nb_packed *w;
    const struct nb_vulkan_weights *weights; // a model's that hold it, or `own`
    struct nb_vulkan_weights own;
};

// --- What every call needs

void nb_vulkan_clients_destroy(struct nb_vulkan_device *d)
{
    struct nb_vulkan_clients *all = d->clients;
    if (!all)
        return;
    nb_vulkan_pipelines_finish(&all->pipelines);
    struct nb_vulkan_buffer *const list[] = {&all->step, &all->vectors, &all->x,
                                             &all->act,  &all->y,       &all->most};
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
        nb_vulkan_buffer_finish(d, list[i]);
    free(all);
    d->clients = NULL;
}

static int reserve(struct nb_vulkan_device *d, struct nb_vulkan_buffer *b, VkDeviceSize bytes,
                   enum nb_vulkan_memory where)
{
    if (b->buffer && b->bytes >= bytes)
        return 0;
    nb_vulkan_buffer_finish(d, b);
    return nb_vulkan_buffer_init(d, bytes, where, b);
}

static int get_clients(struct nb_vulkan_device *d, struct nb_vulkan_clients **ret)
{
    if (!d->clients)
        d->clients = calloc(1, sizeof(*d->clients));
    struct nb_vulkan_clients *all = d->clients;
    if (!all)
        return -ENOMEM;
    all->pipelines.device = d;
    if (all->pipelines.n > MAX_PIPELINES)
        nb_vulkan_pipelines_finish(&all->pipelines);
    int rc = reserve(d, &all->step, STEP_BYTES, NB_VULKAN_TOLD);
    if (rc == 0)
        rc = reserve(d, &all->vectors, STEP_BYTES, NB_VULKAN_HOST);
    *ret = all;
    return rc;
}

// --- Matrices

static int load_own(struct nb_device_matrix *m)
{
    static const struct nb_device_model_options silent;
    const struct nb_matrix alone = {.packed = *m->w, .n = 1};
    struct nb_error error;
    int rc =
        nb_vulkan_weights_cut(m->device, &(const struct nb_matrix *){&alone}, 1, &m->own, &error);
    m->weights = &m->own;
    return rc < 0 ? rc : nb_vulkan_weights_load(m->device, &m->own, &silent);
}

int nb_vulkan_matrix_open(struct nb_device *d, struct nb_device_model *dm,
                          const struct nb_packed *w, struct nb_device_matrix **ret)
{
    struct nb_device_matrix *m = calloc(1, sizeof(*m));
    int rc = 0;
    if (!m)
        return -ENOMEM;
    m->device = (struct nb_vulkan_device *)d;
    m->w = w;
    if (dm && nb_plan_has_matrix(dm->plan, w))
        m->weights = &dm->weights;
    else
        rc = load_own(m);
    if (rc < 0)
        nb_vulkan_matrix_close(m);
    else
        *ret = m;
    return rc;
}

void nb_vulkan_matrix_close(struct nb_device_matrix *m)
{
    if (m && !m->device->hangs)
        nb_vulkan_weights_finish(m->device, &m->own);
    free(m);
}

// --- A call: its sets and a command buffer

struct call {
    struct nb_device_matrix *matrix;
    struct nb_vulkan_device *d;
    struct nb_vulkan_clients *all;
    VkCommandBuffer commands;
    struct nb_vulkan_sets sets;
    int rc;
};

static void begin(struct call *c, struct nb_device_matrix *m)
{
    *c = (struct call){.matrix = m, .d = m->device};
    c->rc = get_clients(c->d, &c->all);
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
static struct nb_vulkan_window window_at(const struct nb_device_matrix *m, struct nb_vulkan_part *p)
{
    struct nb_vulkan_window w = {0};
    uint32_t fit = nb_vulkan_fitting(m->device, m->weights, p->w, p->group0);
    p->groups = fit < p->groups ? fit : p->groups;
    (void)nb_vulkan_window_of(m->device, m->weights, p, 1, &w);
    return w;
}

typedef const struct nb_vulkan_buffer *bindings[BINDINGS];

static VkDescriptorSet bind(struct call *c, const struct nb_vulkan_window *weights,
                            bindings buffers)
{
    VkDescriptorSet set = VK_NULL_HANDLE;
    if (c->rc == 0)
        c->rc = nb_vulkan_sets_bind(c->d, &c->sets, weights ? &weights->what : NULL, buffers, &set);
    return set;
}

static void after_dispatch(const struct call *c)
{
    if (c->rc == 0)
        nb_vulkan_after_dispatch(c->d, c->commands);
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
                     uint32_t constants[CONST_TIER], const void *push, size_t bytes)
{
    struct nb_vulkan_pipelines *pipelines = &c->all->pipelines;
    uint32_t tile = p->shape == NB_VULKAN_TOKENS ? tile_for(c->d, rows) : 0;
    const struct nb_tier_variant *v = &c->d->tier->variant[p->shader][tile];
    constants[CONST_TOKENS] = v->tokens;
    int i = c->rc < 0 ? c->rc : nb_vulkan_pipeline_name(pipelines, v, constants);
    if (i >= 0 && !pipelines->list[i].pipeline)
        c->rc = nb_vulkan_pipelines_make(pipelines, &(uint16_t){(uint16_t)i}, 1, NULL, NULL);
    if (i < 0)
        c->rc = i;
    if (c->rc < 0)
        return;
    p->stand_in[tile] = (uint8_t)tile;
    p->pipeline[tile] = (uint16_t)i;
    memcpy(p->push, push, bytes);
    nb_vulkan_dispatch(pipelines, c->commands, rows, p, tile);
}

// --- Products

// Rows of x to the device, zeros past their columns.
static int load_rows(struct call *c, const struct nb_product *p, uint32_t rows)
{
    const uint32_t cols = c->matrix->w->cols, width = nb_vulkan_pad(cols, 32);
    VkDeviceSize act = (VkDeviceSize)rows * nb_vulkan_record_words4(cols, p->terms) * 16;
    int rc = reserve(c->d, &c->all->x, (VkDeviceSize)rows * width * sizeof(float), NB_VULKAN_HOST);
    if (rc == 0)
        rc = reserve(c->d, &c->all->act, act, NB_VULKAN_DEVICE);
    for (uint32_t t = 0; t < p->n && rc == 0; t++) {
        float *to = (float *)c->all->x.map + (size_t)t * width;
        memcpy(to, p->x + (size_t)t * p->cols, p->cols * sizeof(float));
        memset(to + p->cols, 0, (width - p->cols) * sizeof(float));
    }
    return rc;
}

static void quantize(struct call *c, const struct nb_product *p)
{
    uint32_t cols = c->matrix->w->cols, width = nb_vulkan_pad(cols, 32);
    const struct push_quantize push = {.count = STEP_ROWS,
                                       .each = 1,
                                       .gather1 = NONE,
                                       .cols = cols,
                                       .in4 = width / 4,
                                       .out4 = width / 4,
                                       .act4 = nb_vulkan_record_words4(cols, p->terms)};
    uint32_t constants[CONST_TIER] = {[CONST_TERMS] = p->terms, [CONST_MODE] = MODE_QUANTIZED};
    struct nb_vulkan_dispatch q = {.shader = NB_SHADER_QUANTIZE,
                                   .shape = NB_VULKAN_ROWS,
                                   .each = 1,
                                   .units = 2,
                                   .few_units = width / 32,
                                   .teams = 1};
    const struct nb_vulkan_clients *b = c->all;
    q.set = bind(c, NULL,
                 (bindings){[BIND_VECTORS] = &b->vectors,
                            [BIND_STEP] = &b->step,
                            [BIND_IN] = &b->x,
                            [BIND_OUT2] = &b->act,
                            [BIND_FLOATS] = &b->y});
    dispatch(c, &q, p->n, constants, &push, sizeof(push));
    after_dispatch(c);
}

// `done`: row groups of the result before this part's.
static void multiply(struct call *c, const struct nb_product *p, const struct nb_vulkan_part *part,
                     const struct nb_vulkan_window *win, uint32_t done)
{
    const struct nb_packed *w = c->matrix->w;
    struct push_gemm push = {.count = STEP_ROWS,
                             .in4 = nb_is_float(w) ? nb_vulkan_pad(w->cols, 32) / 4
                                                   : nb_vulkan_record_words4(w->cols, p->terms),
                             .out4 = p->groups * 4};
    nb_vulkan_tell(part, 1, MODE_STORE, win, &push);
    push.column4[0] = done * 4;
    uint32_t constants[CONST_TIER] = {0};
    nb_vulkan_constants(w, constants);
    constants[CONST_TERMS] = nb_is_float(w) ? 1 : p->terms;
    constants[CONST_MODE] = MODE_STORE;
    struct nb_vulkan_dispatch q = {.shader =
                                       nb_is_float(w) ? NB_SHADER_GEMM_FLOATS : NB_SHADER_GEMM,
                                   .shape = NB_VULKAN_TOKENS,
                                   .each = 1,
                                   .units = part->groups * 4};
    const struct nb_vulkan_clients *b = c->all;
    q.set = bind(c, win,
                 (bindings){[BIND_VECTORS] = &b->vectors,
                            [BIND_STEP] = &b->step,
                            [BIND_IN] = &b->x,
                            [BIND_ACT] = &b->act,
                            [BIND_OUT] = &b->y,
                            // Declared and not used: what is stored here is no op's input.
                            [BIND_OUT2] = &b->y,
                            [BIND_KV] = &b->step,
                            [BIND_FLOATS] = &b->y,
                            [BIND_SYNC] = &b->y});
    dispatch(c, &q, p->n, constants, &push, sizeof(push));
}

static void store_rows(const struct call *c, const struct nb_product *p)
{
    uint32_t row = p->group0 * NB_GROUP_ROWS, left = c->matrix->w->rows - row,
             width = p->groups * NB_GROUP_ROWS;
    uint32_t n = left < width ? left : width;
    for (uint32_t t = 0; t < p->n; t++)
        memcpy(p->y + t * p->ldy + row, (const float *)c->all->y.map + (size_t)t * width,
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
            c.rc = reserve(c.d, &c.all->y,
                           (VkDeviceSize)rows * p->groups * NB_GROUP_ROWS * sizeof(float),
                           NB_VULKAN_HOST);
    }
    if (c.rc == 0) {
        *(uint32_t *)c.all->step.map = p->n;
        nb_vulkan_doing(c.d, "a client's GEMM with %u x %u", m->w->rows, m->w->cols);
        if (!nb_is_float(m->w))
            quantize(&c, p);
    }
    struct nb_vulkan_part part = {.w = m->w, .bias1 = NONE};
    for (uint32_t done = 0; done < p->groups && c.rc == 0; done += part.groups) {
        part.group0 = p->group0 + done;
        part.groups = p->groups - done;
        struct nb_vulkan_window win = window_at(m, &part);
        multiply(&c, p, &part, &win, done);
    }
    int rc = end(&c);
    if (rc == 0)
        store_rows(&c, p);
    return rc;
}

// --- Rows as numbers

// Rows of one window that begins with the group of `row`.
static void decode(struct call *c, const struct nb_vulkan_part *part,
                   const struct nb_vulkan_window *win, uint32_t row, uint32_t rows,
                   const struct nb_dequantize *p, uint32_t mode)
{
    static const uint32_t per_word[] = {
        [MODE_TO_F32] = 1, [MODE_TO_F16] = 2, [MODE_TO_MOST] = 1, [MODE_TO_INT8] = 4};
    uint32_t blocks = (p->cols + 31) / 32;
    const struct push_dequantize push = {.row0 = row % NB_GROUP_ROWS,
                                         .rows = rows,
                                         .weight1 = nb_vulkan_weight1(part, win),
                                         .cols = p->cols,
                                         .planes = nb_vulkan_planes(part->w),
                                         .out1 = blocks * 32 / per_word[mode]};
    uint32_t constants[CONST_TIER] = {0};
    nb_vulkan_constants(part->w, constants);
    constants[CONST_TERMS] = 1;
    constants[CONST_MODE] = mode;
    struct nb_vulkan_dispatch q = {
        .shader = NB_SHADER_DEQUANTIZE, .shape = NB_VULKAN_ROWS, .each = 1};
    q.units = q.few_units = mode == MODE_TO_MOST ? 1 : blocks;
    const struct nb_vulkan_clients *b = c->all;
    q.set = bind(c, win, (bindings){[BIND_OUT] = &b->y, [BIND_OUT2] = &b->most});
    dispatch(c, &q, rows, constants, &push, sizeof(push));
    if (mode == MODE_TO_MOST)
        after_dispatch(c);
}

static void store_numbers(const struct call *c, const struct nb_dequantize *p, uint32_t first,
                          uint32_t n, uint32_t size)
{
    size_t width = (size_t)nb_vulkan_pad(p->cols, 32) * size, row = (size_t)p->cols * size;
    for (uint32_t i = 0; i < n; i++)
        memcpy((uint8_t *)p->out + (first + i) * row, (const uint8_t *)c->all->y.map + i * width,
               row);
    for (uint32_t i = 0; p->to == NB_NUMBER_INT8 && i < n; i++)
        p->scales[first + i] = ((const float *)c->all->most.map)[i] / 127.0f;
}

// Of a dispatch that has an invocation for each block of 32 numbers.
static uint32_t most_rows(const struct nb_vulkan_device *d, uint32_t cols)
{
    uint32_t local = nb_vulkan_local(d, &d->tier->variant[NB_SHADER_DEQUANTIZE][0]);
    uint64_t rows = (uint64_t)d->max_groups * local / ((cols + 31) / 32);
    return rows < MAX_ROWS ? (uint32_t)rows : MAX_ROWS;
}

// Rows [p->row0 + first, ...) as far as one window goes; how many, or an errno.
static int decode_window(struct nb_device_matrix *m, const struct nb_dequantize *p, uint32_t first)
{
    static const struct {
        uint32_t mode, size;
    } numbers[] = {[NB_NUMBER_F32] = {MODE_TO_F32, 4},
                   [NB_NUMBER_F16] = {MODE_TO_F16, 2},
                   [NB_NUMBER_INT8] = {MODE_TO_INT8, 1}};
    uint32_t row = p->row0 + first, left = p->rows - first, size = numbers[p->to].size;
    struct nb_vulkan_part part = {.w = m->w,
                                  .bias1 = NONE,
                                  .group0 = row / NB_GROUP_ROWS,
                                  .groups = (row % NB_GROUP_ROWS + left + NB_GROUP_ROWS - 1) /
                                            NB_GROUP_ROWS};
    struct nb_vulkan_window win = window_at(m, &part);
    uint32_t n = part.groups * NB_GROUP_ROWS - row % NB_GROUP_ROWS;
    n = n < left ? n : left;
    uint32_t most = most_rows(m->device, p->cols);
    n = n < most ? n : most;
    struct call c;
    begin(&c, m);
    if (c.rc == 0)
        c.rc = reserve(c.d, &c.all->y, (VkDeviceSize)n * nb_vulkan_pad(p->cols, 32) * size,
                       NB_VULKAN_HOST);
    if (c.rc == 0)
        c.rc = reserve(c.d, &c.all->most, (VkDeviceSize)n * sizeof(float), NB_VULKAN_HOST);
    if (c.rc == 0) {
        nb_vulkan_doing(c.d, "dequantizing %u x %u for a client", n, p->cols);
        if (p->to == NB_NUMBER_INT8)
            decode(&c, &part, &win, row, n, p, MODE_TO_MOST);
        decode(&c, &part, &win, row, n, p, numbers[p->to].mode);
    }
    int rc = end(&c);
    if (rc < 0)
        return rc;
    store_numbers(&c, p, first, n, size);
    return (int)n;
}

int nb_vulkan_dequantize(struct nb_device_matrix *m, const struct nb_dequantize *p)
{
    for (uint32_t first = 0; first < p->rows;) {
        int n = decode_window(m, p, first);
        if (n < 0)
            return n;
        first += (uint32_t)n;
    }
    return 0;
}
