// The models of a serving worker: opening one from its sealed image, telling the broker what it is,
// running its steps and counting them in the page.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/worker/channel.h"
#include "daemon/worker/embed.h"
#include "daemon/worker/submissions.h"
#include "daemon/worker/serve.h"
#include "daemon/worker/worker.h"
#include "engine/text/chat_template.h"
#include "engine/text/think.h"
#include "tensor/image.h"

#define TYPES_MAX 64 // GGUF's type numbers are below

struct nb_worker_model *nb_worker_model_find(struct nb_serve *s, uint32_t id)
{
    for (uint32_t i = 0; id && i < NB_WORKER_MODELS; i++)
        if (s->models[i].id == id)
            return &s->models[i];
    return NULL;
}

static struct nb_worker_model *free_entry(struct nb_serve *s)
{
    for (uint32_t i = 0; i < NB_WORKER_MODELS; i++)
        if (!s->models[i].id)
            return &s->models[i];
    return NULL;
}

static int precision_by_name(const char *name)
{
    static const char *const names[] = {
        [NB_PRECISION_FAST] = "fast",
        [NB_PRECISION_BALANCED] = "balanced",
        [NB_PRECISION_EXACT] = "exact",
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(name, names[i]))
            return (int)i;
    return -EINVAL;
}

// Its parameters, and the type that holds most of their bytes.
static void describe_tensors(const struct nb_image *image, struct nibble_model *info)
{
    uint64_t bytes[TYPES_MAX] = {0}, most = 0;
    for (uint32_t i = 0; i < nb_image_n_tensors(image); i++) {
        const struct nb_image_tensor *t = nb_image_tensor(image, i);
        const struct nb_type_info *type = nb_type_info(t->type);
        uint64_t elements = 1;
        for (uint32_t d = 0; d < t->n_dims; d++)
            elements *= t->dims[d];
        info->parameters += elements;
        if (type && t->type < TYPES_MAX)
            bytes[t->type] += elements / type->block * type->bytes;
    }
    for (uint32_t type = 0; type < TYPES_MAX; type++) {
        if (bytes[type] <= most)
            continue;
        most = bytes[type];
        snprintf(info->type, sizeof(info->type), "%s", nb_type_name(type));
    }
    info->packed_bytes = nb_image_bytes(image);
}

static void describe_template(const struct nb_chat_template *c, struct nibble_model *info)
{
    const char *fault = c ? nb_chat_template_fault(c) : "its file has none";
    info->has_template = !fault;
    snprintf(info->template_reason, sizeof(info->template_reason), "%s", fault ? fault : "");
}

static void describe_model(const struct nb_model *model, struct nibble_model *info)
{
    struct nb_model_info m;
    nb_model_info(model, &m);
    snprintf(info->architecture, sizeof(info->architecture), "%s", m.architecture);
    snprintf(info->state, sizeof(info->state), "ready");
    info->kv_bytes = m.kv_blocks * m.kv_block_bytes;
    info->vocab = m.vocab;
    info->context = m.context;
    info->layers = m.n_layers;
    info->embedding = m.embedding;
    info->embeds_only = !m.generates;
    info->longest_embedded = m.longest_embedded;
    describe_template(nb_model_chat_template(model), info);
}

// Where a device with memory of its own has the weights, for the administrator who wonders at it.
static void log_weights(const struct nb_serve *s, const char *name)
{
    struct nb_device_info info;
    s->device->ops->info(s->device, &info);
    if (info.weights[0])
        nb_log("the weights of %.63s are %s", name, info.weights);
}

// An adapter is its base's entry with one thing more, and is told of as that is.
static int open_adapter(struct nb_serve *s, const struct nb_link_model_add *add, int image_fd,
                        struct nb_worker_model *m, struct nb_link_model_ready *ready,
                        struct nb_error *ret_error)
{
    const struct nb_worker_model *base = nb_worker_model_find(s, add->base);
    struct nb_image *image;
    if (!base || base->adapter)
        return nb_fail(ret_error, NIBBLE_E_NO_MODEL, "its base is not served: load that again");
    int rc = nb_image_map(image_fd, 1, &image, ret_error);
    if (rc < 0)
        return nb_link_status(rc);
    *m = *base;
    m->id = add->model;
    atomic_store(&s->page->step_started_ns, nb_now_ns());
    rc = nb_adapter_create(m->model, image, add->name, (double)add->scale, &m->adapter, ret_error);
    atomic_store(&s->page->step_started_ns, 0);
    nb_serve_check(s, rc);
    if (rc < 0) {
        nb_image_unmap(image);
        m->model = NULL;
        return nb_link_status(rc);
    }
    describe_tensors(image, &ready->info);
    describe_model(m->model, &ready->info);
    ready->info.kv_bytes = 0; // its base's
    return 0;
}

// `m` has the device that it is opened on.
static int open_model(struct nb_serve *s, const struct nb_link_model_add *add, int image_fd,
                      struct nb_worker_model *m, struct nb_link_model_ready *ready,
                      struct nb_error *ret_error)
{
    int precision = precision_by_name(add->params.precision);
    if (precision < 0)
        return nb_fail(ret_error, -EINVAL,
                       "no precision of that name; there are fast, balanced and exact");
    enum nb_kv_type kv_type;
    if (nb_kv_type_by_name(add->params.kv_type, &kv_type) < 0)
        return nb_fail(ret_error, -EINVAL, "a KV cache is of type f16 or q8_0");
    struct nb_image *image;
    int rc = nb_image_map(image_fd, 1, &image, ret_error);
    if (rc < 0)
        return nb_link_status(rc);
    describe_tensors(image, &ready->info);
    const struct nb_model_options options = {
        .precision = (enum nb_precision)precision,
        .kv_type = kv_type,
        .max_context = add->params.context,
        .kv_bytes = add->params.kv_bytes,
        .kv_most = add->kv_most,
        .kv_most_by = add->kv_most_by,
    };
    atomic_store(&s->page->step_started_ns, nb_now_ns());
    rc = nb_model_open(image, s->device, &options, &m->model, ret_error);
    atomic_store(&s->page->step_started_ns, 0);
    nb_serve_check(s, rc);
    if (rc < 0) {
        nb_image_unmap(image);
        return nb_link_status(rc);
    }
    m->think_pairs = nb_think_pairs(nb_image_metadata(image));
    describe_model(m->model, &ready->info);
    log_weights(s, add->name);
    return 0;
}

// Its context is at most its own, whatever that of the model it drafts for.
static int open_drafter(struct nb_serve *s, const struct nb_link_model_add *add, int image_fd,
                        struct nb_worker_model *m, struct nb_link_model_ready *ready,
                        struct nb_error *ret_error)
{
    const struct nb_worker_model *base = nb_worker_model_find(s, add->base);
    struct nb_link_model_add own = *add;
    own.params.context = 0;
    if (!base || base->adapter || base->drafts_for)
        return nb_fail(ret_error, NIBBLE_E_NO_MODEL,
                       "the model that it drafts for is not served: load that again");
    int rc = open_model(s, &own, image_fd, m, ready, ret_error);
    if (rc < 0)
        return rc;
    rc = nb_model_draft_with(base->model, m->model, ret_error);
    if (rc < 0) {
        nb_model_close(m->model);
        m->model = NULL;
        return nb_link_status(rc);
    }
    m->drafts_for = base->model;
    return 0;
}

void nb_worker_model_add(struct nb_serve *s, const struct nb_link_model_add *add, int image_fd)
{
    struct nb_link_model_ready ready = {.model = add->model};
    struct nb_worker_model *m = free_entry(s);
    struct nb_worker_model opened = {.id = add->model};
    struct nb_error error = {""};
    snprintf(ready.info.name, sizeof(ready.info.name), "%.63s", add->name);
    snprintf(ready.info.precision, sizeof(ready.info.precision), "%.15s", add->params.precision);
    snprintf(ready.info.device, sizeof(ready.info.device), "%s", s->device_name);
    if (!m || !add->model || nb_worker_model_find(s, add->model)) {
        ready.header.status =
            nb_fail(&error, NIBBLE_E_QUOTA, "a device serves %d models at most", NB_WORKER_MODELS);
    } else {
        ready.header.status = (add->drafter ? open_drafter
                               : add->base  ? open_adapter
                                           : open_model)(s, add, image_fd, &opened, &ready, &error);
    }
    if (opened.model) {
        opened.page = &s->page->models[m - s->models];
        opened.vocab = ready.info.vocab;
        opened.context = ready.info.context;
        opened.embedding = ready.info.embedding;
        opened.generates = !ready.info.embeds_only;
        opened.drafts = add->drafts;
        opened.longest_embedded = ready.info.longest_embedded;
        *m = opened;
        if (!m->adapter && !m->drafts_for)
            nb_model_set_events(m->model, &nb_session_events);
        atomic_store(&m->page->model, m->id);
    }
    snprintf(ready.text, sizeof(ready.text), "%.239s", error.text);
    nb_link_send(&ready, NB_LINK_MODEL_READY, sizeof(ready));
}

// Its adapters and its drafter, which the broker unloads before it.
static void remove_those_of(struct nb_serve *s, const struct nb_worker_model *base)
{
    for (uint32_t i = 0; i < NB_WORKER_MODELS && !base->adapter; i++) {
        const struct nb_worker_model *m = &s->models[i];
        if (m->id && ((m->adapter && m->model == base->model) || m->drafts_for == base->model))
            nb_worker_model_remove(s, m->id);
    }
}

void nb_worker_model_remove(struct nb_serve *s, uint32_t id)
{
    struct nb_worker_model *m = nb_worker_model_find(s, id);
    struct nb_error error;
    if (!m)
        return;
    remove_those_of(s, m);
    if (m->drafts_for)
        (void)nb_model_draft_with(m->drafts_for, NULL, &error);
    if (m->adapter)
        nb_adapter_destroy(m->adapter);
    else
        nb_model_close(m->model);
    atomic_store(&m->page->model, 0);
    atomic_store(&m->page->sessions, 0);
    atomic_store(&m->page->kv_used_bytes, 0);
    atomic_store(&m->page->kv_touched_bytes, 0);
    *m = (struct nb_worker_model){0};
}

// Parks or releases the channel's sessions by the room in its ring. True: some of its jobs take
// part in the next step.
static bool admit(struct nb_channel *c, uint64_t now)
{
    bool taking_part = false;
    c->held = !nb_channel_has_room(c);
    for (uint32_t i = 0; i < NB_JOBS_MAX; i++) {
        struct nb_job *job = &c->jobs[i];
        if (!job->user_data || !job->session)
            continue;
        nb_sequence_park(job->session->sequence, c->held);
        if (!c->held)
            nb_job_started(job, now);
        taking_part |= !c->held;
    }
    return nb_embed_admit(c, now) || taking_part;
}

// Who may be to blame if this step is the worker's last.
static uint32_t name_batch(struct nb_serve *s, const struct nb_worker_model *m, uint64_t now)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++) {
        struct nb_channel *c = s->channels[i];
        if (c && c->model->model == m->model && c->n_jobs && admit(c, now))
            atomic_store_explicit(&s->page->running[n++], c->key, memory_order_relaxed);
    }
    atomic_store(&s->page->n_running, n);
    return n;
}

static void count(struct nb_page *page, const struct nb_step_stats *stats)
{
    atomic_fetch_add(&page->steps, 1);
    atomic_fetch_add(&page->mixed_steps, stats->decode_rows && stats->prefill_rows);
    atomic_fetch_add(&page->prefill_tokens, stats->prefill_rows);
    atomic_fetch_add(&page->decode_tokens, stats->decode_rows + stats->accepted);
}

static void tell_kv(const struct nb_worker_model *m)
{
    struct nb_model_info info;
    nb_model_info(m->model, &info);
    atomic_store_explicit(&m->page->kv_used_bytes,
                          (info.kv_blocks - info.kv_blocks_free) * info.kv_block_bytes,
                          memory_order_relaxed);
    atomic_store_explicit(&m->page->kv_touched_bytes, info.kv_blocks_touched * info.kv_block_bytes,
                          memory_order_relaxed);
}

static void after_step(struct nb_serve *s, const struct nb_worker_model *m)
{
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++) {
        struct nb_channel *c = s->channels[i];
        if (!c || c->model->model != m->model || !c->n_jobs)
            continue;
        for (uint32_t j = 0; j < NB_JOBS_MAX; j++)
            if (c->jobs[j].user_data)
                nb_job_progress(&c->jobs[j]);
    }
    tell_kv(m);
    for (uint32_t i = 0; i < NB_WORKER_MODELS; i++)
        if (s->models[i].id && s->models[i].drafts_for == m->model)
            tell_kv(&s->models[i]);
}

int nb_worker_model_step(struct nb_serve *s, struct nb_worker_model *m)
{
    uint64_t now = nb_now_ns();
    if (!name_batch(s, m, now))
        return 0;
    struct nb_step_stats stats = {0};
    atomic_store(&s->page->step_started_ns, now);
    int rc = nb_model_step(m->model, &stats);
    atomic_store(&s->page->step_started_ns, 0);
    atomic_store(&s->page->n_running, 0);
    atomic_fetch_add(&s->page->beat, 1);
    // Sequences without KV blocks wait for those whose turn is the next step.
    if (rc <= 0)
        return rc < 0 ? rc : nb_model_has_work(m->model);
    count(s->page, &stats);
    after_step(s, m);
    return 1;
}

int nb_worker_model_prepare(struct nb_serve *s, struct nb_worker_model *m)
{
    atomic_store(&s->page->step_started_ns, nb_now_ns());
    int rc = nb_model_prepare(m->model);
    atomic_store(&s->page->step_started_ns, 0);
    if (rc == 0)
        nb_cache_send(s->device);
    return rc;
}
