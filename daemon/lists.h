// The broker's things, by name, and the lists they stand in. A header that only points at another's
// thing includes this one instead of the other.
#pragma once

#include <sys/queue.h>

struct nb_arena;
struct nb_broker;
struct nb_channel;
struct nb_client;
struct nb_device;
struct nb_file;
struct nb_held;
struct nb_stored_image;
struct nb_load;
struct nb_model;
struct nb_refusal;
struct nb_region;
struct nb_service_job;
struct nb_worker;
TAILQ_HEAD(nb_arenas, nb_arena);
TAILQ_HEAD(nb_channels, nb_channel);
TAILQ_HEAD(nb_clients, nb_client);
TAILQ_HEAD(nb_devices, nb_device);
TAILQ_HEAD(nb_files, nb_file);
TAILQ_HEAD(nb_loads, nb_load);
TAILQ_HEAD(nb_models, nb_model);
TAILQ_HEAD(nb_regions, nb_region);
TAILQ_HEAD(nb_service_jobs, nb_service_job);
TAILQ_HEAD(nb_workers, nb_worker);
STAILQ_HEAD(nb_held_list, nb_held);
STAILQ_HEAD(nb_stored_images, nb_stored_image);
