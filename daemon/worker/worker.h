// What the modes of nibble-worker share: the mode table's functions, the link, the devices. A mode
// owns the process: it returns the exit status.
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/link.h"
#include "engine/device.h"
#include "machine/clock.h"

int nb_probe_run(char **args);
int nb_load_run(char **args);
int nb_serve_run(char **args);
int nb_jobs_run(char **args);

// One line to stderr, the daemon's log. Never a user's text.
void nb_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
// One packet to the broker, waiting while the link is full. The broker's end of the link being gone
// is the end of a worker: the caller's next look at the link tells it, so there is no return value.
void nb_link_send(void *packet, uint32_t type, uint32_t size);
void nb_link_send_fd(void *packet, uint32_t type, uint32_t size, int fd); // borrowed
// The next packet of exactly that type and size, which is waited for. 0 or -EPROTO.
int nb_link_receive(void *ret_packet, uint32_t type, uint32_t size);
// Tells the broker why this process cannot work. It ends itself then.
void nb_link_fault(int status, const char *why);
// The status that a user can act on for a failure of tensor/ or engine/.
int nb_link_status(int error);

// cache.c: the device cache, of NB_CACHE_MAX at most. An empty one is NULL and 0.
int nb_cache_read(void **ret, size_t *ret_bytes);
void nb_cache_send(struct nb_device *device); // when there is something new

// device.c: a device of the engine as the broker lists it.
void nb_worker_device_describe(const struct nb_device_info *info, struct nb_link_device *ret);
// What drivers may open and keep from now on (files.c, cache_guard.h); before the first one comes.
void nb_worker_limit_drivers(void);
