// Who gets one of the daemon's connections. A connection counts against its user, whom the kernel
// names, from accept on. Some are reserved: for users who have few, and for administrators. All
// this happens before the client is heard.
#include "daemon/admission.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/client.h"
#include "daemon/drop.h"
#include "daemon/ledger.h"
#include "daemon/log.h"
#include "daemon/refusal.h"
#include "libclient/wire.h"

#define FEW           4 // connections of a user who may have some of those that are reserved
#define ADMINS_OF_ONE 8 // connections to admin.sock that a user has whatever his others are
#define HURRY         10
#define HURRY_MIN_US  UINT64_C(250000) // for a client on a busy machine

static uint64_t reserve(const struct nb_broker *broker)
{
    return (broker->connections + 7) / 8;
}

// With half of them taken, silence is paid for.
static int is_crowded(const struct nb_broker *broker)
{
    return 2 * (uint64_t)broker->n_clients >= broker->connections;
}

uint64_t nb_hello_us(const struct nb_broker *broker)
{
    uint64_t usual = broker->config.hello_ms * 1000;
    uint64_t hurried = usual / HURRY > HURRY_MIN_US ? usual / HURRY : HURRY_MIN_US;
    return is_crowded(broker) && hurried < usual ? hurried : usual;
}

// The daemon has become crowded: clients that are silent already have less time, too.
static void hurry(struct nb_broker *broker)
{
    struct nb_client *client;
    TAILQ_FOREACH(client, &broker->clients, entry)
        if (client->deadline)
            sd_event_source_set_time_relative(client->deadline, nb_hello_us(broker));
}

static int check_room(const struct nb_broker *broker, uid_t uid, uint32_t role,
                      struct nb_refusal *refusal)
{
    uint64_t left = broker->connections - broker->n_clients;
    uint64_t reserved = role == NB_ROLE_ADMIN ? 0 : reserve(broker);
    if (broker->n_clients >= broker->connections)
        left = 0;
    else if (reserved && nb_ledger_used(&broker->ledger, uid, NB_RES_CONNECTIONS) >= FEW)
        reserved *= 2;
    if (left > reserved)
        return 0;
    NB_LOG_LIMITED(LOG_WARNING, "%u of %u connections: refusing more (connections in [limits])",
                   broker->n_clients, (unsigned)broker->connections);
    return nb_refuse(refusal, NIBBLE_E_QUOTA,
                     "the daemon has %u of %u connections, and the last ones are kept for others: "
                     "the administrator can raise connections in [limits]",
                     broker->n_clients, (unsigned)broker->connections);
}

static unsigned admins_of(const struct nb_broker *broker, uid_t uid)
{
    const struct nb_client *client;
    unsigned n = 0;
    TAILQ_FOREACH(client, &broker->clients, entry)
        n += client->uid == uid && client->role == NB_ROLE_ADMIN;
    return n;
}

static int admit(struct nb_broker *broker, uid_t uid, uint32_t role, struct nb_charge *ret,
                 struct nb_refusal *refusal)
{
    static const uint64_t amount[NB_RES_COUNT] = {[NB_RES_CONNECTIONS] = 1, [NB_RES_FDS] = 1};
    int rc = check_room(broker, uid, role, refusal);
    if (rc < 0)
        return rc;
    if (role == NB_ROLE_ADMIN && admins_of(broker, uid) < ADMINS_OF_ONE)
        return nb_charge_anyway(&broker->ledger, uid, amount, ret);
    if (nb_is_slow(broker, uid))
        return nb_refuse(refusal, NIBBLE_E_QUOTA,
                         "%llu descriptors that user %u passed take long to close: try again when "
                         "they are closed",
                         (unsigned long long)nb_ledger_used(&broker->ledger, uid, NB_RES_CLOSING),
                         (unsigned)uid);
    return nb_charge_take(&broker->ledger, uid, amount, ret, refusal);
}

// Answers the HELLO before it has come, so its serial is not known: 0.
static void send_away(struct nb_broker *broker, int fd, uid_t uid, int status,
                      const struct nb_refusal *refusal)
{
    struct nb_wire_error e = {.header = {NB_WIRE_HELLO | NB_WIRE_REPLY, sizeof(e), 0, status}};
    memcpy(e.text, refusal->text, sizeof(e.text));
    (void)nb_wire_send(fd, &e, sizeof(e), NULL, 0);
    if (nb_wire_end(fd))
        nb_drop_of_user(broker, uid, fd);
    else
        close(fd);
}

int nb_client_accept(struct nb_broker *broker, int fd, uint32_t role)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);
    struct nb_refusal refusal = {""};
    struct nb_charge charge = {0};
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    int rc = admit(broker, cred.uid, role, &charge, &refusal);
    if (rc < 0) {
        if (!refusal.text[0])
            nb_refuse(&refusal, rc, "the daemon is out of memory");
        send_away(broker, fd, cred.uid, rc, &refusal);
        return 0;
    }
    int crowded = is_crowded(broker);
    rc = nb_client_create(broker, fd, role, &cred, &charge);
    if (rc >= 0 && !crowded && is_crowded(broker))
        hurry(broker);
    return rc;
}
