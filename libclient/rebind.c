// A worker died and another one serves the channel, with new rings: take what the old one had
// finished, then post every unretired job again from the client's own copies. The client is the
// journal; nothing was lost.
#include "libclient/client.h"

#include <stdlib.h>

static int by_age(const void *a, const void *b)
{
    const struct nb_slot *left = a, *right = b;
    return left->user_data < right->user_data ? -1 : left->user_data > right->user_data;
}

// Back to the head of the queue, in the order of their first posting. An abandoned job died with
// its worker.
static void take_back(struct nb_channel *channel)
{
    struct nb_slot old[NB_JOBS_MAX];
    memcpy(old, channel->slots, sizeof(old));
    memset(channel->slots, 0, sizeof(channel->slots));
    qsort(old, NB_JOBS_MAX, sizeof(*old), by_age);
    struct nb_link *after = &channel->waiting;
    for (unsigned i = 0; i < NB_JOBS_MAX; i++) {
        struct nb_task *task = old[i].task;
        if (!task)
            continue;
        task->slot = NULL;
        if (task->cancelled) {
            task->kind->fail(task, NIBBLE_E_CANCELLED, "cancelled");
            continue;
        }
        nb_list_insert(after, &task->link);
        after = &task->link;
        if (task->kind->moved)
            task->kind->moved(task);
    }
}

void nb_channel_rebind(struct nb_channel *channel, const struct nb_wire_channel *packet,
                       const int *fds)
{
    nb_channel_drain(channel);
    if (channel->lost) {
        nb_wire_close_fds(fds, 2);
        return;
    }
    nb_channel_unmap(channel);
    NB_EACH(link, &channel->sessions)
        NB_OF(link, nibble_session, link)->known = 0;
    int rc = nb_channel_map(channel, packet, fds);
    if (rc < 0) {
        nb_channel_lose(channel, NIBBLE_E_LOST, "the new worker's channel cannot be mapped");
        return;
    }
    channel->moves += nb_channel_place(channel, packet);
    take_back(channel);
    nb_channel_pump(channel);
}
