// The drivers' cache of compiled shaders is optional: a full disk below it must end no worker.
#pragma once

// To be called once, before a driver is loaded: secures the cache, or switches it off for this
// process and says so. Blocks on the disk.
void nb_cache_guard(void);
