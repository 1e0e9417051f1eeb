// Channels: memory and a socketpair between a client and a serving worker. The broker makes both
// and hands them over. Of the memory it keeps a descriptor, to know when it is gone, and never maps
// it.
#include "daemon/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/arena.h"
#include "daemon/broker.h"
#include "daemon/client.h"
#include "daemon/device.h"
#include "daemon/ledger.h"
#include "daemon/link.h"
#include "daemon/model.h"
#include "daemon/move.h"
#include "daemon/peer.h"
#include "daemon/refusal.h"
#include "daemon/region.h"
#include "libclient/ring.h"
#include "libclient/wire.h"
#include "machine/bounds.h"

// The socket's two ends and the memory, twice: [0] the memory, [1] the socket.
static int make_ends(int memory, int ret_client[2], int ret_worker[2])
{
    int pair[2] = {-1, -1};
    int twin = fcntl(memory, F_DUPFD_CLOEXEC, 0);
    int rc = twin < 0 ? -errno : nb_wire_pair(SOCK_STREAM, pair);
    if (rc < 0) {
        close(memory);
        if (twin >= 0)
            close(twin);
        return rc;
    }
    ret_client[0] = memory;
    ret_client[1] = pair[0];
    ret_worker[0] = twin;
    ret_worker[1] = pair[1];
    return 0;
}

static int out_of(int error, struct nb_refusal *refusal)
{
    char reason[NB_LIMIT_TEXT];
    return nb_refuse(refusal, error, "the daemon cannot make a channel (%s)",
                     nb_limit_reason(error, reason));
}

int nb_channel_bind(struct nb_channel *channel, uint32_t type, uint32_t serial,
                    struct nb_refusal *refusal)
{
    struct nb_device *device = channel->model->device;
    struct nb_arena *arena;
    int of_client[NB_CHANNEL_FDS], of_worker[NB_CHANNEL_FDS], memory;
    // A client that a worker's death found at its limit keeps its channels.
    int rc = nb_client_expect_fds(channel->client, NB_CHANNEL_FDS,
                                  type == NB_WIRE_REBIND ? NULL : refusal);
    if (rc < 0)
        return type == NB_WIRE_REBIND ? nb_refuse(refusal, rc, "the daemon is out of memory") : rc;
    // A new worker's channel takes the place of one that the client must still read to its end.
    rc = nb_arena_create(channel->client->broker, channel->client->uid,
                         NB_CHANNEL_BYTES(channel->arena_bytes), channel->arena != NULL, &arena,
                         &memory, refusal);
    if (rc < 0)
        return rc;
    nb_arena_leave(channel->arena, 0);
    channel->arena = arena;
    rc = make_ends(memory, of_client, of_worker);
    if (rc < 0)
        return out_of(rc, refusal);
    struct nb_link_channel_add add = {
        .header = {.type = NB_LINK_CHANNEL_ADD, .size = sizeof(add)},
        .channel = channel->key,
        .arena_bytes = channel->arena_bytes,
        .model = channel->model->id,
        .uid = channel->client->uid,
        .memories = channel->n_regions,
    };
    struct nb_wire_channel reply = {
        .header = {.type = type, .size = sizeof(reply), .serial = serial},
        .channel = channel->id,
        .incarnation = device->incarnation,
        .arena_bytes = channel->arena_bytes,
        .numerics = NB_NUMERICS,
    };
    memcpy(reply.device, device->info.name, sizeof(reply.device));
    nb_device_send(device, &add, of_worker, NB_CHANNEL_FDS);
    rc = nb_regions_send(channel);
    if (rc < 0) {
        nb_wire_close_fds(of_client, NB_CHANNEL_FDS);
        return out_of(rc, refusal);
    }
    nb_peer_send(channel->client->peer, &reply, of_client, NB_CHANNEL_FDS);
    return 0;
}

void nb_channel_rebind(struct nb_channel *channel)
{
    struct nb_refusal refusal;
    int rc = nb_channel_bind(channel, NB_WIRE_REBIND, 0, &refusal);
    if (rc < 0)
        nb_channel_lose(channel, rc, refusal.text);
}

static int find_adapter(const struct nb_model *base, const char *name, struct nb_model **ret,
                        struct nb_refusal *refusal)
{
    struct nb_model *adapter = nb_model_by_name(base->broker, name);
    const bool is = adapter && adapter->base == base && !adapter->info.is_drafter;
    if (!is || adapter->state == NB_MODEL_LOADING)
        return nb_refuse(refusal, NIBBLE_E_NO_MODEL, "\"%s\" has no adapter \"%.63s\"%s",
                         base->info.name, name, is ? " yet: it is being loaded" : "");
    *ret = adapter;
    return 0;
}

static int find_model(struct nb_client *client, const struct nb_wire_open_channel *request,
                      struct nb_model **ret, struct nb_refusal *refusal)
{
    struct nb_broker *broker = client->broker;
    if (broker->stopping)
        return nb_refuse(refusal, NIBBLE_E_LOST, "the daemon is stopping");
    struct nb_model *model = nb_model_by_name(broker, request->model);
    if (!model || model->state == NB_MODEL_LOADING)
        return nb_refuse(refusal, NIBBLE_E_NO_MODEL, "no model \"%.63s\" is loaded%s",
                         request->model, model ? " yet: it is being loaded" : "");
    if (model->info.is_drafter)
        return nb_refuse(refusal, NIBBLE_E_NO_MODEL,
                         "\"%s\" drafts for \"%s\": open that, which asks it by itself",
                         model->info.name, model->base->info.name);
    if (model->base)
        return nb_refuse(refusal, NIBBLE_E_NO_MODEL,
                         "\"%s\" is an adapter of \"%s\": open that with it (--adapter)",
                         model->info.name, model->base->info.name);
    int rc = *request->adapter ? find_adapter(model, request->adapter, &model, refusal) : 0;
    if (rc < 0)
        return rc;
    if (model->state == NB_MODEL_LOST)
        return nb_refuse(refusal, NIBBLE_E_LOST, "\"%s\" is lost: %s; unload it, load it again",
                         model->info.name, model->why);
    if (client->n_channels >= client->broker->config.channels_per_connection)
        return nb_refuse(refusal, NIBBLE_E_QUOTA,
                         "this connection has %u channels, the limit: close one, or raise "
                         "channels-per-connection in [limits]",
                         client->n_channels);
    uint32_t n = nb_device_channels(model->device);
    if (n >= broker->worker_channels || nb_device_is_busy(model->device))
        return nb_refuse(refusal, NIBBLE_E_BUSY,
                         "device %s serves %u channels (of %u) and takes no more now: try again",
                         model->device->info.name, n, broker->worker_channels);
    *ret = model;
    return 0;
}

static int check_arena(uint64_t asked, uint64_t *ret, struct nb_refusal *refusal)
{
    uint64_t bytes = asked ? asked : NB_ARENA_DEFAULT;
    if (bytes < NB_ARENA_MIN || bytes > NB_ARENA_MAX)
        return nb_refuse(refusal, -EINVAL, "an arena has %u to %u bytes", NB_ARENA_MIN,
                         NB_ARENA_MAX);
    *ret = (bytes + 4095) & ~UINT64_C(4095);
    return 0;
}

NB_HANDLER(nb_on_open_channel)
{
    const struct nb_wire_open_channel *request = packet;
    struct nb_model *model = NULL;
    uint64_t arena = 0;
    int rc = check_arena(request->arena_bytes, &arena, refusal);
    if (!rc)
        rc = find_model(client, request, &model, refusal);
    if (rc < 0)
        return rc;
    struct nb_channel *channel = calloc(1, sizeof(*channel));
    if (!channel)
        return -ENOMEM;
    const uint64_t amount[NB_RES_COUNT] = {[NB_RES_CHANNELS] = 1, [NB_RES_FDS] = NB_CHANNEL_FDS};
    rc = nb_charge_take(&client->broker->ledger, client->uid, amount, &channel->charge, refusal);
    if (rc < 0) {
        free(channel);
        return rc;
    }
    channel->client = client;
    channel->model = model;
    channel->id = ++client->last_channel;
    channel->key = ++client->broker->last_channel;
    channel->arena_bytes = arena;
    TAILQ_INIT(&channel->regions);
    TAILQ_INSERT_TAIL(&client->channels, channel, of_client);
    TAILQ_INSERT_TAIL(&model->channels, channel, of_model);
    client->n_channels++;
    model->n_channels++;
    rc = nb_channel_bind(channel, NB_WIRE_OPEN_CHANNEL | NB_WIRE_REPLY, request->header.serial,
                         refusal);
    if (rc < 0)
        nb_channel_destroy(channel, 1);
    return rc;
}

struct nb_channel *nb_channel_of_client(struct nb_client *client, uint32_t id)
{
    struct nb_channel *channel;
    TAILQ_FOREACH(channel, &client->channels, of_client)
        if (channel->id == id)
            return channel;
    return NULL;
}

NB_HANDLER(nb_on_close_channel)
{
    const struct nb_wire_channel_ref *request = packet;
    struct nb_channel *channel = nb_channel_of_client(client, request->channel);
    if (!channel)
        return nb_refuse(refusal, -ENOENT, "this connection has no channel %u", request->channel);
    nb_channel_destroy(channel, 1);
    nb_client_done(client, request->header.type, request->header.serial);
    return 0;
}

void nb_channel_destroy(struct nb_channel *channel, int by_client)
{
    if (!channel)
        return;
    struct nb_link_ref gone = {
        .header = {.type = NB_LINK_CHANNEL_REMOVE, .size = sizeof(gone)},
        .channel = channel->key,
        .model = channel->model->id,
    };
    nb_device_send(channel->model->device, &gone, NULL, 0);
    nb_regions_destroy(channel);
    TAILQ_REMOVE(&channel->client->channels, channel, of_client);
    TAILQ_REMOVE(&channel->model->channels, channel, of_model);
    channel->client->n_channels--;
    channel->model->n_channels--;
    nb_charge_release(&channel->client->broker->ledger, &channel->charge);
    nb_arena_leave(channel->arena, by_client);
    free(channel);
}

void nb_channel_lose(struct nb_channel *channel, int status, const char *text)
{
    struct nb_wire_channel_ref lost = {
        .header = {NB_WIRE_CHANNEL_LOST, sizeof(lost), 0, status},
        .channel = channel->id,
    };
    snprintf(lost.text, sizeof(lost.text), "%s", text);
    nb_peer_send(channel->client->peer, &lost, NULL, 0);
    nb_channel_destroy(channel, 0);
}

struct nb_channel *nb_channel_by_key(struct nb_device *device, uint64_t key)
{
    struct nb_model *model;
    struct nb_channel *channel;
    TAILQ_FOREACH(model, &device->models, of_device)
        TAILQ_FOREACH(channel, &model->channels, of_model)
            if (channel->key == key)
                return channel;
    return NULL;
}
