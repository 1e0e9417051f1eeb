// Adapters on a Vulkan device (adapters.h). An adapter's factors are sent once, when it is opened;
// when another comes or goes the device copies those that stay. What says where they lie follows
// from the list of adapters, and so does the model's other form, which is made anew then.
#include "engine/vulkan/adapters.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/adapter.h"
#include "engine/vulkan/builder.h"
#include "tensor/fail.h"

#define PRODUCTS 16 // that read one input
#define NOWHERE  UINT64_MAX

struct held {
    const struct nb_adapter *adapter;
    VkDeviceSize *at; // in each pool; NOWHERE: not sent yet
};

struct nb_vulkan_adapters {
    struct held *list;
    uint32_t n;
    // Factors of each layer, then of what is outside of layers; and which of them has a matrix of
    // the plan.
    struct nb_vulkan_buffer *pool;
    uint32_t n_pools, *pool_of;
    struct nb_vulkan_buffer pairs; // [adapter][matrix][PAIR_TEXELS]
    struct nb_vulkan_buffer thin;  // z: [row][product of a stage][rank]
    struct nb_device_model *form;
    struct nb_op_time times[NB_SECTIONS]; // of forms before this one
};

// --- What adapters have of a plan

static const struct nb_adapter_pair *pair_of(const struct nb_adapter *adapter, uint32_t matrix)
{
    const struct nb_adapter_pair *p = &adapter->pairs[matrix];
    return p->a.rows ? p : NULL;
}

// Its factors of a pool, or of all (n_pools).
static VkDeviceSize bytes_of(const struct nb_device_model *m, const struct nb_adapter *adapter,
                             uint32_t pool)
{
    const struct nb_vulkan_adapters *all = m->adapters;
    VkDeviceSize bytes = 0;
    for (uint32_t i = 0; i < m->plan->n_matrices; i++) {
        const struct nb_adapter_pair *p = pair_of(adapter, i);
        if (p && (pool == all->n_pools ? all->pool_of[i] < pool : all->pool_of[i] == pool))
            bytes += nb_packed_bytes(&p->a) + nb_packed_bytes(&p->b);
    }
    return bytes;
}

// The largest rank of those that are held, in whole row groups; 0: they change nothing here.
static uint32_t rank_of(const struct nb_device_model *m)
{
    const struct nb_vulkan_adapters *all = m->adapters;
    uint32_t rank = 0;
    for (uint32_t i = 0; i < all->n; i++)
        for (uint32_t j = 0; j < m->plan->n_matrices; j++) {
            const struct nb_adapter_pair *p = pair_of(all->list[i].adapter, j);
            if (p && all->pool_of[j] < all->n_pools && p->a.rows > rank)
                rank = p->a.rows;
        }
    return nb_vulkan_pad(rank, NB_GROUP_ROWS);
}

static uint32_t most_products(const struct nb_plan *plan)
{
    uint32_t most = 0;
    for (uint32_t i = 0, n; i < plan->n_ops; i += n) {
        const struct nb_vulkan_stage s = nb_vulkan_stage_at(plan, i, true);
        most = s.n_gemms > most ? s.n_gemms : most;
        n = s.n;
    }
    return most;
}

static VkDeviceSize thin_bytes(const struct nb_device_model *m, uint32_t rank)
{
    return (VkDeviceSize)m->extent.padded_rows * most_products(m->plan) * rank * sizeof(float);
}

static VkDeviceSize pairs_bytes(const struct nb_device_model *m, uint32_t adapters)
{
    return (VkDeviceSize)adapters * m->plan->n_matrices * PAIR_TEXELS * 16;
}

static int init(struct nb_device_model *m)
{
    const struct nb_plan *plan = m->plan;
    struct nb_vulkan_adapters *all = calloc(1, sizeof(*all));
    if (!all)
        return -ENOMEM;
    m->adapters = all;
    all->n_pools = plan->n_layers + 1;
    all->pool = calloc(all->n_pools, sizeof(*all->pool));
    all->pool_of = calloc(plan->n_matrices, sizeof(*all->pool_of));
    if (!all->pool || !all->pool_of)
        return -ENOMEM;
    memset(all->pool_of, 0xff, plan->n_matrices * sizeof(*all->pool_of));
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        const bool outside = op->section == NB_SECTION_HEAD || op->section == NB_SECTION_EMBED;
        if (op->kind == NB_OP_LINEAR)
            all->pool_of[op->w - plan->matrices] =
                outside ? plan->n_layers : op->layer - plan->first_layer;
    }
    return 0;
}

// --- Factors

static void stage(const struct nb_packed *w, uint8_t *staging, VkDeviceSize *used)
{
    const size_t bytes = nb_packed_bytes(w);
    memcpy(staging + *used, w->data, bytes);
    *used += bytes;
}

static void stage_factors(const struct nb_device_model *m, const struct nb_adapter *adapter,
                          uint32_t pool, uint8_t *staging, VkDeviceSize *used)
{
    for (uint32_t i = 0; i < m->plan->n_matrices; i++) {
        const struct nb_adapter_pair *p = pair_of(adapter, i);
        if (!p || m->adapters->pool_of[i] != pool)
            continue;
        stage(&p->a, staging, used);
        stage(&p->b, staging, used);
    }
}

// From where they are, or from the host.
static int fill(struct nb_device_model *m, uint32_t pool, const struct nb_vulkan_buffer *to,
                const struct nb_vulkan_buffer *staging)
{
    const struct nb_vulkan_adapters *all = m->adapters;
    const struct nb_vk *vk = &m->device->vk;
    VkDeviceSize at = 0, staged = 0;
    VkCommandBuffer c;
    int rc = nb_vulkan_begin(m->device, true, &c);
    for (uint32_t i = 0; i < all->n && rc == 0; i++) {
        const struct held *h = &all->list[i];
        const VkDeviceSize bytes = bytes_of(m, h->adapter, pool), from = staged;
        if (!bytes)
            continue;
        if (h->at[pool] == NOWHERE)
            stage_factors(m, h->adapter, pool, staging->map, &staged);
        const bool here = h->at[pool] != NOWHERE;
        const VkBufferCopy copy = {here ? h->at[pool] : from, at, bytes};
        vk->CmdCopyBuffer(c, here ? all->pool[pool].buffer : staging->buffer, to->buffer, 1, &copy);
        at += bytes;
    }
    return rc < 0 ? rc : nb_vulkan_run_once(m->device, c);
}

static void settle(struct nb_device_model *m, uint32_t pool, const struct nb_vulkan_buffer *buffer)
{
    struct nb_vulkan_adapters *all = m->adapters;
    VkDeviceSize at = 0;
    nb_vulkan_buffer_finish(m->device, &all->pool[pool]);
    all->pool[pool] = *buffer;
    for (uint32_t i = 0; i < all->n; i++) {
        all->list[i].at[pool] = at;
        at += bytes_of(m, all->list[i].adapter, pool);
    }
}

// A layer's factors as the list has them now. After a failure they lie where they were.
static int pack(struct nb_device_model *m, uint32_t pool)
{
    struct nb_vulkan_adapters *all = m->adapters;
    struct nb_vulkan_buffer buffer = {0}, staging = {0};
    VkDeviceSize bytes = 0, fresh = 0;
    for (uint32_t i = 0; i < all->n; i++) {
        const VkDeviceSize n = bytes_of(m, all->list[i].adapter, pool);
        bytes += n;
        fresh += all->list[i].at[pool] == NOWHERE ? n : 0;
    }
    int rc = bytes > m->device->max_range ? -E2BIG : 0;
    if (rc == 0 && bytes)
        rc = nb_vulkan_buffer_init(m->device, bytes, NB_VULKAN_DEVICE, &buffer);
    if (rc == 0 && fresh)
        rc = nb_vulkan_buffer_init(m->device, fresh, NB_VULKAN_HOST, &staging);
    if (rc == 0 && bytes)
        rc = fill(m, pool, &buffer, &staging);
    if (m->device->hangs)
        return rc;
    nb_vulkan_buffer_finish(m->device, &staging);
    if (rc == 0)
        settle(m, pool, &buffer);
    else
        nb_vulkan_buffer_finish(m->device, &buffer);
    return rc;
}

// Those of every layer that an adapter, which has come or gone, changes.
static int pack_all(struct nb_device_model *m, const struct nb_adapter *adapter)
{
    int rc = 0;
    for (uint32_t i = 0; i < m->adapters->n_pools && rc == 0; i++) {
        if (bytes_of(m, adapter, i))
            rc = pack(m, i);
        nb_device_beat(&m->device->base);
    }
    return rc;
}

// Where a matrix's factors lie in its pool.
static VkDeviceSize place_of(const struct nb_device_model *m, const struct held *h, uint32_t matrix)
{
    const struct nb_vulkan_adapters *all = m->adapters;
    VkDeviceSize at = h->at[all->pool_of[matrix]];
    for (uint32_t i = 0; i < matrix; i++) {
        const struct nb_adapter_pair *p = pair_of(h->adapter, i);
        if (p && all->pool_of[i] == all->pool_of[matrix])
            at += nb_packed_bytes(&p->a) + nb_packed_bytes(&p->b);
    }
    return at;
}

static void tell_pairs(const struct nb_device_model *m)
{
    const struct nb_vulkan_adapters *all = m->adapters;
    uint32_t *to = all->pairs.map;
    memset(to, 0, pairs_bytes(m, all->n));
    for (const struct held *h = all->list; h < all->list + all->n; h++)
        for (uint32_t i = 0; i < m->plan->n_matrices; i++, to += PAIR_TEXELS * 4) {
            const struct nb_adapter_pair *p = pair_of(h->adapter, i);
            if (!p || all->pool_of[i] >= all->n_pools)
                continue;
            const VkDeviceSize a = place_of(m, h, i), b = a + nb_packed_bytes(&p->a);
            to[0] = (uint32_t)(a / 16);
            to[1] = (uint32_t)(p->a.stride / 16);
            to[2] = (uint32_t)(b / 16);
            to[3] = (uint32_t)(p->b.stride / 16);
            to[4] = p->a.rows;
            memcpy(&to[5], &p->by, sizeof(p->by));
            to[6] = p->a.layout->planes;
            to[7] = p->b.layout->planes;
        }
}

// --- The form with adapters

static void drop_form(struct nb_device_model *m)
{
    struct nb_vulkan_adapters *all = m->adapters;
    struct nb_device_model *form = all->form;
    all->form = NULL;
    if (form) {
        for (int i = 0; i < NB_SECTIONS; i++) {
            all->times[i].ns += form->recordings.times[i].ns;
            all->times[i].dispatches += form->recordings.times[i].dispatches;
        }
        nb_vulkan_recordings_finish(form);
        nb_vulkan_tune_end(form);
        nb_vulkan_sets_finish(m->device, &form->sets);
        nb_vulkan_pipelines_finish(&form->pipelines);
        nb_vulkan_buffers_apart_finish(m->device, &m->buffers, &form->buffers);
        free(form->program.dispatches);
        free(form);
    }
    nb_vulkan_buffer_finish(m->device, &all->pairs);
    nb_vulkan_buffer_finish(m->device, &all->thin);
}

static int make_form(struct nb_device_model *m, uint32_t rank, struct nb_error *error)
{
    struct nb_vulkan_adapters *all = m->adapters;
    struct nb_vulkan_device *d = m->device;
    struct nb_device_model *form = all->form = calloc(1, sizeof(*form));
    if (!form)
        return nb_fail(error, -ENOMEM, "out of memory");
    *form = (struct nb_device_model){.device = d,
                                     .plan = m->plan,
                                     .extent = m->extent,
                                     .tables = m->tables,
                                     .weights = m->weights,
                                     .buffers = m->buffers,
                                     .pipelines = {.device = d},
                                     .host_logits = m->host_logits,
                                     .adapters = all,
                                     .apart = true};
    int rc = nb_vulkan_recordings_init(form);
    if (rc == 0)
        rc = nb_vulkan_buffers_apart_init(d, m->plan, &m->extent, &m->buffers, &form->buffers);
    if (rc == 0)
        rc = nb_vulkan_buffer_init(d, pairs_bytes(m, all->n), NB_VULKAN_TOLD, &all->pairs);
    if (rc == 0)
        rc = nb_vulkan_buffer_init(d, thin_bytes(m, rank), NB_VULKAN_DEVICE, &all->thin);
    if (rc < 0)
        return nb_fail(error, rc, "no memory for steps with it: %s", strerror(-rc));
    tell_pairs(m);
    return nb_vulkan_program_make(form, error);
}

// Makes it where it is missing and adapters change something here.
static int need_form(struct nb_device_model *m, struct nb_error *error)
{
    const uint32_t rank = rank_of(m);
    if (m->adapters->form || !rank)
        return 0;
    int rc = make_form(m, rank, error);
    if (rc < 0 && !m->device->hangs)
        drop_form(m);
    return rc;
}

static uint32_t slot_of(const struct nb_vulkan_adapters *all, const struct nb_adapter *adapter)
{
    uint32_t i = 0;
    while (i < all->n && all->list[i].adapter != adapter)
        i++;
    return adapter && i < all->n ? i : NONE;
}

int nb_vulkan_adapters_form(struct nb_device_model *m, const struct nb_rows *rows,
                            struct nb_device_model **ret)
{
    uint32_t *slot = (uint32_t *)m->buffers.step.map + m->tables.adapter;
    struct nb_error ignored;
    bool any = false;
    for (uint32_t i = 0; m->adapters && rows->adapters && i < rows->n; i++) {
        slot[i] = slot_of(m->adapters, rows->adapters[rows->sequence[i]]);
        any |= slot[i] != NONE;
    }
    int rc = any ? need_form(m, &ignored) : 0;
    if (rc == 0)
        *ret = any && m->adapters->form ? m->adapters->form : m;
    return rc;
}

struct nb_device_model *nb_vulkan_adapted(const struct nb_device_model *m)
{
    return m->adapters ? m->adapters->form : NULL;
}

void nb_vulkan_adapters_times(const struct nb_device_model *m, struct nb_op_time *ret)
{
    const struct nb_vulkan_adapters *all = m->adapters;
    for (int i = 0; i < NB_SECTIONS && all; i++) {
        ret[i].ns += all->times[i].ns + (all->form ? all->form->recordings.times[i].ns : 0);
        ret[i].dispatches +=
            all->times[i].dispatches + (all->form ? all->form->recordings.times[i].dispatches : 0);
    }
}

// --- Coming and going

static int check_memory(const struct nb_device_model *m, const struct nb_adapter *adapter,
                        struct nb_error *error)
{
    const struct nb_vulkan_adapters *all = m->adapters;
    const struct nb_vulkan_device *d = m->device;
    const double factors = (double)bytes_of(m, adapter, all->n_pools);
    uint64_t used, left, steps = thin_bytes(m, rank_of(m)) + pairs_bytes(m, all->n);
    if (!all->form)
        steps += nb_vulkan_buffers_apart_bytes(m->plan, &m->extent);
    nb_vulkan_memory(d, &used, &left);
    for (uint32_t i = 0; i < all->n_pools; i++) {
        VkDeviceSize bytes = 0;
        for (uint32_t j = 0; j < all->n; j++)
            bytes += bytes_of(m, all->list[j].adapter, i);
        if (bytes > d->max_range)
            return nb_fail(error, -ENOMEM,
                           "all adapters' factors of a layer take %.1f MB then, and %.40s binds "
                           "%.1f MB at once: unload another",
                           (double)bytes / 1e6, d->info.name, (double)d->max_range / 1e6);
    }
    if (factors + (double)steps <= (double)left)
        return 0;
    return nb_fail(error, -ENOMEM,
                   "it needs %.1f MB (factors %.1f, steps %.1f) and %.40s has %.1f MB left: unload "
                   "another, or give its base less KV memory",
                   (factors + (double)steps) / 1e6, factors / 1e6, (double)steps / 1e6,
                   d->info.name, (double)left / 1e6);
}

static int add(struct nb_device_model *m, const struct nb_adapter *adapter)
{
    struct nb_vulkan_adapters *all = m->adapters;
    struct held *list = realloc(all->list, (all->n + 1) * sizeof(*list));
    if (!list)
        return -ENOMEM;
    all->list = list;
    struct held *new = &list[all->n];
    new->at = malloc(all->n_pools * sizeof(*new->at));
    if (!new->at)
        return -ENOMEM;
    memset(new->at, 0xff, all->n_pools * sizeof(*new->at)); // NOWHERE
    new->adapter = adapter;
    all->n++;
    return 0;
}

int nb_vulkan_adapter_open(struct nb_device_model *m, const struct nb_adapter *adapter,
                           struct nb_error *ret_error)
{
    nb_vulkan_doing(m->device, "taking an adapter");
    int rc = m->adapters ? 0 : init(m);
    if (rc == 0)
        rc = add(m, adapter);
    if (rc < 0) {
        if (m->adapters && !m->adapters->n)
            nb_vulkan_adapters_finish(m);
        return nb_fail(ret_error, rc, "out of memory");
    }
    if ((rc = check_memory(m, adapter, ret_error)) == 0) {
        drop_form(m);
        if ((rc = pack_all(m, adapter)) < 0)
            nb_fail(ret_error, rc, "no memory for its factors: %s", strerror(-rc));
        else
            rc = need_form(m, ret_error);
    }
    if (rc < 0 && m->device->gone)
        nb_fail(ret_error, rc, "%s", m->device->fault);
    if (rc < 0)
        nb_vulkan_adapter_close(m, adapter);
    return rc;
}

void nb_vulkan_adapter_close(struct nb_device_model *m, const struct nb_adapter *adapter)
{
    struct nb_vulkan_adapters *all = m->adapters;
    const uint32_t i = all ? slot_of(all, adapter) : NONE;
    struct nb_error ignored;
    if (i == NONE || m->device->hangs)
        return;
    drop_form(m);
    free(all->list[i].at);
    memmove(&all->list[i], &all->list[i + 1], (--all->n - i) * sizeof(*all->list));
    if (all->n == 0) {
        nb_vulkan_adapters_finish(m);
        return;
    }
    // Without memory for it the factors stay where they are, and a step that needs the form says
    // so.
    if (pack_all(m, adapter) == 0)
        (void)need_form(m, &ignored);
}

void nb_vulkan_adapters_finish(struct nb_device_model *m)
{
    struct nb_vulkan_adapters *all = m->adapters;
    if (!all)
        return;
    drop_form(m);
    for (uint32_t i = 0; all->pool && i < all->n_pools; i++)
        nb_vulkan_buffer_finish(m->device, &all->pool[i]);
    for (uint32_t i = 0; i < all->n; i++)
        free(all->list[i].at);
    free(all->list);
    free(all->pool);
    free(all->pool_of);
    free(all);
    m->adapters = NULL;
}

// --- Its dispatches

// Products of one stage that adapters change.
struct group {
    const struct nb_op *op[3];
    uint32_t n, nth; // of the stage's
};

static uint32_t pool_of(const struct builder *b, const struct nb_op *op)
{
    return b->m->adapters->pool_of[op->w - b->m->plan->matrices];
}

static bool is_adapted(const struct builder *b, const struct nb_op *op)
{
    const struct nb_vulkan_adapters *all = b->m->adapters;
    for (uint32_t i = 0; i < all->n && !nb_value_is_of_experts(op->out.value); i++)
        if (nb_adapter_pair(all->list[i].adapter, b->m->plan, op))
            return true;
    return false;
}

static struct push_adapter push_of(const struct builder *b, const struct group *g)
{
    const struct nb_device_model *m = b->m;
    const uint32_t rank4 = rank_of(m) / 4;
    struct push_adapter push = {.count = b->count,
                                .slot1 = m->tables.adapter,
                                .gather1 = b->count == STEP_WANTED ? m->tables.wanted : NONE,
                                .cols = g->op[0]->w->packed.cols,
                                .rank4 = rank4,
                                .z4 = g->nth * rank4,
                                .pairs4 = m->plan->n_matrices * PAIR_TEXELS};
    for (uint32_t i = 0; i < g->n; i++)
        push.pair4[i] = (uint32_t)(g->op[i]->w - m->plan->matrices) * PAIR_TEXELS;
    return push;
}

static void add_dispatch(struct builder *b, const struct group *g, const struct push_adapter *push,
                         enum nb_shader shader, const struct nb_vulkan_buffer *in,
                         const struct nb_vulkan_buffer *out, bool beside)
{
    const struct nb_vulkan_adapters *all = b->m->adapters;
    struct nb_vulkan_dispatch *p = build_add(b, NB_VULKAN_TOKENS, g->op[0]->in.value, push->units);
    p->beside = beside;
    p->cols = shader == NB_SHADER_THIN ? push->cols : push->rank4 * 4;
    build_push(p, push, sizeof(*push));
    uint32_t c[CONST_TIER] = {[CONST_TERMS] = 1};
    c[CONST_MODE] = shader == NB_SHADER_THIN ? MODE_THIN : MODE_WIDE;
    build_specialise(b, p, shader, c);
    build_bind(b, p, NULL,
               (bindings){[BIND_WEIGHTS] = &all->pool[pool_of(b, g->op[0])],
                          [BIND_VECTORS] = &all->pairs,
                          [BIND_IN] = in,
                          [BIND_OUT] = out});
}

static void add_thin(struct builder *b, const struct group *g, uint32_t products,
                     const struct source *from)
{
    struct push_adapter push = push_of(b, g);
    push.units = g->n * push.rank4;
    push.in4 = from->width / 4;
    push.out4 = products * push.rank4;
    // Like the products, it needs nothing but the stage's input.
    add_dispatch(b, g, &push, NB_SHADER_THIN, from->floats, &b->m->adapters->thin, true);
}

static void add_wide(struct builder *b, const struct group *g, uint32_t products, bool beside)
{
    const enum nb_value v = g->op[0]->out.value;
    struct push_adapter push = push_of(b, g);
    for (uint32_t i = 0; i < 3; i++) {
        push.first[i] = push.units;
        if (i >= g->n)
            continue;
        push.rows[i] = g->op[i]->w->packed.rows;
        push.column4[i] = build_column(b, &g->op[i]->out) / 4;
        push.units += (push.rows[i] + 3) / 4;
    }
    push.in4 = products * push.rank4;
    push.out4 = nb_vulkan_stride(b->m->plan, v) / 4;
    add_dispatch(b, g, &push, NB_SHADER_WIDE, &b->m->adapters->thin, build_buffer(b, v), beside);
}

// From the i-th of n on; with `one` those whose results lie in one value.
static struct group group_at(const struct builder *b, const struct nb_op *const *list, uint32_t n,
                             uint32_t i, bool one)
{
    struct group g = {.nth = i};
    while (i < n && g.n < 3 &&
           (g.n == 0 || (pool_of(b, list[i]) == pool_of(b, g.op[0]) &&
                         (!one || list[i]->out.value == g.op[0]->out.value))))
        g.op[g.n++] = list[i++];
    return g;
}

void build_adapters(struct builder *b, const struct source *from)
{
    const struct nb_op *list[PRODUCTS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->stage.n_gemms && b->rc == 0; i++) {
        const struct nb_op *op = op_of(b, b->stage.has_norm + i);
        if (!is_adapted(b, op))
            continue;
        if (n == PRODUCTS)
            b->rc = -EOVERFLOW;
        else
            list[n++] = op;
    }
    struct group g;
    for (uint32_t i = 0; i < n && b->rc == 0; i += g.n) {
        g = group_at(b, list, n, i, false);
        add_thin(b, &g, n, from);
    }
    for (uint32_t i = 0; i < n && b->rc == 0; i += g.n) {
        g = group_at(b, list, n, i, true);
        add_wide(b, &g, n, i > 0);
    }
}
