// Loading, unloading, and a model that a command needs for itself alone.
#include "tools/cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int on_progress(void *user, uint64_t done, uint64_t total)
{
    cli_progress(user, done, total);
    return 0;
}

// The file's name without folders and .gguf, with what a name may not hold made '-'.
static void name_of_file(const char *file, char *ret, size_t size)
{
    const char *base = strrchr(file, '/') ? strrchr(file, '/') + 1 : file;
    size_t len = strlen(base);
    if (len > 5 && !strcmp(base + len - 5, ".gguf"))
        len -= 5;
    if (len >= size)
        len = size - 1;
    memcpy(ret, base, len);
    ret[len] = '\0';
    const char *allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    for (char *c = ret; *(c += strspn(c, allowed));)
        *c = '-';
}

int cli_load(const struct common *common, const char *file, struct nibble_load_options *options,
             nibble **ret_admin)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cli_error("%s: %s", file, strerror(errno));
    nibble *admin = cli_connect_admin(common);
    options->progress = on_progress;
    options->user = (void *)file;
    int r = admin ? nibble_load(admin, fd, options) : 0;
    int status = r < 0 ? cli_failed(admin, file, r) : admin ? CLI_OK : CLI_FAILED;
    close(fd);
    if (status == CLI_OK)
        *ret_admin = admin;
    else
        nibble_close(admin);
    return status;
}

// Where a model is, in static memory: "auto" leaves it to the daemon.
static const char *device_of(nibble *connection, const char *name)
{
    static char device[sizeof((struct nibble_model *)0)->device];
    size_t n = 0;
    struct nibble_model *models = cli_models(connection, &n);
    for (size_t i = 0; models && i < n; i++)
        if (!strcmp(models[i].name, name))
            memcpy(device, models[i].device, sizeof device);
    free(models);
    return device;
}

int verb_load(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    struct nibble_load_options options = {0};
    const struct option_spec specs[] = {
        {"name", 0, OPTION_STRING, &options.name, "NAME", "the model's name (default: the file's)"},
        {"device", 0, OPTION_STRING, &options.device, "D",
         "the device that serves it (default: cpu; auto: the first GPU, else cpu), or several "
         "with their layers: vulkan0:20+vulkan1"},
        {"gpu-layers", 0, OPTION_UINT, &options.gpu_layers, "N",
         "the device runs the last N layers, the CPU the others (default: all)"},
        {"fallback", 0, OPTION_STRING, &options.fallback, "D",
         "the device that takes over when that one is lost (default: none)"},
        {"precision", 0, OPTION_STRING, &options.precision, "P",
         "fast, balanced (default) or exact"},
        {"context", 0, OPTION_UINT, &options.context, "N",
         "the longest sequence (default: the model's own)"},
        {"kv-bytes", 0, OPTION_SIZE, &options.kv_bytes, "SIZE",
         "memory for KV caches, as 512Mi (default: the daemon's)"},
        {"kv-type", 0, OPTION_STRING, &options.kv_type, "T",
         "f16 (default), or q8_0, which takes half the memory"},
        {0},
    };
    char **args, name[64];
    int n = cli_parse(verb, specs, &common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if (!options.name) {
        name_of_file(args[0], name, sizeof name);
        options.name = name;
    }
    nibble *admin = NULL;
    double start = cli_now();
    int status = cli_load(&common, args[0], &options, &admin);
    double seconds = cli_now() - start;
    const char *device = status == CLI_OK ? device_of(admin, options.name) : "";
    if (status == CLI_OK && common.json)
        printf("{\"name\": \"%s\", \"device\": \"%s\", \"seconds\": %.3f}\n", options.name, device,
               seconds);
    else if (status == CLI_OK)
        printf("loaded %s on %s in %.2f s\n", options.name, device, seconds);
    nibble_close(admin);
    return status;
}

int verb_unload(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    bool force = false;
    const struct option_spec specs[] = {
        {"force", 'f', OPTION_FLAG, &force, NULL, "end the sessions that use it"},
        {0},
    };
    char **args;
    int n = cli_parse(verb, specs, &common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    nibble *admin = cli_connect_admin(&common);
    if (!admin)
        return CLI_FAILED;
    int r = nibble_unload(admin, args[0], force);
    int status = r < 0 ? cli_failed(admin, args[0], r) : CLI_OK;
    if (status == CLI_OK && common.json)
        printf("{\"name\": \"%s\"}\n", args[0]);
    else if (status == CLI_OK)
        printf("unloaded %s\n", args[0]);
    nibble_close(admin);
    return status;
}

int cli_model_or_file(const struct common *common, const char *name_or_file,
                      const struct nibble_load_options *how, struct loaded *ret)
{
    struct stat st;
    struct loaded l = {0};
    if (stat(name_or_file, &st) < 0 || !S_ISREG(st.st_mode)) {
        if (how->precision || how->device || how->kv_type)
            return cli_usage_error("--%s is for a FILE; the loaded model %s keeps the one it was "
                                   "loaded with",
                                   how->precision ? "precision"
                                   : how->device  ? "device"
                                                  : "kv-type",
                                   name_or_file);
        if (strlen(name_or_file) >= sizeof l.name)
            return cli_usage_error("%.80s: neither a file nor a model's name", name_or_file);
        snprintf(l.name, sizeof l.name, "%s", name_or_file);
        *ret = l;
        return CLI_OK;
    }
    static unsigned count;
    snprintf(l.name, sizeof l.name, "tmp-%ld-%u", (long)getpid(), count++);
    struct nibble_load_options options = *how;
    options.name = l.name;
    options.temporary = 1;
    int status = cli_load(common, name_or_file, &options, &l.admin);
    if (status != CLI_OK)
        return status;
    *ret = l;
    return CLI_OK;
}

void cli_model_release(struct loaded *l)
{
    if (l->admin) {
        int r = nibble_unload(l->admin, l->name, 1);
        if (r < 0)
            cli_failed(l->admin, l->name, r);
    }
    nibble_close(l->admin);
    *l = (struct loaded){0};
}
