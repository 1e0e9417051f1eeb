// `nibble doctor`: what a user or administrator would look at first when something does not work.
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "tools/cli/cli.h"

enum verdict { GOOD, NOTE, BAD };
static const char *const verdicts[] = {"ok", "note", "problem"};

struct report {
    struct common common;
    json_t *checks;
    int problems;
};

static void add(struct report *r, enum verdict verdict, const char *what, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void add(struct report *r, enum verdict verdict, const char *what, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    r->problems += verdict == BAD;
    json_array_append_new(r->checks, json_pack("{s:s, s:s, s:s}", "check", what, "verdict",
                                               verdicts[verdict], "text", text));
    if (!r->common.json)
        printf("%-8s %-12s %s\n", verdicts[verdict], what, text);
}

static void check_kernel(struct report *r)
{
    struct utsname u;
    int fd = memfd_create("nibble-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    uname(&u);
    if (fd < 0 || ftruncate(fd, 4096) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        add(r, BAD, "kernel",
            "%s %s cannot seal a memfd (%s): Nibble shares weights by sealed memory", u.sysname,
            u.release, strerror(errno));
    else
        add(r, GOOD, "kernel", "%s %s, sealed shared memory works", u.sysname, u.release);
    if (fd >= 0)
        close(fd);
}

// The bracketed word of a sysfs choice, as in "always [madvise] never".
static void check_huge_pages(struct report *r)
{
    const char *path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    char text[128] = "", *open_bracket, *close_bracket;
    FILE *f = fopen(path, "re");
    if (f && !fgets(text, sizeof text, f))
        text[0] = '\0';
    if (f)
        fclose(f);
    open_bracket = strchr(text, '[');
    close_bracket = open_bracket ? strchr(open_bracket, ']') : NULL;
    if (!close_bracket) {
        add(r, NOTE, "huge pages", "%s cannot be read", path);
        return;
    }
    *close_bracket = '\0';
    bool on = strcmp(open_bracket + 1, "never") && strcmp(open_bracket + 1, "deny");
    add(r, on ? GOOD : NOTE, "huge pages", "for shared memory: %s%s", open_bracket + 1,
        on ? "" : "; `echo advise` into shmem_enabled lets the weights use them");
}

static void check_socket(struct report *r, const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0) {
        add(r, BAD, "socket",
            "%s: %s; start the daemon: `systemctl start nibble.socket`, or run `nibbled`", path,
            strerror(errno));
        return;
    }
    if (access(path, R_OK | W_OK) == 0) {
        add(r, GOOD, "socket", "%s", path);
        return;
    }
    struct group *g = getgrgid(st.st_gid);
    add(r, BAD, "socket",
        "%s may not be used by you; join its group: `adduser $USER %s`, then log in again", path,
        g ? g->gr_name : "nibble");
}

static void check_models(struct report *r, nibble *connection)
{
    size_t n = 0;
    struct nibble_model *models = cli_models(connection, &n);
    if (models && !n)
        add(r, NOTE, "models", "none loaded; `nibble load FILE.gguf`");
    for (size_t i = 0; models && i < n; i++)
        add(r, strcmp(models[i].state, "ready") ? BAD : GOOD, "model",
            "%s: %s on %s, %s, KV %s, %u worker restarts", models[i].name, models[i].state,
            models[i].device, models[i].precision, models[i].kv_type, models[i].worker_restarts);
    free(models);
}

// What an administrator may have wanted so is a note; a device that was given up is a problem.
static void check_devices(struct report *r, nibble *connection)
{
    size_t n = 0;
    struct nibble_device *devices = cli_devices(connection, &n);
    for (size_t i = 0; devices && i < n; i++) {
        const struct nibble_device *d = &devices[i];
        enum verdict verdict = !strcmp(d->state, "ready")  ? GOOD
                               : !strcmp(d->state, "lost") ? BAD
                                                           : NOTE;
        add(r, verdict, "device", "%s: %s, %s%s%s, %s%s%s", d->name, d->description, d->kind,
            *d->isa ? ", " : "", d->isa, d->state, *d->reason ? ": " : "", d->reason);
    }
    free(devices);
}

static void check_daemon(struct report *r, const char *path)
{
    nibble *connection = NULL;
    struct nibble_status status = {0};
    int error = nibble_connect(path, &connection);
    if (error == 0)
        error = nibble_get_status(connection, &status);
    if (error < 0) {
        add(r, BAD, "daemon", "does not answer: %s", nibble_strerror(error));
        nibble_close(connection);
        return;
    }
    add(r, GOOD, "daemon", "version %s, numerics %s, %u clients, %u worker restarts",
        status.version, status.numerics, status.clients, status.worker_restarts);
    check_devices(r, connection);
    check_models(r, connection);
    nibble_close(connection);
}

static void check_loader(struct report *r)
{
    void *loader = dlopen("libvulkan.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (loader) {
        add(r, GOOD, "Vulkan", "the loader, libvulkan.so.1, is there");
        dlclose(loader);
    } else {
        add(r, NOTE, "Vulkan",
            "no loader (libvulkan.so.1): models run on the CPU alone; Debian: install libvulkan1");
    }
}

static int is_manifest(const struct dirent *e)
{
    const char *end = strrchr(e->d_name, '.');
    return end && !strcmp(end, ".json");
}

// The manifests that the loader looks at, as a list of names.
static size_t list_drivers(const char *folder, char *ret, size_t size)
{
    struct dirent **found;
    int n = scandir(folder, &found, is_manifest, alphasort);
    for (int i = 0; i < n; i++) {
        size_t used = strlen(ret);
        snprintf(ret + used, size - used, "%s%.*s", used ? ", " : "",
                 (int)strcspn(found[i]->d_name, "."), found[i]->d_name);
        free(found[i]);
    }
    if (n >= 0)
        free(found);
    return n > 0 ? (size_t)n : 0;
}

static void check_drivers(struct report *r)
{
    static const char *const folders[] = {"/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d",
                                          "/usr/share/vulkan/icd.d"};
    char names[320] = "";
    size_t n = 0;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        n += list_drivers(folders[i], names, sizeof names);
    if (n)
        add(r, GOOD, "drivers", "%s", names);
    else
        add(r, NOTE, "drivers",
            "no Vulkan driver is installed: that of the GPU, or mesa-vulkan-drivers");
}

// The service runs as user nibble, so what counts is the node's group.
static void check_node(struct report *r, const char *folder, const char *name)
{
    char path[300];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (stat(path, &st) < 0)
        return;
    const struct group *g = getgrgid(st.st_gid);
    const char *group = g ? g->gr_name : "?";
    bool open = (st.st_mode & 006) == 006, shared = (st.st_mode & 060) == 060;
    if (open || access(path, R_OK | W_OK) == 0 || (shared && !strcmp(group, "render")))
        add(r, GOOD, "node", "%s, of group %s, mode %03o", path, group, st.st_mode & 0777u);
    else
        add(r, NOTE, "node",
            "%s is of group %s, mode %03o: who runs nibbled must be in that group (`adduser nibble "
            "%s`)",
            path, group, st.st_mode & 0777u, group);
}

static int is_render_node(const struct dirent *e)
{
    return !strncmp(e->d_name, "renderD", 7) ||
           (!strncmp(e->d_name, "nvidia", 6) && strspn(e->d_name + 6, "0123456789"));
}

static void check_nodes(struct report *r)
{
    static const char *const folders[] = {"/dev/dri", "/dev"};
    if (access("/proc/driver/nvidia", F_OK) == 0 && access("/dev/nvidiactl", F_OK) < 0)
        add(r, NOTE, "node",
            "NVIDIA's driver is there and /dev/nvidiactl is not: `nvidia-modprobe -c 0 -u` makes "
            "its nodes, at each start nvidia-persistenced does");
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        struct dirent **found;
        int n = scandir(folders[i], &found, is_render_node, versionsort);
        for (int j = 0; j < n; j++) {
            check_node(r, folders[i], found[j]->d_name);
            free(found[j]);
        }
        if (n >= 0)
            free(found);
    }
}

int verb_doctor(const struct verb *verb, int argc, char **argv)
{
    struct report r = {0};
    const struct option_spec none[] = {{0}};
    char **args;
    int n = cli_parse(verb, none, &r.common, argc, argv, 0, 0, &args);
    if (n < 0)
        return CLI_EXIT(n);
    const char *path = r.common.socket ? r.common.socket : getenv("NIBBLE_SOCKET");
    path = path ? path : "/run/nibble/nibble.sock";
    r.checks = json_array();
    check_kernel(&r);
    check_huge_pages(&r);
    check_loader(&r);
    check_drivers(&r);
    check_nodes(&r);
    check_socket(&r, path);
    check_daemon(&r, path);
    if (r.common.json) {
        json_t *object = json_pack("{s:O, s:i}", "checks", r.checks, "problems", r.problems);
        json_dumpf(object, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(object);
    }
    json_decref(r.checks);
    return r.problems ? CLI_FAILED : CLI_OK;
}
