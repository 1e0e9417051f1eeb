// What `nibble doctor` shows of this machine, looked at by a process of the daemon: its user, its
// environment, its limits.
#pragma once

#include "daemon/worker/drivers.h"
#include "daemon/worker/enumerate.h"

// One FINDING after the other to the broker. Opens no device and loads no driver.
void nb_findings_send(const struct nb_driver *driver, size_t n, const struct nb_listed *listed);
