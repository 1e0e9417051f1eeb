// Vectors of texts: the jobs of a channel that embed, and the lanes, a sequence each, on which
// their texts run beside one another. A job's texts are taken in order, the jobs' in theirs.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/worker/channel.h"

#define NB_EMBED_LANES 64 // of a channel

struct nb_embed; // what is left of a job's texts

void nb_embed_destroy(struct nb_embed *e); // NULL is fine; texts under way are given up
// How many of its texts are embedded, of how many.
void nb_embed_progress(const struct nb_embed *e, uint32_t *ret_done, uint32_t *ret_total);

// Before a step: gives idle lanes their next texts, and parks them all while the channel is held.
// True: some take part in the step.
bool nb_embed_admit(struct nb_channel *c, uint64_t now);
// Cancels the jobs whose vectors go to the region.
void nb_embed_forget(struct nb_channel *c, uint32_t region);
void nb_embed_close(struct nb_channel *c); // frees the lanes; no job is left

// The engine's events of a lane.
void nb_embed_vector(const struct nb_session *lane, const float *vector, uint32_t n);
void nb_embed_finished(struct nb_session *lane, int error);
