// Device caches: what a device takes from one start of its worker to the next.
#pragma once

#include "daemon/lists.h"

void nb_cache_init(struct nb_broker *broker); // or says why there is none
void nb_cache_finish(struct nb_broker *broker);
int nb_cache_open(const struct nb_device *device); // an fd to read, perhaps of nothing
// From its worker; negative: it is not what a worker may send.
int nb_cache_save(struct nb_device *device, int fd);
