// Closes strangers' descriptors where nobody waits. The last close of one blocks as long as its
// owner chose: a TCP socket with SO_LINGER and unsent data, a file whose FUSE server does not
// answer, a terminal that drains. So each has a thread of its own, and none waits behind another.
// How many there may be, whoever adds them has to bound.
#pragma once

#include <pthread.h>
#include <sys/queue.h>

struct nb_closing { // a part of what its owner wants to know again
    STAILQ_ENTRY(nb_closing) entry;
    struct nb_closer *closer;
    int fd;
};

struct nb_closer {
    pthread_mutex_t lock;
    STAILQ_HEAD(, nb_closing) waiting, closed; // waiting: for a thread that could not be started
    int event;                                 // readable when something was closed
};

// For as long as the process lives: a thread may outlast everything else.
int nb_closer_init(struct nb_closer *closer);
// Takes the fd. `job` belongs to the closer until nb_closer_next returns it.
void nb_closer_add(struct nb_closer *closer, struct nb_closing *job, int fd);
// What was closed since; NULL: nothing more.
struct nb_closing *nb_closer_next(struct nb_closer *closer);
