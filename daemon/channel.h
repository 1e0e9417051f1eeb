// A channel: one client's use of one model.
#pragma once

#include <stdint.h>

#include "daemon/client.h"
#include "daemon/ledger.h"
#include "daemon/lists.h"

#define NB_CHANNEL_FDS 2 // its memory and its socket

struct nb_channel {
    TAILQ_ENTRY(nb_channel) of_client, of_model;
    struct nb_client *client;
    struct nb_model *model;
    struct nb_charge charge;
    struct nb_arena *arena; // its memory; NULL before it was bound
    uint32_t id;            // on its connection
    uint64_t key;           // with workers
    uint64_t arena_bytes;
    uint64_t tokens_before; // by earlier incarnations of the worker
    struct nb_regions regions;
    uint32_t n_regions, last_region;
};
// New memory and sockets: to the device's worker, and the reply or event `type` to the client.
int nb_channel_bind(struct nb_channel *channel, uint32_t type, uint32_t serial,
                    struct nb_refusal *refusal);
void nb_channel_rebind(struct nb_channel *channel); // or tells the client that it is lost
// Tells the worker, not the client. `by_client`: it wanted so, and reads no more of what is there.
void nb_channel_destroy(struct nb_channel *channel, int by_client);
void nb_channel_lose(struct nb_channel *channel, int status, const char *text); // tells both
struct nb_channel *nb_channel_by_key(struct nb_device *device, uint64_t key);
struct nb_channel *nb_channel_of_client(struct nb_client *client, uint32_t id); // NULL: no such one

NB_HANDLER(nb_on_open_channel);
NB_HANDLER(nb_on_close_channel);
