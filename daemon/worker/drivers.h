// The Vulkan drivers of this machine as the loader finds them: by manifests, small JSON files that
// name a library. Loads no driver.
#pragma once

#include <stddef.h>

#define NB_DRIVERS_MAX 32

enum nb_driver_state {
    NB_DRIVER_SOUND,   // as far as is known
    NB_DRIVER_BROKEN,  // its manifest is, or names no library that is there
    NB_DRIVER_CRASHES, // or hangs, when it is asked for its devices
    NB_DRIVER_IDLE,    // it has no device on this machine
};

struct nb_driver {
    char manifest[256];
    const char *named_by; // the variable that names it; NULL: it lies where drivers are installed
    enum nb_driver_state state;
    char fault[176]; // why it brings no device; "": it is sound
};

// Those that the loader would load in this environment, in its order, sound or broken as their
// manifests show; at most NB_DRIVERS_MAX. Returns how many.
size_t nb_drivers_find(struct nb_driver ret[NB_DRIVERS_MAX]);
