// Images that systemd holds over a restart of the broker.
#pragma once

#include "daemon/lists.h"

void nb_store_put(const struct nb_model *model);
void nb_store_drop(const struct nb_model *model);
// 1: the fd is a stored image, and was taken.
int nb_store_take(struct nb_broker *broker, int fd, const char *name);
// Serves what was taken, once the devices are known.
void nb_store_restore(struct nb_broker *broker);
