// Huge pages for what every token reads whole: a packed model.
#pragma once

#include <stddef.h>

// Maps the first `bytes` of `fd`, read-only and private, where huge pages fit. NULL with errno.
const void *nb_pages_map(int fd, size_t bytes);
// Puts a memfd's content into huge pages, where the kernel can (Linux 6.1): with small ones half of
// the memory's speed goes to address translation. It copies the pages, once, for whoever maps the
// file later. Nothing depends on it, so a failure is not told.
void nb_pages_join(int fd, size_t bytes);
