// The files of a model that is to be loaded: handed over one by one on a connection, until its next
// LOAD takes them.
#pragma once

#include <stdint.h>
#include <time.h>

#include "daemon/client.h"
#include "daemon/ledger.h"
#include "daemon/lists.h"
#include "libclient/wire.h"

struct nb_file_id { // what tells one from another
    char name[NB_WIRE_FILE_NAME];
    uint64_t device, inode, size;
    struct timespec modified, changed;
};

struct nb_file {
    TAILQ_ENTRY(nb_file) entry;
    struct nb_file_id id;
    int fd;
    struct nb_charge charge; // for the fd
};

NB_HANDLER(nb_on_file);

uint32_t nb_files_count(const struct nb_files *files);
// Their identities, malloc'ed; NULL without memory.
struct nb_file_id *nb_files_identify(const struct nb_files *files);
bool nb_files_are_same(const struct nb_file_id *a, const struct nb_file_id *b, uint32_t n);
// Lets go of them: what they lie on may have gone away.
void nb_files_drop(struct nb_broker *broker, struct nb_files *files);
