// Memory that a client registers for its channel's matrix jobs: the broker looks at seals and
// sizes, charges it, and hands it to the worker, again to each new one. It never maps it.
#include "daemon/region.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/channel.h"
#include "daemon/client.h"
#include "daemon/device.h"
#include "daemon/ledger.h"
#include "daemon/link.h"
#include "daemon/model.h"
#include "daemon/peer.h"
#include "daemon/refusal.h"
#include "daemon/spawn.h"
#include "libclient/ring.h"
#include "libclient/wire.h"

#define REGION_FDS 2 // ours, and one under way to the worker

struct nb_region {
    TAILQ_ENTRY(nb_region) entry;
    struct nb_charge charge;
    struct nb_link_memory add;
    int fd;
    uint32_t serial; // of the request that waits for the worker; 0: answered
};

static struct nb_region *find(struct nb_channel *channel, uint32_t id)
{
    struct nb_region *region;
    TAILQ_FOREACH(region, &channel->regions, entry)
        if (region->add.region == id)
            return region;
    return NULL;
}

static void release(struct nb_ledger *ledger, struct nb_region *region)
{
    nb_charge_release(ledger, &region->charge);
    free(region);
}

// The channel has it no more. As long as its worker may, it stays charged.
static void leave(struct nb_channel *channel, struct nb_region *region)
{
    struct nb_worker *worker = channel->model->device->worker;
    TAILQ_REMOVE(&channel->regions, region, entry);
    channel->n_regions--;
    close(region->fd);
    region->fd = -1;
    if (worker)
        TAILQ_INSERT_TAIL(&worker->leaving, region, entry);
    else
        release(&channel->client->broker->ledger, region);
}

// No worker has it.
static void destroy(struct nb_channel *channel, struct nb_region *region)
{
    TAILQ_REMOVE(&channel->regions, region, entry);
    channel->n_regions--;
    close(region->fd);
    release(&channel->client->broker->ledger, region);
}

void nb_regions_dropped(struct nb_worker *worker, uint64_t channel, uint32_t id)
{
    struct nb_region *region, *next;
    for (region = TAILQ_FIRST(&worker->leaving); region; region = next) {
        next = TAILQ_NEXT(region, entry);
        if (region->add.channel != channel || (id && region->add.region != id))
            continue;
        TAILQ_REMOVE(&worker->leaving, region, entry);
        release(&worker->broker->ledger, region);
    }
}

void nb_regions_gone(struct nb_worker *worker)
{
    struct nb_region *region;
    while ((region = TAILQ_FIRST(&worker->leaving))) {
        TAILQ_REMOVE(&worker->leaving, region, entry);
        release(&worker->broker->ledger, region);
    }
}

void nb_regions_destroy(struct nb_channel *channel)
{
    struct nb_refusal refusal;
    struct nb_region *region, *next;
    for (region = TAILQ_FIRST(&channel->regions); region; region = next) {
        next = TAILQ_NEXT(region, entry);
        if (region->serial) {
            nb_refuse(&refusal, NIBBLE_E_LOST, "the channel was closed meanwhile");
            nb_client_refuse(channel->client, NB_WIRE_REGISTER, region->serial, NIBBLE_E_LOST,
                             &refusal);
        }
        leave(channel, region);
    }
}

static int send_region(const struct nb_channel *channel, const struct nb_region *region)
{
    int fd = fcntl(region->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    nb_device_send(channel->model->device, &region->add, &fd, 1);
    return 0;
}

int nb_regions_send(struct nb_channel *channel)
{
    const struct nb_region *region;
    int rc = 0;
    TAILQ_FOREACH(region, &channel->regions, entry)
        if (rc == 0)
            rc = send_region(channel, region);
    return rc;
}

// ---- Requests

static int not_sealed(struct nb_refusal *refusal)
{
    return nb_refuse(
        refusal, -EPERM,
        "only a memfd that cannot shrink can be registered: seal it with F_SEAL_SHRINK");
}

// A sealed file may still grow or lose its content, which is nothing to us.
static int check_file(const struct nb_wire_register *request, int fd, uint64_t *ret_size,
                      int *ret_constant, struct nb_refusal *refusal)
{
    struct stat st;
    struct statfs fs;
    int seals = fcntl(fd, F_GET_SEALS); // before the size: it does not shrink any more
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return not_sealed(refusal);
    if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
        return -errno;
    if (fs.f_type == HUGETLBFS_MAGIC)
        return nb_refuse(refusal, -EINVAL, "memory of huge pages cannot be registered");
    uint64_t size = (uint64_t)st.st_size, page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (request->flags & ~NB_REGISTER_READ_ONLY || !request->bytes || request->offset % page ||
        request->offset > size || request->bytes > size - request->offset)
        return nb_refuse(refusal, -EINVAL,
                         "bytes to register begin at a page and lie within the file, which has "
                         "%llu",
                         (unsigned long long)size);
    *ret_size = size;
    *ret_constant = seals & F_SEAL_WRITE;
    return 0;
}

// What packed copies of matrices in `bytes` of constant memory may take: scales become fp32 beside
// minima, and rows are padded to 16.
static uint64_t packed_bytes(uint64_t bytes)
{
    return bytes + bytes / 2 + (64u << 10);
}

static int charge(struct nb_client *client, uint64_t size, uint64_t packed, struct nb_charge *ret,
                  struct nb_refusal *refusal)
{
    if (size > UINT64_MAX / 4)
        return -EFBIG;
    const uint64_t amount[NB_RES_COUNT] = {
        [NB_RES_BYTES] = size + packed, [NB_RES_FDS] = REGION_FDS};
    return nb_charge_take(&client->broker->ledger, client->uid, amount, ret, refusal);
}

static int is_read_only(int fd)
{
    return (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY;
}

NB_HANDLER(nb_on_register)
{
    const struct nb_wire_register *request = packet;
    struct nb_channel *channel = nb_channel_of_client(client, request->channel);
    uint64_t size = 0;
    int constant = 0;
    if (!channel)
        return nb_refuse(refusal, -ENOENT, "this connection has no channel %u", request->channel);
    if (channel->n_regions == NB_MEMORIES_MAX)
        return nb_refuse(refusal, NIBBLE_E_QUOTA,
                         "a channel has at most %u registered memories: unregister one",
                         NB_MEMORIES_MAX);
    if (nb_device_is_busy(channel->model->device))
        return nb_refuse(refusal, NIBBLE_E_BUSY, "device %s has much to take: try again",
                         channel->model->device->info.name);
    int rc = check_file(request, fds[0], &size, &constant, refusal);
    if (rc < 0)
        return rc;
    struct nb_region *region = calloc(1, sizeof(*region));
    if (!region)
        return -ENOMEM;
    region->add = (struct nb_link_memory){
        .header = {.type = NB_LINK_MEMORY_ADD, .size = sizeof(region->add)},
        .channel = channel->key,
        .offset = request->offset,
        .bytes = request->bytes,
        .packed_bytes = constant ? packed_bytes(request->bytes) : 0,
        .region = channel->last_region + 1,
        .flags = request->flags | (is_read_only(fds[0]) ? NB_REGISTER_READ_ONLY : 0),
    };
    rc = charge(client, size, region->add.packed_bytes, &region->charge, refusal);
    if (rc < 0) {
        free(region);
        return rc;
    }
    channel->last_region++;
    channel->n_regions++;
    region->fd = fds[0];
    region->serial = request->header.serial;
    fds[0] = -1;
    TAILQ_INSERT_TAIL(&channel->regions, region, entry);
    rc = send_region(channel, region);
    if (rc < 0)
        destroy(channel, region);
    return rc;
}

NB_HANDLER(nb_on_unregister)
{
    const struct nb_wire_memory *request = packet;
    struct nb_channel *channel = nb_channel_of_client(client, request->channel);
    struct nb_region *region = channel ? find(channel, request->region) : NULL;
    if (!region || region->serial)
        return nb_refuse(refusal, -ENOENT, "this connection has no memory %u in a channel %u",
                         request->region, request->channel);
    struct nb_link_memory gone = region->add;
    gone.header.type = NB_LINK_MEMORY_REMOVE;
    nb_device_send(channel->model->device, &gone, NULL, 0);
    leave(channel, region);
    nb_client_done(client, request->header.type, request->header.serial);
    return 0;
}

// ---- The worker's answer

void nb_region_ready(struct nb_channel *channel, const struct nb_link_memory *message)
{
    struct nb_region *region = find(channel, message->region);
    int status = message->header.status;
    struct nb_refusal refusal;
    if (!region)
        return;
    if (!region->serial) {
        if (status < 0) // a new worker that cannot do what the last one did
            nb_channel_lose(channel, NIBBLE_E_LOST, "the new worker cannot map registered memory");
        return;
    }
    uint32_t serial = region->serial;
    region->serial = 0;
    if (status >= 0) {
        struct nb_wire_memory reply = {
            .header = {NB_WIRE_REGISTER | NB_WIRE_REPLY, sizeof(reply), serial, 0},
            .channel = channel->id,
            .region = region->add.region,
        };
        nb_peer_send(channel->client->peer, &reply, NULL, 0);
        return;
    }
    nb_refuse(&refusal, status, "the worker cannot map the memory: too much is mapped already");
    nb_client_refuse(channel->client, NB_WIRE_REGISTER, serial, status, &refusal);
    destroy(channel, region);
}
