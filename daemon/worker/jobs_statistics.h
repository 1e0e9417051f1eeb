// What calibration has measured of a model, kept for the next job of the same files: the daemon's
// state directory has a file of it for each list of files (their identities, not their bytes), the
// last 16. A cache: what it lacks is measured, and nothing of it is ever an error.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define NB_JOBS_STATISTICS_KEY 16

// The file for this list; it goes before the sandbox, within which nothing is opened. A descriptor,
// or -1: there is none.
int nb_jobs_statistics_open(const char *list, size_t len);
// What was kept under the key, malloc'ed; or -ENOENT.
int nb_jobs_statistics_read(int fd, const uint8_t key[NB_JOBS_STATISTICS_KEY], void **ret,
                            size_t *ret_len);
void nb_jobs_statistics_write(int fd, const uint8_t key[NB_JOBS_STATISTICS_KEY], const void *data,
                              size_t len);
