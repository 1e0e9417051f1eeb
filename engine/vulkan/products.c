// What a dispatch is made of: pipelines, sets, windows of the weights; and the products, which are
// most of them.
#include "engine/vulkan/program.h"

#include <errno.h>
#include <string.h>

// --- Pipelines and sets

// The device's tier says how many tokens each of the tiles has, and in which module.
void nb_build_specialise(struct builder *b, struct nb_vulkan_dispatch *p, enum nb_shader shader,
                         uint32_t c[NB_VULKAN_CONSTANTS])
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
        int i = nb_vulkan_pipeline_name(b->m, v, c);
        if (i < 0)
            b->rc = i;
        else
            p->pipeline[t] = (uint16_t)i;
        p->stand_in[t] = (uint8_t)t;
    }
}

void nb_vulkan_constants(const struct nb_packed *w, uint32_t c[NB_VULKAN_CONSTANTS])
{
    const struct nb_layout *l = w->layout;
    c[CONST_PLANES] = l->planes;
    c[CONST_CODEBOOK] = l->codebook;
    c[CONST_SUB] = l->sub;
    c[CONST_OFFSET] = l->offset;
    c[CONST_SCALE_BLOCK] = l->scale_block ? l->scale_block : 32;
    if (l->sub == NB_SUB_F32 && l->scale_block == w->cols)
        c[CONST_SCALE_BLOCK] = NB_MAX_COLS;    // one pipeline for rows of any length
    c[CONST_GROUP] = l->group == 16 ? 16 : 32; // a group of 64 is two of 32 with one scale
    c[CONST_HAS_MIN] = l->has_min;
    c[CONST_SUB_BYTES] = l->sub_bytes;
    c[CONST_TERMS] = 1;
}

void nb_build_bind(struct builder *b, struct nb_vulkan_dispatch *p, const struct window *weights,
                   const struct nb_vulkan_buffer *const buffers[NB_VULKAN_BINDINGS])
{
    struct nb_device_model *m = b->m;
    const struct nb_vulkan_buffer *all[NB_VULKAN_BINDINGS];
    memcpy(all, buffers, sizeof(all));
    all[BIND_STEP] = &m->step;
    if (b->rc == 0)
        b->rc =
            nb_vulkan_sets_bind(m->device, &m->sets, weights ? &weights->what : NULL, all, &p->set);
}

struct nb_vulkan_dispatch *nb_build_add(struct builder *b, enum nb_vulkan_shape shape,
                                        uint32_t units)
{
    struct nb_device_model *m = b->m;
    if (m->n_dispatches == NB_VULKAN_DISPATCHES)
        b->rc = -EOVERFLOW;
    // After an error the last one serves for the rest; nothing of it is used.
    struct nb_vulkan_dispatch *p = &m->dispatches[b->rc < 0 ? 0 : m->n_dispatches++];
    *p = (struct nb_vulkan_dispatch){
        .op = b->op, .shape = shape, .units = units, .few_units = units, .teams = 1};
    return p;
}

void nb_build_push(struct nb_vulkan_dispatch *p, const void *data, size_t bytes)
{
    memcpy(p->push, data, bytes);
}

// Vectors lie one after the other in a buffer of their own: they are small.
uint32_t nb_build_vector(struct nb_device_model *m, const float *v, uint32_t n)
{
    uint32_t at = m->n_vectors;
    memcpy(m->laid + at, v, n * sizeof(*v));
    m->n_vectors += nb_vulkan_pad(n, NB_VULKAN_VECTOR_PAD);
    return at;
}

// --- Products

static const uint8_t *begin_of(const struct part *p)
{
    return p->w->data + p->group0 * p->w->stride;
}

uint32_t nb_build_fitting(const struct nb_device_model *m, const struct nb_packed *w,
                          uint32_t group)
{
    const uint8_t *at = w->data + group * w->stride;
    const struct nb_vulkan_piece *piece = nb_vulkan_piece_of(m, at);
    uint64_t room = (uint64_t)(piece->from + piece->bytes - at),
             most = m->device->max_window - m->device->buffer_alignment;
    uint64_t fit = (room < most ? room : most) / w->stride;
    // A workgroup computes a group of rows at least, and a dispatch three matrices at most.
    fit = fit < m->device->max_groups / 3 ? fit : m->device->max_groups / 3;
    uint32_t left = (w->rows + 15) / 16 - group;
    return fit < left ? (uint32_t)fit : left;
}

bool nb_build_window_of(const struct nb_device_model *m, const struct part *p, uint32_t n,
                        struct window *ret)
{
    const struct nb_vulkan_piece *piece = nb_vulkan_piece_of(m, begin_of(p));
    VkDeviceSize low = UINT64_MAX, high = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (nb_vulkan_piece_of(m, begin_of(&p[i])) != piece)
            return false;
        VkDeviceSize at = (VkDeviceSize)(begin_of(&p[i]) - piece->from);
        VkDeviceSize end = at + p[i].groups * (VkDeviceSize)p[i].w->stride;
        low = at < low ? at : low;
        high = end > high ? end : high;
    }
    low -= low % m->device->buffer_alignment;
    *ret = (struct window){piece, {piece->buffer.buffer, low, high - low}};
    return high <= piece->bytes && high - low <= m->device->max_window;
}

void nb_build_describe(struct nb_device_model *m, const struct part *parts, uint32_t n,
                       uint32_t mode, const struct window *win, struct nb_vulkan_gemm_push *ret)
{
    const struct nb_packed *w = parts[0].w;
    ret->cols = w->cols;
    ret->stride1 = (uint32_t)(w->stride / 4);
    ret->high4 = (uint32_t)(w->high / 16);
    ret->scale2 = (uint32_t)(w->scale / 8);
    ret->min2 = (uint32_t)(w->min / 8);
    ret->sub1 = (uint32_t)(w->sub / 4);
    for (uint32_t i = 0; i < 3; i++) {
        ret->first[i] = ret->groups;
        if (i >= n)
            continue;
        const struct part *p = &parts[i];
        uint32_t done = p->group0 * 16, left = p->w->rows - done;
        ret->weight1[i] =
            (uint32_t)((size_t)(begin_of(p) - win->piece->from - win->what.offset) / 4);
        ret->column4[i] = (p->column + done) / 4;
        ret->rows[i] = left < p->groups * 16 ? left : p->groups * 16;
        ret->bias[i] = p->bias ? nb_build_vector(m, p->bias + done, ret->rows[i]) : NONE;
        if (mode != MODE_SWIGLU || i == 0)
            ret->groups += p->groups;
    }
}

static void model_constants(const struct nb_device_model *m, uint32_t c[NB_VULKAN_CONSTANTS])
{
    const struct nb_hparams *hp = &m->plan->hp;
    c[CONST_HEADS] = hp->n_heads;
    c[CONST_KV_HEADS] = hp->n_kv_heads;
    c[CONST_K_DIM] = hp->k_dim;
    c[CONST_V_DIM] = hp->v_dim;
    c[CONST_ROPE_DIMS] = hp->rope_dims;
}

void nb_build_product(struct builder *b, const struct part *parts, uint32_t n,
                      const struct source *from, const struct target *to, bool beside)
{
    struct nb_device_model *m = b->m;
    const struct nb_op *op = &m->plan->ops[b->op];
    const struct nb_packed *w = parts[0].w;
    struct window win;
    if (!nb_build_window_of(m, parts, n, &win)) { // its callers see to that
        b->rc = -EOVERFLOW;
        return;
    }
    struct nb_vulkan_gemm_push data = {.count = b->count, .out4 = to->width / 4};
    data.eps = m->plan->hp.norm_eps;
    data.in4 = nb_is_float(w) ? from->width / 4 : blocks_of(w->cols) * record_words4(op->terms);
    memcpy(data.more, to->more, sizeof(data.more));
    nb_build_describe(m, parts, n, to->mode % MODE_FINISH, &win, &data);
    struct nb_vulkan_dispatch *p = nb_build_add(b, NB_VULKAN_TOKENS, data.groups * 4);
    p->beside = beside;
    nb_build_push(p, &data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {0};
    nb_vulkan_constants(w, c);
    c[CONST_TERMS] = nb_is_float(w) ? 1 : op->terms;
    c[CONST_MODE] = to->mode;
    if (to->mode == MODE_ROPE || to->mode == MODE_ROPE_NEOX)
        model_constants(m, c);
    nb_build_specialise(b, p, nb_is_float(w) ? NB_SHADER_GEMM_FLOATS : NB_SHADER_GEMM, c);
    nb_build_bind(b, p, &win,
                  (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){
                      [BIND_VECTORS] = &m->vectors,
                      [BIND_IN] = from->floats,
                      [BIND_ACT] = from->records,
                      [BIND_OUT] = to->rows,
                      [BIND_OUT2] = to->second ? to->second : &m->sync,
                      [BIND_KV] = &m->step,
                      [BIND_FLOATS] = to->floats ? to->floats : &m->sync,
                      [BIND_SYNC] = &m->sync});
}

void nb_build_products(struct builder *b, const struct part *parts, uint32_t n,
                       const struct source *from, const struct target *to)
{
    struct part run[3];
    struct window win;
    uint32_t n_run = 0;
    bool beside = false;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t groups = parts[i].groups;
        for (uint32_t g = 0, next; g < groups; g = next) {
            struct part p = parts[i];
            p.group0 = g;
            p.groups = nb_build_fitting(b->m, p.w, g);
            next = g + p.groups;
            run[n_run] = p;
            if (n_run > 0 && (run[0].w->layout != p.w->layout ||
                              !nb_build_window_of(b->m, run, n_run + 1, &win))) {
                nb_build_product(b, run, n_run, from, to, beside);
                beside = true;
                run[0] = p;
                n_run = 0;
            }
            if (++n_run == 3 || (next == groups && i + 1 == n)) {
                nb_build_product(b, run, n_run, from, to, beside);
                beside = true;
                n_run = 0;
            }
        }
    }
}
