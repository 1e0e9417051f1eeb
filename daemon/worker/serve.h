// The serving worker's state: models, channels, and the page it shares with the broker.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/closer.h"
#include "daemon/link.h"
#include "engine/engine.h"

struct nb_channel;

struct nb_worker_model {
    uint32_t id; // the broker's handle; 0: a free entry
    struct nb_model *model;
    struct nb_adapter *adapter;  // NULL: a model; else one of that model, for these channels
    struct nb_model *drafts_for; // NULL: not a drafter, which has no channels
    struct nb_page_model *page;
    uint32_t vocab, context, embedding;
    bool generates;            // else it only embeds
    bool drafts;               // generations may have some
    uint32_t longest_embedded; // tokens of a text
    uint32_t think_pairs;      // engine/text/think.h
};

struct nb_serve {
    struct nb_device *device;
    const char *device_name;
    struct nb_page *page;
    int epoll;
    struct nb_worker_model models[NB_WORKER_MODELS];
    struct nb_channel *channels[NB_WORKER_CHANNELS];
    uint32_t next_model;      // whose step is next
    uint64_t worked;          // when there was something to do at last, by nb_now_ns
    uint64_t prepare_at;      // when a model may be prepared further although there is
    uint32_t next_matrix_job; // of which channel a slice is next
    bool draining, ended;
    struct nb_closer closer; // of sockets with descriptors in them
};

struct nb_channel *nb_serve_channel(struct nb_serve *s, uint64_t key); // NULL: no such one

// The device is of no use any more: tells the broker why and leaves at once, for a driver's own way
// out may never end.
_Noreturn void nb_serve_fail(struct nb_serve *s, int error);
// The same, if that is what a failure outside of a step means.
void nb_serve_check(struct nb_serve *s, int error);

// model.c. The fd is borrowed. Answers MODEL_READY, whatever comes of it.
void nb_worker_model_add(struct nb_serve *s, const struct nb_link_model_add *add, int image_fd);
void nb_worker_model_remove(struct nb_serve *s, uint32_t id);
struct nb_worker_model *nb_worker_model_find(struct nb_serve *s, uint32_t id);
// One step of the model, its batch named in the page before and counted after. 1: something ran or
// can in the next one, 0: there is nothing to run, or negative: the device is lost.
int nb_worker_model_step(struct nb_serve *s, struct nb_worker_model *m);
// One piece of nb_model_prepare; the device cache goes to the broker after the last. Returns
// as that does.
int nb_worker_model_prepare(struct nb_serve *s, struct nb_worker_model *m);
