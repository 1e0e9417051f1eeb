// Which devices the probes have found.
#pragma once

#include <stdint.h>

#include "daemon/link.h"
#include "daemon/lists.h"

struct nb_device *nb_device_by_number(struct nb_broker *broker, uint64_t number);
int nb_device_found(struct nb_broker *broker, const struct nb_link_device *packet);
void nb_devices_missed(struct nb_broker *broker); // by the last probe, which came to its end
