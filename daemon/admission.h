// Who gets a connection.
#pragma once

#include <stdint.h>

#include "daemon/lists.h"

// Takes the fd. Who cannot have one is told why; negative: the daemon cannot take anybody.
int nb_client_accept(struct nb_broker *broker, int fd, uint32_t role);
uint64_t nb_hello_us(const struct nb_broker *broker); // so long a new one may be silent
