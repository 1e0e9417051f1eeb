// Queued packets over SOCK_SEQPACKET. Must not know what a packet means.
#include "daemon/peer.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
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
    sd_event_source *retry; // the queue waits for it, not for the socket
    STAILQ_HEAD(, packet) queue;
    size_t n_queued, queued_bytes, queue_max;
    int broken, why;
};

#define FD_COST   512  // bytes that a queued fd counts for: fds are scarcer than memory
#define DRAIN_MAX 4096 // packets; a dead worker's heir to its socket could send for ever
#define RETRY_US  UINT64_C(20000)

// Those that came: a stranger's.
static void drop_fds(struct nb_peer *peer, const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fds[i] >= 0)
            peer->ops->drop(peer->owner, fds[i]);
}

// Closes an fd of our own; if it is a socket, a stranger may hold its other end.
static void close_own(struct nb_peer *peer, int fd)
{
    if (nb_wire_end(fd))
        peer->ops->drop(peer->owner, fd);
    else
        close(fd);
}

static void close_fds(struct nb_peer *peer, const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        close_own(peer, fds[i]);
}

static size_t cost(size_t size, size_t n_fds)
{
    return size + n_fds * FD_COST;
}

static void watch(struct nb_peer *peer)
{
    int waits = !STAILQ_EMPTY(&peer->queue) && !peer->retry;
    uint32_t events = EPOLLIN | (waits ? (uint32_t)EPOLLOUT : 0);
    sd_event_source_set_io_events(peer->io, events);
}

// What was sent is not ours alone any more: only of the unsent may a socket hold a stranger's fds.
static void pop(struct nb_peer *peer, int sent)
{
    struct packet *p = STAILQ_FIRST(&peer->queue);
    STAILQ_REMOVE_HEAD(&peer->queue, entry);
    peer->n_queued--;
    peer->queued_bytes -= cost(p->size, p->n_fds);
    if (sent)
        nb_wire_close_fds(p->fds, p->n_fds);
    else
        close_fds(peer, p->fds, p->n_fds);
    free(p);
}

static void flush(struct nb_peer *peer);

static int on_retry(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_peer *peer = user;
    peer->retry = sd_event_source_disable_unref(peer->retry);
    flush(peer);
    return 0;
}

// -EAGAIN: send it again when the socket has room, or when the timer says so.
static int try_to_send(struct nb_peer *peer, const void *packet, size_t size, const int *fds,
                       size_t n_fds)
{
    int rc = nb_wire_send(peer->fd, packet, size, fds, n_fds);
    if (!peer->ops->patient || (rc != -ETOOMANYREFS && rc != -ENOMEM && rc != -ENOBUFS))
        return rc;
    int timer = sd_event_add_time_relative(sd_event_source_get_event(peer->io), &peer->retry,
                                           CLOCK_MONOTONIC, RETRY_US, 0, on_retry, peer);
    return timer < 0 ? timer : -EAGAIN;
}

static void flush(struct nb_peer *peer)
{
    struct packet *p;
    while (!peer->broken && !peer->retry && (p = STAILQ_FIRST(&peer->queue))) {
        int rc = try_to_send(peer, p->bytes, p->size, p->fds, p->n_fds);
        if (rc == -EAGAIN)
            break;
        if (rc < 0)
            nb_peer_break(peer, rc);
        else
            pop(peer, 1);
    }
    if (!peer->broken)
        watch(peer);
}

static int receive(struct nb_peer *peer)
{
    alignas(8) char buf[NB_WIRE_MAX];
    int fds[NB_WIRE_FDS_MAX];
    size_t n_fds = 0;
    struct nb_wire_header next;
    bool has_fds;
    int rc = nb_wire_look(peer->fd, &next, &has_fds);
    if (rc <= 0)
        return rc;
    if (has_fds && !peer->ops->may_bring_fds(peer->owner, &next))
        return -EPROTO;
    rc = nb_wire_recv(peer->fd, buf, fds, &n_fds);
    if (rc > 0)
        peer->ops->packet(peer->owner, (const struct nb_wire_header *)buf, fds, n_fds);
    drop_fds(peer, fds, n_fds);
    return rc;
}

static int on_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct nb_peer *peer = user;
    if (events & EPOLLOUT)
        flush(peer);
    if (peer->broken || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return 0;
    // One packet a turn: a busy peer does not starve the others.
    int rc = receive(peer);
    if (rc <= 0 && rc != -EAGAIN)
        nb_peer_break(peer, rc);
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
    struct nb_peer *peer = calloc(1, sizeof(*peer));
    if (!peer)
        return -ENOMEM;
    *peer = (struct nb_peer){.fd = -1, .ops = ops, .owner = owner, .queue_max = queue_max};
    STAILQ_INIT(&peer->queue);
    int rc = sd_event_add_io(loop, &peer->io, fd, EPOLLIN, on_io, peer);
    if (rc >= 0)
        rc = sd_event_add_defer(loop, &peer->end, on_end, peer);
    if (rc >= 0)
        rc = sd_event_source_set_enabled(peer->end, SD_EVENT_OFF);
    if (rc < 0) {
        nb_peer_destroy(peer);
        return rc;
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
    sd_event_source_disable_unref(peer->retry);
    while (!STAILQ_EMPTY(&peer->queue))
        pop(peer, 0);
    if (peer->fd >= 0)
        close_own(peer, peer->fd);
    free(peer);
}

void nb_peer_accept_fds(struct nb_peer *peer)
{
    nb_wire_accept_fds(peer->fd, true);
}

static int enqueue(struct nb_peer *peer, const void *bytes, size_t size, const int *fds, size_t n)
{
    if (cost(size, n) > peer->queue_max - peer->queued_bytes)
        return -ENOBUFS;
    struct packet *p = malloc(sizeof(*p) + size);
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
    int rc = -EAGAIN;
    if (peer->broken)
        rc = -EPIPE;
    else if (STAILQ_EMPTY(&peer->queue))
        rc = try_to_send(peer, packet, size, fds, n_fds);
    if (rc == -EAGAIN && !(rc = enqueue(peer, packet, size, fds, n_fds)))
        return; // the queue has the fds now
    if (rc < 0) {
        close_fds(peer, fds, n_fds);
        nb_peer_break(peer, rc);
    } else {
        nb_wire_close_fds(fds, n_fds);
    }
}

bool nb_peer_is_read(const struct nb_peer *peer)
{
    int unread = 0;
    return !peer->n_queued && ioctl(peer->fd, SIOCOUTQ, &unread) == 0 && unread == 0;
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
    peer->retry = sd_event_source_disable_unref(peer->retry);
    sd_event_source_set_enabled(peer->end, SD_EVENT_ONESHOT);
}

void nb_peer_drain(struct nb_peer *peer)
{
    for (int i = 0; i < DRAIN_MAX && (!peer->broken || peer->why == -EPIPE); i++)
        if (receive(peer) <= 0)
            return;
}
