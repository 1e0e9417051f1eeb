// Windows of the packed weights (window.h).
#include "engine/vulkan/window.h"

_Static_assert(PLANES_F32 == NB_PLANES_F32 && PLANES_F16 == NB_PLANES_F16 &&
                   PLANES_BF16 == NB_PLANES_BF16 && PLANES_8 == NB_PLANES_8 &&
                   PLANES_4_1 == NB_PLANES_4_1 && PLANES_4_2 == NB_PLANES_4_2 &&
                   PLANES_2_1 == NB_PLANES_2_1 && CODEBOOK_NF4 == NB_CODEBOOK_NF4 &&
                   SUB_NONE == NB_SUB_NONE && SUB_SM8 == NB_SUB_SM8 && SUB_SM4 == NB_SUB_SM4 &&
                   SUB_S6 == NB_SUB_S6 && SUB_F32 == NB_SUB_F32,
               "shaders/abi.h names layouts by their numbers");
_Static_assert(KV_POSITIONS == NB_KV_POSITIONS && GROUP_ROWS == NB_GROUP_ROWS,
               "shaders/abi.h has the sizes of C");

uint32_t nb_vulkan_groups(const struct nb_packed *w)
{
    return (w->rows + NB_GROUP_ROWS - 1) / NB_GROUP_ROWS;
}

static const uint8_t *begin_of(const struct nb_vulkan_part *p)
{
    return p->w->data + p->group0 * p->w->stride;
}

uint32_t nb_vulkan_fitting(const struct nb_vulkan_device *d, const struct nb_vulkan_weights *all,
                           const struct nb_packed *w, uint32_t group)
{
    const uint8_t *at = w->data + group * w->stride;
    const struct nb_vulkan_piece *piece = nb_vulkan_piece_of(all, at);
    uint64_t room = (uint64_t)(piece->from + piece->bytes - at),
             most = d->max_window - d->buffer_alignment;
    uint64_t fit = (room < most ? room : most) / w->stride;
    // A workgroup computes a group of rows at least, and a dispatch three matrices at most.
    fit = fit < d->max_groups / 3 ? fit : d->max_groups / 3;
    uint32_t left = nb_vulkan_groups(w) - group;
    return fit < left ? (uint32_t)fit : left;
}

bool nb_vulkan_window_of(const struct nb_vulkan_device *d, const struct nb_vulkan_weights *all,
                         const struct nb_vulkan_part *parts, uint32_t n,
                         struct nb_vulkan_window *ret)
{
    const struct nb_vulkan_piece *piece = nb_vulkan_piece_of(all, begin_of(parts));
    VkDeviceSize low = UINT64_MAX, high = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct nb_vulkan_part *p = &parts[i];
        if (nb_vulkan_piece_of(all, begin_of(p)) != piece)
            return false;
        VkDeviceSize at = (VkDeviceSize)(begin_of(p) - piece->from);
        VkDeviceSize end = at + p->groups * (VkDeviceSize)p->w->stride;
        low = at < low ? at : low;
        high = end > high ? end : high;
    }
    low -= low % d->buffer_alignment;
    *ret = (struct nb_vulkan_window){piece, {piece->buffer.buffer, low, high - low}};
    return high <= piece->bytes && high - low <= d->max_window;
}

uint32_t nb_vulkan_weight1(const struct nb_vulkan_part *p, const struct nb_vulkan_window *window)
{
    return (uint32_t)((size_t)(begin_of(p) - window->piece->from - window->what.offset) / 4);
}

uint32_t nb_vulkan_rows_of(const struct nb_vulkan_part *p)
{
    const uint32_t left = p->w->rows - p->group0 * NB_GROUP_ROWS, rows = p->groups * NB_GROUP_ROWS;
    return left < rows ? left : rows;
}

push_planes nb_vulkan_planes(const struct nb_packed *w)
{
    return (push_planes){.stride1 = (uint32_t)(w->stride / 4),
                         .high4 = (uint32_t)(w->high / 16),
                         .scale2 = (uint32_t)(w->scale / 8),
                         .min2 = (uint32_t)(w->min / 8),
                         .sub1 = (uint32_t)(w->sub / 4)};
}

void nb_vulkan_tell(const struct nb_vulkan_part *parts, uint32_t n, uint32_t mode,
                    const struct nb_vulkan_window *window, struct push_gemm *ret)
{
    ret->cols = parts[0].w->cols;
    ret->planes = nb_vulkan_planes(parts[0].w);
    for (uint32_t i = 0; i < 3; i++) {
        ret->first[i] = ret->groups;
        if (i >= n)
            continue;
        const struct nb_vulkan_part *p = &parts[i];
        const uint32_t done = p->group0 * NB_GROUP_ROWS;
        ret->weight1[i] = nb_vulkan_weight1(p, window);
        ret->column4[i] = (p->column + done) / 4;
        ret->rows[i] = nb_vulkan_rows_of(p);
        ret->bias1[i] = p->bias1 == NONE ? NONE : p->bias1 + done;
        if (mode != MODE_GATED || i == 0)
            ret->groups += p->groups;
    }
}

void nb_vulkan_constants(const struct nb_packed *w, uint32_t c[CONST_TIER])
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
