// Channels' memory, charged until nobody has it.
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "daemon/lists.h"

int nb_memfd(const char *name);                       // empty, sealable, not executable
int nb_memfd_sized(const char *name, uint64_t bytes); // of this size for ever
// A channel's memory and its charge; ret_fd is for the channel's two sides. `anyway`: over the
// user's limit, if need be.
int nb_arena_create(struct nb_broker *broker, uid_t uid, uint64_t bytes, int anyway,
                    struct nb_arena **ret, int *ret_fd, struct nb_refusal *refusal);
// The channel needs it no more. It stays charged until nobody has it; `empty`: its content is of no
// use to anybody either, so its pages are freed now. NULL is fine.
void nb_arena_leave(struct nb_arena *arena, int empty);
void nb_arenas_finish(struct nb_broker *broker);
