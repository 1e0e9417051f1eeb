// The worker's sandbox profiles, each entered by a child process that then tries what they are
// there to refuse, and what the engine needs.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "daemon/worker/sandbox.h"
#include "daemon/worker/worker_config.h"

// Runs `attempt` in a child inside the profile; returns its errno, 0 for success.
static int in_sandbox(enum nb_sandbox profile, int (*attempt)(void))
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (nb_sandbox_enter(profile) < 0)
            _exit(255);
        errno = 0;
        _exit(attempt() < 0 ? errno : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int try_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM, 0);
}

static int try_open(void)
{
    return open("/etc/passwd", O_RDONLY | O_CLOEXEC);
}

static int try_exec(void)
{
    return execl("/bin/true", "true", (char *)NULL);
}

static int try_fork(void)
{
    return fork();
}

static int try_kill(void)
{
    return kill(getppid(), 0);
}

// The other ways to reach a process of the same user: the broker, another worker.
static int try_tgkill(void)
{
    return (int)syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static int try_owner(void)
{
    return fcntl(0, F_SETOWN, getppid());
}

static int try_owners_signal(void)
{
    return fcntl(0, F_SETSIG, SIGKILL);
}

static int try_signals_of_a_file(void)
{
    return fcntl(0, F_SETFL, O_ASYNC);
}

static int try_not_to_block(void)
{
    return fcntl(0, F_SETFL, O_NONBLOCK);
}

static int try_limits(void)
{
    struct rlimit limit;
    return prlimit(getppid(), RLIMIT_CORE, NULL, &limit);
}

static int signal_itself(void)
{
    return raise(SIGURG);
}

static int try_ptrace(void)
{
    return (int)ptrace(PTRACE_TRACEME, 0, 0, 0);
}

static int try_code(void)
{
    void *p =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? -1 : 0;
}

static int try_becoming_dumpable(void)
{
    return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static void *in_thread(void *unused)
{
    free(malloc(1u << 20));
    return unused;
}

static int start_thread(void)
{
    pthread_t t;
    errno = pthread_create(&t, NULL, in_thread, NULL);
    return errno ? -1 : pthread_join(t, NULL);
}

static int use_memory(void)
{
    for (size_t size = 16; size <= 64u << 20; size *= 2) {
        char *p = malloc(size);
        if (!p)
            return -1;
        p[size - 1] = 1;
        free(p);
    }
    return 0;
}

// Keys for whoever sits at the daemon's terminal.
static int try_typing(void)
{
    return ioctl(2, TIOCSTI, "x");
}

static const enum nb_sandbox profiles[] = {NB_SANDBOX_LOAD, NB_SANDBOX_JOB, NB_SANDBOX_JOB_VULKAN,
                                           NB_SANDBOX_SERVE, NB_SANDBOX_SERVE_VULKAN};

static void what_a_mode_has_no_use_for_is_refused(void **state)
{
    static int (*const attempts[])(void) = {
        try_socket, try_exec,          try_fork,
        try_kill,   try_tgkill,        try_owner,
        try_typing, try_owners_signal, try_signals_of_a_file,
        try_limits, try_ptrace,        try_becoming_dumpable,
    };
    for (size_t p = 0; p < 3; p++)
        for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++)
            assert_int_equal(in_sandbox(profiles[p], attempts[i]), EPERM);
}

// What a driver does after its device was opened, and no other mode may.
static void only_a_driver_compiles_and_opens(void **state)
{
    static int (*const attempts[])(void) = {try_code, try_open, try_not_to_block};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(in_sandbox(NB_SANDBOX_LOAD, attempts[i]), EPERM);
        assert_int_equal(in_sandbox(NB_SANDBOX_JOB, attempts[i]), EPERM);
        assert_int_equal(in_sandbox(NB_SANDBOX_SERVE, attempts[i]), EPERM);
        assert_int_equal(in_sandbox(NB_SANDBOX_SERVE_VULKAN, attempts[i]), 0);
        assert_int_equal(in_sandbox(NB_SANDBOX_JOB_VULKAN, attempts[i]), 0);
    }
}

static void memory_and_the_engines_threads_work(void **state)
{
    for (size_t p = 0; p < 3; p++) {
        assert_int_equal(in_sandbox(profiles[p], use_memory), 0);
        assert_int_equal(in_sandbox(profiles[p], signal_itself), 0);
    }
    assert_int_equal(in_sandbox(NB_SANDBOX_JOB, start_thread), 0);
    assert_int_equal(in_sandbox(NB_SANDBOX_SERVE, start_thread), 0);
    assert_int_equal(in_sandbox(NB_SANDBOX_SERVE_VULKAN, start_thread), 0);
    assert_int_equal(in_sandbox(NB_SANDBOX_JOB_VULKAN, start_thread), 0);
    assert_int_equal(in_sandbox(NB_SANDBOX_LOAD, start_thread), EPERM);
}

// --- Files: a folder that stands for the driver's cache, and one beside it for everything else.

static char folder[] = "/tmp/nibble-sandbox-XXXXXX", cache[64], other[64];

static int touch(const char *dir, const char *name)
{
    char path[96];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return fd < 0 ? -1 : close(fd);
}

static int keep_a_shader(void)
{
    char from[96], to[96];
    snprintf(from, sizeof(from), "%s/shader.tmp", cache);
    snprintf(to, sizeof(to), "%s/shader", cache);
    return touch(cache, "shader.tmp") < 0 || rename(from, to) < 0 || unlink(to) < 0 ? -1 : 0;
}

static int write_elsewhere(void)
{
    return touch(other, "new");
}

static int read_elsewhere(void)
{
    return openat(AT_FDCWD, other, O_RDONLY | O_CLOEXEC);
}

static int remove_elsewhere(void)
{
    char path[96];
    snprintf(path, sizeof(path), "%s/there", other);
    return unlink(path);
}

static int look_at_the_parent(void)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/environ", getppid());
    return open(path, O_RDONLY | O_CLOEXEC);
}

static int look_at_itself(void)
{
    return open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
}

static int write_settings(void)
{
    return open("/etc/passwd", O_WRONLY | O_CLOEXEC);
}

static int with_files_limited(int (*attempt)(void))
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        setenv("MESA_SHADER_CACHE_DIR", cache, 1);
        int rc = nb_sandbox_files();
        _exit(rc < 0          ? (rc == -ENOSYS || rc == -EOPNOTSUPP ? 254 : 255)
              : attempt() < 0 ? errno
                              : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void a_driver_opens_what_drivers_need(void **state)
{
    static const struct {
        int (*attempt)(void);
        int expected;
    } cases[] = {
        {try_open, 0},
        {look_at_itself, 0},
        {keep_a_shader, 0},
        {read_elsewhere, EACCES},
        {write_elsewhere, EACCES},
        {remove_elsewhere, EACCES},
        {look_at_the_parent, EACCES},
        {write_settings, EACCES},
        {try_exec, EACCES},
    };
    assert_non_null(mkdtemp(folder));
    snprintf(cache, sizeof(cache), "%s/cache", folder);
    snprintf(other, sizeof(other), "%s/other", folder);
    assert_int_equal(mkdir(cache, 0700) | mkdir(other, 0700) | touch(other, "there"), 0);
    bool has_landlock = with_files_limited(try_open) != 254;
    for (size_t i = 0; has_landlock && i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(with_files_limited(cases[i].attempt), cases[i].expected);
    assert_int_equal(remove_elsewhere() | rmdir(cache) | rmdir(other) | rmdir(folder), 0);
    if (!has_landlock)
        skip();
}

// A /dev of the child's own, with plain files for the nodes of GPUs that are not here.
static const char *const nodes[] = {"dri/renderD128", "nvidiactl", "nvidia0", "nvidia-uvm",
                                    "nvidia-caps/nvidia-cap2"};
#define UNKNOWN_NODE "mem"
#define NO_NAMESPACE 254

static int have_nodes(void)
{
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", "/dev", "tmpfs", 0, NULL) < 0)
        return NO_NAMESPACE;
    int rc = mkdir("/dev/dri", 0700) | mkdir("/dev/nvidia-caps", 0700);
    for (size_t i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++)
        rc |= touch("/dev", nodes[i]);
    return rc | touch("/dev", UNKNOWN_NODE);
}

// How many of them do not open; -1 where one opens that must not.
static int open_nodes(void)
{
    int missing = 0;
    for (size_t i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++)
        if (touch("/dev", nodes[i]) < 0)
            fprintf(stderr, "/dev/%s: %s\n", nodes[i], strerror(errno)), missing++;
    return touch("/dev", UNKNOWN_NODE) == 0 ? -1 : missing;
}

static void every_vendors_nodes_open(void **state)
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int rc = have_nodes();
        if (rc == 0 && nb_sandbox_files() < 0)
            rc = NO_NAMESPACE; // no Landlock either
        _exit(rc ? rc : open_nodes());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == NO_NAMESPACE)
        skip(); // not root, or a kernel without Landlock
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_mode_has_no_use_for_is_refused),
        cmocka_unit_test(only_a_driver_compiles_and_opens),
        cmocka_unit_test(memory_and_the_engines_threads_work),
        cmocka_unit_test(a_driver_opens_what_drivers_need),
        cmocka_unit_test(every_vendors_nodes_open),
    };
    if (NB_SANITIZED)
        return 77; // meson's mark of a skipped test: there is no filter in such a build
    return cmocka_run_group_tests_name("worker sandbox", tests, NULL, NULL);
}
