// Where devices are in /dev and /sys: a Vulkan device's DRM node, and the neural processors, which
// nobody can use yet. For the probe alone: no device is opened.
#include "daemon/worker/nodes.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <xf86drm.h>

#define DRM_MAX  64
#define NPUS_MAX 16

static void take_node(const drmDevice *drm, struct nb_link_device *ret)
{
    struct stat st;
    const char *path = drm->nodes[DRM_NODE_RENDER];
    if (!(drm->available_nodes & 1 << DRM_NODE_RENDER) || stat(path, &st) < 0)
        return;
    snprintf(ret->device.node, sizeof(ret->device.node), "%.63s", path);
    ret->number = st.st_rdev;
}

static bool is_at(const drmDevice *drm, const char *pci)
{
    if (drm->bustype != DRM_BUS_PCI)
        return false;
    char place[32];
    const drmPciBusInfo *p = drm->businfo.pci;
    snprintf(place, sizeof(place), "%04x:%02x:%02x.%x", p->domain, p->bus, p->dev, p->func);
    return !strcmp(place, pci);
}

void nb_node_of_gpu(const struct nb_device_info *info, struct nb_link_device *ret)
{
    drmDevice *drm[DRM_MAX] = {NULL};
    if (info->drm_major &&
        drmGetDeviceFromDevId(makedev(info->drm_major, info->drm_minor), 0, &drm[0]) == 0) {
        take_node(drm[0], ret);
        drmFreeDevice(&drm[0]);
        return;
    }
    int n = info->pci[0] ? drmGetDevices2(0, drm, DRM_MAX) : 0;
    for (int i = 0; i < n; i++)
        if (is_at(drm[i], info->pci))
            take_node(drm[i], ret);
    if (n > 0)
        drmFreeDevices(drm, n);
}

// The first line of a file of sysfs, or nothing.
static void read_line(const char *dir, const char *name, char *ret, size_t size)
{
    char path[256];
    snprintf(path, sizeof(path), "%.200s/%.32s", dir, name);
    FILE *f = fopen(path, "re");
    if (!f || !fgets(ret, (int)size, f))
        ret[0] = '\0';
    ret[strcspn(ret, "\n")] = '\0';
    if (f)
        fclose(f);
}

static void driver_of(const char *dir, char *ret, size_t size)
{
    char path[256], target[PATH_MAX] = "";
    snprintf(path, sizeof(path), "%.200s/device/driver", dir);
    if (readlink(path, target, sizeof(target) - 1) < 0)
        target[0] = '\0';
    const char *base = strrchr(target, '/');
    snprintf(ret, size, "%.60s", base ? base + 1 : "unknown");
}

static void describe_npu(const char *dir, const char *node, struct nb_link_device *ret)
{
    struct nibble_device *d = &ret->device;
    char vendor[16], id[16], number[32];
    unsigned major = 0, minor = 0;
    *ret = (struct nb_link_device){.device = {.state = "unusable", .kind = "npu"}};
    driver_of(dir, d->driver, sizeof(d->driver));
    read_line(dir, "device/vendor", vendor, sizeof(vendor));
    read_line(dir, "device/device", id, sizeof(id));
    read_line(dir, "dev", number, sizeof(number));
    if (sscanf(number, "%u:%u", &major, &minor) == 2)
        ret->number = makedev(major, minor);
    snprintf(d->name, sizeof(d->name), "npu%.16s", node + strcspn(node, "0123456789"));
    snprintf(d->node, sizeof(d->node), "/dev/accel/%.40s", node);
    if (vendor[0])
        snprintf(d->description, sizeof(d->description), "neural processor, PCI %s:%s", vendor, id);
    else
        snprintf(d->description, sizeof(d->description), "neural processor");
    snprintf(d->reason, sizeof(d->reason),
             "no Vulkan driver for neural processors exists on Linux (%.60s speaks an interface of "
             "its own): present and unused",
             d->driver);
}

static int is_npu(const struct dirent *e)
{
    return !strncmp(e->d_name, "accel", 5) && e->d_name[5];
}

void nb_npu_list(const char *sys, void (*found)(const struct nb_link_device *device))
{
    char folder[128], dir[256];
    struct dirent **entry;
    snprintf(folder, sizeof(folder), "%.100s/class/accel", sys);
    int n = scandir(folder, &entry, is_npu, versionsort);
    for (int i = 0; i < n; i++) {
        struct nb_link_device device;
        snprintf(dir, sizeof(dir), "%s/%.32s", folder, entry[i]->d_name);
        if (i < NPUS_MAX) {
            describe_npu(dir, entry[i]->d_name, &device);
            found(&device);
        }
        free(entry[i]);
    }
    if (n >= 0)
        free(entry);
}
