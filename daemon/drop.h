// Descriptors that strangers made, whose close may block: a thread closes them.
#pragma once

#include <sys/types.h>

#include "daemon/ledger.h"
#include "daemon/lists.h"

int nb_drop_init(struct nb_broker *broker);
// Takes the fd and the charge (NULL: none), which is released when the fd is closed.
void nb_drop(struct nb_broker *broker, int fd, struct nb_charge *charge);
void nb_drop_of_user(struct nb_broker *broker, uid_t uid, int fd); // charged to that user
// The same while a device's worker closes it, or until that worker's end.
void nb_held_add(struct nb_device *device, uid_t uid);
void nb_held_remove(struct nb_device *device, uid_t uid);
void nb_held_release(struct nb_device *device);            // all
int nb_is_slow(const struct nb_broker *broker, uid_t uid); // too many of its fds are being closed
