// Asks a worker which devices there are, before the first client is heard. A driver that crashes
// takes the probe along, not the daemon: what was named until then counts.
#include "daemon/broker.h"

#include <string.h>
#include <systemd/sd-daemon.h>

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds)
{
    struct nb_broker *broker = owner;
    const struct nb_link_device *m = (const void *)packet;
    if (packet->type != NB_LINK_DEVICE || packet->size != sizeof *m)
        return;
    int r = nb_device_add(broker, &m->device);
    if (r < 0)
        nb_log(LOG_WARNING, "a device of the probe is left out: %s", strerror(-r));
}

static void open_the_door(struct nb_broker *broker)
{
    if (TAILQ_EMPTY(&broker->devices))
        nb_log(LOG_ERR, "no device was found: models cannot be loaded; see the lines above");
    nb_store_restore(broker);
    int r = nb_listen_start(broker);
    if (r < 0) {
        nb_log(LOG_ERR, "cannot listen: %s", strerror(-r));
        sd_event_exit(broker->loop, r);
        return;
    }
    sd_notify(0, "READY=1");
    nb_broker_tell_systemd(broker);
}

static void on_exited(void *owner, int clean, const char *how)
{
    struct nb_broker *broker = owner;
    broker->probe = NULL;
    if (broker->stopping)
        return;
    if (!clean)
        nb_log(LOG_ERR, "the probe for devices %s: a driver may be broken", how);
    open_the_door(broker);
}
static const struct nb_worker_ops ops = {on_packet, on_exited};

void nb_probe(struct nb_broker *broker)
{
    struct nb_spawn spawn = {.mode = "probe"};
    int r = nb_worker_spawn(broker, &spawn, &ops, broker, &broker->probe);
    if (r >= 0)
        return;
    nb_log(LOG_ERR, "nibble-worker cannot be started (%s): is it installed beside nibbled?",
           strerror(-r));
    open_the_door(broker);
}
