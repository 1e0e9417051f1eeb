// Asks a worker which devices there are: before the first client is heard, when one may have come,
// and when the settings are read again. A driver that crashes takes the probe along, not the
// daemon: what was named until then counts.
#include "daemon/broker.h"

#include <string.h>
#include <systemd/sd-daemon.h>

#define SETTLE_US UINT64_C(1000000) // a device brings several nodes, and its driver takes its time

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds)
{
    struct nb_broker *broker = owner;
    const struct nb_link_device *m = (const void *)packet;
    if (packet->type != NB_LINK_DEVICE || packet->size != sizeof *m)
        return;
    int r = nb_device_found(broker, m);
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
        nb_log(LOG_ERR,
               "the probe for devices %s: a driver may be broken; VK_DRIVER_FILES names the others",
               how);
    if (broker->probes == 1)
        open_the_door(broker);
    else if (clean)
        nb_devices_missed(broker);
}
static const struct nb_worker_ops ops = {on_packet, on_exited};

void nb_probe(struct nb_broker *broker)
{
    struct nb_spawn spawn = {.mode = "probe"};
    broker->probes++;
    int r = nb_worker_spawn(broker, &spawn, &ops, broker, &broker->probe);
    if (r >= 0)
        return;
    nb_log(LOG_ERR, "nibble-worker cannot be started (%s): is it installed beside nibbled?",
           strerror(-r));
    if (broker->probes == 1)
        open_the_door(broker);
}

static int on_due(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_broker *broker = user;
    broker->probe_again = sd_event_source_disable_unref(broker->probe_again);
    if (broker->probe)
        nb_probe_later(broker); // it may have looked too early
    else if (!broker->stopping)
        nb_probe(broker);
    return 0;
}

void nb_probe_later(struct nb_broker *broker)
{
    sd_event_source_disable_unref(broker->probe_again);
    broker->probe_again = NULL;
    int r = sd_event_add_time_relative(broker->loop, &broker->probe_again, CLOCK_MONOTONIC,
                                       SETTLE_US, 0, on_due, broker);
    if (r < 0)
        nb_log(LOG_ERR, "cannot look for devices (%s)", strerror(-r));
}
