// Where the Vulkan loader looks for manifests, after its documentation (LoaderDriverInterface.md:
// driver discovery on Linux), and what is wrong with one.
#include "daemon/worker/drivers.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct found {
    struct nb_driver *driver;
    size_t n;
};

// --- what a manifest says

static void fault(struct nb_driver *d, const char *what, const char *detail)
{
    d->state = NB_DRIVER_BROKEN;
    snprintf(d->fault, sizeof(d->fault), "%s%s%.120s", what, *detail ? ": " : "", detail);
}

// A path with a slash is the library's place, from the manifest's folder on; a name alone is left
// to the dynamic linker.
static void check_library(struct nb_driver *d, const char *library)
{
    char path[PATH_MAX];
    const char *slash = strrchr(d->manifest, '/');
    int folder = *library == '/' || !slash ? 0 : (int)(slash - d->manifest + 1);
    if (!strchr(library, '/'))
        return;
    snprintf(path, sizeof(path), "%.*s%s", folder, d->manifest, library);
    if (access(path, R_OK) < 0)
        fault(d, strerror(errno), path);
}

static void check_manifest(struct nb_driver *d)
{
    json_error_t error;
    struct stat st;
    if (stat(d->manifest, &st) < 0 || access(d->manifest, R_OK) < 0) {
        fault(d, strerror(errno), "");
        return;
    }
    if (!S_ISREG(st.st_mode)) { // a FIFO would keep its reader waiting
        fault(d, S_ISDIR(st.st_mode) ? "a folder without manifests" : "no regular file", "");
        return;
    }
    json_t *root = json_load_file(d->manifest, JSON_REJECT_DUPLICATES, &error);
    const char *library =
        json_string_value(json_object_get(json_object_get(root, "ICD"), "library_path"));
    if (!root)
        fault(d, "no valid JSON", error.text);
    else if (!library)
        fault(d, "names no ICD.library_path", "");
    else
        check_library(d, library);
    json_decref(root);
}

// --- where manifests are

static void add(struct found *f, const char *path, const char *named_by)
{
    if (f->n == NB_DRIVERS_MAX || strlen(path) >= sizeof(f->driver->manifest))
        return;
    struct nb_driver *d = &f->driver[f->n++];
    *d = (struct nb_driver){.named_by = named_by};
    snprintf(d->manifest, sizeof(d->manifest), "%s", path);
    check_manifest(d);
}

static int is_manifest(const struct dirent *e)
{
    const char *end = strrchr(e->d_name, '.');
    return end && !strcmp(end, ".json");
}

// The manifests of a folder. False: there is none in it, or no such folder.
static bool add_folder(struct found *f, const char *folder, const char *named_by)
{
    struct dirent **entry;
    char path[PATH_MAX];
    int n = scandir(folder, &entry, is_manifest, alphasort);
    for (int i = 0; i < n; i++) {
        if (snprintf(path, sizeof(path), "%s/%s", folder, entry[i]->d_name) < PATH_MAX)
            add(f, path, named_by);
        free(entry[i]);
    }
    if (n >= 0)
        free(entry);
    return n > 0;
}

// Each part of a list of paths, with `below` behind it; a part that is no folder of manifests is a
// file, if somebody named it.
static void add_list(struct found *f, const char *list, const char *below, const char *named_by)
{
    char path[PATH_MAX];
    for (size_t n; *list; list += n + (list[n] == ':')) {
        n = strcspn(list, ":");
        if (n && snprintf(path, sizeof(path), "%.*s%s", (int)n, list, below) < PATH_MAX &&
            !add_folder(f, path, named_by) && named_by)
            add(f, path, named_by);
    }
}

static void add_named(struct found *f, const char *variable)
{
    const char *list = getenv(variable);
    if (list)
        add_list(f, list, "", variable);
}

static void add_installed(struct found *f)
{
    static const struct {
        const char *variable, *otherwise, *below;
    } places[] = {
        {"XDG_CONFIG_HOME", NULL, "/vulkan/icd.d"},
        {"HOME", NULL, "/.config/vulkan/icd.d"}, // where XDG_CONFIG_HOME is not set
        {"XDG_CONFIG_DIRS", "/etc/xdg", "/vulkan/icd.d"},
        {NULL, "/etc", "/vulkan/icd.d"},
        {"XDG_DATA_HOME", NULL, "/vulkan/icd.d"},
        {"HOME", NULL, "/.local/share/vulkan/icd.d"}, // where XDG_DATA_HOME is not set
        {"XDG_DATA_DIRS", "/usr/local/share:/usr/share", "/vulkan/icd.d"},
    };
    const char *before = NULL;
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        const char *value = places[i].variable ? getenv(places[i].variable) : NULL;
        bool is_home = places[i].variable && !strcmp(places[i].variable, "HOME");
        if (!value)
            value = places[i].otherwise;
        if (value && *value && !(is_home && before))
            add_list(f, value, places[i].below, NULL);
        before = value;
    }
}

size_t nb_drivers_find(struct nb_driver ret[NB_DRIVERS_MAX])
{
    struct found f = {.driver = ret};
    const char *only = getenv("VK_DRIVER_FILES") ? "VK_DRIVER_FILES" : "VK_ICD_FILENAMES";
    if (getenv(only)) {
        add_named(&f, only);
    } else {
        add_named(&f, "VK_ADD_DRIVER_FILES");
        add_installed(&f);
    }
    return f.n;
}
