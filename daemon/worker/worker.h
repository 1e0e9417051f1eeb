// What the modes of nibble-worker share: the mode table's functions, the link, the devices. A mode
// owns the process: it returns the exit status.
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/link.h"
#include "engine/device.h"

int nb_probe_run(char **args);
int nb_load_run(char **args);
int nb_serve_run(char **args);

// One line to stderr, the daemon's log. Never a user's text.
void nb_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
// One packet to the broker, waiting while the link is full. The broker's end of the link being gone
// is the end of a worker: the caller's next look at the link tells it, so there is no return value.
void nb_link_send(void *packet, uint32_t type, uint32_t size);
// The status that a user can act on for a failure of tensor/ or engine/.
int nb_link_status(int error);

uint64_t nb_now_ns(void); // CLOCK_MONOTONIC

// device.c: a device of the engine as the broker lists it.
void nb_worker_device_describe(const struct nb_device_info *info, struct nb_link_device *ret);
