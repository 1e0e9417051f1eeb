// What becomes of a model when its device ends.
#pragma once

#include <stdint.h>

#include "daemon/lists.h"

// Its device is given up: it goes to its fallback, or is lost with that text.
void nb_model_flee(struct nb_model *model, const char *why);
uint32_t nb_device_channels(const struct nb_device *device);
