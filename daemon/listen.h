// The two sockets that clients connect to.
#pragma once

#include <stdint.h>
#include <systemd/sd-event.h>

#include "daemon/lists.h"

struct nb_listener {
    int fd;
    uint32_t role;
    sd_event_source *io, *pause;
    struct nb_broker *broker;
    char *path; // to unlink; NULL when systemd made the socket
};

int nb_listen(struct nb_broker *broker);       // systemd's sockets, or our own in the runtime dir
int nb_listen_start(struct nb_broker *broker); // from now on connections are accepted
void nb_listen_stop(struct nb_broker *broker);
