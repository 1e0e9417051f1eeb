// The two sockets: taken from systemd, or made in the runtime dir with the groups that may use
// them. Which one a connection came by is its role.
#include "daemon/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon/admission.h"
#include "daemon/broker.h"
#include "daemon/drop.h"
#include "daemon/log.h"
#include "daemon/store.h"
#include "libclient/wire.h"

#define BACKLOG  4096 // waiting costs the client's user; the kernel has a limit of its own
#define PAUSE_US UINT64_C(500000) // when there is no fd left for a connection

static const struct {
    const char *name, *group;
    uint32_t role;
    mode_t without_group, with_group;
} doors[] = {
    {"nibble.sock", "nibble", NB_ROLE_APP, 0660, 0660},
    {"admin.sock", "nibble-admin", NB_ROLE_ADMIN, 0600, 0660},
};
#define N_DOORS (sizeof(doors) / sizeof(*doors))

static int address(const char *dir, const char *name, struct sockaddr_un *ret)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    int n = snprintf(ret->sun_path, sizeof(ret->sun_path), "%s/%s", dir, name);
    return n < (int)sizeof(ret->sun_path) ? 0 : -ENAMETOOLONG;
}

// A socket that a daemon answers on is left alone; one that a dead daemon left is removed.
static int clear_stale(const struct sockaddr_un *at)
{
    int probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0)
        return -errno;
    int rc = connect(probe, (const struct sockaddr *)at, sizeof(*at)) < 0 ? -errno : -EADDRINUSE;
    close(probe);
    if (rc == -EAGAIN)
        return -EADDRINUSE;
    if (rc == -ECONNREFUSED)
        return unlink(at->sun_path) < 0 ? -errno : 0;
    return rc == -ENOENT ? 0 : rc;
}

static int open_door(const char *dir, size_t i, char **ret_path)
{
    struct sockaddr_un at;
    int rc = address(dir, doors[i].name, &at);
    if (!rc)
        rc = clear_stale(&at);
    if (rc < 0)
        return rc;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    // Nobody gets in between bind and chmod.
    mode_t mask = umask(0177);
    rc = bind(fd, (const struct sockaddr *)&at, sizeof(at)) < 0 ? -errno : 0;
    umask(mask);
    const struct group *group = getgrnam(doors[i].group);
    int given = !rc && group && chown(at.sun_path, (uid_t)-1, group->gr_gid) == 0;
    mode_t mode = given ? doors[i].with_group : doors[i].without_group;
    if (!rc && (chmod(at.sun_path, mode) < 0 || listen(fd, BACKLOG) < 0))
        rc = -errno;
    if (!rc && !(*ret_path = strdup(at.sun_path)))
        rc = -ENOMEM;
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

// Which door a socket of systemd's is, by the name it is bound to; -1: none of ours.
static int door_of(int fd)
{
    struct sockaddr_un at = {0};
    socklen_t len = sizeof(at) - 1;
    if (sd_is_socket(fd, AF_UNIX, SOCK_SEQPACKET, 1) <= 0 ||
        getsockname(fd, (struct sockaddr *)&at, &len) < 0)
        return -1;
    const char *name = strrchr(at.sun_path, '/');
    for (size_t i = 0; name && i < N_DOORS; i++)
        if (!strcmp(name + 1, doors[i].name))
            return (int)i;
    return -1;
}

static int take_from_systemd(struct nb_broker *broker)
{
    char **names = NULL;
    int n = sd_listen_fds_with_names(1, &names), r = n;
    for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + n; fd++) {
        char *name = names[fd - SD_LISTEN_FDS_START];
        int stored = nb_store_take(broker, fd, name), i = stored ? -1 : door_of(fd);
        free(name);
        if (stored)
            continue;
        if (i < 0 || broker->listeners[i].fd >= 0) {
            nb_log(LOG_ERR, "a socket of systemd is neither nibble.sock nor admin.sock "
                            "(ListenSequentialPacket=)");
            close(fd);
            continue;
        }
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
            r = -errno;
        broker->listeners[i].fd = fd;
    }
    free(names);
    return r;
}

int nb_listen(struct nb_broker *broker)
{
    for (size_t i = 0; i < N_DOORS; i++)
        broker->listeners[i] =
            (struct nb_listener){.fd = -1, .role = doors[i].role, .broker = broker};
    int rc = take_from_systemd(broker);
    for (size_t i = 0; rc >= 0 && i < N_DOORS; i++) {
        struct nb_listener *l = &broker->listeners[i];
        if (l->fd >= 0)
            continue;
        rc = l->fd = open_door(broker->runtime_dir, i, &l->path);
        if (rc == -EADDRINUSE)
            nb_log(LOG_ERR,
                   "a daemon answers on %s/%s already: stop it, or give another "
                   "--runtime-dir",
                   broker->runtime_dir, doors[i].name);
        else if (rc < 0)
            nb_log(LOG_ERR, "cannot make %s/%s: %s", broker->runtime_dir, doors[i].name,
                   strerror(-rc));
    }
    // Whoever connects is heard before it may pass a descriptor.
    for (size_t i = 0; rc >= 0 && i < N_DOORS; i++)
        nb_wire_accept_fds(broker->listeners[i].fd, false);
    return rc < 0 ? rc : 0;
}

static int on_pause_over(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_listener *l = user;
    l->pause = sd_event_source_disable_unref(l->pause);
    sd_event_source_set_enabled(l->io, SD_EVENT_ON);
    return 0;
}

// Out of fds or memory: the connection waits in the backlog, and the loop does not spin on it.
static void pause_listening(struct nb_listener *l, int why)
{
    NB_LOG_LIMITED(LOG_ERR,
                   "cannot accept a connection (%s): raise LimitNOFILE, or lower "
                   "connections in [limits]",
                   strerror(why));
    if (sd_event_add_time_relative(l->broker->loop, &l->pause, CLOCK_MONOTONIC, PAUSE_US, 0,
                                   on_pause_over, l) >= 0)
        sd_event_source_set_enabled(l->io, SD_EVENT_OFF);
}

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct nb_listener *l = user;
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
            pause_listening(l, errno);
        return 0;
    }
    int rc = nb_client_accept(l->broker, client, l->role);
    if (rc < 0)
        pause_listening(l, -rc);
    return 0;
}

int nb_listen_start(struct nb_broker *broker)
{
    int rc = 0;
    for (size_t i = 0; rc >= 0 && i < N_DOORS; i++)
        rc = sd_event_add_io(broker->loop, &broker->listeners[i].io, broker->listeners[i].fd,
                             EPOLLIN, on_connection, &broker->listeners[i]);
    return rc < 0 ? rc : 0;
}

void nb_listen_stop(struct nb_broker *broker)
{
    for (size_t i = 0; i < N_DOORS; i++) {
        struct nb_listener *l = &broker->listeners[i];
        l->io = sd_event_source_disable_unref(l->io);
        l->pause = sd_event_source_disable_unref(l->pause);
        if (l->fd >= 0)
            nb_drop(broker, l->fd, NULL); // those who wait may have passed descriptors
        l->fd = -1;
        if (l->path)
            unlink(l->path);
        free(l->path);
        l->path = NULL;
    }
}
