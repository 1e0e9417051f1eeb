// Finds the CPU-type device among the Vulkan devices.
#include "tests/support/cpu_driver.h"

#include <stdio.h>

#include "engine/vulkan/vulkan.h"
#include "tensor/fail.h"

const char *test_cpu_driver(void)
{
    static char name[16];
    struct nb_vulkan_device_info info[NB_VULKAN_DEVICES];
    struct nb_error error = {""};
    int n = name[0] ? 0 : nb_vulkan_enumerate(info, NB_VULKAN_DEVICES, &error);
    for (int i = 0; i < n && i < NB_VULKAN_DEVICES && !name[0]; i++)
        if (info[i].is_cpu) {
            printf("vulkan%d: %s, %s\n", i, info[i].name, info[i].driver);
            snprintf(name, sizeof(name), "vulkan%d", i);
        }
    if (!name[0])
        fprintf(stderr, "no CPU-type Vulkan device here: install mesa-vulkan-drivers. %s\n",
                error.text);
    return name[0] ? name : NULL;
}
