// The worker's sandbox profiles, each entered by a child process that then tries what they are
// there to refuse, and what the engine needs.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
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

static const enum nb_sandbox profiles[] = {NB_SANDBOX_LOAD, NB_SANDBOX_SERVE};

static void what_a_mode_has_no_use_for_is_refused(void **state)
{
    static int (*const attempts[])(void) = {
        try_socket, try_open,          try_exec,   try_fork,   try_kill, try_tgkill,
        try_owner,  try_owners_signal, try_limits, try_ptrace, try_code, try_becoming_dumpable,
    };
    for (size_t p = 0; p < 2; p++)
        for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++)
            assert_int_equal(in_sandbox(profiles[p], attempts[i]), EPERM);
}

static void memory_and_the_engines_threads_work(void **state)
{
    for (size_t p = 0; p < 2; p++) {
        assert_int_equal(in_sandbox(profiles[p], use_memory), 0);
        assert_int_equal(in_sandbox(profiles[p], signal_itself), 0);
    }
    assert_int_equal(in_sandbox(NB_SANDBOX_SERVE, start_thread), 0);
    assert_int_equal(in_sandbox(NB_SANDBOX_LOAD, start_thread), EPERM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_mode_has_no_use_for_is_refused),
        cmocka_unit_test(memory_and_the_engines_threads_work),
    };
    if (NB_SANITIZED)
        return 77; // meson's mark of a skipped test: there is no filter in such a build
    return cmocka_run_group_tests_name("worker sandbox", tests, NULL, NULL);
}
