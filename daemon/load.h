// Loads: one at a time, the others wait.
#pragma once

#include "daemon/client.h"
#include "daemon/lists.h"

int nb_load_init(struct nb_broker *broker);
// Replies and frees; a load that failed takes its model along. The next one starts from the loop.
void nb_load_settle(struct nb_load *load, int status, const struct nb_refusal *refusal);
void nb_load_drop_client(struct nb_client *client); // cancels what it asked for
void nb_load_stop(struct nb_broker *broker);        // all of them

NB_HANDLER(nb_on_load);
NB_HANDLER(nb_on_cancel_load);
