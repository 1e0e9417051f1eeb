// A connection: who it is, what it may send, and the end of all it had. Must not know what a
// request does.
#include "daemon/broker.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds);
static void on_closed(void *owner, int why);
static const struct nb_peer_ops ops = {on_packet, on_closed};

void nb_text_clean(char *text, size_t size)
{
    size_t i;
    for (i = 0; i + 1 < size && text[i]; i++)
        if (text[i] < ' ' || text[i] > '~')
            text[i] = '?';
    memset(text + i, 0, size - i);
}

int nb_refuse(struct nb_refusal *refusal, int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(refusal->text, sizeof refusal->text, format, args);
    va_end(args);
    nb_text_clean(refusal->text, sizeof refusal->text);
    return status;
}

void nb_client_refuse(struct nb_client *client, uint32_t type, uint32_t serial, int status,
                      const struct nb_refusal *refusal)
{
    struct nb_wire_error e = {.header = {type | NB_WIRE_REPLY, sizeof e, serial, status}};
    _Static_assert(sizeof e.text == sizeof refusal->text, "one sentence");
    memcpy(e.text, refusal->text, sizeof e.text);
    nb_peer_send(client->peer, &e, NULL, 0);
}

void nb_client_done(struct nb_client *client, uint32_t type, uint32_t serial)
{
    struct nb_wire_empty e = {.header = {type | NB_WIRE_REPLY, sizeof e, serial, 0}};
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
    static const uint64_t amount[NB_RES_COUNT] = {[NB_RES_CONNECTIONS] = 1, [NB_RES_FDS] = 1};
    int r = nb_charge_take(&client->broker->ledger, client->uid, amount, &client->charge,
                           refusal->text, sizeof refusal->text);
    if (r < 0)
        return r;
    client->greeted = 1;
    client->deadline = sd_event_source_disable_unref(client->deadline);
    struct nb_wire_hello reply = {
        .header = {NB_WIRE_HELLO | NB_WIRE_REPLY, sizeof reply, hello->header.serial, 0},
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
    {NB_WIRE_LOAD, nb_on_load},
    {NB_WIRE_UNLOAD, nb_on_unload},
    {NB_WIRE_CANCEL_LOAD, nb_on_cancel_load},
    {NB_WIRE_REGISTER, nb_on_register},
    {NB_WIRE_UNREGISTER, nb_on_unregister},
};

static const struct handler *handler_of(uint32_t type)
{
    for (size_t i = 0; i < sizeof handlers / sizeof *handlers; i++)
        if (handlers[i].type == type)
            return &handlers[i];
    return NULL;
}

// Whether the packet is one that this client may send now, by the one table of wire.h.
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
    int r = admit(client, packet, n_fds, &refusal);
    if (!r)
        r = handler_of(packet->type)->run(client, packet, fds, &refusal);
    if (r >= 0)
        return;
    if (!refusal.text[0])
        nb_refuse(&refusal, r, "the daemon could not do it (%s)", strerror(r > -4096 ? -r : EIO));
    nb_client_refuse(client, packet->type, packet->serial, r, &refusal);
    if (r == NIBBLE_E_PROTOCOL)
        NB_LOG_LIMITED(LOG_WARNING, "disconnecting pid %d of user %u: %s", (int)client->pid,
                       (unsigned)client->uid, refusal.text);
    if (r == NIBBLE_E_PROTOCOL || !client->greeted)
        nb_peer_break(client->peer, r);
}

static void on_closed(void *owner, int why)
{
    struct nb_client *client = owner;
    if (why == -EPROTO)
        NB_LOG_LIMITED(LOG_WARNING, "disconnecting pid %d of user %u: malformed packet",
                       (int)client->pid, (unsigned)client->uid);
    else if (why == -ENOBUFS)
        NB_LOG_LIMITED(LOG_WARNING, "disconnecting pid %d of user %u: it does not read its socket",
                       (int)client->pid, (unsigned)client->uid);
    nb_client_destroy(client);
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_client *client = user;
    nb_peer_break(client->peer, -ETIMEDOUT);
    return 0;
}

int nb_client_create(struct nb_broker *broker, int fd, uint32_t role)
{
    struct ucred cred;
    socklen_t len = sizeof cred;
    struct nb_client *client = calloc(1, sizeof *client);
    int r = client ? 0 : -ENOMEM;
    if (!r && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        r = -errno;
    if (!r)
        r = nb_peer_create(broker->loop, fd, &ops, client, broker->config.queue_bytes,
                           &client->peer);
    if (r < 0) {
        free(client);
        close(fd);
        return r;
    }
    client->broker = broker;
    client->id = nb_broker_next_id(broker);
    client->role = role;
    client->uid = cred.uid;
    client->pid = cred.pid;
    TAILQ_INIT(&client->channels);
    TAILQ_INSERT_TAIL(&broker->clients, client, entry);
    broker->n_clients++;
    r = sd_event_add_time_relative(broker->loop, &client->deadline, CLOCK_MONOTONIC,
                                   broker->config.hello_ms * 1000, 0, on_deadline, client);
    if (r < 0)
        nb_client_destroy(client);
    return r;
}

void nb_client_destroy(struct nb_client *client)
{
    if (!client)
        return;
    nb_load_drop_client(client);
    nb_models_drop_client(client);
    while (!TAILQ_EMPTY(&client->channels))
        nb_channel_destroy(TAILQ_FIRST(&client->channels));
    TAILQ_REMOVE(&client->broker->clients, client, entry);
    client->broker->n_clients--;
    nb_charge_release(&client->broker->ledger, &client->charge);
    sd_event_source_disable_unref(client->deadline);
    nb_peer_destroy(client->peer);
    free(client);
}
