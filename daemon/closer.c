// A thread for each descriptor. Must not wait for any of them.
#include "daemon/closer.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define STACK_BYTES (256u << 10) // a sanitizer's share included

int nb_closer_init(struct nb_closer *closer)
{
    *closer = (struct nb_closer){.lock = PTHREAD_MUTEX_INITIALIZER};
    STAILQ_INIT(&closer->waiting);
    STAILQ_INIT(&closer->closed);
    closer->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return closer->event < 0 ? -errno : 0;
}

static void *run(void *user)
{
    struct nb_closing *job = user;
    struct nb_closer *closer = job->closer;
    const uint64_t one = 1;
    close(job->fd);
    pthread_mutex_lock(&closer->lock);
    STAILQ_INSERT_TAIL(&closer->closed, job, entry);
    pthread_mutex_unlock(&closer->lock);
    ssize_t written = write(closer->event, &one, sizeof(one));
    (void)written; // it fails when it is readable already
    return NULL;
}

// Signals are the business of whoever made the closer.
static int start(struct nb_closing *job)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    int rc = pthread_attr_init(&attr);
    if (rc)
        return rc;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    rc = pthread_create(&thread, &attr, run, job);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return rc;
}

static void start_waiting(struct nb_closer *closer)
{
    struct nb_closing *job;
    while ((job = STAILQ_FIRST(&closer->waiting))) {
        STAILQ_REMOVE_HEAD(&closer->waiting, entry); // before its thread may append it elsewhere
        if (start(job) == 0)
            continue;
        STAILQ_INSERT_HEAD(&closer->waiting, job, entry);
        return;
    }
}

void nb_closer_add(struct nb_closer *closer, struct nb_closing *job, int fd)
{
    job->closer = closer;
    job->fd = fd;
    STAILQ_INSERT_TAIL(&closer->waiting, job, entry);
    start_waiting(closer);
}

struct nb_closing *nb_closer_next(struct nb_closer *closer)
{
    struct nb_closing *job;
    uint64_t count;
    ssize_t n = read(closer->event, &count, sizeof(count));
    (void)n;
    pthread_mutex_lock(&closer->lock);
    job = STAILQ_FIRST(&closer->closed);
    if (job)
        STAILQ_REMOVE_HEAD(&closer->closed, entry);
    pthread_mutex_unlock(&closer->lock);
    if (job) // one thread has ended, so there is room for another
        start_waiting(closer);
    return job;
}
