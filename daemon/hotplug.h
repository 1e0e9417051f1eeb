// Devices that come and go. Without udev nothing is noticed, which is said once; a reload of the
// settings looks again in any case.
#pragma once

#include <sys/types.h>

struct nb_broker;

void nb_hotplug_start(struct nb_broker *broker);
void nb_hotplug_stop(struct nb_broker *broker);
// A device's node with that number has come or was removed.
void nb_hotplug_event(struct nb_broker *broker, int removed, dev_t number);
