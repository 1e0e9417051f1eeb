// The CPU device's threads: a team that runs one function together, with barriers inside it and
// work shared out by a static split whose tail may be stolen. Who computes a unit never changes its
// result.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct nb_team;

// The caller is thread 0 of the team.
int nb_team_create(uint32_t threads, struct nb_team **ret);
void nb_team_destroy(struct nb_team *team);
uint32_t nb_team_size(const struct nb_team *team);

// Runs fn(arg, thread) on every thread; returns when all have. Not reentrant.
void nb_team_run(struct nb_team *team, void (*fn)(void *arg, uint32_t thread), void *arg);
// Inside fn: waits for all the others. What was written before it is seen after it.
void nb_team_barrier(struct nb_team *team);

// A piece of work of `units`, shared by all threads between two barriers. Each thread fills one
// with the same numbers.
struct nb_share {
    uint64_t id;    // distinct for each piece of work of a team's life
    uint32_t units; // below 2^24
    uint32_t most;  // units that may be taken at once
};

// Takes [*first, *first + return) for `thread`: half of what is left of its own part (so that the
// tail comes in small pieces), and then of others'. 0: all is taken.
uint32_t nb_team_take(struct nb_team *team, uint32_t thread, const struct nb_share *share,
                      uint32_t *first);
