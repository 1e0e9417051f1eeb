// Calls: submissions with an input, a result and one completion, which a caller waits for or a job
// goes on from. The result is copied out of shared memory before anybody looks at it.
#include "libclient/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t out_offset(const struct nb_call *call)
{
    return NB_DESC_ROOM + nb_align8(call->in_size);
}

uint64_t nb_call_size(struct nb_task *task)
{
    const struct nb_call *call = NB_OF(task, struct nb_call, task);
    return out_offset(call) + call->room;
}

uint64_t nb_call_place(const struct nb_call *call, unsigned char *block)
{
    if (call->in_size)
        memcpy(block + NB_DESC_ROOM, call->in, call->in_size);
    return out_offset(call);
}

static void finish(struct nb_call *call, int status, const char *sentence)
{
    call->status = status;
    call->done = true;
    snprintf(call->sentence, sizeof(call->sentence), "%s", sentence);
    if (call->then)
        call->then(call);
}

int nb_call_complete(struct nb_call *call, const struct nb_completion *completion,
                     const unsigned char *block, uint64_t result)
{
    char sentence[NB_SENTENCE] = "";
    int status = completion->status;
    if (completion->kind != NB_COMPLETION_DONE || result > call->room)
        return -EPROTO;
    call->count = completion->a;
    if (status < 0) {
        nb_status_sentence(&call->task, status, sentence);
    } else if (!(call->out = malloc(result ? result : 1))) {
        status = -ENOMEM;
        snprintf(sentence, sizeof(sentence), "out of memory");
    } else {
        nb_copy_once(call->out, block + out_offset(call), result);
    }
    finish(call, status, sentence);
    return 0;
}

int nb_call_complete_whole(struct nb_task *task, const struct nb_completion *completion,
                           const unsigned char *block)
{
    struct nb_call *call = NB_OF(task, struct nb_call, task);
    return nb_call_complete(call, completion, block, completion->status == 0 ? call->room : 0);
}

void nb_call_fail(struct nb_task *task, int code, const char *sentence)
{
    finish(NB_OF(task, struct nb_call, task), code, sentence);
}

static bool is_done(const void *what)
{
    return ((const struct nb_call *)what)->done;
}

int nb_call_run(nibble *c, struct nb_call *call)
{
    int rc = nb_task_submit(&call->task);
    if (rc < 0)
        return rc;
    nb_pump(c, is_done, call, -1); // a broken connection ends the call too
    return call->status < 0 ? nb_fail(c, call->status, "%s", call->sentence) : 0;
}

void nb_status_sentence(const struct nb_task *task, int status, char *ret_sentence)
{
    if (task->reason && *task->reason)
        snprintf(ret_sentence, NB_SENTENCE, "%s", task->reason);
    else if (status == NIBBLE_E_CANCELLED)
        snprintf(ret_sentence, NB_SENTENCE, "cancelled");
    else
        snprintf(ret_sentence, NB_SENTENCE, "the worker of %s refused the job: %s",
                 task->channel->model.name, nibble_strerror(status));
}
