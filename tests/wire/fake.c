// The daemon's half of fake.h: sockets, channels and their ends.
#include "tests/wire/fake_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static void must(bool condition)
{
    if (!condition) {
        perror("the fake daemon");
        abort();
    }
}

void fake_violation(struct fake *fake, const char *what)
{
    fprintf(stderr, "the client broke the protocol: %s\n", what);
    atomic_fetch_add(&fake->violations, 1);
}

static int open_memory(struct fake_channel *channel, int fds[2])
{
    int pair[2];
    fds[0] = fake_memory(NB_CHANNEL_BYTES(channel->arena), SEALS);
    channel->map =
        mmap(NULL, NB_CHANNEL_BYTES(channel->arena), PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    must(channel->map != MAP_FAILED && nb_wire_pair(SOCK_STREAM, pair) == 0);
    channel->sock = pair[0];
    fds[1] = pair[1];
    channel->sq_head = channel->cq_tail = 0;
    channel->n_jobs = 0;
    memset(channel->n_logs, 0, sizeof(channel->n_logs));
    return 0;
}

static void close_memory(struct fake_channel *channel)
{
    munmap(channel->map, NB_CHANNEL_BYTES(channel->arena));
    close(channel->sock);
}

void fake_rebind(struct fake *fake, struct fake_channel *channel)
{
    struct nb_wire_channel packet = {.header = {.type = NB_WIRE_REBIND, .size = sizeof(packet)},
                                     .channel = channel->handle,
                                     .incarnation = ++channel->incarnation,
                                     .arena_bytes = channel->arena};
    int fds[2];
    memcpy(packet.device, fake->device, sizeof(packet.device));
    close_memory(channel);
    open_memory(channel, fds);
    nb_wire_send(channel->control, &packet, sizeof(packet), fds, 2);
    nb_wire_close_fds(fds, 2);
}

static void free_channel(struct fake_channel *channel)
{
    close_memory(channel);
    for (unsigned i = 0; i < NB_SESSIONS_MAX; i++)
        free(channel->logs[i]);
    *channel = (struct fake_channel){.control = -1};
}

void fake_lose(struct fake_channel *channel)
{
    struct nb_wire_channel_ref packet = {.header = {.type = NB_WIRE_CHANNEL_LOST,
                                                    .size = sizeof(packet),
                                                    .status = NIBBLE_E_NO_MODEL},
                                         .channel = channel->handle,
                                         .text = "m0 was unloaded"};
    nb_wire_send(channel->control, &packet, sizeof(packet), NULL, 0);
    free_channel(channel);
}

void fake_drop_client(struct fake *fake, unsigned i)
{
    for (unsigned j = 0; j < FAKE_CHANNELS; j++)
        if (fake->channels[j].control == fake->clients[i])
            free_channel(&fake->channels[j]);
    close(fake->clients[i]);
    fake->clients[i] = -1;
}

// ---- The daemon ----

int fake_memory(uint64_t size, unsigned seals)
{
    int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(fd >= 0 && ftruncate(fd, (off_t)size) == 0 && fcntl(fd, F_ADD_SEALS, seals) == 0);
    return fd;
}

void fake_reply(int sock, const struct nb_wire_header *request, void *reply, uint32_t size,
                const int *fds, size_t n_fds)
{
    struct nb_wire_header *header = reply;
    header->type = request->type | NB_WIRE_REPLY;
    header->size = size;
    header->serial = request->serial;
    nb_wire_send(sock, reply, size, fds, n_fds);
}

void fake_refuse(int sock, const struct nb_wire_header *request, int code, const char *text)
{
    struct nb_wire_error error = {.header = {.status = code}};
    snprintf(error.text, sizeof(error.text), "%s", text);
    fake_reply(sock, request, &error, sizeof(error), NULL, 0);
}

static void list(struct fake *fake, int sock, const struct nb_wire_list_request *request)
{
    struct {
        struct nb_wire_list_reply head;
        struct nibble_model rows[2]; // a page
    } reply = {.head = {.row_size = sizeof(struct nibble_model), .total = FAKE_MODELS}};
    if (request->what != NB_LIST_MODELS) {
        reply.head.total = 0;
        fake_reply(sock, &request->header, &reply, sizeof(reply.head), NULL, 0);
        return;
    }
    for (uint32_t i = request->cursor; i < FAKE_MODELS && reply.head.n < 2; i++) {
        struct nibble_model *row = &reply.rows[reply.head.n++];
        memset(row, 'x', sizeof(*row)); // nothing ends with a NUL but the name
        snprintf(row->name, sizeof(row->name), "m%u", i);
        row->vocab = FAKE_VOCAB;
        row->context = fake->context;
        row->embedding = FAKE_WIDTH;
    }
    uint32_t next = request->cursor + reply.head.n;
    reply.head.next_cursor = next < FAKE_MODELS ? next : 0;
    fake_reply(sock, &request->header, &reply,
               (uint32_t)(sizeof(reply.head) + reply.head.n * sizeof(struct nibble_model)), NULL,
               0);
}

static void open_channel(struct fake *fake, int sock, const struct nb_wire_open_channel *request)
{
    struct fake_channel *channel = fake->channels;
    while (channel < fake->channels + FAKE_CHANNELS && channel->control >= 0)
        channel++;
    if (request->model[0] != 'm' || channel == fake->channels + FAKE_CHANNELS) {
        fake_refuse(sock, &request->header, NIBBLE_E_NO_MODEL,
                    "no model of that name is loaded: nibble load FILE");
        return;
    }
    int fds[2];
    channel->control = sock;
    channel->handle = ++fake->next_handle;
    channel->incarnation = 1;
    channel->arena = request->arena_bytes;
    open_memory(channel, fds);
    struct nb_wire_channel reply = {
        .channel = channel->handle, .incarnation = 1, .arena_bytes = channel->arena};
    memcpy(reply.device, fake->device, sizeof(reply.device));
    fake_reply(sock, &request->header, &reply, sizeof(reply), fds, 2);
    nb_wire_close_fds(fds, 2);
    atomic_fetch_add(&fake->n_channels, 1);
}

static void close_channel(struct fake *fake, int sock, const struct nb_wire_channel_ref *request)
{
    struct nb_wire_empty reply = {0};
    for (unsigned i = 0; i < FAKE_CHANNELS; i++)
        if (fake->channels[i].control == sock && fake->channels[i].handle == request->channel) {
            free_channel(&fake->channels[i]);
            atomic_fetch_sub(&fake->n_channels, 1);
            fake_reply(sock, &request->header, &reply, sizeof(reply), NULL, 0);
            return;
        }
    fake_violation(fake, "CLOSE_CHANNEL of an unknown channel");
}

static void load(struct fake *fake, int sock, const struct nb_wire_load *request)
{
    struct nb_wire_progress progress = {.header = {.type = NB_WIRE_PROGRESS,
                                                   .size = sizeof(progress),
                                                   .serial = request->header.serial},
                                        .total = 100};
    for (progress.done = 0; progress.done <= 100; progress.done += 50)
        nb_wire_send(sock, &progress, sizeof(progress), NULL, 0);
    struct nb_wire_empty reply = {0};
    if (strcmp(request->name, "slow") == 0) { // until it is cancelled
        struct pollfd readable = {sock, POLLIN, 0};
        alignas(8) unsigned char packet[NB_WIRE_MAX];
        int fds[NB_WIRE_FDS_MAX];
        size_t n_fds;
        poll(&readable, 1, 10000);
        int n = nb_wire_recv(sock, packet, fds, &n_fds);
        const struct nb_wire_header *header = (const void *)packet;
        if (n > 0 && header->type == NB_WIRE_CANCEL_LOAD &&
            header->serial == request->header.serial)
            atomic_fetch_add(&fake->cancel_load_seen, 1);
        fake_refuse(sock, &request->header, -ECANCELED, "cancelled");
        return;
    }
    fake_reply(sock, &request->header, &reply, sizeof(reply), NULL, 0);
}

static void status(int sock, const struct nb_wire_header *request)
{
    struct nb_wire_status_reply reply = {.steps = 7, .mixed_steps = 3, .models = FAKE_MODELS};
    memset(reply.version, 'v', sizeof(reply.version));
    fake_reply(sock, request, &reply, sizeof(reply), NULL, 0);
}

static void handle(struct fake *fake, int sock, const struct nb_wire_header *request)
{
    const struct nb_wire_message *message = nb_wire_message(request->type);
    struct nb_wire_hello hello = {.magic = NB_WIRE_MAGIC, .version_min = 1, .version_max = 1};
    struct nb_wire_empty empty = {0};
    if (!message || !message->roles || message->size != request->size)
        fake_violation(fake, "a request");
    else if (request->type == NB_WIRE_HELLO)
        fake_reply(sock, request, &hello, sizeof(hello), NULL, 0);
    else if (request->type == NB_WIRE_LIST)
        list(fake, sock, (const void *)request);
    else if (request->type == NB_WIRE_STATUS)
        status(sock, request);
    else if (request->type == NB_WIRE_OPEN_CHANNEL)
        open_channel(fake, sock, (const void *)request);
    else if (request->type == NB_WIRE_CLOSE_CHANNEL)
        close_channel(fake, sock, (const void *)request);
    else if (request->type == NB_WIRE_LOAD)
        load(fake, sock, (const void *)request);
    else if (request->type == NB_WIRE_UNLOAD || request->type == NB_WIRE_FILE)
        fake_reply(sock, request, &empty, sizeof(empty), NULL, 0);
}

static void serve_client(struct fake *fake, unsigned i)
{
    alignas(8) unsigned char packet[NB_WIRE_MAX];
    int fds[NB_WIRE_FDS_MAX];
    size_t n_fds = 0;
    int n = nb_wire_recv(fake->clients[i], packet, fds, &n_fds);
    if (n == -EAGAIN)
        return;
    if (n <= 0) {
        fake_drop_client(fake, i);
        return;
    }
    const struct nb_wire_message *message =
        nb_wire_message(((struct nb_wire_header *)(void *)packet)->type);
    if (message && n_fds != message->fds)
        fake_violation(fake, "fds");
    if (!fake->override || !fake->override(fake, fake->clients[i], (const void *)packet))
        handle(fake, fake->clients[i], (const void *)packet);
    nb_wire_close_fds(fds, n_fds);
}

static void accept_client(struct fake *fake, int listener)
{
    for (unsigned i = 0; i < FAKE_CLIENTS; i++)
        if (fake->clients[i] < 0) {
            fake->clients[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            return;
        }
}

static void *run(void *arg)
{
    struct fake *fake = arg;
    for (bool more = false;;) {
        struct pollfd fds[3 + FAKE_CLIENTS + FAKE_CHANNELS] = {{fake->wake[1], POLLIN, 0},
                                                               {fake->listener, POLLIN, 0},
                                                               {fake->admin_listener, POLLIN, 0}};
        for (unsigned i = 0; i < FAKE_CLIENTS; i++)
            fds[3 + i] = (struct pollfd){fake->clients[i], POLLIN, 0};
        for (unsigned i = 0; i < FAKE_CHANNELS; i++)
            fds[3 + FAKE_CLIENTS + i] = (struct pollfd){
                fake->channels[i].control < 0 ? -1 : fake->channels[i].sock, POLLIN, 0};
        poll(fds, 3 + FAKE_CLIENTS + FAKE_CHANNELS, more ? 0 : -1);
        if (fds[0].revents && nb_wake_drain(fake->wake[1]) < 0)
            return NULL;
        for (unsigned i = 0; i < 2; i++)
            if (fds[1 + i].revents)
                accept_client(fake, fds[1 + i].fd);
        for (unsigned i = 0; i < FAKE_CHANNELS; i++)
            if (fds[3 + FAKE_CLIENTS + i].revents)
                nb_wake_drain(fake->channels[i].sock); // before the clients: they may close it
        for (unsigned i = 0; i < FAKE_CLIENTS; i++)
            if (fds[3 + i].revents)
                serve_client(fake, i);
        more = fake_work(fake);
    }
}

static int listen_on(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    must(sock >= 0 && bind(sock, (const struct sockaddr *)&address, sizeof(address)) == 0 &&
         listen(sock, 8) == 0);
    return sock;
}

struct fake *fake_start(void)
{
    struct fake *fake = calloc(1, sizeof(*fake));
    snprintf(fake->dir, sizeof(fake->dir), "/tmp/nibble-fake-XXXXXX");
    must(mkdtemp(fake->dir));
    snprintf(fake->path, sizeof(fake->path), "%s/nibble.sock", fake->dir);
    snprintf(fake->admin_path, sizeof(fake->admin_path), "%s/admin.sock", fake->dir);
    fake->listener = listen_on(fake->path);
    fake->admin_listener = listen_on(fake->admin_path);
    fake->context = 4096;
    for (unsigned i = 0; i < FAKE_CLIENTS; i++)
        fake->clients[i] = -1;
    for (unsigned i = 0; i < FAKE_CHANNELS; i++)
        fake->channels[i].control = -1;
    must(nb_wire_pair(SOCK_STREAM, fake->wake) == 0);
    must(pthread_create(&fake->thread, NULL, run, fake) == 0);
    return fake;
}

void fake_kick(struct fake *fake)
{
    nb_wake_send(fake->wake[0]);
}

void fake_stop(struct fake *fake)
{
    close(fake->wake[0]);
    pthread_join(fake->thread, NULL);
    for (unsigned i = 0; i < FAKE_CLIENTS; i++)
        if (fake->clients[i] >= 0)
            fake_drop_client(fake, i);
    nb_wire_close_fds((int[]){fake->listener, fake->admin_listener, fake->wake[1]}, 3);
    unlink(fake->path);
    unlink(fake->admin_path);
    rmdir(fake->dir);
    free(fake);
}
