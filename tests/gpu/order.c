// What injected loss needs: orders to the loader that fails by order (tests/loss/faults.c), and the
// path of the real one, which it stands before.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/gpu/gpu.h"

#define FILE_BYTES 4096

// As tests/loss/faults.c has them.
enum { FAULT, PLACE, COUNTDOWN };
static const char *const faults[] = {"none", "lost", "hang", "full"};
static const char *const places[] = {"submit", "wait", "allocate", "copy"};

static uint32_t index_in(const char *const *names, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++)
        if (!strcmp(names[i], name))
            return i;
    gpu_fail("order: \"%s\" is none of its words", name);
}

int gpu_order(int argc, char **argv)
{
    if (argc != 5)
        gpu_fail("order: FILE FAULT PLACE COUNTDOWN");
    int fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    gpu_check(fd < 0 || ftruncate(fd, FILE_BYTES) < 0 ? -errno : 0, argv[1]);
    _Atomic uint32_t *order = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    gpu_check(order == MAP_FAILED ? -errno : 0, argv[1]);
    order[COUNTDOWN] = 0;
    order[FAULT] = index_in(faults, 4, argv[2]);
    order[PLACE] = index_in(places, 4, argv[3]);
    order[COUNTDOWN] = (uint32_t)strtoul(argv[4], NULL, 10); // with it the order holds
    munmap((void *)(uintptr_t)order, FILE_BYTES);
    close(fd);
    return 0;
}

int gpu_loader(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct link_map *map = NULL;
    void *loader = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!loader || dlinfo(loader, RTLD_DI_LINKMAP, &map) < 0 || !map)
        gpu_fail("the Vulkan loader, libvulkan.so.1, cannot be opened");
    puts(map->l_name);
    return 0;
}
