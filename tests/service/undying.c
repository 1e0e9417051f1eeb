// Loaded before nibbled's libraries (LD_PRELOAD), it makes workers that SIGKILL does not end, as
// one is that waits in a driver's system call: the call succeeds and nothing happens.
#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((visibility("default"))) int pidfd_send_signal(int pidfd, int sig, siginfo_t *info,
                                                             unsigned int flags);

int pidfd_send_signal(int pidfd, int sig, siginfo_t *info, unsigned int flags)
{
    return sig == SIGKILL ? 0 : (int)syscall(SYS_pidfd_send_signal, pidfd, sig, info, flags);
}
