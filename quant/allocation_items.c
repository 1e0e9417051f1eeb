// The items of an allocation: of each tensor that is to be chosen, what each type takes and costs;
// and the bytes that a target leaves them.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kv.h"
#include "quant/allocation_room.h"
#include "tensor/layout.h"
#include "tensor/type.h"

#define MEMORY_ALIGN UINT64_C(64) // and in an image

static uint64_t aligned(uint64_t bytes, uint64_t align)
{
    return (bytes + align - 1) / align * align;
}

// In the image that serves.
static uint64_t packed_bytes(const struct nb_source_tensor *t, uint32_t type)
{
    struct nb_packed p;
    const uint64_t rows = nb_source_rows(t), experts = t->n_dims > 2 ? rows / t->dims[1] : 1;
    if (t->n_dims < 2)
        return aligned(t->dims[0] * sizeof(float), MEMORY_ALIGN);
    if (nb_packed_init(&p, type, rows / experts, t->dims[0]) < 0)
        return UINT64_MAX / 4; // larger than any target
    return experts * aligned(nb_packed_bytes(&p), MEMORY_ALIGN);
}

// What the target counts of a tensor.
static uint64_t bytes_of(const struct nb_allocation *a, uint32_t tensor, uint32_t type)
{
    const struct nb_source_tensor *t = &a->source->tensors[tensor];
    const uint64_t bytes = nb_source_rows(t) * nb_type_row_bytes(type, t->dims[0]);
    if (a->target.kind == NB_TARGET_FIT)
        return packed_bytes(t, type);
    return a->target.kind == NB_TARGET_SIZE ? aligned(bytes, NB_ALLOCATION_ALIGN) : bytes;
}

// ---- Groups: a matrix's role, and which part of the layers it is in

static uint32_t depth_of(const struct nb_allocation *a, uint32_t layer)
{
    const uint32_t layers = nb_judge_plan(a->judge)->hp.n_layers;
    return layer < layers ? layer * a->effort.depths / layers : 0;
}

static bool alike(const struct nb_allocation *a, uint32_t tensor, uint32_t other)
{
    struct nb_str x, y;
    const uint32_t layer = nb_arch_layer(a->source->tensors[tensor].name, &x);
    const uint32_t other_layer = nb_arch_layer(a->source->tensors[other].name, &y);
    return x.len == y.len && !memcmp(x.data, y.data, x.len) &&
           depth_of(a, layer) == depth_of(a, other_layer);
}

// The last item's: that of the first that is like it, or a new one.
static uint32_t find_group(struct nb_allocation *a)
{
    const uint32_t last = a->n_items - 1;
    for (uint32_t i = 0; i < last; i++)
        if (alike(a, a->tensor[i], a->tensor[last]))
            return a->group[i];
    return a->n_groups++;
}

// ---- Options

// Puts an option in its place by bytes. One that costs no less than another with no more bytes is
// none.
static void insert(struct nb_item *item, struct nb_option *options, uint32_t *types,
                   struct nb_option o, uint32_t type)
{
    uint32_t at = 0, end;
    while (at < item->n && (options[at].bytes < o.bytes ||
                            (options[at].bytes == o.bytes && options[at].cost <= o.cost)))
        at++;
    if (at > 0 && options[at - 1].cost <= o.cost)
        return;
    for (end = at; end < item->n && options[end].cost >= o.cost;)
        end++;
    memmove(&options[at + 1], &options[end], (item->n - end) * sizeof(*options));
    memmove(&types[at + 1], &types[end], (item->n - end) * sizeof(*types));
    options[at] = o;
    types[at] = type;
    item->n += 1 - (end - at);
}

static void add_tensor(struct nb_allocation *a, uint32_t tensor)
{
    const struct nb_sensitive *s =
        nb_sensitivity_find(&a->sensitivity, a->source->tensors[tensor].name);
    struct nb_item *item = &a->items[a->n_items];
    struct nb_option *options = &a->options[(size_t)a->n_items * NB_RECIPE_TYPES];
    uint32_t *types = &a->type[(size_t)a->n_items * NB_RECIPE_TYPES];
    *item = (struct nb_item){.options = options};
    for (uint32_t k = 0; s && !a->run->choices[tensor].fixed && k < a->target.n_types; k++) {
        const double error = a->errors[tensor][k];
        if (!isfinite(error))
            continue;
        const struct nb_option o = {.bytes = bytes_of(a, tensor, a->target.types[k]),
                                    .cost = error * s->sum / 2 / (double)a->sensitivity.tokens};
        insert(item, options, types, o, a->target.types[k]);
    }
    if (!item->n) {
        a->fixed += bytes_of(a, tensor, a->run->choices[tensor].type);
        return;
    }
    a->tensor[a->n_items++] = tensor;
    a->group[a->n_items - 1] = find_group(a);
}

// What is not in tensors, but counts.
static uint64_t other_bytes(const struct nb_allocation *a)
{
    const struct nb_hparams *hp = &nb_judge_plan(a->judge)->hp;
    const uint32_t context = a->target.context ? a->target.context : hp->context;
    const uint64_t blocks = (context + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS;
    const uint64_t block =
        ((uint64_t)hp->dim[NB_DIM_K] + hp->dim[NB_DIM_V]) * nb_kv_bytes(NB_KV_F16);
    if (a->target.kind == NB_TARGET_FIT)
        return a->run->other + blocks * block * hp->n_layers;
    return a->target.kind == NB_TARGET_SIZE ? a->run->other : 0;
}

int nb_allocation_make_items(struct nb_allocation *a)
{
    const uint32_t n = a->source->n_tensors;
    a->items = calloc(n + 1, sizeof(*a->items));
    a->tensor = calloc(n + 1, sizeof(*a->tensor));
    a->group = calloc(n + 1, sizeof(*a->group));
    a->options = calloc((size_t)n + 1, NB_RECIPE_TYPES * sizeof(*a->options));
    a->type = calloc((size_t)n + 1, NB_RECIPE_TYPES * sizeof(*a->type));
    if (!a->items || !a->tensor || !a->group || !a->options || !a->type)
        return nb_fail(a->error, -ENOMEM, "no memory for the allocation");
    a->n_items = a->n_groups = 0;
    a->fixed = other_bytes(a);
    for (uint32_t i = 0; i < n; i++)
        add_tensor(a, i);
    return a->n_items ? 0
                      : nb_fail(a->error, -EINVAL,
                                "the recipe names every matrix: nothing is left to choose for its "
                                "target");
}

// ---- The budget

static uint64_t elements(const struct nb_source *s)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < s->n_tensors; i++)
        n += nb_source_rows(&s->tensors[i]) * s->tensors[i].dims[0];
    return n;
}

int nb_allocation_budget(const struct nb_allocation *a, uint64_t *ret)
{
    static const struct {
        const char *what, *least;
    } words[] = {
        [NB_TARGET_SIZE] = {"a file", "it has"},
        [NB_TARGET_BITS] = {"tensors", "they have"},
        [NB_TARGET_FIT] = {"serving", "weights and KV memory take"},
    };
    const uint64_t least = a->fixed + nb_allocate_least(a->items, a->n_items);
    const bool bits = a->target.kind == NB_TARGET_BITS;
    const uint64_t all =
        bits ? (uint64_t)(a->target.value * (double)elements(a->source) / 8) : a->target.bytes;
    if (a->target.kind == NB_TARGET_KLD) {
        *ret = 0;
        return 0;
    }
    if (all < least)
        return nb_fail(a->error, -ENOSPC,
                       "%s of %" PRIu64 " bytes cannot be had: with these types %s %" PRIu64
                       " at least",
                       words[a->target.kind].what, all, words[a->target.kind].least, least);
    *ret = all - a->fixed;
    return 0;
}
