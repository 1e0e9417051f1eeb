// What tests and benchmarks of the engine begin with: a model file packed into a memfd and opened
// on a device.
#pragma once

#include "engine/engine.h"
#include "tensor/fail.h"

struct test_model {
    struct nb_device *device;
    struct nb_model *model;
    char made[160]; // how the device was made; empty for one that cannot wait for another model
};

// The device that models are opened on from now on: a name as nb_device_create takes it, and after
// a colon a Vulkan device's tier; "cpu" at first.
void test_device(const char *name);
// And how, but for the threads; NULL: as it is.
void test_device_options(const struct nb_device_options *options);
// NULL: NIBBLE_MODEL, or the packaged model in the cache (tools/fetch-model).
const char *test_model_path(const char *path);
// On failure the line in `ret_error` says why. test_model_close takes what it made; but a Vulkan
// device waits, with what its driver has compiled, for the next model that is opened alike, or
// until test_device_forget.
int test_model_open(const char *path, uint32_t threads, const struct nb_model_options *options,
                    struct test_model *ret, struct nb_error *ret_error);
int test_model_open_fd(int fd, uint32_t threads, const struct nb_model_options *options,
                       struct test_model *ret, struct nb_error *ret_error);
// A GGUF's image alone, for nb_image_unmap or what takes it.
int test_image_map(int fd, struct nb_image **ret, struct nb_error *ret_error);
void test_model_close(struct test_model *t);
void test_device_forget(void);

int test_precision(const char *name, enum nb_precision *ret); // -EINVAL
