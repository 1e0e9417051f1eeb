// One end of a SEQPACKET socket in the event loop, for clients and for workers alike: packets in by
// a callback, packets out through a bounded queue, so that the broker never waits for anyone. The
// other end is hostile.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <systemd/sd-event.h>

#include "libclient/wire.h"

struct nb_peer;
struct nb_peer_ops {
    // Whether a packet that begins so may bring fds now. Else it breaks the peer, and its fds are
    // never received.
    bool (*may_bring_fds)(void *owner, const struct nb_wire_header *header);
    // One packet. The peer drops the fds that are still >= 0 afterwards: take one by setting it to
    // -1.
    void (*packet)(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds);
    // The connection is over: 0 when the other side ended it, or the reason. Called once, from the
    // loop, never from within another call; the owner may destroy the peer.
    void (*closed)(void *owner, int why);
    // Takes an fd that nobody wants, a stranger's or a socket in which one lies: to be closed where
    // nobody waits.
    void (*drop)(void *owner, int fd);
    // Fds that the kernel does not let through now, because too many are under way or it has no
    // memory, are sent later. Without this, such a failure is the other side's end.
    bool patient;
};

// Owns `fd` on success.
int nb_peer_create(sd_event *loop, int fd, const struct nb_peer_ops *ops, void *owner,
                   size_t queue_max, struct nb_peer **ret);
void nb_peer_destroy(struct nb_peer *peer); // NULL is fine

void nb_peer_accept_fds(struct nb_peer *peer); // where the socket was made to refuse them
// Sends or queues; takes the fds in every case. Past queue_max the peer is broken with -ENOBUFS.
void nb_peer_send(struct nb_peer *peer, const void *packet, const int *fds, size_t n_fds);
bool nb_peer_is_read(const struct nb_peer *peer);  // the other side has taken all that was sent
size_t nb_peer_queued(const struct nb_peer *peer); // packets that wait
void nb_peer_break(struct nb_peer *peer, int why); // nothing more goes in or out; closed() follows
// Handles what still lies in the socket, after the other side has died: also where a packet to it
// has failed since.
void nb_peer_drain(struct nb_peer *peer);
