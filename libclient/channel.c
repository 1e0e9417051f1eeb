// A channel: mapping what the daemon sent, posting submissions, taking completions. The worker at
// the other end is not trusted: a completion is copied once, and one that cannot be right ends the
// channel, never the process.
#include "libclient/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libclient/sentence.h"
#include "machine/bounds.h"

#define OPEN_MS             60000 // the worker may have to start
#define SEALS               (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define SLOT_BITS           8
#define SLOT_MASK           ((1u << SLOT_BITS) - 1)
#define NO_SLOT             SLOT_MASK // in the user_data of an op that is not answered
#define COMPLETION_MAX_TEXT sizeof((struct nb_completion *)0)->text

// ---- The memory ----

static struct nb_ring_indices *indices(struct nb_channel *channel)
{
    return (struct nb_ring_indices *)(void *)channel->map;
}

static int check_memory(const struct nb_wire_channel *packet, int memory)
{
    struct stat status;
    int seals = fcntl(memory, F_GET_SEALS); // before the size: it cannot change any more
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(memory, &status) < 0)
        return -EPROTO;
    bool fits = packet->arena_bytes >= NB_ARENA_MIN && packet->arena_bytes <= NB_ARENA_MAX &&
                packet->arena_bytes % 4096 == 0 &&
                (uint64_t)status.st_size == NB_CHANNEL_BYTES(packet->arena_bytes);
    return fits ? 0 : -EPROTO;
}

int nb_channel_map(struct nb_channel *channel, const struct nb_wire_channel *packet, const int *fds)
{
    int memory = fds[0];
    uint64_t size = NB_CHANNEL_BYTES(packet->arena_bytes);
    int rc = check_memory(packet, memory);
    void *map =
        rc < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (rc == 0 && map == MAP_FAILED)
        rc = -errno;
    close(memory);
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = channel};
    if (rc == 0 && epoll_ctl(channel->connection->epoll, EPOLL_CTL_ADD, fds[1], &wake) < 0)
        rc = -errno;
    if (rc < 0) {
        if (map != MAP_FAILED)
            munmap(map, size);
        close(fds[1]);
        return rc;
    }
    channel->sock = fds[1];
    channel->hung_up = false;
    channel->map = map;
    channel->map_size = size;
    channel->sq_tail = channel->cq_head = 0;
    nb_arena_init(&channel->arena, packet->arena_bytes);
    return 0;
}

void nb_channel_unmap(struct nb_channel *channel)
{
    if (!channel->map)
        return;
    munmap(channel->map, channel->map_size);
    close(channel->sock);
    channel->map = NULL;
    channel->sock = -1;
}

bool nb_channel_place(struct nb_channel *channel, const struct nb_wire_channel *packet)
{
    char device[sizeof(packet->device)], numerics[sizeof(packet->numerics)];
    snprintf(device, sizeof(device), "%.*s", (int)sizeof(device) - 1, packet->device);
    snprintf(numerics, sizeof(numerics), "%.*s", (int)sizeof(numerics) - 1, packet->numerics);
    bool other = strcmp(device, channel->model.device) || strcmp(numerics, channel->numerics);
    memcpy(channel->model.device, device, sizeof(device));
    memcpy(channel->numerics, numerics, sizeof(numerics));
    return other;
}

// ---- Opening and closing ----

struct nb_channel *nb_channel_find(nibble *c, uint32_t handle)
{
    NB_EACH(link, &c->channels) {
        struct nb_channel *channel = NB_OF(link, struct nb_channel, link);
        if (channel->handle == handle && !channel->lost)
            return channel;
    }
    return NULL;
}

// Finds the model of that name among those that the daemon lists.
static int find_model(nibble *c, const char *name, struct nibble_model *ret_model)
{
    int room = nibble_models(c, NULL, 0);
    if (room < 0)
        return room;
    struct nibble_model *models = calloc((size_t)room + 1, sizeof(*models));
    if (!models)
        return nb_fail(c, -ENOMEM, "out of memory");
    int n = nibble_models(c, models, (size_t)room);
    const struct nibble_model *found = NULL;
    for (int i = 0; i < n && i < room && !found; i++)
        if (strcmp(models[i].name, name) == 0)
            found = &models[i];
    if (found)
        *ret_model = *found;
    free(models);
    if (n < 0 || found)
        return n < 0 ? n : 0;
    return nb_fail(c, NIBBLE_E_NO_MODEL,
                   "no model is loaded by the name %s: nibble models lists them", name);
}

int nb_channel_open(nibble *c, const char *model, const char *adapter, uint64_t arena_bytes,
                    struct nb_channel **ret_channel)
{
    struct nb_wire_open_channel request = {.arena_bytes = arena_bytes};
    struct nb_packet reply;
    char reason[NB_LIMIT_TEXT];
    memcpy(request.model, model, strlen(model) + 1);
    memcpy(request.adapter, adapter, strlen(adapter) + 1);
    int rc = nb_request(c, NB_WIRE_OPEN_CHANNEL, &request, NULL, &reply, OPEN_MS);
    if (rc < 0)
        return rc;
    struct nb_wire_channel opened;
    memcpy(&opened, reply.bytes, sizeof(opened));
    struct nb_channel *channel = calloc(1, sizeof(*channel));
    if (!channel) {
        nb_wire_close_fds(reply.fds, reply.n_fds);
        return nb_fail(c, -ENOMEM, "out of memory");
    }
    channel->connection = c;
    channel->handle = opened.channel;
    memcpy(channel->adapter, request.adapter, sizeof(channel->adapter));
    channel->sock = -1;
    nb_link_init(&channel->waiting);
    nb_link_init(&channel->sessions);
    nb_list_append(&c->channels, &channel->link);
    rc = nb_channel_map(channel, &opened, reply.fds);
    if (rc < 0)
        rc = nb_fail(c, rc == -EPROTO ? NIBBLE_E_PROTOCOL : rc,
                     "cannot use the channel's memory: %s", nb_limit_reason(rc, reason));
    else
        rc = find_model(c, model, &channel->model);
    if (rc < 0) {
        nb_channel_close(channel);
        return rc;
    }
    nb_channel_place(channel, &opened); // the list may be older, or newer
    *ret_channel = channel;
    return 0;
}

void nb_channel_close(struct nb_channel *channel)
{
    nb_channel_lose(channel, NIBBLE_E_CLOSED, "the channel is closed");
    nb_list_remove(&channel->link);
    nb_memories_orphan(channel);
    free(channel);
}

void nb_channel_lose(struct nb_channel *channel, int code, const char *sentence)
{
    if (channel->lost)
        return;
    channel->lost = code;
    snprintf(channel->lost_text, sizeof(channel->lost_text), "%s", sentence);
    nb_channel_unmap(channel);
    if (!channel->gone && !channel->connection->broken) {
        struct nb_wire_channel_ref request = {.channel = channel->handle};
        nb_tell(channel->connection, NB_WIRE_CLOSE_CHANNEL, &request);
    }
    for (unsigned i = 0; i < NB_JOBS_MAX; i++) {
        struct nb_task *task = channel->slots[i].task;
        channel->slots[i] = (struct nb_slot){0};
        if (task) {
            task->slot = NULL;
            task->kind->fail(task, code, channel->lost_text);
        }
    }
    while (!nb_list_empty(&channel->waiting)) {
        struct nb_task *task = NB_OF(channel->waiting.next, struct nb_task, link);
        nb_list_remove(&task->link);
        task->kind->fail(task, code, channel->lost_text);
    }
}

// ---- Submissions ----

// There is always room: a channel has at most NB_JOBS_MAX jobs, a cancel of each, and a close of
// each session.
static void push(struct nb_channel *channel, const struct nb_submission *submission)
{
    struct nb_ring_indices *ring = indices(channel);
    uint32_t head = atomic_load_explicit(&ring->sq_head, memory_order_acquire);
    if (channel->sq_tail - head >= NB_SQ_ENTRIES) {
        nb_channel_lose(channel, NIBBLE_E_PROTOCOL, "the worker does not take submissions");
        return;
    }
    struct nb_submission *entries = (void *)(channel->map + NB_CHANNEL_SQ_OFFSET);
    entries[channel->sq_tail & (NB_SQ_ENTRIES - 1)] = *submission;
    channel->sq_tail++;
    if (nb_ring_publish(&ring->sq_tail, channel->sq_tail, &ring->worker_sleeps))
        nb_wake_send(channel->sock); // a dead worker's successor needs no wake
}

// An op that is not answered.
static void push_order(struct nb_channel *channel, uint32_t op, uint32_t session, uint64_t target)
{
    struct nb_submission order = {.op = op,
                                  .user_data = ++channel->next << SLOT_BITS | NO_SLOT,
                                  .session = session,
                                  .target = target};
    if (!channel->lost)
        push(channel, &order);
}

void nb_channel_forget_session(struct nb_channel *channel, uint32_t session)
{
    push_order(channel, NB_SUBMIT_SESSION_CLOSE, session, 0);
}

static struct nb_slot *free_slot(struct nb_channel *channel)
{
    for (unsigned i = 0; i < NB_JOBS_MAX; i++)
        if (!channel->slots[i].user_data)
            return &channel->slots[i];
    return NULL;
}

// An abandoned job must be gone before its session can have another one.
static bool session_is_clear(const struct nb_channel *channel, uint32_t session)
{
    for (unsigned i = 0; i < NB_JOBS_MAX; i++)
        if (channel->slots[i].user_data && !channel->slots[i].task &&
            channel->slots[i].session == session)
            return false;
    return true;
}

static void post(struct nb_channel *channel, struct nb_task *task, struct nb_slot *slot,
                 uint64_t at)
{
    uint64_t index = (uint64_t)(slot - channel->slots);
    *slot = (struct nb_slot){.user_data = ++channel->next << SLOT_BITS | index,
                             .task = task,
                             .block = at,
                             .session = task->session};
    task->slot = slot;
    nb_list_remove(&task->link);
    task->kind->write(task, channel->map + NB_CHANNEL_ARENA_OFFSET + at, at);
    struct nb_submission submission = {.op = task->kind->op,
                                       .user_data = slot->user_data,
                                       .session = task->session,
                                       .desc = at,
                                       .desc_len = task->kind->desc_size};
    push(channel, &submission);
}

static void refuse(struct nb_channel *channel, struct nb_task *task, uint64_t need)
{
    char sentence[NB_SENTENCE];
    snprintf(sentence, sizeof(sentence),
             "this needs %llu bytes of the channel's memory, which has %llu: open the connection's "
             "first session on "
             "%s with larger arena_bytes",
             (unsigned long long)need, (unsigned long long)channel->arena.size,
             channel->model.name);
    nb_list_remove(&task->link);
    task->kind->fail(task, NIBBLE_E_QUOTA, sentence);
}

// Posts waiting tasks in order: one that finds no slot or no room, or that waits for its session's
// last job, holds up those after it.
void nb_channel_pump(struct nb_channel *channel)
{
    while (!channel->lost && !nb_list_empty(&channel->waiting)) {
        struct nb_task *task = NB_OF(channel->waiting.next, struct nb_task, link);
        struct nb_slot *slot = free_slot(channel);
        uint64_t need = task->kind->size(task), at;
        if (need > channel->arena.size)
            refuse(channel, task, need);
        else if (slot && session_is_clear(channel, task->session) &&
                 nb_arena_take(&channel->arena, need, &at) == 0)
            post(channel, task, slot, at);
        else
            return;
    }
}

// ---- Tasks ----

void nb_task_init(struct nb_task *task, const struct nb_task_kind *kind, nibble_session *session)
{
    *task = (struct nb_task){.kind = kind, .channel = session->channel, .session = session->id};
    nb_link_init(&task->link);
}

int nb_task_submit(struct nb_task *task)
{
    struct nb_channel *channel = task->channel;
    if (channel->lost)
        return nb_fail(channel->connection, channel->lost, "%s", channel->lost_text);
    nb_list_append(&channel->waiting, &task->link);
    nb_channel_pump(channel);
    return 0;
}

void nb_task_cancel(struct nb_task *task)
{
    if (!nb_list_empty(&task->link)) {
        nb_list_remove(&task->link);
        task->kind->fail(task, NIBBLE_E_CANCELLED, "cancelled");
    } else if (task->slot && !task->cancelled) {
        task->cancelled = true;
        push_order(task->channel, NB_SUBMIT_CANCEL, task->session, task->slot->user_data);
    }
}

void nb_task_abandon(struct nb_task *task)
{
    struct nb_slot *slot = task->slot;
    nb_list_remove(&task->link);
    task->slot = NULL;
    if (!slot)
        return;
    slot->task = NULL;
    if (!task->cancelled)
        push_order(task->channel, NB_SUBMIT_CANCEL, task->session, slot->user_data);
}

// ---- Completions ----

static void retire(struct nb_channel *channel, struct nb_slot *slot)
{
    nb_arena_give(&channel->arena, slot->block);
    *slot = (struct nb_slot){0};
}

static struct nb_slot *slot_of(struct nb_channel *channel, uint64_t user_data)
{
    uint64_t index = user_data & SLOT_MASK;
    if (index >= NB_JOBS_MAX || !user_data || channel->slots[index].user_data != user_data)
        return NULL;
    return &channel->slots[index];
}

static int take_reason(struct nb_slot *slot, const struct nb_completion *completion)
{
    if (!completion->text_len || completion->text_len > NB_REASON_MAX - slot->reason_len)
        return -EPROTO;
    memcpy(slot->reason + slot->reason_len, completion->text, completion->text_len);
    slot->reason_len += completion->text_len;
    return 0;
}

static int complete(struct nb_channel *channel, const struct nb_completion *completion)
{
    struct nb_slot *slot = slot_of(channel, completion->user_data);
    if (!slot || completion->kind >= NB_COMPLETION_KINDS || completion->status > 0 ||
        completion->text_len > COMPLETION_MAX_TEXT)
        return -EPROTO;
    if (completion->kind == NB_COMPLETION_REASON)
        return take_reason(slot, completion);
    struct nb_task *task = slot->task;
    bool last = completion->kind == NB_COMPLETION_DONE;
    int rc = 0;
    if (last && task) {
        task->slot = NULL;
        slot->task = NULL;
        nb_sentence_clean(slot->reason, sizeof(slot->reason));
        task->reason = slot->reason;
    }
    if (task)
        rc = task->kind->complete(task, completion,
                                  channel->map + NB_CHANNEL_ARENA_OFFSET + slot->block);
    if (rc < 0 && last) { // so that nb_channel_lose fails it
        task->slot = slot;
        slot->task = task;
    } else if (last && !channel->lost) {
        retire(channel, slot);
    }
    return rc;
}

int nb_channel_drain(struct nb_channel *channel)
{
    if (channel->lost)
        return 0;
    struct nb_ring_indices *ring = indices(channel);
    uint32_t n = atomic_load_explicit(&ring->cq_tail, memory_order_acquire) - channel->cq_head;
    bool sound = n <= NB_CQ_ENTRIES;
    for (uint32_t i = 0; i < n && sound && !channel->lost; i++) {
        const struct nb_completion *entries = (const void *)(channel->map + NB_CHANNEL_CQ_OFFSET);
        struct nb_completion completion;
        nb_copy_once(&completion, &entries[channel->cq_head & (NB_CQ_ENTRIES - 1)],
                     sizeof(completion));
        channel->cq_head++;
        sound = complete(channel, &completion) == 0;
    }
    if (!sound)
        nb_channel_lose(channel, NIBBLE_E_PROTOCOL, "the worker broke the channel's protocol");
    if (n && !channel->lost) {
        if (nb_ring_release(&ring->cq_head, channel->cq_head, &ring->worker_sleeps))
            nb_wake_send(channel->sock);
        nb_channel_pump(channel);
    }
    return (int)(n <= NB_CQ_ENTRIES ? n : 1);
}

bool nb_channel_pending(struct nb_channel *channel)
{
    return !channel->lost && atomic_load_explicit(&indices(channel)->cq_tail,
                                                  memory_order_acquire) != channel->cq_head;
}

bool nb_channel_may_sleep(struct nb_channel *channel)
{
    return channel->lost || nb_ring_may_sleep(&indices(channel)->cq_tail, channel->cq_head,
                                              &indices(channel)->client_sleeps);
}

bool nb_channel_busy(const struct nb_channel *channel)
{
    for (unsigned i = 0; i < NB_JOBS_MAX && !channel->lost; i++)
        if (channel->slots[i].user_data)
            return true;
    return false;
}
