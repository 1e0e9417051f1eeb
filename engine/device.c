// Devices by name: the one place where a kind of device is chosen, and it is never done silently.
#include "engine/device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/vulkan.h"
#include "tensor/fail.h"

#define MAX_DIGITS 4

static int create_cpu(uint32_t index, const struct nb_device_options *o, struct nb_device **ret,
                      char *error, size_t error_size)
{
    int rc = nb_cpu_device_create(o->threads, ret);
    return rc < 0 ? nb_fail(error, error_size, rc, "CPU device: %s", strerror(-rc)) : 0;
}

static int create_vulkan(uint32_t index, const struct nb_device_options *o, struct nb_device **ret,
                         char *error, size_t error_size)
{
    return nb_vulkan_device_create(index, o, ret, error, error_size);
}

static int list_cpu(void (*found)(void *user, const struct nb_device_info *info), void *user,
                    char *error, size_t error_size)
{
    struct nb_device *device;
    int rc = create_cpu(0, &(struct nb_device_options){.threads = 0}, &device, error, error_size);
    if (rc < 0)
        return rc;
    struct nb_device_info info;
    device->ops->info(device, &info);
    device->ops->destroy(device);
    found(user, &info);
    return 0;
}

static const struct kind {
    const char *name;
    bool indexed;
    int (*create)(uint32_t index, const struct nb_device_options *o, struct nb_device **ret,
                  char *error, size_t error_size);
    int (*list)(void (*found)(void *user, const struct nb_device_info *info), void *user,
                char *error, size_t error_size);
} kinds[] = {
    {"cpu", false, create_cpu, list_cpu},
    {"vulkan", true, create_vulkan, nb_vulkan_device_list},
};
#define N_KINDS (sizeof(kinds) / sizeof(kinds[0]))

int nb_device_list(void (*found)(void *user, const struct nb_device_info *info), void *user,
                   char *ret_error, size_t error_size)
{
    int rc = 0;
    for (size_t i = 0; i < N_KINDS; i++) {
        int failed = kinds[i].list(found, user, ret_error, error_size);
        rc = failed < 0 ? failed : rc;
    }
    return rc;
}

// The N of "vulkanN", or -1.
static int index_of(const char *digits)
{
    size_t n = strspn(digits, "0123456789");
    return n && n <= MAX_DIGITS && !digits[n] ? (int)strtol(digits, NULL, 10) : -1;
}

int nb_device_create(const char *name, const struct nb_device_options *options,
                     struct nb_device **ret, char *ret_error, size_t error_size)
{
    for (size_t i = 0; i < N_KINDS; i++) {
        size_t n = strlen(kinds[i].name);
        if (strncmp(name, kinds[i].name, n) != 0)
            continue;
        int index = kinds[i].indexed ? index_of(name + n) : name[n] ? -1 : 0;
        if (index >= 0)
            return kinds[i].create((uint32_t)index, options, ret, ret_error, error_size);
    }
    return nb_fail(ret_error, error_size, -EINVAL,
                   "there is no device \"%s\": say cpu, or vulkan0, vulkan1 ...", name);
}
