// Queued packets over SOCK_SEQPACKET. Must not know what a packet means.
#include "daemon/peer.h"

#include <errno.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <unistd.h>

struct packet {
    STAILQ_ENTRY(packet) entry;
    size_t size, n_fds;
    int fds[NB_WIRE_FDS_MAX];
    char bytes[];
};

struct nb_peer {
    int fd;
    const struct nb_peer_ops *ops;
    void *owner;
    sd_event_source *io, *end;
    STAILQ_HEAD(, packet) queue;
    size_t n_queued, queued_bytes, queue_max;
    int broken, why;
};

#define FD_COST   512  // bytes that a queued fd counts for: fds are scarcer than memory
#define DRAIN_MAX 4096 // packets; a dead worker's heir to its socket could send for ever

static void close_fds(const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static size_t cost(size_t size, size_t n_fds)
{
    return size + n_fds * FD_COST;
}

static void watch(struct nb_peer *peer)
{
    uint32_t events = EPOLLIN | (STAILQ_EMPTY(&peer->queue) ? 0 : (uint32_t)EPOLLOUT);
    sd_event_source_set_io_events(peer->io, events);
}

static void pop(struct nb_peer *peer)
{
    struct packet *p = STAILQ_FIRST(&peer->queue);
    STAILQ_REMOVE_HEAD(&peer->queue, entry);
    peer->n_queued--;
    peer->queued_bytes -= cost(p->size, p->n_fds);
    close_fds(p->fds, p->n_fds);
    free(p);
}

static void flush(struct nb_peer *peer)
{
    struct packet *p;
    while (!peer->broken && (p = STAILQ_FIRST(&peer->queue))) {
        int r = nb_wire_send(peer->fd, p->bytes, p->size, p->fds, p->n_fds);
        if (r == -EAGAIN)
            break;
        if (r < 0)
            nb_peer_break(peer, r);
        else
            pop(peer);
    }
    if (!peer->broken)
        watch(peer);
}

static int receive(struct nb_peer *peer)
{
    alignas(8) char buf[NB_WIRE_MAX];
    int fds[NB_WIRE_FDS_MAX];
    size_t n_fds = 0;
    int r = nb_wire_recv(peer->fd, buf, fds, &n_fds);
    if (r <= 0)
        return r;
    peer->ops->packet(peer->owner, (const struct nb_wire_header *)buf, fds, n_fds);
    close_fds(fds, n_fds);
    return r;
}

static int on_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct nb_peer *peer = user;
    if (events & EPOLLOUT)
        flush(peer);
    if (peer->broken || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return 0;
    // One packet a turn: a busy peer does not starve the others.
    int r = receive(peer);
    if (r <= 0 && r != -EAGAIN)
        nb_peer_break(peer, r);
    return 0;
}

static int on_end(sd_event_source *source, void *user)
{
    struct nb_peer *peer = user;
    peer->ops->closed(peer->owner, peer->why);
    return 0;
}

int nb_peer_create(sd_event *loop, int fd, const struct nb_peer_ops *ops, void *owner,
                   size_t queue_max, struct nb_peer **ret)
{
    struct nb_peer *peer = calloc(1, sizeof *peer);
    if (!peer)
        return -ENOMEM;
    *peer = (struct nb_peer){.fd = -1, .ops = ops, .owner = owner, .queue_max = queue_max};
    STAILQ_INIT(&peer->queue);
    int r = sd_event_add_io(loop, &peer->io, fd, EPOLLIN, on_io, peer);
    if (r >= 0)
        r = sd_event_add_defer(loop, &peer->end, on_end, peer);
    if (r >= 0)
        r = sd_event_source_set_enabled(peer->end, SD_EVENT_OFF);
    if (r < 0) {
        nb_peer_destroy(peer);
        return r;
    }
    peer->fd = fd;
    *ret = peer;
    return 0;
}

void nb_peer_destroy(struct nb_peer *peer)
{
    if (!peer)
        return;
    sd_event_source_disable_unref(peer->io);
    sd_event_source_disable_unref(peer->end);
    while (!STAILQ_EMPTY(&peer->queue))
        pop(peer);
    if (peer->fd >= 0)
        close(peer->fd);
    free(peer);
}

static int enqueue(struct nb_peer *peer, const void *bytes, size_t size, const int *fds, size_t n)
{
    if (cost(size, n) > peer->queue_max - peer->queued_bytes)
        return -ENOBUFS;
    struct packet *p = malloc(sizeof *p + size);
    if (!p)
        return -ENOMEM;
    p->size = size;
    p->n_fds = n;
    for (size_t i = 0; i < n; i++)
        p->fds[i] = fds[i];
    memcpy(p->bytes, bytes, size);
    STAILQ_INSERT_TAIL(&peer->queue, p, entry);
    peer->n_queued++;
    peer->queued_bytes += cost(size, n);
    watch(peer);
    return 0;
}

void nb_peer_send(struct nb_peer *peer, const void *packet, const int *fds, size_t n_fds)
{
    size_t size = ((const struct nb_wire_header *)packet)->size;
    int r = -EAGAIN;
    if (peer->broken)
        r = -EPIPE;
    else if (STAILQ_EMPTY(&peer->queue))
        r = nb_wire_send(peer->fd, packet, size, fds, n_fds);
    if (r == -EAGAIN && !(r = enqueue(peer, packet, size, fds, n_fds)))
        return; // the queue has the fds now
    close_fds(fds, n_fds);
    if (r < 0)
        nb_peer_break(peer, r);
}

size_t nb_peer_queued(const struct nb_peer *peer)
{
    return peer->n_queued;
}

void nb_peer_break(struct nb_peer *peer, int why)
{
    if (peer->broken)
        return;
    peer->broken = 1;
    peer->why = why == -ECONNRESET ? -EPIPE : why;
    sd_event_source_set_enabled(peer->io, SD_EVENT_OFF);
    sd_event_source_set_enabled(peer->end, SD_EVENT_ONESHOT);
}

void nb_peer_drain(struct nb_peer *peer)
{
    for (int i = 0; i < DRAIN_MAX && (!peer->broken || peer->why == -EPIPE); i++)
        if (receive(peer) <= 0)
            return;
}
