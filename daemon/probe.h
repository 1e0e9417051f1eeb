// The probe: a worker that lists the devices and ends.
#pragma once

#include "daemon/lists.h"

void nb_probe(struct nb_broker *broker);       // lists the devices, then starts to listen
void nb_probe_later(struct nb_broker *broker); // again, once what comes has settled
