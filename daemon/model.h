// A model: its weights, the device that serves it, and the channels to it.
#pragma once

#include <stdint.h>

#include "daemon/client.h"
#include "daemon/files.h"
#include "daemon/image.h"
#include "daemon/link.h"
#include "daemon/lists.h"

enum nb_model_state { NB_MODEL_LOADING, NB_MODEL_READY, NB_MODEL_RESTARTING, NB_MODEL_LOST };
struct nb_model {
    TAILQ_ENTRY(nb_model) of_broker, of_device;
    struct nb_broker *broker;
    struct nb_device *device;
    struct nb_channels channels;
    struct nb_load *load;    // that is making it, until it is ready
    struct nb_model *base;   // of an adapter or a drafter: what it goes with, on the same device
    struct nb_client *owner; // of a temporary one: it goes with this connection
    struct nibble_model info;
    struct nb_load_params params; // as its load said, settled
    uint32_t id;
    uint32_t n_channels;
    char fallback[32];        // the device that takes over, by the administrator's leave; "": none
    char why[216];            // it is lost
    int image_fd;             // sealed; -1 until packed
    uint64_t image_inode;     // of the sealed image: the same for all that share it; 0 until then
    struct nb_file_id *files; // that it was packed from; none: unknown
    uint32_t n_files;
    int force, zeros; // zeros to the file's end: may be loaded, were loaded
    enum nb_model_state state;
    int served; // the device's worker was told of it
};
int nb_model_create(struct nb_device *device, const struct nb_wire_load *request,
                    struct nb_model **ret);
void nb_model_destroy(struct nb_model *model); // its channels must be gone
// Seals its image, which must be of at most `max` bytes.
int nb_model_seal(struct nb_model *model, uint64_t max);
int nb_model_serve(struct nb_model *model); // starts the device's worker if need be, and tells it
void nb_model_ready(struct nb_model *model, const struct nb_link_model_ready *message);
void nb_model_lose(struct nb_model *model, const char *text);
void nb_model_restart(struct nb_model *model);        // its worker is gone, a new one will serve it
void nb_model_unload(struct nb_model *model);         // loses channels, tells the worker, destroys
void nb_models_drop_client(struct nb_client *client); // unloads its temporary ones
uint32_t nb_model_users(const struct nb_model *model); // channels to it and to its adapters
struct nb_model *nb_model_by_name(struct nb_broker *broker, const char *name);

NB_HANDLER(nb_on_unload);
