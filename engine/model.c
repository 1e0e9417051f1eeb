// Opening a model: the plan, the tokenizer, the device's memory, and the arrays that a step needs,
// so that no step allocates.
#include "engine/model.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tensor/fail.h"
#include "tensor/image.h"

#define DEFAULT_ROWS 512
#define MAX_ROWS     4096
#define DEFAULT_CONTEXTS                                                                           \
    8 // whole contexts that the default KV memory holds, where the machine has the memory

// How many blocks: what was asked for, or several contexts as far as the device has room; never
// less than one context.
static int choose_kv(struct nb_model *m, const struct nb_model_options *o, struct nb_error *error)
{
    const struct nb_hparams *hp = &m->plan->hp;
    uint64_t block = m->device->ops->kv_block_bytes(m->device, m->plan);
    uint64_t one = ((uint64_t)hp->context + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS;
    uint64_t limit = o->kv_bytes;
    const char *by = "";
    if (!limit) {
        limit = m->device->ops->kv_room(m->device, m->plan, m->max_rows);
        if (o->kv_most && o->kv_most < limit) {
            limit = o->kv_most;
            by = o->kv_most_by ? o->kv_most_by : "";
        }
    }
    uint64_t blocks = limit / block, most = blocks * NB_KV_POSITIONS;
    if (blocks < one)
        return nb_fail(error, -ENOMEM,
                       "the KV cache of one context of %u tokens takes %llu MB and %llu MB are"
                       " allowed%s%s%s: raise the limit or ask for a context of at most %llu",
                       hp->context, (unsigned long long)(one * block >> 20),
                       (unsigned long long)(limit >> 20), *by ? " (" : "", by, *by ? ")" : "",
                       (unsigned long long)most);
    if (!o->kv_bytes && blocks > one * DEFAULT_CONTEXTS)
        blocks = one * DEFAULT_CONTEXTS;
    m->kv_blocks = blocks < 1u << 24 ? (uint32_t)blocks : 1u << 24;
    return 0;
}

static int make_arrays(struct nb_model *m)
{
    m->free_block = calloc(m->kv_blocks, sizeof(*m->free_block));
    m->used = calloc(m->kv_blocks, sizeof(*m->used));
    m->token = calloc(m->max_rows, sizeof(*m->token));
    m->position = calloc(m->max_rows, sizeof(*m->position));
    m->row_sequence = calloc(m->max_rows, sizeof(*m->row_sequence));
    m->logits_row = calloc(m->max_rows, sizeof(*m->logits_row));
    m->candidates = calloc(m->max_rows, sizeof(*m->candidates));
    if (!m->free_block || !m->used || !m->token || !m->position || !m->row_sequence ||
        !m->logits_row || !m->candidates)
        return -ENOMEM;
    while (m->n_free < m->kv_blocks) {
        m->free_block[m->n_free] = m->kv_blocks - 1 - m->n_free;
        m->n_free++;
    }
    return 0;
}

static int open_text(struct nb_model *m, struct nb_error *error)
{
    const struct nb_gguf *meta = nb_image_metadata(m->image);
    int rc = nb_tokenizer_create(meta, &m->tokenizer, error);
    if (rc < 0)
        return rc;
    uint32_t vocab = nb_tokenizer_vocab(m->tokenizer);
    if (vocab > m->plan->hp.vocab)
        return nb_fail(error, -EINVAL, "the tokenizer has %u tokens, but the embedding %u rows",
                       vocab, m->plan->hp.vocab);
    rc = nb_chat_template_create(meta, &m->chat_template, error);
    return rc == -ENOENT ? 0 : rc;
}

static int open_model(struct nb_model *m, const struct nb_model_options *o, struct nb_error *error)
{
    m->max_rows = o->max_rows ? o->max_rows : DEFAULT_ROWS;
    if (m->max_rows > MAX_ROWS)
        return nb_fail(error, -EINVAL, "steps of %u rows were asked for; the limit is %u",
                       m->max_rows, MAX_ROWS);
    int rc;
    const struct nb_plan_options plan_options = {o->precision, o->kv_type, o->max_context};
    if ((rc = nb_plan_create(m->image, &plan_options, &m->plan, error)) < 0 ||
        (rc = open_text(m, error)) < 0 || (rc = choose_kv(m, o, error)) < 0)
        return rc;
    if ((rc = make_arrays(m)) < 0)
        return nb_fail(error, rc, "out of memory");
    const struct nb_device_model_options device_options = {.kv_blocks = m->kv_blocks,
                                                           .max_rows = m->max_rows,
                                                           .on_progress = o->on_progress,
                                                           .user = o->user};
    m->prepared = !m->device->ops->prepare;
    nb_drafts_init(m);
    return m->device->ops->model_open(m->device, m->plan, &device_options, &m->dm, error);
}

// `keep_image`: a model that could not be opened leaves the image to its owner.
static void destroy(struct nb_model *m, bool keep_image)
{
    nb_diagnosis_drop(m, NULL);
    if (m->dm)
        m->device->ops->model_close(m->dm);
    nb_chat_template_destroy(m->chat_template);
    nb_tokenizer_destroy(m->tokenizer);
    nb_plan_destroy(m->plan);
    if (!keep_image)
        nb_image_unmap(m->image);
    free(m->free_block);
    free(m->used);
    free(m->token);
    free(m->position);
    free(m->row_sequence);
    free(m->logits_row);
    free(m->candidates);
    free(m->vectors);
    free(m->blocks);
    free(m->adapters);
    free(m->batch);
    free(m->part);
    free(m);
}

int nb_model_open(struct nb_image *image, struct nb_device *device,
                  const struct nb_model_options *options, struct nb_model **ret,
                  struct nb_error *ret_error)
{
    struct nb_model *m = calloc(1, sizeof(*m));
    if (!m)
        return nb_fail(ret_error, -ENOMEM, "out of memory");
    m->image = image;
    m->device = device;
    int rc = open_model(m, options, ret_error);
    if (rc < 0) {
        destroy(m, true);
        return rc;
    }
    *ret = m;
    return 0;
}

void nb_model_close(struct nb_model *m)
{
    if (m)
        destroy(m, false);
}

void nb_model_info(const struct nb_model *m, struct nb_model_info *ret)
{
    const struct nb_hparams *hp = &m->plan->hp;
    *ret = (struct nb_model_info){
        .architecture = hp->arch->name,
        .generates = nb_model_generates(m),
        .longest_embedded = hp->causal || hp->context < m->max_rows ? hp->context : m->max_rows,
        .vocab = hp->vocab,
        .context = hp->context,
        .n_layers = hp->n_layers,
        .embedding = hp->embedding,
        .weight_bytes = nb_image_bytes(m->image),
        .kv_block_bytes = m->device->ops->kv_block_bytes(m->device, m->plan),
        .kv_blocks = m->kv_blocks,
        .kv_blocks_free = m->n_free,
        .kv_blocks_touched = m->n_touched};
}

void nb_model_times(const struct nb_model *m, struct nb_op_time *ret)
{
    m->device->ops->times(m->dm, ret);
}

int nb_model_prepare(struct nb_model *m)
{
    if (m->prepared)
        return 0;
    uint32_t block = m->n_free ? m->free_block[m->n_free - 1] : NB_NO_BLOCK;
    if (m->n_free) {
        m->n_touched += !m->used[block];
        m->used[block] = true;
    }
    int rc = m->device->ops->prepare(m->dm, block);
    // Without memory for what no step needs, the model stays as it is.
    if (rc == -ENOMEM)
        rc = 0;
    m->prepared = rc == 0;
    return rc;
}

bool nb_model_is_prepared(const struct nb_model *m)
{
    return m->prepared;
}

uint64_t nb_model_steps(const struct nb_model *m)
{
    return m->steps;
}

const struct nb_tokenizer *nb_model_tokenizer(const struct nb_model *m)
{
    return m->tokenizer;
}

const struct nb_chat_template *nb_model_chat_template(const struct nb_model *m)
{
    return m->chat_template;
}

void nb_model_set_events(struct nb_model *m, const struct nb_model_events *events)
{
    m->events = *events;
}
