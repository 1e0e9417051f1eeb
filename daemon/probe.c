// Asks a worker which devices there are: before the first client is heard, when one may have come,
// and when the settings are read again. If the probe itself dies, what it had named counts.
#include "daemon/probe.h"

#include <string.h>
#include <systemd/sd-daemon.h>

#include "daemon/broker.h"
#include "daemon/inventory.h"
#include "daemon/link.h"
#include "daemon/listen.h"
#include "daemon/log.h"
#include "daemon/spawn.h"
#include "daemon/store.h"
#include "libclient/sentence.h"
#include "machine/bounds.h"

#define SETTLE_US UINT64_C(1000000) // a device brings several nodes, and its driver takes its time

static void on_device(struct nb_broker *broker, const void *packet)
{
    int rc = nb_device_found(broker, packet);
    if (rc < 0)
        nb_log(LOG_WARNING, "a device of the probe is left out: %s", strerror(-rc));
}

// The first word of a probe that has looked at all drivers.
static void on_drivers(struct nb_broker *broker, const void *packet)
{
    const struct nb_link_drivers *m = packet;
    memcpy(broker->drivers, m->manifests, sizeof(broker->drivers));
    broker->drivers[sizeof(broker->drivers) - 1] = 0;
    broker->drivers_limited = m->limited != 0;
    broker->drivers_crashing = m->crashing;
    broker->n_findings = 0;
}

static void on_finding(struct nb_broker *broker, const void *packet)
{
    const struct nb_link_finding *m = packet;
    if (broker->n_findings == NB_FINDINGS)
        return;
    struct nibble_finding *f = &broker->findings[broker->n_findings++];
    *f = m->finding;
    nb_sentence_clean(f->check, sizeof(f->check));
    nb_sentence_clean(f->verdict, sizeof(f->verdict));
    nb_sentence_clean(f->text, sizeof(f->text));
}

static void on_fault(struct nb_broker *broker, const void *packet)
{
    struct nb_link_fault m;
    memcpy(&m, packet, sizeof(m));
    nb_sentence_clean(m.text, sizeof(m.text));
    nb_log(LOG_ERR, "the probe for devices ended itself: %s", m.text);
}

static const struct {
    uint32_t type, size;
    void (*run)(struct nb_broker *broker, const void *packet);
} messages[] = {
    {NB_LINK_DEVICE, sizeof(struct nb_link_device), on_device},
    {NB_LINK_DRIVERS, sizeof(struct nb_link_drivers), on_drivers},
    {NB_LINK_FINDING, sizeof(struct nb_link_finding), on_finding},
    {NB_LINK_FAULT, sizeof(struct nb_link_fault), on_fault},
};

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds)
{
    for (size_t i = 0; i < sizeof(messages) / sizeof(*messages); i++)
        if (messages[i].type == packet->type && messages[i].size == packet->size)
            messages[i].run(owner, packet);
}

static void open_the_door(struct nb_broker *broker)
{
    if (TAILQ_EMPTY(&broker->devices))
        nb_log(LOG_ERR, "no device was found: models cannot be loaded; see the lines above");
    nb_store_restore(broker);
    int rc = nb_listen_start(broker);
    if (rc < 0) {
        nb_log(LOG_ERR, "cannot listen: %s", strerror(-rc));
        sd_event_exit(broker->loop, rc);
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
               "the probe for devices %s: what it had found until then counts, and SIGHUP probes "
               "again",
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
    char reason[NB_LIMIT_TEXT];
    broker->probes++;
    int rc = nb_worker_spawn(broker, &spawn, &ops, broker, &broker->probe);
    if (rc >= 0)
        return;
    nb_log(LOG_ERR, "nibble-worker cannot be started (%s): is it installed beside nibbled?",
           nb_limit_reason(rc, reason));
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
    int rc = sd_event_add_time_relative(broker->loop, &broker->probe_again, CLOCK_MONOTONIC,
                                        SETTLE_US, 0, on_due, broker);
    if (rc < 0)
        nb_log(LOG_ERR, "cannot look for devices (%s)", strerror(-rc));
}
