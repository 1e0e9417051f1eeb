// What /dev and /sys say of devices, without opening one.
#pragma once

#include "daemon/link.h"
#include "engine/device.h"

// Fills the DRM node and its number in; leaves them empty where there is none.
void nb_node_of_gpu(const struct nb_device_info *info, struct nb_link_device *ret);
// The neural processors below `sys` ("/sys"), one call each.
void nb_npu_list(const char *sys, void (*found)(const struct nb_link_device *device));
