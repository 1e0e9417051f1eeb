// The check's models: the shapes of public ones, with random weights of a type; and the packed
// images that the parts open.
#pragma once

#include <stdint.h>

#include "engine/engine.h"
#include "tests/support/model_file.h"
#include "tests/support/random_model.h"

// Makes the file (GGUF, or its packed image by the name's end) of "SHAPE:TYPE", unless it is there.
// Ends the program where it cannot, as skipped where the machine has no room.
void gpu_model_make(const char *what, const char *path);
// An image's fd: of the file, or of a small random model of a type in a memfd. End the program
// where there is none.
int gpu_image(const char *path);
int gpu_image_random(int type);
int gpu_image_of(const struct random_model *model);
// Opens it on the device; ends the program where that fails.
void gpu_model_open(int image, const char *device, const struct nb_device_options *how,
                    const struct nb_model_options *options, struct test_model *ret);
