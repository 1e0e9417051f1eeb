// Memory that clients register for their channels.
#pragma once

#include <stdint.h>

#include "daemon/client.h"
#include "daemon/link.h"
#include "daemon/lists.h"

int nb_regions_send(struct nb_channel *channel);     // all of them, to the device's worker
void nb_regions_destroy(struct nb_channel *channel); // with the channel; tells no worker
// The worker has dropped one, or, with 0, all of a channel; or everything, as it is gone.
void nb_regions_dropped(struct nb_worker *worker, uint64_t channel, uint32_t region);
void nb_regions_gone(struct nb_worker *worker);
// The worker has mapped one, or not.
void nb_region_ready(struct nb_channel *channel, const struct nb_link_memory *message);

NB_HANDLER(nb_on_register);
NB_HANDLER(nb_on_unregister);
