// A connection: who it is, what it may send, and the end of all it had. Must not know what a
// request does.
#include "daemon/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/admission.h"
#include "daemon/broker.h"
#include "daemon/channel.h"
#include "daemon/drop.h"
#include "daemon/files.h"
#include "daemon/jobs.h"
#include "daemon/ledger.h"
#include "daemon/listing.h"
#include "daemon/load.h"
#include "daemon/log.h"
#include "daemon/model.h"
#include "daemon/peer.h"
#include "daemon/refusal.h"
#include "daemon/region.h"
#include "libclient/wire.h"
#include "machine/bounds.h"

static bool may_bring_fds(void *owner, const struct nb_wire_header *header);
static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds);
static void on_closed(void *owner, int why);
static void drop(void *owner, int fd);
static const struct nb_peer_ops ops = {may_bring_fds, on_packet, on_closed, drop, false};

void nb_client_refuse(struct nb_client *client, uint32_t type, uint32_t serial, int status,
                      const struct nb_refusal *refusal)
{
    struct nb_wire_error e = {.header = {type | NB_WIRE_REPLY, sizeof(e), serial, status}};
    _Static_assert(sizeof(e.text) == sizeof(refusal->text), "one sentence");
    memcpy(e.text, refusal->text, sizeof(e.text));
    nb_peer_send(client->peer, &e, NULL, 0);
}

void nb_client_done(struct nb_client *client, uint32_t type, uint32_t serial)
{
    struct nb_wire_empty e = {.header = {type | NB_WIRE_REPLY, sizeof(e), serial, 0}};
    nb_peer_send(client->peer, &e, NULL, 0);
}

static NB_HANDLER(on_hello)
{
    const struct nb_wire_hello *hello = packet;
    if (hello->magic != NB_WIRE_MAGIC)
        return nb_refuse(refusal, NIBBLE_E_PROTOCOL, "this is no client of Nibble");
    if (hello->version_min > NB_WIRE_VERSION || hello->version_max < NB_WIRE_VERSION)
        return nb_refuse(refusal, NIBBLE_E_VERSION,
                         "the library speaks protocol %u to %u, this daemon (%s) speaks %u: "
                         "install the same release of both",
                         hello->version_min, hello->version_max, NB_VERSION, NB_WIRE_VERSION);
    if (client->greeted)
        return nb_refuse(refusal, NIBBLE_E_PROTOCOL, "HELLO was said already");
    client->greeted = 1;
    nb_peer_accept_fds(client->peer);
    client->deadline = sd_event_source_disable_unref(client->deadline);
    struct nb_wire_hello reply = {
        .header = {NB_WIRE_HELLO | NB_WIRE_REPLY, sizeof(reply), hello->header.serial, 0},
        .magic = NB_WIRE_MAGIC,
        .version_min = NB_WIRE_VERSION,
        .version_max = NB_WIRE_VERSION,
        .version_text = NB_VERSION,
    };
    nb_peer_send(client->peer, &reply, NULL, 0);
    return 0;
}

static const struct handler {
    uint32_t type;
    NB_HANDLER((*run));
} handlers[] = {
    {NB_WIRE_HELLO, on_hello},
    {NB_WIRE_STATUS, nb_on_status},
    {NB_WIRE_LIST, nb_on_list},
    {NB_WIRE_OPEN_CHANNEL, nb_on_open_channel},
    {NB_WIRE_CLOSE_CHANNEL, nb_on_close_channel},
    {NB_WIRE_FILE, nb_on_file},
    {NB_WIRE_LOAD, nb_on_load},
    {NB_WIRE_UNLOAD, nb_on_unload},
    {NB_WIRE_CANCEL_LOAD, nb_on_cancel_load},
    {NB_WIRE_REGISTER, nb_on_register},
    {NB_WIRE_UNREGISTER, nb_on_unregister},
    {NB_WIRE_JOB_START, nb_on_job_start},
    {NB_WIRE_JOB_WAIT, nb_on_job_wait},
    {NB_WIRE_JOB_CONTROL, nb_on_job_control},
    {NB_WIRE_JOB_RESULT, nb_on_job_result},
};

static const struct handler *handler_of(uint32_t type)
{
    for (size_t i = 0; i < sizeof(handlers) / sizeof(*handlers); i++)
        if (handlers[i].type == type)
            return &handlers[i];
    return NULL;
}

// Whether this client may send the packet now: wire.h's table has types, sizes, fds and roles.
static int admit(const struct nb_client *client, const struct nb_wire_header *packet, size_t n_fds,
                 struct nb_refusal *refusal)
{
    const struct nb_wire_message *m = nb_wire_message(packet->type);
    if (!m || !m->roles || !handler_of(packet->type))
        return nb_refuse(refusal, NIBBLE_E_PROTOCOL, "unknown request %#x", packet->type);
    if (packet->size != m->size || n_fds != m->fds)
        return nb_refuse(refusal, NIBBLE_E_PROTOCOL, "%s has %u bytes and %u fds, not %u and %zu",
                         m->name, m->size, m->fds, packet->size, n_fds);
    if (!client->greeted && packet->type != NB_WIRE_HELLO)
        return nb_refuse(refusal, NIBBLE_E_PROTOCOL, "%s came before HELLO", m->name);
    if (!(m->roles & client->role))
        return nb_refuse(refusal, NIBBLE_E_DENIED, "%s is not for this socket: use %s", m->name,
                         m->roles & NB_ROLE_ADMIN ? "admin.sock" : "nibble.sock");
    return 0;
}

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds)
{
    struct nb_client *client = owner;
    struct nb_refusal refusal = {""};
    int rc = admit(client, packet, n_fds, &refusal);
    if (!rc)
        rc = handler_of(packet->type)->run(client, packet, fds, &refusal);
    if (rc >= 0)
        return;
    if (!refusal.text[0]) {
        char reason[NB_LIMIT_TEXT];
        nb_refuse(&refusal, rc, "the daemon could not do it (%s)",
                  nb_limit_reason(rc > -4096 ? rc : EIO, reason));
    }
    nb_client_refuse(client, packet->type, packet->serial, rc, &refusal);
    if (rc == NIBBLE_E_PROTOCOL)
        NB_LOG_LIMITED(LOG_WARNING, "disconnecting pid %d of user %u: %s", (int)client->pid,
                       (unsigned)client->uid, refusal.text);
    if (rc == NIBBLE_E_PROTOCOL || !client->greeted)
        nb_peer_break(client->peer, rc);
}

// Few requests bring descriptors, and only after HELLO. Others' descriptors are never received.
static bool may_bring_fds(void *owner, const struct nb_wire_header *header)
{
    const struct nb_client *client = owner;
    const struct nb_wire_message *m = nb_wire_message(header->type);
    return client->greeted && m && m->roles && m->fds;
}

static void drop(void *owner, int fd)
{
    const struct nb_client *client = owner;
    nb_drop_of_user(client->broker, client->uid, fd);
}

// Why a connection ended, where the administrator may want to know; NULL elsewhere.
static const char *reason(int why)
{
    static const struct {
        int why;
        const char *text;
    } reasons[] = {
        {-EPROTO, "malformed packet"},
        {-ENOBUFS, "it does not read its socket"},
        {-ETOOMANYREFS, "too many descriptors are on their way to clients"},
        {-EMFILE, "the daemon has no descriptor left: raise LimitNOFILE"},
    };
    for (size_t i = 0; i < sizeof(reasons) / sizeof(*reasons); i++)
        if (reasons[i].why == why)
            return reasons[i].text;
    return NULL;
}

static void on_closed(void *owner, int why)
{
    struct nb_client *client = owner;
    if (reason(why))
        NB_LOG_LIMITED(LOG_WARNING, "disconnecting pid %d of user %u: %s", (int)client->pid,
                       (unsigned)client->uid, reason(why));
    client->hung_up = why == 0 || why == -EPIPE;
    nb_client_destroy(client);
}

static void settle_unread(struct nb_broker *broker, uid_t uid)
{
    struct nb_client *client;
    TAILQ_FOREACH(client, &broker->clients, entry)
        if (client->uid == uid && client->unread.user && nb_peer_is_read(client->peer))
            nb_charge_release(&broker->ledger, &client->unread);
}

int nb_client_expect_fds(struct nb_client *client, unsigned n, struct nb_refusal *refusal)
{
    const uint64_t amount[NB_RES_COUNT] = {[NB_RES_FDS] = n};
    struct nb_charge charge = {0};
    struct nb_ledger *ledger = &client->broker->ledger;
    settle_unread(client->broker, client->uid);
    int rc = refusal ? nb_charge_take(ledger, client->uid, amount, &charge, refusal)
                     : nb_charge_anyway(ledger, client->uid, amount, &charge);
    if (!rc)
        nb_charge_merge(&client->unread, &charge);
    return rc;
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_client *client = user;
    nb_peer_break(client->peer, -ETIMEDOUT);
    return 0;
}

int nb_client_create(struct nb_broker *broker, int fd, uint32_t role, const struct ucred *cred,
                     struct nb_charge *charge)
{
    struct nb_client *client = calloc(1, sizeof(*client));
    int rc = client ? nb_peer_create(broker->loop, fd, &ops, client, broker->config.queue_bytes,
                                     &client->peer)
                    : -ENOMEM;
    if (rc < 0) {
        free(client);
        nb_drop(broker, fd, charge);
        return rc;
    }
    client->broker = broker;
    client->id = nb_broker_next_id(broker);
    client->role = role;
    client->uid = cred->uid;
    client->pid = cred->pid;
    nb_charge_merge(&client->charge, charge);
    TAILQ_INIT(&client->channels);
    TAILQ_INIT(&client->files);
    TAILQ_INSERT_TAIL(&broker->clients, client, entry);
    broker->n_clients++;
    rc = sd_event_add_time_relative(broker->loop, &client->deadline, CLOCK_MONOTONIC,
                                    nb_hello_us(broker), 0, on_deadline, client);
    if (rc < 0)
        nb_client_destroy(client);
    return rc;
}

void nb_client_destroy(struct nb_client *client)
{
    if (!client)
        return;
    nb_load_drop_client(client);
    nb_jobs_drop_client(client);
    nb_files_drop(client->broker, &client->files);
    nb_models_drop_client(client);
    while (!TAILQ_EMPTY(&client->channels))
        nb_channel_destroy(TAILQ_FIRST(&client->channels), client->hung_up);
    TAILQ_REMOVE(&client->broker->clients, client, entry);
    client->broker->n_clients--;
    nb_charge_release(&client->broker->ledger, &client->unread);
    nb_charge_release(&client->broker->ledger, &client->charge);
    sd_event_source_disable_unref(client->deadline);
    nb_peer_destroy(client->peer);
    free(client);
}
