// A connection: who it is and what it has.
#pragma once

#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "daemon/ledger.h"
#include "daemon/lists.h"
#include "daemon/peer.h"

struct nb_client {
    TAILQ_ENTRY(nb_client) entry;
    struct nb_broker *broker;
    struct nb_peer *peer;
    struct nb_charge charge; // from its accept on
    struct nb_charge unread; // fds that were sent to it, until it has read all that was
    sd_event_source *deadline;
    struct nb_channels channels;
    struct nb_files files; // for its next LOAD
    uint32_t n_channels, last_channel;
    uint32_t id, role;
    uid_t uid;
    pid_t pid; // for display alone
    int greeted, hung_up;
};
// Takes the fd and, on success, the charge.
int nb_client_create(struct nb_broker *broker, int fd, uint32_t role, const struct ucred *cred,
                     struct nb_charge *charge);
void nb_client_destroy(struct nb_client *client);
// Charges `n` fds that are about to be sent to it, until they are read: over the limit too where
// `refusal` is NULL. 0 or the refusal's status.
int nb_client_expect_fds(struct nb_client *client, unsigned n, struct nb_refusal *refusal);
// The reply to a request that failed; an empty one to a request that has nothing else to say.
void nb_client_refuse(struct nb_client *client, uint32_t type, uint32_t serial, int status,
                      const struct nb_refusal *refusal);
void nb_client_done(struct nb_client *client, uint32_t type, uint32_t serial);

// A request's handler: 0 when it has replied or will, else a status for nb_client_refuse.
#define NB_HANDLER(name)                                                                           \
    int name(struct nb_client *client, const void *packet, int *fds, struct nb_refusal *refusal)
