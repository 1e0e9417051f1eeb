// What a job has finished, on disk, for the next process that goes on with it: an append-only list
// of records, each with a hash over itself and all before it. A process may be killed, and a
// machine may stop, at any instant: what is torn at the end is dropped, and so is a record whose
// results are not there. It knows nothing of what its records mean.
#pragma once

#include <stdint.h>

#include "tensor/fail.h"

#define NB_JOURNAL_KEY  16                   // bytes of a key
#define NB_JOURNAL_BLOB (UINT32_C(64) << 20) // bytes of a record's data at most

struct nb_journal;

// One record, in order. 0: its results are as it says. 1: they are not; it is dropped, with all
// behind it. A negative errno ends the opening.
typedef int (*nb_journal_visit)(void *user, uint32_t kind, const void *data, uint32_t bytes);

// Opens the journal that `fd` (for reading and writing, borrowed) has, or begins one, and tells
// what is in it. `key` names the work: recipe, source and method. -ESTALE: the journal is of other
// work.
int nb_journal_open(int fd, const uint8_t key[NB_JOURNAL_KEY], nb_journal_visit visit, void *user,
                    struct nb_journal **ret, struct nb_error *ret_error);
void nb_journal_close(struct nb_journal *journal); // NULL is fine

// Appends a record: of this process's death it is safe at once, of the machine's after
// nb_journal_sync. -errno of the write; the journal ends before the record then.
int nb_journal_append(struct nb_journal *journal, uint32_t kind, const void *data, uint32_t bytes);
// Makes everything durable: first the results in the n `fds`, then the records that tell of them.
int nb_journal_sync(struct nb_journal *journal, const int *fds, uint32_t n);
// Both, one after the other; -errno with its line.
int nb_journal_keep(struct nb_journal *journal, uint32_t kind, const void *data, uint32_t bytes,
                    const int *fds, uint32_t n, struct nb_error *ret_error);

// The hash of what lies at n places of a file, for records that tell of it. It equals
// XXH3_64bits(), of all bytes one behind the other. -EIO: the file ends before; -errno.
struct nb_journal_place {
    uint64_t offset, bytes;
};
int nb_journal_hash(int fd, const struct nb_journal_place *places, uint32_t n, uint64_t *ret);
