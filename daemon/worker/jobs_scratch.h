// The files in which a job keeps its state, in turns, so that one is whole at any instant: the
// journal says which. All return -errno.
#pragma once

#include "daemon/worker/jobs.h"

struct nb_jobs_scratch {
    const struct nb_work *work;
    int fd; // of the one under way
};

// Makes a file the one under way, from this byte on.
int nb_jobs_scratch_turn(struct nb_jobs_scratch *s, uint32_t file, uint64_t at);
// All of so many bytes, as nb_state_io (quant/state.h). Reading past the end: -EBADMSG.
int nb_jobs_scratch_write(void *scratch, void *data, size_t bytes);
int nb_jobs_scratch_read(void *scratch, void *data, size_t bytes);
// Empties them all. -errno with its line.
int nb_jobs_scratch_clear(const struct nb_work *work, struct nb_error *ret_error);
