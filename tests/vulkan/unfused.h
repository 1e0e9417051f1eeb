// Put before the scalar kernels, it makes a reference of another: one where fma rounds the product
// as well, as Vulkan allows a driver to, and lavapipe does.
#pragma once

#include <math.h>

#define fmaf(a, b, c)     ((a) * (b) + (c))
#define nb_kernels_scalar nb_kernels_unfused
