// What a model's ops have taken, told by the worker that runs them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/client.h"

#define ROOM (sizeof(struct nb_counters) + NB_COUNTERS_MAX * sizeof(struct nb_counter))

_Static_assert(NB_COUNTERS_MAX ==
                   sizeof((struct nibble_counters){0}.ops) / sizeof(struct nibble_op_counter),
               "as many as the worker may tell");

static void write_counters(struct nb_task *task, unsigned char *block, uint64_t at)
{
    const struct nb_call *call = NB_OF(task, struct nb_call, task);
    struct nb_desc_counters desc = {.out = at + nb_call_place(call, block)};
    memcpy(block, &desc, sizeof(desc));
}

static const struct nb_task_kind counters_kind = {
    .op = NB_SUBMIT_COUNTERS,
    .desc_size = sizeof(struct nb_desc_counters),
    .size = nb_call_size,
    .write = write_counters,
    .complete = nb_call_complete_whole,
    .fail = nb_call_fail,
};

int nibble_model_counters(nibble_session *session, struct nibble_counters *ret_counters)
{
    nibble *c = session->channel->connection;
    struct nb_call call = {.room = ROOM};
    nb_task_init(&call.task, &counters_kind, session);
    int rc = nb_call_run(c, &call);
    if (rc < 0)
        return rc;
    struct nb_counters head;
    struct nb_counter op[NB_COUNTERS_MAX];
    memcpy(&head, call.out, sizeof(head));
    memcpy(op, (const char *)call.out + sizeof(head), sizeof(op));
    free(call.out);
    if (head.n_ops > NB_COUNTERS_MAX)
        return nb_fail(c, NIBBLE_E_PROTOCOL, "the worker sent counters that cannot be");
    *ret_counters = (struct nibble_counters){.steps = head.steps,
                                             .layers = head.layers,
                                             .n_ops = head.n_ops,
                                             .preparing = head.preparing != 0};
    snprintf(ret_counters->device, sizeof(ret_counters->device), "%.31s", head.device);
    for (uint32_t i = 0; i < head.n_ops; i++) {
        struct nibble_op_counter *to = &ret_counters->ops[i];
        *to = (struct nibble_op_counter){.ns = op[i].ns, .dispatches = op[i].dispatches};
        snprintf(to->name, sizeof(to->name), "%.15s", op[i].op);
    }
    return 0;
}
