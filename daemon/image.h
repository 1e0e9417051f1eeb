// Sealed images: one for the same files, whatever number of models it serves.
#pragma once

#include <stdint.h>

#include "daemon/lists.h"

const struct nb_model *nb_image_of(const struct nb_model *model); // another one with its image
uint64_t nb_images_bytes(const struct nb_broker *broker);         // each counted once
