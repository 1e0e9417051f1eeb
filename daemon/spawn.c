// Starts, watches and ends worker processes. A worker that was killed is not waited for: its owner
// goes on, the exit event cleans up whenever the kernel lets it die.
#include "daemon/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/drop.h"
#include "daemon/link.h"
#include "daemon/log.h"
#include "daemon/peer.h"
#include "daemon/region.h"
#include "libclient/wire.h"
#include "machine/bounds.h"

// More than all that may wait for a worker at once: its channels and their memories, each charged
// to a user.
#define LINK_QUEUE_MAX (8u << 20)
#define EXIT_US        UINT64_C(2000000) // from the end of its link to the end of a worker
#define STUCK_US       UINT64_C(2000000) // from SIGKILL to a line in the log

// Beside nibbled, below it as in a build tree, or where `meson install` puts it; NIBBLE_WORKER is
// for tests.
static int find_worker(char path[PATH_MAX])
{
    const char *named = getenv("NIBBLE_WORKER");
    if (named)
        return snprintf(path, PATH_MAX, "%s", named) < PATH_MAX ? 0 : -ENAMETOOLONG;
    char self[PATH_MAX] = "";
    if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
        return -errno;
    const char *dir = dirname(self);
    static const char *const places[] = {"%s/nibble-worker", "%s/worker/nibble-worker",
                                         NB_LIBEXECDIR "/nibble-worker"};
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        int n = snprintf(path, PATH_MAX, places[i], dir);
#pragma GCC diagnostic pop
        if (n < PATH_MAX && !access(path, X_OK))
            return 0;
    }
    return -ENOENT;
}

// Drivers keep what they compile where these say: in a folder of the daemon's, or nowhere, or where
// whoever started the daemon has said. Drivers that are left out are not named. malloc asks for
// huge pages: a job streams gigabytes through its memory, and without them waits a tenth of its
// time for the page table.
static int set_environment(const char *drivers_dir, const char *drivers)
{
    static const char *const places[] = {"MESA_SHADER_CACHE_DIR", "__GL_SHADER_DISK_CACHE_PATH"};
    static const char *const switches[][3] = {
        {"MESA_SHADER_CACHE_DISABLE", "false", "true"},
        {"__GL_SHADER_DISK_CACHE", "1", "0"},
        {"MESA_SHADER_CACHE_MAX_SIZE", "256M", "256M"},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++)
        rc |= setenv(places[i], drivers_dir, 0);
    for (size_t i = 0; i < sizeof(switches) / sizeof(*switches); i++)
        rc |= setenv(switches[i][0], switches[i][*drivers_dir ? 1 : 2], 0);
    rc |= setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", 0);
    if (drivers)
        rc |= nb_link_allow_drivers(drivers);
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    return rc;
}

// Only what the mode may have stays open, in its place. Nothing is moved before everything has a
// place above those it goes to, so that none is overwritten, and a failure can still be told.
static int place_fds(const struct nb_spawn *spawn, int link)
{
    int fds[1 + NB_SPAWN_FDS_MAX];
    size_t n = 0;
    const int first_free = NB_LINK_FD + 1 + (int)spawn->n_fds;
    // Beyond the limit, the kernel says EINVAL or EBADF.
    if (nb_process_limit(RLIMIT_NOFILE) <= (uint64_t)first_free + 1 + spawn->n_fds)
        return -EMFILE;
    fds[n++] = fcntl(link, F_DUPFD_CLOEXEC, first_free);
    for (size_t i = 0; i < spawn->n_fds; i++)
        fds[n++] = fcntl(spawn->fds[i], F_DUPFD_CLOEXEC, first_free);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int good = null >= 0;
    for (size_t i = 0; i < n; i++)
        good = good && fds[i] >= 0;
    good = good && dup2(null, 0) >= 0 && dup2(2, 1) >= 0;
    for (size_t i = 0; i < n; i++)
        good = good && dup2(fds[i], NB_LINK_FD + (int)i) >= 0;
    good = good && !close_range(NB_LINK_FD + (unsigned)n, ~0u, 0);
    return good ? 0 : -errno;
}

// No more than the daemon itself may write: what is over that fails where it is written, by name.
static int limit_files(uint64_t bytes)
{
    struct rlimit limit;
    if (!bytes)
        return 0;
    if (getrlimit(RLIMIT_FSIZE, &limit) < 0)
        return -errno;
    if (bytes < limit.rlim_max)
        limit.rlim_max = bytes;
    limit.rlim_cur = limit.rlim_max;
    return setrlimit(RLIMIT_FSIZE, &limit) < 0 ? -errno : 0;
}

// The child has no log yet but its link.
_Noreturn static void give_up(int link, int error)
{
    char reason[NB_LIMIT_TEXT];
    struct nb_link_fault fault = {.header = {.type = NB_LINK_FAULT, .size = sizeof(fault)}};
    snprintf(fault.text, sizeof(fault.text), "it cannot be started: %s",
             nb_limit_reason(error, reason));
    nb_wire_send(link, &fault, sizeof(fault), NULL, 0);
    _exit(127);
}

// In the child.
_Noreturn static void become(const struct nb_spawn *spawn, const char *drivers_dir,
                             const char *path, int link)
{
    int rc = place_fds(spawn, link);
    if (rc < 0)
        give_up(link, rc);
    rc = limit_files(spawn->file_bytes);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL); // a broker that dies takes its workers along
    if (rc == 0 && set_environment(drivers_dir, spawn->drivers) < 0)
        rc = -errno;
    const char *argv[] = {"nibble-worker", spawn->mode, spawn->argument, NULL};
    if (rc == 0) {
        execv(path, (char **)(uintptr_t)argv);
        rc = -errno;
    }
    give_up(NB_LINK_FD, rc);
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_worker *w = user;
    if (w->killed) {
        nb_log(
            LOG_ERR,
            "worker %d (%s) was killed and does not end: it is stuck in the kernel, perhaps in a "
            "driver. Nobody waits for it; what it holds stays charged until it ends",
            (int)w->pid, w->mode);
        return 0;
    }
    nb_log(LOG_WARNING, "worker %d (%s) did not finish in time and is killed", (int)w->pid,
           w->mode);
    nb_worker_kill(w);
    return 0;
}

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds)
{
    struct nb_worker *w = owner;
    if (w->owner)
        w->ops->packet(w->owner, packet, fds, n_fds);
}

static void set_deadline(struct nb_worker *w, uint64_t limit_us)
{
    sd_event_source_disable_unref(w->deadline);
    w->deadline = NULL;
    int rc = sd_event_add_time_relative(w->broker->loop, &w->deadline, CLOCK_MONOTONIC, limit_us, 0,
                                        on_deadline, w);
    if (rc < 0)
        nb_worker_kill(w);
}

// The link ended while the process lives: it is about to exit, or of no use any more.
static void on_link_closed(void *owner, int why)
{
    struct nb_worker *w = owner;
    if (why == 0 || why == -EPIPE) {
        set_deadline(w, EXIT_US);
        return;
    }
    nb_log(LOG_ERR, "worker %d (%s) broke its link (%s) and is killed", (int)w->pid, w->mode,
           strerror(-why));
    nb_worker_kill(w);
}

static bool may_bring_fds(void *owner, const struct nb_wire_header *header)
{
    return header->type == NB_LINK_CACHE;
}

static void drop(void *owner, int fd)
{
    struct nb_worker *w = owner;
    nb_drop(w->broker, fd, NULL);
}

static const struct nb_peer_ops link_ops = {may_bring_fds, on_packet, on_link_closed, drop, true};

static int on_exit_event(sd_event_source *source, const siginfo_t *info, void *user)
{
    struct nb_worker *w = user;
    struct nb_broker *broker = w->broker;
    int clean = info->si_code == CLD_EXITED && info->si_status == 0;
    char how[64];
    if (info->si_code == CLD_EXITED)
        snprintf(how, sizeof(how), "exited with status %d", info->si_status);
    else
        snprintf(how, sizeof(how), "was killed by signal %d (%s)", info->si_status,
                 sigabbrev_np(info->si_status) ? sigabbrev_np(info->si_status) : "?");
    w->pid = 0;
    nb_peer_drain(w->link);
    if (w->owner)
        w->ops->exited(w->owner, clean, how);
    nb_worker_free(w);
    nb_broker_settled(broker);
    return 0;
}

static int watch(struct nb_worker *w, int link)
{
    sd_event *loop = w->broker->loop;
    w->pidfd = pidfd_open(w->pid, 0);
    if (w->pidfd < 0)
        return -errno;
    int rc = sd_event_add_child_pidfd(loop, &w->exit, w->pidfd, WEXITED, on_exit_event, w);
    if (rc < 0)
        return rc;
    return nb_peer_create(loop, link, &link_ops, w, LINK_QUEUE_MAX, &w->link);
}

int nb_worker_spawn(struct nb_broker *broker, const struct nb_spawn *spawn,
                    const struct nb_worker_ops *ops, void *owner, struct nb_worker **ret)
{
    char path[PATH_MAX];
    int pair[2];
    int rc = find_worker(path);
    if (rc < 0)
        return rc;
    struct nb_worker *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    if ((rc = nb_wire_pair(SOCK_SEQPACKET, pair)) < 0) {
        free(w);
        return rc;
    }
    *w = (struct nb_worker){.broker = broker, .ops = ops, .owner = owner, .pidfd = -1};
    w->id = nb_broker_next_id(broker);
    TAILQ_INIT(&w->leaving);
    snprintf(w->mode, sizeof(w->mode), "%s", spawn->mode);
    TAILQ_INSERT_TAIL(&broker->workers, w, entry);
    w->pid = fork();
    if (w->pid == 0)
        become(spawn, broker->drivers_dir, path, pair[1]);
    rc = w->pid < 0 ? -errno : watch(w, pair[0]);
    close(pair[1]);
    if (rc < 0) {
        if (!w->link)
            close(pair[0]);
        nb_worker_free(w);
        return rc;
    }
    *ret = w;
    return 0;
}

void nb_worker_kill(struct nb_worker *worker)
{
    if (!worker || worker->pid <= 0)
        return;
    pidfd_send_signal(worker->pidfd, SIGKILL, NULL, 0);
    if (!worker->killed++)
        set_deadline(worker, STUCK_US);
}

void nb_worker_drain(struct nb_worker *worker)
{
    struct nb_link_ref drain = {.header = {.type = NB_LINK_DRAIN, .size = sizeof(drain)}};
    if (worker->draining)
        return;
    worker->draining = 1;
    nb_peer_send(worker->link, &drain, NULL, 0);
    set_deadline(worker, worker->broker->config.drain_ms * 1000);
}

void nb_worker_disown(struct nb_worker *worker)
{
    if (worker)
        worker->owner = NULL;
}

void nb_worker_free(struct nb_worker *worker)
{
    if (!worker)
        return;
    if (worker->pid > 0) {
        if (worker->pidfd >= 0)
            nb_worker_kill(worker);
        else
            kill(worker->pid, SIGKILL); // our own child, not yet reaped
    }
    nb_regions_gone(worker);
    TAILQ_REMOVE(&worker->broker->workers, worker, entry);
    sd_event_source_disable_unref(worker->exit);
    sd_event_source_disable_unref(worker->deadline);
    nb_peer_destroy(worker->link);
    if (worker->pidfd >= 0)
        close(worker->pidfd);
    free(worker);
}
