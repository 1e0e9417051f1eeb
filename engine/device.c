// Devices by name: the one place where a kind of device is chosen, and it is never done silently.
#include "engine/device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/split.h"
#include "engine/vulkan/vulkan.h"
#include "machine/bounds.h"
#include "tensor/fail.h"

#define MAX_DIGITS 4
#define PART_SIZE  32 // of one device's name and layers among several
#define SPLIT_FORM                                                                                 \
    "\"%.100s\" is no split: say which layers each device has, one device at most without, as in " \
    "cpu+vulkan0:20"

static int create_cpu(uint32_t index, const struct nb_device_options *o, struct nb_device **ret,
                      struct nb_error *error)
{
    char reason[NB_LIMIT_TEXT];
    int rc = nb_cpu_device_create(o->threads, o->allowed, ret);
    return rc < 0 ? nb_fail(error, rc, "CPU device: %s", nb_limit_reason(rc, reason)) : 0;
}

static int create_vulkan(uint32_t index, const struct nb_device_options *o, struct nb_device **ret,
                         struct nb_error *error)
{
    return nb_vulkan_device_create(index, o, ret, error);
}

static int list_cpu(void (*found)(void *user, const struct nb_device_info *info), void *user,
                    struct nb_error *error)
{
    struct nb_device *device;
    int rc = create_cpu(0, &(struct nb_device_options){.threads = 0}, &device, error);
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
                  struct nb_error *error);
    int (*list)(void (*found)(void *user, const struct nb_device_info *info), void *user,
                struct nb_error *error);
} kinds[] = {
    {"cpu", false, create_cpu, list_cpu},
    {"vulkan", true, create_vulkan, nb_vulkan_device_list},
};
#define N_KINDS (sizeof(kinds) / sizeof(kinds[0]))

int nb_device_list(void (*found)(void *user, const struct nb_device_info *info), void *user,
                   struct nb_error *ret_error)
{
    int rc = 0;
    for (size_t i = 0; i < N_KINDS; i++) {
        int failed = kinds[i].list(found, user, ret_error);
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

// "cpu" or "vulkan0:20" out of the name of several; the count of layers is 0 where there is none.
static int read_part(const char *at, size_t n, char ret_name[PART_SIZE], uint32_t *ret_layers)
{
    if (n >= PART_SIZE)
        return -EINVAL;
    memcpy(ret_name, at, n);
    ret_name[n] = '\0';
    char *colon = strchr(ret_name, ':');
    int layers = colon ? index_of(colon + 1) : 0;
    if (colon)
        *colon = '\0';
    *ret_layers = (uint32_t)layers;
    return layers < 0 || (colon && layers == 0) ? -EINVAL : 0;
}

static void destroy_parts(const struct nb_split_part *part, uint32_t n)
{
    for (uint32_t i = 0; i < n && part[i].device; i++)
        part[i].device->ops->destroy(part[i].device);
}

static int create_split(const char *name, const struct nb_device_options *o, struct nb_device **ret,
                        struct nb_error *error)
{
    struct nb_split_part part[NB_SPLIT_PARTS] = {0};
    uint32_t n = 0;
    int rc = 0;
    for (const char *at = name; at && rc == 0; n++) {
        char one[PART_SIZE];
        size_t length = strcspn(at, "+");
        if (n == NB_SPLIT_PARTS || read_part(at, length, one, &part[n].layers) < 0) {
            rc = nb_fail(error, -EINVAL, SPLIT_FORM, name);
            break;
        }
        rc = nb_device_create(one, o, &part[n].device, error);
        if (rc < 0)
            break;
        at = at[length] ? at + length + 1 : NULL;
    }
    if (rc == 0 && (rc = nb_split_create(part, n, ret)) < 0)
        nb_fail(error, rc, SPLIT_FORM, name);
    if (rc < 0)
        destroy_parts(part, n);
    return rc;
}

int nb_device_create(const char *name, const struct nb_device_options *options,
                     struct nb_device **ret, struct nb_error *ret_error)
{
    if (strchr(name, '+'))
        return create_split(name, options, ret, ret_error);
    for (size_t i = 0; i < N_KINDS; i++) {
        size_t n = strlen(kinds[i].name);
        if (strncmp(name, kinds[i].name, n) != 0)
            continue;
        int index = kinds[i].indexed ? index_of(name + n) : name[n] ? -1 : 0;
        if (index >= 0)
            return kinds[i].create((uint32_t)index, options, ret, ret_error);
    }
    return nb_fail(ret_error, -EINVAL,
                   "there is no device \"%s\": say cpu, or vulkan0, vulkan1 ...", name);
}
