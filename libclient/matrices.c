// Matrix jobs: a descriptor, and what of its places goes through the arena. All of it stays
// here until DONE, so that it can be posted again to another worker.
#include "libclient/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define THROUGH_MAX 2 // places of a job that may go through the arena

struct nb_matrix_job {
    union {
        struct nb_desc_gemm gemm;
        struct nb_desc_dequantize dequantize;
    };
    // Places in the caller's own memory
    struct through {
        struct nb_place *place; // in the descriptor
        void *data;
        uint64_t size;
        bool out;
    } through[THROUGH_MAX];
    unsigned n_through;
};
_Static_assert(sizeof(struct nb_desc_gemm) <= NB_DESC_ROOM, "its place in a block");
_Static_assert(sizeof(struct nb_desc_dequantize) <= NB_DESC_ROOM, "its place in a block");

// ---- The task ----

static nibble_job *job_of(struct nb_task *task)
{
    return NB_OF(task, nibble_job, task);
}

static uint64_t size(struct nb_task *task)
{
    const struct nb_matrix_job *matrix = job_of(task)->matrix;
    uint64_t bytes = NB_DESC_ROOM;
    for (unsigned i = 0; i < matrix->n_through; i++)
        bytes += nb_align8(matrix->through[i].size);
    return bytes;
}

static void write_desc(struct nb_task *task, unsigned char *block, uint64_t at)
{
    struct nb_matrix_job *matrix = job_of(task)->matrix;
    uint64_t offset = NB_DESC_ROOM;
    for (unsigned i = 0; i < matrix->n_through; i++) {
        const struct through *t = &matrix->through[i];
        *t->place = (struct nb_place){.offset = at + offset};
        if (!t->out)
            memcpy(block + offset, t->data, t->size);
        offset += nb_align8(t->size);
    }
    memcpy(block, &matrix->gemm, task->kind->desc_size);
}

static void take_results(const struct nb_matrix_job *matrix, const unsigned char *block)
{
    uint64_t offset = NB_DESC_ROOM;
    for (unsigned i = 0; i < matrix->n_through; i++) {
        const struct through *t = &matrix->through[i];
        if (t->out)
            nb_copy_once(t->data, block + offset, t->size);
        offset += nb_align8(t->size);
    }
}

static int complete(struct nb_task *task, const struct nb_completion *completion,
                    const unsigned char *block)
{
    nibble_job *job = job_of(task);
    const struct nb_done *done = &completion->done;
    int status = completion->status;
    char sentence[NB_SENTENCE] = "";
    if (completion->kind != NB_COMPLETION_DONE)
        return -EPROTO;
    if (status < 0)
        nb_status_sentence(task, status, sentence);
    else
        take_results(job->matrix, block);
    job->done_node->event.timings = (struct nibble_timings){
        .queue_ns = done->queue_ns, .prefill_ns = done->prefill_ns, .decode_ns = done->decode_ns};
    nb_job_finish(job, status < 0 ? NIBBLE_FINISH_ERROR : NIBBLE_FINISH_NONE, status, sentence);
    return 0;
}

static void fail(struct nb_task *task, int code, const char *sentence)
{
    nb_job_finish(job_of(task), NIBBLE_FINISH_ERROR, code, sentence);
}

static void moved(struct nb_task *task)
{
    nb_job_moved(job_of(task));
}

#define KIND(name, OP)                                                                             \
    static const struct nb_task_kind name##_kind = {.op = NB_SUBMIT_##OP,                          \
                                                    .desc_size = sizeof(struct nb_desc_##name),    \
                                                    .size = size,                                  \
                                                    .write = write_desc,                           \
                                                    .complete = complete,                          \
                                                    .fail = fail,                                  \
                                                    .moved = moved}
KIND(gemm, GEMM);
KIND(dequantize, DEQUANTIZE);

// ---- Descriptors ----

// A job while it is checked.
struct making {
    nibble *c;
    const nibble_session *session;
    struct nb_matrix_job *matrix;
    uint64_t rows, cols; // of its matrix
    int rc;
};

static void refuse(struct making *m, const char *sentence)
{
    if (m->rc == 0)
        m->rc = nb_fail(m->c, -EINVAL, "%s", sentence);
}

static void put_memory(struct making *m, const struct nibble_place *from, struct nb_place *to)
{
    if (!from->memory || from->memory->channel != m->session->channel)
        refuse(m, "the matrix does not lie in memory registered for this session's model");
    else
        *to = (struct nb_place){from->offset, from->memory->region, 0};
}

static void put_place(struct making *m, const struct nibble_place *from, uint64_t bytes, bool out,
                      struct nb_place *to)
{
    if (from && from->memory) {
        put_memory(m, from, to);
    } else if (!from || !from->data) {
        refuse(m, "a place has neither registered memory nor data");
    } else {
        m->matrix->through[m->matrix->n_through++] = (struct through){to, from->data, bytes, out};
    }
}

static void put_matrix(struct making *m, const struct nibble_matrix *given,
                       struct nb_desc_matrix *to)
{
    struct nibble_matrix own = {0}, *w = &own;
    if (m->rc == 0)
        m->rc = nb_options_read(m->c, NB_OPTIONS_MATRIX, given, w);
    if (m->rc < 0)
        return;
    m->rows = w->tensor ? w->tensor->rows : w->rows;
    m->cols = w->tensor ? w->tensor->cols : w->cols;
    if (!m->rows || m->rows > INT32_MAX || !m->cols || m->cols > INT32_MAX) {
        refuse(m, "a matrix has 1 to 2^31 - 1 rows and columns");
        m->rows = m->cols = 1;
        return;
    }
    if (w->tensor) {
        *to = (struct nb_desc_matrix){.tensor = w->tensor->index};
        return;
    }
    *to = (struct nb_desc_matrix){.tensor = NB_NO_TENSOR,
                                  .bits = w->bits,
                                  .rows = (uint32_t)w->rows,
                                  .cols = (uint32_t)w->cols,
                                  .group = w->group,
                                  .flags = (w->half_scales ? NB_SCALES_F16 : 0) |
                                           (w->has_zeros ? NB_ZEROS : 0)};
    bool known = (w->bits == 8 || w->bits == 4) &&
                 (w->group == 0 || w->group == 32 || w->group == 64 || w->group == 128);
    if (!known || w->cols > 1u << 20)
        refuse(m, "a groupwise matrix has 8 or 4 bits, groups of 32, 64, 128 or 0 (a row), and at "
                  "most 2^20 columns");
    put_memory(m, &w->codes, &to->codes);
    put_memory(m, &w->scales, &to->scales);
    if (w->has_zeros)
        put_memory(m, &w->zeros, &to->zeros);
}

// The job, if all that was said makes sense; its description is filled in by the caller.
static nibble_job *begin(nibble_session *session, nibble_callback callback, void *user,
                         struct making *ret)
{
    *ret = (struct making){.c = session->channel->connection, .session = session};
    ret->rc = nb_session_ready(session);
    if (ret->rc < 0)
        return NULL;
    nibble_job *job = nb_job_create(session, callback, user);
    if (job)
        ret->matrix = job->matrix = calloc(1, sizeof(*job->matrix));
    if (ret->matrix)
        return job;
    if (job)
        nb_job_destroy(job);
    ret->rc = nb_fail(ret->c, -ENOMEM, "out of memory");
    return NULL;
}

static int start(struct making *m, nibble_job *job, const struct nb_task_kind *kind,
                 nibble_job **ret_job)
{
    if (m->rc == 0) {
        nb_task_init(&job->task, kind, job->session);
        m->rc = nb_task_submit(&job->task);
    }
    if (m->rc < 0)
        nb_job_destroy(job);
    else
        *ret_job = job;
    nb_leave(m->c);
    return m->rc;
}

int nibble_gemm(nibble_session *session, const struct nibble_matrix *w,
                const struct nibble_place *x, size_t n, const struct nibble_place *y,
                enum nibble_precision precision, nibble_callback callback, void *user,
                nibble_job **ret_job)
{
    struct making m;
    nibble_job *job = begin(session, callback, user, &m);
    if (!job)
        return m.rc;
    struct nb_desc_gemm *d = &m.matrix->gemm;
    if (!n || n > NB_GEMM_ROWS)
        refuse(&m, "x has 1 to 2^20 rows");
    if (precision != NIBBLE_PRECISION_FAST && precision != NIBBLE_PRECISION_EXACT)
        refuse(&m, "precision is NIBBLE_PRECISION_FAST or NIBBLE_PRECISION_EXACT");
    d->n = (uint32_t)n;
    d->terms = precision == NIBBLE_PRECISION_EXACT ? 2 : 1;
    put_matrix(&m, w, &d->w);
    put_place(&m, x, d->n * m.cols * sizeof(float), false, &d->x);
    put_place(&m, y, d->n * m.rows * sizeof(float), true, &d->y);
    return start(&m, job, &gemm_kind, ret_job);
}

int nibble_dequantize(nibble_session *session, const struct nibble_matrix *w, uint64_t first,
                      uint64_t count, enum nibble_number number, const struct nibble_place *out,
                      const struct nibble_place *scales, nibble_callback callback, void *user,
                      nibble_job **ret_job)
{
    static const struct {
        uint32_t wire, bytes;
    } numbers[] = {[NIBBLE_NUMBER_F32] = {NB_NUMBER_IS_F32, 4},
                   [NIBBLE_NUMBER_F16] = {NB_NUMBER_IS_F16, 2},
                   [NIBBLE_NUMBER_INT8] = {NB_NUMBER_IS_INT8, 1}};
    struct making m;
    nibble_job *job = begin(session, callback, user, &m);
    if (!job)
        return m.rc;
    struct nb_desc_dequantize *d = &m.matrix->dequantize;
    put_matrix(&m, w, &d->w);
    if (!count || first > m.rows || count > m.rows - first)
        refuse(&m, "rows that the matrix does not have");
    if ((unsigned)number > NIBBLE_NUMBER_INT8 || (number == NIBBLE_NUMBER_INT8) != (scales != NULL))
        refuse(&m, "numbers are F32, F16, or INT8, which alone has scales");
    if (m.rc == 0) {
        d->first = (uint32_t)first;
        d->count = (uint32_t)count;
        d->number = numbers[number].wire;
        put_place(&m, out, count * m.cols * numbers[number].bytes, true, &d->out);
    }
    if (m.rc == 0 && scales)
        put_place(&m, scales, count * sizeof(float), true, &d->scales);
    return start(&m, job, &dequantize_kind, ret_job);
}

// ---- Tensors by name ----

static void write_tensor(struct nb_task *task, unsigned char *block, uint64_t at)
{
    const struct nb_call *call = NB_OF(task, struct nb_call, task);
    struct nb_desc_tensor desc = {.name = at + NB_DESC_ROOM,
                                  .name_len = (uint32_t)call->in_size,
                                  .out = at + nb_call_place(call, block)};
    memcpy(block, &desc, sizeof(desc));
}

static const struct nb_task_kind tensor_kind = {
    .op = NB_SUBMIT_TENSOR,
    .desc_size = sizeof(struct nb_desc_tensor),
    .size = nb_call_size,
    .write = write_tensor,
    .complete = nb_call_complete_whole,
    .fail = nb_call_fail,
};

int nibble_tensor_find(nibble_session *session, const char *name, struct nibble_tensor *ret_tensor)
{
    nibble *c = session->channel->connection;
    size_t n = name ? strlen(name) : 0;
    if (n == 0 || n > NB_TENSOR_NAME)
        return nb_fail(c, -ENOENT, "a tensor's name has 1 to %u bytes", NB_TENSOR_NAME);
    struct nb_call call = {.in = name, .in_size = n, .room = sizeof(struct nb_tensor)};
    nb_task_init(&call.task, &tensor_kind, session);
    int rc = nb_call_run(c, &call);
    if (rc < 0)
        return rc;
    struct nb_tensor found;
    memcpy(&found, call.out, sizeof(found));
    free(call.out);
    if (!found.rows || found.rows > INT32_MAX || !found.cols || found.cols > INT32_MAX)
        return nb_fail(c, NIBBLE_E_PROTOCOL, "the worker sent a tensor that cannot be");
    *ret_tensor =
        (struct nibble_tensor){.index = found.index, .rows = found.rows, .cols = found.cols};
    snprintf(ret_tensor->type, sizeof(ret_tensor->type), "%.15s", found.type);
    return 0;
}
