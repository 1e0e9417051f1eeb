// The checks, a function each: what is there, and where something is missing what an administrator
// can do.
#include "daemon/worker/findings.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "daemon/worker/worker.h"

#define CACHE_BYTES (64u << 20) // that drivers' compiled shaders may need
#define GROUPS_MAX  64

enum verdict { GOOD, NOTE, BAD };

static void add(enum verdict verdict, const char *check, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void add(enum verdict verdict, const char *check, const char *format, ...)
{
    static const char *const verdicts[] = {"ok", "note", "problem"};
    struct nb_link_finding packet = {.header.status = 0};
    struct nibble_finding *f = &packet.finding;
    va_list args;
    va_start(args, format);
    vsnprintf(f->text, sizeof(f->text), format, args);
    va_end(args);
    snprintf(f->check, sizeof(f->check), "%s", check);
    snprintf(f->verdict, sizeof(f->verdict), "%s", verdicts[verdict]);
    nb_link_send(&packet, NB_LINK_FINDING, sizeof(packet));
}

// Adds a word to a list of them, as far as it fits.
static void join(char *list, size_t size, const char *word)
{
    size_t used = strlen(list);
    snprintf(list + used, size - used, "%s%s", used ? ", " : "", word);
}

static void check_user(void)
{
    gid_t groups[GROUPS_MAX];
    char names[256] = "", number[16];
    int n = getgroups(GROUPS_MAX, groups);
    const struct passwd *user = getpwuid(geteuid());
    for (int i = 0; i < n; i++) {
        const struct group *g = getgrgid(groups[i]);
        snprintf(number, sizeof(number), "%u", groups[i]);
        join(names, sizeof(names), g ? g->gr_name : number);
    }
    add(GOOD, "user", "the daemon runs as %s (uid %u), groups %s", user ? user->pw_name : "?",
        geteuid(), *names ? names : "none");
}

// What changes which drivers and layers the loader takes.
static void check_environment(void)
{
    static const char *const variables[] = {
        "VK_DRIVER_FILES",
        "VK_ICD_FILENAMES",
        "VK_ADD_DRIVER_FILES",
        "VK_LOADER_DRIVERS_SELECT",
        "VK_LOADER_DRIVERS_DISABLE",
        "VK_LAYER_PATH",
        "VK_INSTANCE_LAYERS",
        "VK_LOADER_LAYERS_ENABLE",
        "LD_LIBRARY_PATH",
        "MESA_VK_DEVICE_SELECT",
        "DRI_PRIME",
        "CUDA_VISIBLE_DEVICES",
    };
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
        const char *value = getenv(variables[i]);
        if (value)
            add(NOTE, "environment", "the daemon's has %s=%.300s", variables[i], value);
    }
}

static void check_loader(void)
{
    void *loader = dlopen("libvulkan.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (loader)
        add(GOOD, "Vulkan", "the loader, libvulkan.so.1, is there");
    else
        add(NOTE, "Vulkan",
            "no loader (libvulkan.so.1): models run on the CPU alone; Debian: install libvulkan1");
    if (loader)
        dlclose(loader);
}

// A driver that was named, or that crashes, is not as somebody wants it; one without a device here
// is as it should be, and one that is broken is a note.
static void check_drivers(const struct nb_driver *driver, size_t n)
{
    char names[320] = "";
    for (size_t i = 0; i < n; i++) {
        const struct nb_driver *d = &driver[i];
        const char *slash = strrchr(d->manifest, '/');
        if (d->named_by && d->state != NB_DRIVER_SOUND)
            add(BAD, "driver", "%.180s, which %s names: %s", d->manifest, d->named_by, d->fault);
        else if (d->state == NB_DRIVER_SOUND || d->state == NB_DRIVER_IDLE)
            join(names, sizeof(names), slash ? slash + 1 : d->manifest);
        else
            add(d->state == NB_DRIVER_CRASHES ? BAD : NOTE, "driver", "%.180s: %s", d->manifest,
                d->fault);
    }
    if (*names)
        add(GOOD, "drivers", "%s", names);
    else
        add(NOTE, "drivers",
            "no Vulkan driver that works is installed or named: install the GPU's, or "
            "mesa-vulkan-drivers");
}

// The kernel's driver behind a node of /dev/dri, "?" if sysfs does not say.
static const char *kernel_driver(dev_t number, char ret[64])
{
    char path[64], target[256] = "";
    snprintf(path, sizeof(path), "/sys/dev/char/%u:%u/device/driver", major(number), minor(number));
    if (readlink(path, target, sizeof(target) - 1) < 0)
        return "?";
    const char *slash = strrchr(target, '/');
    snprintf(ret, 64, "%.63s", slash ? slash + 1 : target);
    return ret;
}

static const struct nibble_device *device_at(const struct nb_listed *listed, const char *path)
{
    for (size_t i = 0; i < listed->n; i++)
        if (!strcmp(listed->device[i].device.node, path))
            return &listed->device[i].device;
    return NULL;
}

// A GPU's render node: what may not be opened, and what no driver lists, is no device of ours.
static void check_render_node(const char *path, const struct nb_listed *listed)
{
    struct stat st;
    char driver[64];
    const struct nibble_device *device = device_at(listed, path);
    if (stat(path, &st) < 0)
        return;
    const struct group *g = getgrgid(st.st_gid);
    const char *group = g ? g->gr_name : "?";
    if (access(path, R_OK | W_OK) < 0)
        add(NOTE, "node",
            "the daemon may not use %s (group %s, mode %03o): add its user to that group (`adduser "
            "nibble %s`) and restart it",
            path, group, st.st_mode & 0777u, group);
    else if (device)
        add(GOOD, "node", "%s is %s", path, device->name);
    else
        add(NOTE, "node",
            "%s (kernel driver %s) is no Vulkan device: no installed driver lists it; install the "
            "one of this GPU",
            path, kernel_driver(st.st_rdev, driver));
}

// NVIDIA's driver makes its nodes itself, when somebody with the right to do so asks it to.
static void check_nvidia(const char *path)
{
    if (access(path, R_OK | W_OK) == 0)
        add(GOOD, "node", "%s", path);
    else if (errno == ENOENT)
        add(NOTE, "node",
            "NVIDIA's driver is there and %s is not: `nvidia-modprobe -c 0 -u` makes its nodes, at "
            "each start nvidia-persistenced does",
            path);
    else
        add(NOTE, "node", "the daemon may not use %s (%s)", path, strerror(errno));
}

static int is_render_node(const struct dirent *e)
{
    return !strncmp(e->d_name, "renderD", 7);
}

static void check_nodes(const struct nb_listed *listed)
{
    struct dirent **found;
    char path[300];
    int n = scandir("/dev/dri", &found, is_render_node, versionsort);
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof(path), "/dev/dri/%s", found[i]->d_name);
        check_render_node(path, listed);
        free(found[i]);
    }
    if (n >= 0)
        free(found);
    if (access("/proc/driver/nvidia", F_OK) == 0) {
        check_nvidia("/dev/nvidiactl");
        check_nvidia("/dev/nvidia0");
    }
}

static void show_limit(char *list, size_t size, const char *name, rlim_t value)
{
    char word[64];
    if (value == RLIM_INFINITY)
        snprintf(word, sizeof(word), "%s unlimited", name);
    else
        snprintf(word, sizeof(word), "%s %llu", name, (unsigned long long)value);
    join(list, size, word);
}

static void check_limits(void)
{
    static const struct {
        const char *name, *option;
        __rlimit_resource_t resource;
        rlim_t least; // below it the daemon cannot do what is asked of it
        const char *remedy;
    } limits[] = {
        {"descriptors", "LimitNOFILE=", RLIMIT_NOFILE, 4096, "connections and devices need them"},
        {"file size", "LimitFSIZE=", RLIMIT_FSIZE, RLIM_INFINITY, "no model larger can be packed"},
        {"address space", "LimitAS=", RLIMIT_AS, RLIM_INFINITY, "models are mapped whole"},
        {"data", "LimitDATA=", RLIMIT_DATA, RLIM_INFINITY, "KV memory counts as data"},
    };
    char list[256] = "";
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        struct rlimit limit;
        if (getrlimit(limits[i].resource, &limit) < 0)
            continue;
        if (limit.rlim_max < limits[i].least)
            add(NOTE, "limits", "%s: %llu in the daemon (ulimit, %s): %s", limits[i].name,
                (unsigned long long)limit.rlim_max, limits[i].option, limits[i].remedy);
        show_limit(list, sizeof(list), limits[i].name, limit.rlim_max);
    }
    add(GOOD, "limits", "%s", list);
}

static void check_cache(void)
{
    const char *folder = getenv("MESA_SHADER_CACHE_DIR"),
               *off = getenv("MESA_SHADER_CACHE_DISABLE");
    struct statvfs disk;
    if (!folder || !*folder || (off && !strcmp(off, "true"))) {
        add(NOTE, "cache",
            "drivers compile their shaders at each start: the daemon's log says why");
        return;
    }
    if (statvfs(folder, &disk) < 0)
        return;
    unsigned long long left = (unsigned long long)disk.f_bavail * disk.f_frsize;
    if (left < CACHE_BYTES)
        add(NOTE, "cache",
            "%.250s: %llu MB are left on its disk: drivers may compile their shaders "
            "at each start",
            folder, left / 1000000);
}

void nb_findings_send(const struct nb_driver *driver, size_t n, const struct nb_listed *listed)
{
    check_user();
    check_environment();
    check_loader();
    check_drivers(driver, n);
    check_nodes(listed);
    check_limits();
    check_cache();
}
