// What `nibble status`, `models`, `devices` and the other listings show.
#pragma once

#include "daemon/client.h"

NB_HANDLER(nb_on_status);
NB_HANDLER(nb_on_list);
