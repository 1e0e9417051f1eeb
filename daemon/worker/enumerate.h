// Which devices there are, asked in a process of its own for each try: drivers crash and hang.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "daemon/link.h"

#define NB_LISTED_MAX 40

struct nb_listed {
    struct nb_link_device device[NB_LISTED_MAX];
    size_t n;
    char why[128];   // it came to no end: "was killed by signal 6 (ABRT)"; "": it did
    char error[192]; // what a kind of device could not be listed for; "": nothing
};

// Lists in a child process: with the drivers of these manifests alone, or, with NULL, those that
// the loader finds. False where the child came to no end; what it had listed is in `ret` then, too.
// Blocks until the child has ended, for 10 s at most.
bool nb_list_devices(const char *manifests, struct nb_listed *ret);
// The Vulkan devices of a listing.
size_t nb_listed_vulkan(const struct nb_listed *listed);
