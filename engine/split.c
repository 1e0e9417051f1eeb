// Several devices as one (split.h). Bits do not depend on where a model is cut: a part begins with
// exactly the numbers that the one before it ended with.
#include "engine/split.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/plan.h"
#include "tensor/fail.h"

struct split {
    struct nb_device base;
    struct nb_split_part part[NB_SPLIT_PARTS];
    uint32_t n;
};

struct nb_device_model {
    struct split *split;
    struct nb_plan plan[NB_SPLIT_PARTS];
    struct nb_device_model *part[NB_SPLIT_PARTS];
    float *hidden;
};

// Parts' progress as one.
struct progress {
    const struct nb_device_model_options *options;
    uint64_t before, total;
};

static struct nb_device_info info_of(const struct nb_split_part *p)
{
    struct nb_device_info info;
    p->device->ops->info(p->device, &info);
    return info;
}

// "cpu+vulkan0:20"
static void name_of(const struct split *s, char *ret, size_t size)
{
    size_t used = 0;
    ret[0] = '\0';
    for (uint32_t i = 0; i < s->n && used < size; i++) {
        const char *plus = i ? "+" : "";
        struct nb_device_info info = info_of(&s->part[i]);
        if (s->part[i].layers)
            used += (size_t)snprintf(ret + used, size - used, "%s%s:%u", plus, info.name,
                                     s->part[i].layers);
        else
            used += (size_t)snprintf(ret + used, size - used, "%s%s", plus, info.name);
    }
}

// What is said of the whole: of the first part that is not the CPU, but for the sums. The UUID is
// all of theirs together.
static void split_info(const struct nb_device *d, struct nb_device_info *ret)
{
    const struct split *s = (const struct split *)d;
    struct nb_device_info all = info_of(&s->part[0]);
    uint64_t memory = 0, used = 0, left = 0;
    uint32_t threads = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        struct nb_device_info info = info_of(&s->part[i]);
        memory += info.memory_bytes;
        used += info.memory_used;
        left += info.memory_free;
        threads = info.threads > threads ? info.threads : threads;
        if (all.kind == NB_DEVICE_CPU)
            all = info;
        else
            for (size_t j = 0; i > 0 && info.has_uuid && j < sizeof(all.uuid); j++)
                all.uuid[j] ^= info.uuid[j];
    }
    all.memory_bytes = memory;
    all.memory_used = used;
    all.memory_free = left;
    all.threads = threads;
    name_of(s, all.name, sizeof(all.name));
    *ret = all;
}

static void split_destroy(struct nb_device *d)
{
    struct split *s = (struct split *)d;
    for (uint32_t i = 0; s && i < s->n; i++)
        s->part[i].device->ops->destroy(s->part[i].device);
    free(s);
}

// --- A model

// The layers of each part; -EINVAL where there are too few or too many.
static int count_layers(const struct split *s, uint32_t layers, uint32_t ret[NB_SPLIT_PARTS],
                        struct nb_error *error)
{
    uint64_t given = 0;
    uint32_t open = s->n;
    char name[64];
    for (uint32_t i = 0; i < s->n; i++) {
        ret[i] = s->part[i].layers;
        given += ret[i];
        open = ret[i] ? open : i;
    }
    if (open < s->n ? given < layers : given == layers) {
        if (open < s->n)
            ret[open] = layers - (uint32_t)given;
        return 0;
    }
    name_of(s, name, sizeof(name));
    if (open == s->n)
        return nb_fail(error, -EINVAL, "%s runs %llu layers, and the model has %u", name,
                       (unsigned long long)given, layers);
    return nb_fail(error, -EINVAL,
                   "the model has %u layers, and %s leaves none of them for %s: ask for fewer, or "
                   "for one device",
                   layers, name, info_of(&s->part[open]).name);
}

static int cut(const struct split *s, const struct nb_plan *plan,
               struct nb_plan ret[NB_SPLIT_PARTS], struct nb_error *error)
{
    uint32_t layers[NB_SPLIT_PARTS], first = 0;
    int rc = count_layers(s, plan->n_layers, layers, error);
    for (uint32_t i = 0; i < s->n && rc == 0; first += layers[i++])
        ret[i] = nb_plan_part(plan, first, first + layers[i], i == 0, i + 1 == s->n);
    return rc;
}

static size_t split_kv_block_bytes(const struct nb_device *d, const struct nb_plan *plan)
{
    const struct split *s = (const struct split *)d;
    struct nb_plan part[NB_SPLIT_PARTS];
    size_t bytes = 0;
    // A cut that the model has no layers for fails when it is opened.
    if (cut(s, plan, part, NULL) < 0)
        return s->part[0].device->ops->kv_block_bytes(s->part[0].device, plan);
    for (uint32_t i = 0; i < s->n; i++)
        bytes += s->part[i].device->ops->kv_block_bytes(s->part[i].device, &part[i]);
    return bytes;
}

// As many blocks as the part with the least room holds.
static uint64_t split_kv_room(const struct nb_device *d, const struct nb_plan *plan,
                              uint32_t max_rows)
{
    const struct split *s = (const struct split *)d;
    struct nb_plan part[NB_SPLIT_PARTS];
    uint64_t blocks = UINT64_MAX;
    if (cut(s, plan, part, NULL) < 0)
        return s->part[0].device->ops->kv_room(s->part[0].device, plan, max_rows);
    for (uint32_t i = 0; i < s->n; i++) {
        struct nb_device *device = s->part[i].device;
        uint64_t n = device->ops->kv_room(device, &part[i], max_rows) /
                     device->ops->kv_block_bytes(device, &part[i]);
        blocks = n < blocks ? n : blocks;
    }
    return blocks * split_kv_block_bytes(d, plan);
}

static void split_model_close(struct nb_device_model *m)
{
    if (!m)
        return;
    for (uint32_t i = 0; i < m->split->n; i++)
        m->split->part[i].device->ops->model_close(m->part[i]);
    free(m->hidden);
    free(m);
}

static void on_progress(void *user, uint64_t done, uint64_t total)
{
    const struct progress *p = user;
    p->options->on_progress(p->options->user, p->before + done, p->total);
}

static int open_parts(struct nb_device_model *m, const struct nb_plan *plan,
                      const struct nb_device_model_options *options, struct nb_error *error)
{
    struct progress p = {.options = options};
    struct nb_device_model_options of_part = *options;
    of_part.on_progress = options->on_progress ? on_progress : NULL;
    of_part.user = &p;
    int rc = cut(m->split, plan, m->plan, error);
    for (uint32_t i = 0; i < m->split->n && rc == 0; i++)
        p.total += nb_plan_weight_bytes(&m->plan[i]);
    for (uint32_t i = 0; i < m->split->n && rc == 0; i++) {
        struct nb_device *d = m->split->part[i].device;
        rc = d->ops->model_open(d, &m->plan[i], &of_part, &m->part[i], error);
        p.before += nb_plan_weight_bytes(&m->plan[i]);
    }
    return rc;
}

// A part beats for the whole.
static void lend_beat(const struct split *s)
{
    for (uint32_t i = 0; s->base.on_beat && i < s->n; i++) {
        s->part[i].device->on_beat = s->base.on_beat;
        s->part[i].device->user = s->base.user;
    }
}

static int split_model_open(struct nb_device *d, const struct nb_plan *plan,
                            const struct nb_device_model_options *options,
                            struct nb_device_model **ret, struct nb_error *ret_error)
{
    struct nb_device_model *m = calloc(1, sizeof(*m));
    if (m)
        m->hidden = calloc((size_t)options->max_rows * plan->hp.embedding, sizeof(*m->hidden));
    if (!m || !m->hidden) {
        free(m);
        return nb_fail(ret_error, -ENOMEM, "out of memory");
    }
    m->split = (struct split *)d;
    lend_beat(m->split);
    int rc = open_parts(m, plan, options, ret_error);
    if (rc < 0)
        split_model_close(m);
    else
        *ret = m;
    return rc;
}

static int split_step(struct nb_device_model *m, const struct nb_rows *rows, float **ret_logits)
{
    const uint32_t last = m->split->n - 1;
    struct nb_rows part = *rows;
    part.hidden = m->hidden;
    part.n_logits = 0;
    int rc = 0;
    lend_beat(m->split);
    for (uint32_t i = 0; i <= last && rc == 0; i++) {
        part.n_logits = i == last ? rows->n_logits : 0;
        rc = m->split->part[i].device->ops->step(m->part[i], &part, ret_logits);
    }
    return rc;
}

static int split_prepare(struct nb_device_model *m, uint32_t free_block)
{
    int rc = 0;
    lend_beat(m->split);
    for (uint32_t i = 0; i < m->split->n && rc == 0; i++)
        if (m->split->part[i].device->ops->prepare)
            rc = m->split->part[i].device->ops->prepare(m->part[i], free_block);
    return rc;
}

static int split_kv_clear(struct nb_device_model *m, uint32_t block)
{
    int rc = 0;
    for (uint32_t i = 0; i < m->split->n && rc == 0; i++)
        rc = m->split->part[i].device->ops->kv_clear(m->part[i], block);
    return rc;
}

// Each part has the factors of its own layers.
static void split_adapter_close(struct nb_device_model *m, const struct nb_adapter *adapter)
{
    for (uint32_t i = 0; i < m->split->n; i++)
        if (m->split->part[i].device->ops->adapter_close)
            m->split->part[i].device->ops->adapter_close(m->part[i], adapter);
}

static int split_adapter_open(struct nb_device_model *m, const struct nb_adapter *adapter,
                              struct nb_error *ret_error)
{
    int rc = 0;
    for (uint32_t i = 0; i < m->split->n && rc == 0; i++)
        if (m->split->part[i].device->ops->adapter_open)
            rc = m->split->part[i].device->ops->adapter_open(m->part[i], adapter, ret_error);
    if (rc < 0)
        split_adapter_close(m, adapter);
    return rc;
}

static void split_times(const struct nb_device_model *m, struct nb_op_time *ret)
{
    memset(ret, 0, NB_SECTIONS * sizeof(*ret));
    for (uint32_t i = 0; i < m->split->n; i++) {
        struct nb_op_time part[NB_SECTIONS];
        m->split->part[i].device->ops->times(m->part[i], part);
        for (int of = 0; of < NB_SECTIONS; of++) {
            ret[of].ns += part[of].ns;
            ret[of].dispatches += part[of].dispatches;
        }
    }
}

static int split_cache(struct nb_device *d, void **ret, size_t *ret_bytes)
{
    const struct split *s = (const struct split *)d;
    for (uint32_t i = 0; i < s->n; i++)
        if (s->part[i].device->ops->cache)
            return s->part[i].device->ops->cache(s->part[i].device, ret, ret_bytes);
    return 0;
}

static const char *split_fault(const struct nb_device *d)
{
    const struct split *s = (const struct split *)d;
    const char *fault = NULL;
    for (uint32_t i = 0; i < s->n && !fault; i++)
        if (s->part[i].device->ops->fault)
            fault = s->part[i].device->ops->fault(s->part[i].device);
    return fault;
}

// --- Ops: a tensor's where its layer is, a client's where the head is.

struct nb_device_matrix {
    struct nb_device *device;
    struct nb_device_matrix *of_part;
};

// Whatever part it lies on.
static uint32_t split_widest(const struct nb_device *d, const struct nb_packed *w)
{
    const struct split *s = (const struct split *)d;
    uint32_t widest = UINT32_MAX;
    for (uint32_t i = 0; i < s->n; i++) {
        const struct nb_device *of = s->part[i].device;
        uint32_t n = of->ops->widest ? of->ops->widest(of, w) : UINT32_MAX;
        widest = n < widest ? n : widest;
    }
    return widest;
}

static int split_matrix_open(struct nb_device *d, struct nb_device_model *dm,
                             const struct nb_packed *w, struct nb_device_matrix **ret)
{
    const struct split *s = (const struct split *)d;
    uint32_t i = s->n - 1;
    while (dm && i > 0 && !nb_plan_has_matrix(&dm->plan[i], w))
        i--;
    struct nb_device *device = s->part[i].device;
    struct nb_device_matrix *m = device->ops->matrix_open ? calloc(1, sizeof(*m)) : NULL;
    if (!m)
        return device->ops->matrix_open ? -ENOMEM : -ENOTSUP;
    m->device = device;
    int rc = device->ops->matrix_open(device, dm ? dm->part[i] : NULL, w, &m->of_part);
    if (rc < 0)
        free(m);
    else
        *ret = m;
    return rc;
}

static void split_matrix_close(struct nb_device_matrix *m)
{
    if (m)
        m->device->ops->matrix_close(m->of_part);
    free(m);
}

static int split_gemm(struct nb_device_matrix *m, const struct nb_product *p)
{
    return m->device->ops->gemm(m->of_part, p);
}

static int split_dequantize(struct nb_device_matrix *m, const struct nb_dequantize *p)
{
    return m->device->ops->dequantize(m->of_part, p);
}

static const struct nb_device_ops split_ops = {
    .info = split_info,
    .destroy = split_destroy,
    .kv_block_bytes = split_kv_block_bytes,
    .kv_room = split_kv_room,
    .model_open = split_model_open,
    .model_close = split_model_close,
    .step = split_step,
    .prepare = split_prepare,
    .kv_clear = split_kv_clear,
    .adapter_open = split_adapter_open,
    .adapter_close = split_adapter_close,
    .cache = split_cache,
    .times = split_times,
    .fault = split_fault,
    .widest = split_widest,
    .matrix_open = split_matrix_open,
    .matrix_close = split_matrix_close,
    .gemm = split_gemm,
    .dequantize = split_dequantize,
};

int nb_split_create(const struct nb_split_part *parts, uint32_t n, struct nb_device **ret)
{
    uint32_t open = 0;
    for (uint32_t i = 0; i < n; i++)
        open += parts[i].layers == 0;
    if (n < 2 || n > NB_SPLIT_PARTS || open > 1)
        return -EINVAL;
    struct split *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->base.ops = &split_ops;
    s->n = n;
    memcpy(s->part, parts, n * sizeof(*parts));
    *ret = &s->base;
    return 0;
}
