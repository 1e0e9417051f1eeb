// Descriptors that strangers left with the broker, and how long they take to close: charged to
// their user meanwhile. A user who has too many of them is served again when they are closed.
#include "daemon/drop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "daemon/broker.h"
#include "daemon/client.h"
#include "daemon/closer.h"
#include "daemon/device.h"
#include "daemon/ledger.h"
#include "daemon/log.h"
#include "daemon/peer.h"

struct nb_drop {
    struct nb_closing closing;
    struct nb_charge charge;
};

static int on_closed(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct nb_broker *broker = user;
    struct nb_closing *closing;
    while ((closing = nb_closer_next(&broker->closer))) {
        struct nb_drop *drop = (struct nb_drop *)closing; // its first member
        nb_charge_release(&broker->ledger, &drop->charge);
        free(drop);
    }
    return 0;
}

int nb_drop_init(struct nb_broker *broker)
{
    int rc = nb_closer_init(&broker->closer);
    return rc < 0 ? rc
                  : sd_event_add_io(broker->loop, NULL, broker->closer.event, EPOLLIN, on_closed,
                                    broker);
}

void nb_drop(struct nb_broker *broker, int fd, struct nb_charge *charge)
{
    struct nb_drop *drop = calloc(1, sizeof(*drop));
    if (!drop)
        return; // an fd that stays open does less harm than a broker that waits
    if (charge)
        nb_charge_merge(&drop->charge, charge);
    nb_closer_add(&broker->closer, &drop->closing, fd);
}

int nb_is_slow(const struct nb_broker *broker, uid_t uid)
{
    return nb_ledger_used(&broker->ledger, uid, NB_RES_CLOSING) >=
           broker->ledger.limits[NB_RES_CLOSING];
}

// Past the limit the user is disconnected: it is there already.
static int charge_closing(struct nb_broker *broker, uid_t uid, struct nb_charge *ret)
{
    static const uint64_t amount[NB_RES_COUNT] = {[NB_RES_CLOSING] = 1, [NB_RES_FDS] = 1};
    struct nb_client *client;
    int rc = nb_charge_anyway(&broker->ledger, uid, amount, ret);
    if (rc < 0 || !nb_is_slow(broker, uid))
        return rc;
    NB_LOG_LIMITED(LOG_WARNING,
                   "user %u has passed %d descriptors that take long to close: disconnected until "
                   "they are (closing-per-user in [limits])",
                   (unsigned)uid, (int)broker->ledger.limits[NB_RES_CLOSING]);
    TAILQ_FOREACH(client, &broker->clients, entry)
        if (client->uid == uid)
            nb_peer_break(client->peer, NIBBLE_E_QUOTA);
    return 0;
}

void nb_drop_of_user(struct nb_broker *broker, uid_t uid, int fd)
{
    struct nb_charge charge = {0};
    (void)charge_closing(broker, uid, &charge);
    nb_drop(broker, fd, &charge);
}

// ---- What workers are closing

struct nb_held {
    STAILQ_ENTRY(nb_held) entry;
    struct nb_charge charge;
    uid_t uid;
};

static void release(struct nb_device *device, struct nb_held *held)
{
    STAILQ_REMOVE(&device->held, held, nb_held, entry);
    nb_charge_release(&device->broker->ledger, &held->charge);
    free(held);
}

void nb_held_add(struct nb_device *device, uid_t uid)
{
    struct nb_held *held = calloc(1, sizeof(*held));
    if (!held)
        return;
    held->uid = uid;
    STAILQ_INSERT_TAIL(&device->held, held, entry);
    (void)charge_closing(device->broker, uid, &held->charge);
}

void nb_held_remove(struct nb_device *device, uid_t uid)
{
    struct nb_held *held;
    STAILQ_FOREACH(held, &device->held, entry)
        if (held->uid == uid)
            break;
    if (held)
        release(device, held);
}

void nb_held_release(struct nb_device *device)
{
    while (!STAILQ_EMPTY(&device->held))
        release(device, STAILQ_FIRST(&device->held));
}
