// Reads all that an opened model offers, so that a sanitizer sees what lies outside.
#pragma once

#include "tensor/image.h"

void walk_gguf(const struct nb_gguf *g);
void walk_image(const struct nb_image *img);
