// A child that lists and writes what it finds into a pipe, and its parent, which waits for both
// ends: the pipe's and the child's.
#include "daemon/worker/enumerate.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/worker/nodes.h"
#include "daemon/worker/worker.h"

#define LIMIT_MS 8000 // for a driver to say what it has: clients wait for the daemon meanwhile
#define END_MS   2000 // from SIGKILL on

// --- the child

static void write_all(int fd, const void *data, size_t size)
{
    for (const char *at = data; size;) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            _exit(EXIT_FAILURE);
        at += n;
        size -= (size_t)n;
    }
}

static void on_found(void *user, const struct nb_device_info *info)
{
    struct nb_link_device device;
    nb_worker_device_describe(info, &device);
    nb_node_of_gpu(info, &device);
    write_all(*(const int *)user, &device, sizeof(device));
}

// Without the link: what a driver does cannot be said in the probe's name.
static void list(int pipe, const char *manifests)
{
    struct nb_link_device failure = {.header.status = -EIO};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(NB_LINK_FD);
    if (manifests && nb_link_allow_drivers(manifests) < 0)
        _exit(EXIT_FAILURE);
    struct nb_error error;
    if (nb_device_list(on_found, &pipe, &error) < 0) {
        snprintf(failure.device.reason, sizeof(failure.device.reason), "%.191s", error.text);
        write_all(pipe, &failure, sizeof(failure));
    }
    _exit(EXIT_SUCCESS);
}

// --- the parent

static void take(struct nb_listed *ret, const struct nb_link_device *device)
{
    if (device->header.status < 0)
        snprintf(ret->error, sizeof(ret->error), "%.191s", device->device.reason);
    else if (ret->n < NB_LISTED_MAX)
        ret->device[ret->n++] = *device;
}

// Until the pipe's end. False: it did not come in time.
static bool read_devices(int fd, struct nb_listed *ret)
{
    struct nb_link_device device;
    size_t have = 0;
    uint64_t end = nb_now_ns() + LIMIT_MS * UINT64_C(1000000);
    for (;;) {
        uint64_t now = nb_now_ns();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (now >= end)
            return false;
        if (poll(&p, 1, (int)((end - now) / 1000000) + 1) <= 0)
            continue;
        ssize_t n = read(fd, (char *)&device + have, sizeof(device) - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return true;
        have += (size_t)n;
        if (have < sizeof(device))
            continue;
        have = 0;
        take(ret, &device);
    }
}

// A child that is stuck in the kernel is left behind.
static bool has_ended(pid_t child, siginfo_t *ret)
{
    int fd = pidfd_open(child, 0);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    bool ended = fd >= 0 && poll(&p, 1, END_MS) > 0;
    if (fd >= 0)
        close(fd);
    return ended && waitid(P_PID, (id_t)child, ret, WEXITED) == 0;
}

static void judge(pid_t child, bool in_time, struct nb_listed *ret)
{
    siginfo_t info = {.si_code = 0};
    if (!in_time)
        kill(child, SIGKILL);
    bool ended = has_ended(child, &info);
    if (!in_time || !ended)
        snprintf(ret->why, sizeof(ret->why), "gave no answer within %d s", LIMIT_MS / 1000);
    else if (info.si_code != CLD_EXITED)
        snprintf(ret->why, sizeof(ret->why), "was killed by signal %d (%s)", info.si_status,
                 sigabbrev_np(info.si_status) ? sigabbrev_np(info.si_status) : "?");
    else if (info.si_status != EXIT_SUCCESS)
        snprintf(ret->why, sizeof(ret->why), "exited with status %d", info.si_status);
}

bool nb_list_devices(const char *manifests, struct nb_listed *ret)
{
    int ends[2];
    *ret = (struct nb_listed){.n = 0};
    pid_t child = pipe2(ends, O_CLOEXEC) < 0 ? -1 : fork();
    if (child == 0) {
        close(ends[0]);
        list(ends[1], manifests);
    }
    if (child < 0) {
        snprintf(ret->why, sizeof(ret->why), "could not be started (%s)", strerror(errno));
        return false;
    }
    close(ends[1]);
    bool in_time = read_devices(ends[0], ret);
    close(ends[0]);
    judge(child, in_time, ret);
    return !ret->why[0];
}

size_t nb_listed_vulkan(const struct nb_listed *listed)
{
    size_t n = 0;
    for (size_t i = 0; i < listed->n; i++)
        n += strcmp(listed->device[i].device.kind, "cpu") != 0;
    return n;
}
