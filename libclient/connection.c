// The control connection: connect, shake hands, requests and their replies with events in between.
// What the daemon sends is checked as strictly as what a client sends; every fd that came is used
// or closed.
#include "libclient/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "machine/bounds.h"

#define DEFAULT_SOCKET  "/run/nibble/nibble.sock"
#define ADMIN_SOCKET    "admin.sock"
#define CONNECT_MS      10000
#define PACKETS_A_ROUND 64 // a daemon that floods us must not hold a dispatch for ever

int nb_break(nibble *c, int code, const char *sentence)
{
    if (c->broken)
        return c->broken;
    c->broken = nb_fail(c, code, "%s", sentence);
    NB_EACH(link, &c->channels) {
        struct nb_channel *channel = NB_OF(link, struct nb_channel, link);
        nb_channel_drain(channel); // what the worker finished is finished
        nb_channel_lose(channel, code, sentence);
    }
    return code;
}

static int handle_rebind(nibble *c, struct nb_packet *packet)
{
    const struct nb_wire_channel *rebind = (const void *)packet->bytes;
    struct nb_channel *channel = nb_channel_find(c, rebind->channel);
    if (channel)
        nb_channel_rebind(channel, rebind, packet->fds);
    else // one that we closed while the packet was under way
        nb_wire_close_fds(packet->fds, packet->n_fds);
    return 0;
}

static int handle_lost(nibble *c, struct nb_packet *packet)
{
    struct nb_wire_channel_ref *lost = (void *)packet->bytes;
    struct nb_channel *channel = nb_channel_find(c, lost->channel);
    if (!channel)
        return 0;
    lost->text[sizeof(lost->text) - 1] = 0;
    nb_channel_drain(channel);
    channel->gone = true;
    nb_channel_lose(channel, lost->header.status < 0 ? lost->header.status : NIBBLE_E_LOST,
                    lost->text[0] ? lost->text : "the daemon closed the channel");
    return 0;
}

// The callback may refuse to go on; the load's reply then says so.
static int handle_progress(nibble *c, struct nb_packet *packet)
{
    const struct nb_wire_progress *progress = (const void *)packet->bytes;
    struct nb_load *load = c->load;
    if (!load || progress->header.serial != c->serial || load->cancelled ||
        !load->options->progress)
        return 0;
    if (load->options->progress(load->options->user, progress->done, progress->total) != 0) {
        struct nb_wire_empty cancel = {{.serial = c->serial}};
        load->cancelled = true;
        nb_tell(c, NB_WIRE_CANCEL_LOAD, &cancel);
    }
    return 0;
}

// The callback may not wish to wait any longer: what the daemon says of it later is nobody's.
static int handle_job_progress(nibble *c, struct nb_packet *packet)
{
    struct nb_wire_job_progress *p = (void *)packet->bytes;
    struct nb_wait *wait = c->wait;
    if (!wait || p->header.serial != c->serial || wait->given_up || !wait->options->progress)
        return 0;
    struct nibble_jobs_row row = {
        .id = p->job, .done = p->done, .total = p->total, .eta_ms = p->eta_ms};
    _Static_assert(sizeof(row.state) == sizeof(p->state), "one word");
    memcpy(row.state, p->state, sizeof(row.state) - 1);
    memcpy(row.text, p->text, sizeof(p->text) - 1);
    _Static_assert(sizeof(row.curve) == sizeof(p->curve), "one curve");
    memcpy(row.curve, p->curve, sizeof(row.curve));
    if (wait->options->progress(wait->options->user, &row) != 0) {
        wait->given_up = true;
        return NIBBLE_E_CANCELLED;
    }
    return 0;
}

static int handle_job_files(nibble *c, struct nb_packet *packet)
{
    if (c->files && packet->header.serial == c->serial)
        nb_send_files(c, packet->fds[0]);
    nb_wire_close_fds(packet->fds, packet->n_fds);
    return 0;
}

static const struct {
    uint32_t type;
    int (*handle)(nibble *, struct nb_packet *);
} events[] = {
    {NB_WIRE_REBIND, handle_rebind},       {NB_WIRE_CHANNEL_LOST, handle_lost},
    {NB_WIRE_PROGRESS, handle_progress},   {NB_WIRE_JOB_PROGRESS, handle_job_progress},
    {NB_WIRE_JOB_FILES, handle_job_files},
};

static int broken_protocol(nibble *c, const char *what)
{
    char sentence[NB_SENTENCE];
    snprintf(sentence, sizeof(sentence), "%s sent %s: is it nibbled, of this version?", c->path,
             what);
    return nb_break(c, NIBBLE_E_PROTOCOL, sentence);
}

// Is it a packet that its type allows? A failed reply is an nb_wire_error whatever its type.
static bool well_formed(const struct nb_packet *packet)
{
    const struct nb_wire_header *header = &packet->header;
    bool reply = header->type & NB_WIRE_REPLY;
    const struct nb_wire_message *message =
        nb_wire_message(header->type & ~(uint32_t)NB_WIRE_REPLY);
    if (!message || reply != (message->roles != 0) || header->status > 0)
        return false;
    if (reply && header->status < 0)
        return header->size == sizeof(struct nb_wire_error) && packet->n_fds == 0;
    bool fits = header->type == (NB_WIRE_LIST | NB_WIRE_REPLY)
                    ? header->size >= message->reply_size
                    : header->size == message->reply_size;
    return fits && packet->n_fds == message->reply_fds;
}

// The daemon's word before it hangs up on a connection, which it may not have read from.
static bool is_farewell(const struct nb_wire_header *header)
{
    return !header->serial && header->status < 0;
}

// One packet: 1 if it is the awaited reply (then the caller's), 0 if it was handled, -EAGAIN, or
// the connection's failure.
static int receive(nibble *c, struct nb_packet *packet, uint32_t awaited)
{
    packet->n_fds = 0;
    int got = nb_wire_recv(c->sock, packet->bytes, packet->fds, &packet->n_fds);
    if (got == -EAGAIN)
        return got;
    if (got <= 0)
        nb_wire_close_fds(packet->fds, packet->n_fds);
    if (got == -EMFILE)
        return nb_break(c, got,
                        "this process has no room for the daemon's descriptors: raise ulimit -n");
    if (got == 0)
        return nb_break(c, NIBBLE_E_CLOSED, "the daemon closed the connection");
    if (got < 0)
        return broken_protocol(c, "a packet that cannot be read");
    if (!well_formed(packet)) {
        nb_wire_close_fds(packet->fds, packet->n_fds);
        return broken_protocol(c, "a packet that the protocol does not have");
    }
    if (packet->header.type & NB_WIRE_REPLY) {
        if (awaited && (packet->header.serial == awaited || is_farewell(&packet->header)))
            return 1;
        nb_wire_close_fds(packet->fds, packet->n_fds); // to nb_tell
        return 0;
    }
    for (size_t i = 0; i < sizeof(events) / sizeof(*events); i++)
        if (events[i].type == packet->header.type)
            return events[i].handle(c, packet);
    return 0;
}

int nb_control(nibble *c)
{
    struct nb_packet packet;
    for (int handled = 0; handled < PACKETS_A_ROUND; handled++) {
        int rc = receive(c, &packet, 0);
        if (rc < 0)
            return rc == -EAGAIN ? handled : rc;
    }
    return PACKETS_A_ROUND;
}

// Sends once there is room. The packet's header must be complete.
static int send_packet(nibble *c, const struct nb_wire_header *header, const int *fd,
                       int64_t deadline)
{
    for (;;) {
        int rc = nb_wire_send(c->sock, header, header->size, fd, fd ? 1 : 0);
        if (rc == -EPIPE)
            return 0; // what the daemon had to say of it is there to be read
        if (rc != -EAGAIN)
            return rc < 0 ? nb_fail(c, rc, "cannot send to %s: %s", c->path, nibble_strerror(rc))
                          : 0;
        struct pollfd writable = {c->sock, POLLOUT, 0};
        if (poll(&writable, 1, nb_left_ms(deadline)) == 0)
            return nb_break(c, -ETIMEDOUT, "the daemon does not take requests");
    }
}

static int await_reply(nibble *c, struct nb_packet *ret_reply, uint32_t serial, int64_t deadline)
{
    for (;;) {
        int rc = receive(c, ret_reply, serial);
        if (rc != -EAGAIN && rc != 0)
            return rc;
        if (rc == 0)
            continue;
        struct pollfd readable = {c->sock, POLLIN, 0};
        if (poll(&readable, 1, nb_left_ms(deadline)) == 0)
            return nb_break(c, -ETIMEDOUT, "the daemon does not answer");
    }
}

static const struct nb_wire_message *fill_header(nibble *c, uint32_t type,
                                                 struct nb_wire_header *header)
{
    const struct nb_wire_message *message = nb_wire_message(type);
    header->type = type;
    header->size = message->size;
    header->status = 0;
    if (!header->serial) {
        c->serial = c->serial + 1 ? c->serial + 1 : 1;
        header->serial = c->serial;
    }
    return message;
}

static int refused(nibble *c, const struct nb_packet *reply)
{
    struct nb_wire_error error;
    memcpy(&error, reply->bytes, sizeof(error));
    error.text[sizeof(error.text) - 1] = 0;
    int code = error.header.status;
    return nb_fail(c, code, "%s", error.text[0] ? error.text : nibble_strerror(code));
}

int nb_request(nibble *c, uint32_t type, void *request, const int *fd, struct nb_packet *ret_reply,
               int timeout_ms)
{
    struct nb_wire_header *header = request;
    if (c->broken)
        return nb_fail(c, c->broken, "%s", nibble_strerror(c->broken));
    if (c->requesting)
        return nb_fail(c, -EBUSY,
                       "this call waits for the daemon already; nothing else can be asked "
                       "from its callback");
    const struct nb_wire_message *message = fill_header(c, type, header);
    if (!(message->roles & c->role))
        return nb_fail(c, NIBBLE_E_DENIED, "%s is not for the %s socket: use %s", message->name,
                       c->role == NB_ROLE_ADMIN ? "admin" : "application",
                       c->role == NB_ROLE_ADMIN ? "nibble_connect" : "nibble_connect_admin");
    int64_t deadline = nb_deadline(timeout_ms);
    ret_reply->header = (struct nb_wire_header){0};
    ret_reply->n_fds = 0;
    c->requesting = true;
    int rc = send_packet(c, header, fd, deadline);
    if (rc == 0)
        rc = await_reply(c, ret_reply, header->serial, deadline);
    c->requesting = false;
    nb_leave(c);
    if (rc < 0)
        return rc;
    if (ret_reply->header.type != (type | NB_WIRE_REPLY)) {
        nb_wire_close_fds(ret_reply->fds, ret_reply->n_fds);
        return broken_protocol(c, "the reply to another request");
    }
    return ret_reply->header.status < 0 ? refused(c, ret_reply) : (int)ret_reply->header.size;
}

void nb_tell(nibble *c, uint32_t type, void *request)
{
    fill_header(c, type, request);
    if (!c->broken)
        send_packet(c, request, NULL, nb_deadline(CONNECT_MS));
}

// ---- Connecting ----

static int choose_path(nibble *c, const char *path, bool admin)
{
    const char *variable = getenv("NIBBLE_SOCKET");
    if (!path)
        path = variable && *variable ? variable : DEFAULT_SOCKET;
    const char *slash = strrchr(path, '/');
    int directory = !admin ? (int)strlen(path) : slash ? (int)(slash + 1 - path) : 0;
    int n =
        snprintf(c->path, sizeof(c->path), "%.*s%s", directory, path, admin ? ADMIN_SOCKET : "");
    if (n < 0 || (size_t)n >= sizeof(c->path))
        return nb_fail(c, -ENAMETOOLONG, "a socket's path has at most %zu bytes: %s",
                       sizeof(c->path) - 1, path);
    return 0;
}

static int no_daemon(nibble *c, int error)
{
    char reason[NB_LIMIT_TEXT];
    switch (error) {
    case ENOENT:
    case ECONNREFUSED:
        return nb_fail(
            c, NIBBLE_E_NO_DAEMON,
            "no nibbled listens on %s; start it: systemctl start nibble.socket, or run nibbled; "
            "or set NIBBLE_SOCKET to another daemon's socket",
            c->path);
    case EACCES:
    case EPERM:
        return nb_fail(c, NIBBLE_E_DENIED, "you may not use %s; join its group: adduser USER %s",
                       c->path, c->role == NB_ROLE_ADMIN ? "nibble-admin, or be root" : "nibble");
    case EPROTOTYPE:
        return nb_fail(c, NIBBLE_E_PROTOCOL, "%s is the socket of another program", c->path);
    default:
        return nb_fail(c, -error, "cannot connect to %s: %s", c->path,
                       nb_limit_reason(error, reason));
    }
}

// A connect to a full backlog waits as long as a send would.
static int open_socket(nibble *c)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval timeout = {CONNECT_MS / 1000, 0};
    memcpy(address.sun_path, c->path, sizeof(c->path));
    c->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (c->sock < 0)
        return no_daemon(c, errno);
    setsockopt(c->sock, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    int rc;
    do
        rc = connect(c->sock, (const struct sockaddr *)&address, sizeof(address));
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? no_daemon(c, errno) : 0;
}

static int watch(nibble *c)
{
    struct epoll_event control = {.events = EPOLLIN, .data.ptr = c};
    struct epoll_event nudge = {.events = EPOLLIN, .data.ptr = &c->nudge};
    char reason[NB_LIMIT_TEXT];
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    c->nudge = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->epoll < 0 || c->nudge < 0 || epoll_ctl(c->epoll, EPOLL_CTL_ADD, c->sock, &control) < 0 ||
        epoll_ctl(c->epoll, EPOLL_CTL_ADD, c->nudge, &nudge) < 0)
        return nb_fail(c, -errno, "cannot watch %s: %s", c->path, nb_limit_reason(errno, reason));
    return 0;
}

static int shake_hands(nibble *c)
{
    struct nb_wire_hello hello = {.magic = NB_WIRE_MAGIC,
                                  .version_min = NB_WIRE_VERSION,
                                  .version_max = NB_WIRE_VERSION,
                                  .version_text = NB_VERSION};
    struct nb_packet reply;
    int rc = nb_request(c, NB_WIRE_HELLO, &hello, NULL, &reply, CONNECT_MS);
    if (rc < 0)
        return rc;
    memcpy(&hello, reply.bytes, sizeof(hello));
    if (hello.magic != NB_WIRE_MAGIC)
        return broken_protocol(c, "another program's greeting");
    if (hello.version_min != NB_WIRE_VERSION || hello.version_max != NB_WIRE_VERSION)
        return nb_fail(c, NIBBLE_E_VERSION,
                       "the daemon chose version %u of the protocol, this library speaks %u: "
                       "upgrade the older one",
                       hello.version_max, NB_WIRE_VERSION);
    return 0;
}

static int connect_as(uint32_t role, const char *path, nibble **ret_connection)
{
    nibble *c = calloc(1, sizeof(*c));
    if (!c)
        return nb_fail(NULL, -ENOMEM, "out of memory");
    c->sock = c->epoll = c->nudge = -1;
    c->role = role;
    nb_link_init(&c->channels);
    nb_link_init(&c->jobs);
    nb_link_init(&c->ready);
    nb_link_init(&c->memories);
    nb_fail(c, 0, "no failure");
    int rc = choose_path(c, path, role == NB_ROLE_ADMIN);
    if (rc == 0)
        rc = open_socket(c);
    if (rc == 0)
        rc = watch(c);
    if (rc == 0)
        rc = shake_hands(c);
    if (rc < 0) {
        nb_fail(NULL, rc, "%s", c->error);
        nibble_close(c);
        return rc;
    }
    *ret_connection = c;
    return 0;
}

int nibble_connect(const char *path, nibble **ret_connection)
{
    return connect_as(NB_ROLE_APP, path, ret_connection);
}

int nibble_connect_admin(const char *path, nibble **ret_connection)
{
    return connect_as(NB_ROLE_ADMIN, path, ret_connection);
}

void nibble_close(nibble *c)
{
    if (!c)
        return;
    // The daemon needs no message: the end of the socket says it all.
    nb_break(c, NIBBLE_E_CLOSED, "the connection is closed");
    while (!nb_list_empty(&c->channels)) // a channel goes with its last session
        nibble_session_close(NB_OF(NB_OF(c->channels.next, struct nb_channel, link)->sessions.next,
                                   nibble_session, link));
    while (!nb_list_empty(&c->jobs))
        nb_job_destroy(NB_OF(c->jobs.next, nibble_job, link));
    nb_memories_free(c);
    nb_wire_close_fds((int[]){c->sock, c->epoll, c->nudge}, 3);
    free(c);
}
