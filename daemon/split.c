// Devices made of several, each with a range of a model's layers: "cpu+vulkan0:20"
// (engine/split.h). To the rest of the broker one is a device like any other, with a worker of its
// own, which opens all of its parts; it is gone when one of them is.
#include "daemon/split.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/broker.h"
#include "daemon/device.h"
#include "daemon/refusal.h"

struct part {
    char name[32];
    const char *layers; // ":20", or "" for those that the others leave
    int n_layers;       // characters of it
};

int nb_device_is_split(const struct nb_device *device)
{
    return strchr(device->info.name, '+') != NULL;
}

// The part at the head of what is left of a name, which becomes NULL behind the last one.
static struct part next_part(const char **left)
{
    const char *at = *left;
    size_t n = strcspn(at, "+"), device = strcspn(at, "+:");
    struct part part = {.layers = at + device, .n_layers = (int)(n - device)};
    snprintf(part.name, sizeof(part.name), "%.*s", (int)device, at);
    *left = at[n] ? at + n + 1 : NULL;
    return part;
}

static int count_is_fit(const struct part *part)
{
    if (part->n_layers == 0)
        return 1;
    size_t digits = strspn(part->layers + 1, "0123456789");
    return digits > 0 && digits <= 4 && (int)digits == part->n_layers - 1;
}

static int no_such_device(const char *name, struct nb_refusal *refusal)
{
    return nb_refuse(refusal, NIBBLE_E_UNSUPPORTED,
                     "this machine has no device \"%.31s\": `nibble devices` lists them", name);
}

// Of hexadecimal digits: all parts' together, so that what one device keeps is not another's.
static void mix_uuid(char uuid[33], const char *other)
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 32 && uuid[i] && other[i]; i++) {
        const char *a = strchr(digits, uuid[i]), *b = strchr(digits, other[i]);
        if (a && b)
            uuid[i] = digits[(a - digits) ^ (b - digits)];
    }
}

// What is said of the whole is said of the first part that is not the CPU.
static int describe(struct nb_broker *broker, const char *name, struct nibble_device *ret,
                    struct nb_refusal *refusal)
{
    struct nibble_device all = {.name = ""};
    for (const char *left = name; left;) {
        struct part part = next_part(&left);
        const struct nb_device *device = nb_device_by_name(broker, part.name);
        if (!count_is_fit(&part))
            return nb_refuse(refusal, -EINVAL,
                             "\"%.31s\" says how many layers each device has as in cpu+vulkan0:20",
                             name);
        if (!device)
            return no_such_device(part.name, refusal);
        if (!nb_device_usable(device))
            return nb_refuse(refusal, NIBBLE_E_UNSUPPORTED, "device %s cannot be used: %s",
                             part.name, device->info.reason);
        if (!strcmp(device->info.kind, "cpu"))
            continue;
        if (*all.name)
            mix_uuid(all.uuid, device->info.uuid);
        else
            all = device->info;
    }
    if (!*all.name)
        return nb_refuse(refusal, -EINVAL,
                         "layers are shared between the CPU and another device: name that one");
    snprintf(all.name, sizeof(all.name), "%s", name);
    snprintf(all.state, sizeof(all.state), "ready");
    *all.node = *all.reason = 0;
    *ret = all;
    return 0;
}

// One that nothing is left of takes another name.
static struct nb_device *find_idle(struct nb_broker *broker)
{
    struct nb_device *device;
    TAILQ_FOREACH(device, &broker->devices, entry)
        if (nb_device_is_split(device) && TAILQ_EMPTY(&device->models) && !device->worker)
            return device;
    return NULL;
}

static int find_split(struct nb_broker *broker, const char *name, struct nb_device **ret,
                      struct nb_refusal *refusal)
{
    struct nibble_device info;
    struct nb_device *device = nb_device_by_name(broker, name);
    int rc = describe(broker, name, &info, refusal);
    if (rc < 0 || !ret)
        return rc;
    if (!device)
        device = find_idle(broker);
    if (!device)
        device = nb_device_add(broker, &info);
    if (!device)
        return -ENOMEM;
    if (strcmp(device->info.name, name) != 0 || !nb_device_usable(device))
        device->info = info;
    *ret = device;
    return 0;
}

int nb_device_named(struct nb_broker *broker, const char *name, struct nb_device **ret,
                    struct nb_refusal *refusal)
{
    if (strchr(name, '+'))
        return find_split(broker, name, ret, refusal);
    struct nb_device *device = nb_device_by_name(broker, name);
    if (!device)
        return no_such_device(name, refusal);
    if (ret)
        *ret = device;
    return 0;
}

int nb_split_locate(struct nb_device *split)
{
    char address[sizeof(split->address)] = "";
    const char *left = split->info.name;
    size_t used = 0;
    do {
        struct part part = next_part(&left);
        const struct nb_device *device = nb_device_by_name(split->broker, part.name);
        if (!device)
            return -ENODEV;
        int n = snprintf(address + used, sizeof(address) - used, "%s%s%.*s", used ? "+" : "",
                         device->address, part.n_layers, part.layers);
        used += (size_t)n;
        if (used >= sizeof(address))
            return -ENAMETOOLONG;
    } while (left);
    memcpy(split->address, address, sizeof(address));
    return 0;
}

void nb_splits_leave(struct nb_device *part)
{
    struct nb_device *device;
    char why[64];
    snprintf(why, sizeof(why), "%s is gone", part->info.name);
    TAILQ_FOREACH(device, &part->broker->devices, entry)
        for (const char *left = nb_device_is_split(device) ? device->info.name : NULL; left;) {
            struct part of = next_part(&left);
            if (!strcmp(of.name, part->info.name))
                nb_device_gone(device, why);
        }
}
