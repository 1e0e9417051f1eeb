// The profiles as lists of system calls. A list says what the mode, libc and the engine's threads
// need; what opens, connects, executes or names another process is in none of them.
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
#include <seccomp.h>

#include "daemon/worker/sandbox.h"
#include "daemon/worker/worker_config.h"

#define CALL(name) SCMP_SYS(name)

// Memory, time, exit, and files that are open already.
static const int any_mode[] = {
    CALL(brk),
    CALL(munmap),
    CALL(mremap),
    CALL(madvise),
    CALL(clock_gettime),
    CALL(clock_nanosleep),
    CALL(nanosleep),
    CALL(restart_syscall),
    CALL(exit),
    CALL(exit_group),
    CALL(futex),
    CALL(getrandom),
    CALL(getpid),
    CALL(gettid),
    CALL(rt_sigaction),
    CALL(rt_sigprocmask),
    CALL(rt_sigreturn),
    CALL(sigaltstack),
    CALL(sysinfo),
    CALL(fstat),
    CALL(newfstatat),
    CALL(close),
    CALL(read),
    CALL(write),
    CALL(writev),
    CALL(lseek),
    CALL(sendmsg),
    CALL(poll),
    CALL(ppoll),
    CALL(sched_yield),
    CALL(set_robust_list),
    CALL(rseq),
    CALL(sched_getaffinity),
    CALL(getcpu),
};

static const int load[] = {
    CALL(pread64), CALL(pwrite64), CALL(ftruncate), CALL(fallocate),
    CALL(msync),   CALL(fsync),    CALL(fdatasync),
};

// What load may, in threads. It hears the broker on its link, and makes no socket of its own.
static const int job[] = {
    CALL(pread64),      CALL(pwrite64), CALL(ftruncate), CALL(fallocate),         CALL(fsync),
    CALL(fdatasync),    CALL(recvmsg),  CALL(recvfrom),  CALL(sched_setaffinity), CALL(membarrier),
    CALL(memfd_create),
};

static const int serve[] = {
    CALL(recvmsg),      CALL(recvfrom),          CALL(sendto),
    CALL(epoll_ctl),    CALL(epoll_wait),        CALL(epoll_pwait),
    CALL(memfd_create), CALL(ftruncate),         CALL(eventfd2),
    CALL(membarrier),   CALL(sched_setaffinity), CALL(set_mempolicy),
    CALL(mbind),        CALL(shutdown),
};

// What drivers do after their device was opened: compile, which makes memory executable; look for
// and keep compiled shaders in their cache; open their device's node anew. Which files these are,
// files.c decides.
static const int driver[] = {
    CALL(mmap),
    CALL(mprotect),
    CALL(openat),
    CALL(access),
    CALL(faccessat),
    CALL(faccessat2),
    CALL(stat),
    CALL(lstat),
    CALL(statx),
    CALL(readlink),
    CALL(readlinkat),
    CALL(getdents64),
    CALL(statfs),
    CALL(fstatfs),
    CALL(pread64),
    CALL(pwrite64),
    CALL(fallocate),
    CALL(flock),
    CALL(mkdir),
    CALL(mkdirat),
    CALL(rename),
    CALL(unlink),
    CALL(unlinkat),
    CALL(uname),
    CALL(getuid),
    CALL(geteuid),
    CALL(getgid),
    CALL(getegid),
    CALL(pipe2),
    CALL(mlock),
    CALL(munlock),
    CALL(timerfd_create),
    CALL(timerfd_settime),
    CALL(epoll_create1),
    CALL(dup),
    CALL(getcwd),
    CALL(mincore),
    CALL(get_mempolicy),
    CALL(gettimeofday),
    CALL(time),
    CALL(clock_getres),
    CALL(sched_getscheduler),
    CALL(sched_getparam),
    CALL(sched_get_priority_min),
    CALL(sched_get_priority_max),
};

// Kinds of ioctl that devices which compute have, by their second byte: DRM, NVIDIA, fences,
// buffers that are shared. NVIDIA's unified memory has plain small numbers. A terminal's are not
// here.
static const unsigned ioctls[] = {'d', 'F', '>', 'b'};
static const unsigned uvm_ioctls[] = {0, 0x30000000};

enum { THREADS = 1, DRIVER = 2 };
struct profile {
    const int *calls;
    size_t n;
    unsigned may; // start threads, have a driver
    uint64_t max_fds;
};
static const struct profile profiles[] = {
    [NB_SANDBOX_LOAD] = {load, sizeof(load) / sizeof(load[0]), 0, 16},
    [NB_SANDBOX_JOB] = {job, sizeof(job) / sizeof(job[0]), THREADS, 16},
    [NB_SANDBOX_JOB_VULKAN] = {job, sizeof(job) / sizeof(job[0]), THREADS | DRIVER, 4096},
    // A channel has two fds while it is mapped, one after.
    [NB_SANDBOX_SERVE] = {serve, sizeof(serve) / sizeof(serve[0]), THREADS, 512},
    // Drivers hold an fd for each of their memory's objects.
    [NB_SANDBOX_SERVE_VULKAN] = {serve, sizeof(serve) / sizeof(serve[0]), THREADS | DRIVER, 4096},
};

static int allow(scmp_filter_ctx ctx, const int *calls, size_t n)
{
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, calls[i], 0);
    return rc;
}

static int allow_if(scmp_filter_ctx ctx, int call, struct scmp_arg_cmp arg)
{
    return seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, call, 1, &arg);
}

// Calls by one of their arguments. Memory that can be written is never executed; a clone is a
// thread, never a process; signals and limits are the process's own, for the broker and the other
// workers run as the same user. F_SETOWN and O_ASYNC, which send signals too, are no fcntl of ours.
static int allow_checked(scmp_filter_ctx ctx, unsigned may)
{
    static const int fcntls[] = {F_DUPFD_CLOEXEC, F_GETFD,     F_SETFD,
                                 F_GETFL,         F_ADD_SEALS, F_GET_SEALS};
    const struct {
        int call;
        struct scmp_arg_cmp arg;
        unsigned needs, lacks; // of `may`
    } rules[] = {
        {CALL(mmap), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0), 0, DRIVER},
        {CALL(mprotect), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0), 0, DRIVER},
        {CALL(prctl), SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME, 0), 0, 0},
        {CALL(tgkill), SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid(), 0), 0, 0},
        {CALL(prlimit64), SCMP_A0(SCMP_CMP_EQ, 0, 0), 0, 0},
        {CALL(clone), SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD), THREADS, 0},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]) && rc == 0; i++)
        if ((may & rules[i].needs) == rules[i].needs && !(may & rules[i].lacks))
            rc = allow_if(ctx, rules[i].call, rules[i].arg);
    for (size_t i = 0; i < sizeof(fcntls) / sizeof(fcntls[0]) && rc == 0; i++)
        rc = allow_if(ctx, CALL(fcntl), SCMP_A1(SCMP_CMP_EQ, (scmp_datum_t)fcntls[i], 0));
    // clone3 hides its flags in memory: libc takes ENOSYS as the sign to use clone.
    if (rc == 0)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    return rc;
}

// A driver's descriptors may be made not to block, but not to send signals.
static int allow_driver(scmp_filter_ctx ctx)
{
    static const int fcntls[] = {F_DUPFD, F_SETLK, F_OFD_SETLK};
    int rc = allow(ctx, driver, sizeof(driver) / sizeof(driver[0]));
    for (size_t i = 0; i < sizeof(fcntls) / sizeof(fcntls[0]) && rc == 0; i++)
        rc = allow_if(ctx, CALL(fcntl), SCMP_A1(SCMP_CMP_EQ, (scmp_datum_t)fcntls[i], 0));
    if (rc == 0)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, CALL(fcntl), 2, SCMP_A1(SCMP_CMP_EQ, F_SETFL, 0),
                              SCMP_A2(SCMP_CMP_MASKED_EQ, O_ASYNC, 0));
    for (size_t i = 0; i < sizeof(ioctls) / sizeof(ioctls[0]) && rc == 0; i++)
        rc = allow_if(ctx, CALL(ioctl),
                      SCMP_A1(SCMP_CMP_MASKED_EQ, 0xff00, (scmp_datum_t)ioctls[i] << 8));
    for (size_t i = 0; i < sizeof(uvm_ioctls) / sizeof(uvm_ioctls[0]) && rc == 0; i++)
        rc = allow_if(ctx, CALL(ioctl), SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffff00, uvm_ioctls[i]));
    return rc;
}

static int filter(const struct profile *p)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!ctx)
        return -ENOMEM;
    int rc = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
    if (rc == 0)
        rc = allow(ctx, any_mode, sizeof(any_mode) / sizeof(any_mode[0]));
    if (rc == 0)
        rc = allow(ctx, p->calls, p->n);
    if (rc == 0)
        rc = allow_checked(ctx, p->may);
    if (rc == 0 && p->may & DRIVER)
        rc = allow_driver(ctx);
    if (rc == 0)
        rc = seccomp_load(ctx);
    seccomp_release(ctx);
    return rc;
}

static int limit(int what, uint64_t value)
{
    const struct rlimit l = {.rlim_cur = value, .rlim_max = value};
    return setrlimit(what, &l) < 0 ? -errno : 0;
}

// As many as the profile has, or all that there are where that is less.
static int limit_fds(uint64_t most)
{
    struct rlimit have;
    if (getrlimit(RLIMIT_NOFILE, &have) < 0)
        return -errno;
    return limit(RLIMIT_NOFILE, most < have.rlim_max ? most : have.rlim_max);
}

int nb_sandbox_enter(enum nb_sandbox profile)
{
    const struct profile *p = &profiles[profile];
    int rc = limit(RLIMIT_CORE, 0);
    if (rc == 0)
        rc = limit_fds(p->max_fds);
    if (rc == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        rc = -errno;
    // The sanitizers' run time traces its own process and opens files of its own.
    if (rc < 0 || NB_SANITIZED)
        return rc;
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return -errno;
    return filter(p);
}
