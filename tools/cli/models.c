// Loading, unloading, and a model that a command needs for itself alone.
#include "tools/cli/cli.h"

#include <errno.h>
#include <fcntl.h>
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

int cli_load(const struct common *common, const char *path, struct nibble_load_options *options,
             nibble **ret_admin)
{
    nibble *admin = cli_connect_admin(common);
    if (!admin)
        return CLI_FAILED;
    options->size = sizeof(*options);
    options->progress = on_progress;
    options->user = (void *)(uintptr_t)path;
    int rc = nibble_load(admin, path, options);
    if (rc >= 0) {
        *ret_admin = admin;
        return CLI_OK;
    }
    int status = cli_failed(admin, path, rc);
    nibble_close(admin);
    return status;
}

struct nibble_model cli_find_model(nibble *connection, const char *name)
{
    size_t n = 0;
    struct nibble_model *models = cli_models(connection, &n), found = {.name = ""};
    for (size_t i = 0; models && i < n; i++)
        if (!strcmp(models[i].name, name))
            found = models[i];
    free(models);
    return found;
}

static int print_loaded(nibble *admin, const char *name, double seconds, bool json)
{
    const struct nibble_model model = cli_find_model(admin, name);
    char lack[CLI_LACK_SIZE];
    if (json)
        return cli_print_json(json_pack("{s:s, s:s, s:f, s:b, s:b, s:s, s:b}", "name", name,
                                        "device", model.device, "seconds", seconds, "has_template",
                                        model.has_template, "embeds_only", model.embeds_only,
                                        "base", model.base, "is_drafter", model.is_drafter),
                              JSON_REAL_PRECISION(4));
    printf("loaded %s on %s in %.2f s\n", name, model.device, seconds);
    if (model.is_drafter) {
        printf("it proposes tokens for %s, which takes them where that is faster\n", model.base);
        return CLI_OK;
    }
    if (*model.base) {
        printf("it is an adapter of %s: `nibble run %s --adapter %s PROMPT`\n", model.base,
               model.base, name);
        return CLI_OK;
    }
    if (model.embeds_only)
        printf("it gives vectors of texts: `nibble embed %s TEXT...`\n", name);
    else if (!model.has_template)
        printf("it %s: `nibble run %s --raw TEXT` goes on from a text, --template FILE brings a "
               "template\n",
               cli_template_lack(&model, lack), name);
    return CLI_OK;
}

// The one that is asked for, or the file's: an adapter's without its scale.
static int choose_name(const char *file, const struct nibble_load_options *options,
                       char ret[CLI_NAME_SIZE])
{
    const char *colon = options->base && access(file, F_OK) < 0 ? strrchr(file, ':') : NULL;
    if (options->name)
        return cli_name(options->name, ret);
    char *path = strndup(file, colon ? (size_t)(colon - file) : strlen(file));
    int status = path ? cli_name_of_file(path, ret) : cli_error("out of memory");
    free(path);
    return status;
}

int verb_load(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    struct nibble_load_options options = {0};
    struct option_list adapters = {0};
    bool force = false;
    const struct option_spec specs[] = {
        {"name", 0, OPTION_STRING, &options.name, "NAME", "the model's name (default: the file's)"},
        {"device", 0, OPTION_STRING, &options.device, "D",
         "the device that serves it (default: cpu; auto: the first GPU, else cpu), or several "
         "with their layers: vulkan0:20+vulkan1"},
        {"gpu-layers", 0, OPTION_UINT(0, UINT32_MAX), &options.gpu_layers, "N",
         "the device runs the last N layers, the CPU the others (default: all)"},
        {"fallback", 0, OPTION_STRING, &options.fallback, "D",
         "the device that takes over when that one is lost (default: none)"},
        {"precision", 0, OPTION_STRING, &options.precision, "P",
         "fast, balanced (default) or exact"},
        {"context", 0, OPTION_UINT(0, UINT32_MAX), &options.context, "N",
         "the longest sequence (default: the model's own)"},
        {"kv-bytes", 0, OPTION_SIZE, &options.kv_bytes, "SIZE",
         "memory for KV caches, as 512Mi (default: the daemon's)"},
        {"kv-type", 0, OPTION_STRING, &options.kv_type, "T",
         "f16 (default), q8_0, which takes half the memory, or f32 (default of exact)"},
        {"adapter", 0, OPTION_LIST(OPTION_LIST_MAX), &adapters, "F.gguf[:SCALE]",
         "a LoRA adapter that is part of the model (each its own option)"},
        {"base", 0, OPTION_STRING, &options.base, "MODEL",
         "FILE is a LoRA adapter, F.gguf[:SCALE], for sessions of this loaded model (nibble run "
         "--adapter NAME)"},
        {"draft-for", 0, OPTION_STRING, &options.draft_for, "MODEL",
         "FILE is a small model with the same tokens, which proposes some to this loaded model"},
        {"force", 'f', OPTION_FLAG, &force, NULL,
         "load a file that is zero to its end, as after an interrupted download"},
        {0},
    };
    char **args, name[CLI_NAME_SIZE], base[CLI_NAME_SIZE], drafted[CLI_NAME_SIZE];
    int n = cli_parse(verb, specs, &common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    options.force = force;
    options.adapters = adapters.items;
    options.n_adapters = adapters.n;
    int status = options.base ? cli_name(options.base, base) : CLI_OK;
    if (status == CLI_OK && options.draft_for)
        status = cli_name(options.draft_for, drafted);
    if (status == CLI_OK)
        status = choose_name(args[0], &options, name);
    options.base = options.base ? base : NULL;
    options.draft_for = options.draft_for ? drafted : NULL;
    nibble *admin = NULL;
    double start = cli_now();
    options.name = name;
    if (status == CLI_OK)
        status = cli_load(&common, args[0], &options, &admin);
    if (status == CLI_OK)
        status = print_loaded(admin, name, cli_now() - start, common.json);
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
    char **args, name[CLI_NAME_SIZE];
    int n = cli_parse(verb, specs, &common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    int status = cli_name(args[0], name);
    nibble *admin = status == CLI_OK ? cli_connect_admin(&common) : NULL;
    if (!admin)
        return status == CLI_OK ? CLI_FAILED : status;
    int rc = nibble_unload(admin, name, force);
    if (rc < 0)
        status = cli_failed(admin, name, rc);
    else if (common.json)
        status = cli_print_json(json_pack("{s:s}", "name", name), 0);
    else
        printf("unloaded %s\n", name);
    nibble_close(admin);
    return status;
}

// Sets *ret_there to whether the daemon has a model of that name.
static int look_for(const struct common *common, const char *name, bool *ret_there)
{
    nibble *connection = cli_connect(common);
    if (!connection)
        return CLI_FAILED;
    *ret_there = *cli_find_model(connection, name).name != '\0';
    nibble_close(connection);
    return CLI_OK;
}

static int check_how(const struct nibble_load_options *how, const char *name)
{
    if (!how->precision && !how->device && !how->kv_type)
        return CLI_OK;
    return cli_usage_error(
        "--%s is for a FILE; the loaded model %s keeps the one it was loaded with",
        how->precision ? "precision"
        : how->device  ? "device"
                       : "kv-type",
        name);
}

int cli_model_or_file(const struct common *common, const char *name_or_file,
                      const struct nibble_load_options *how, struct loaded *ret)
{
    struct stat st;
    struct loaded l = {0};
    bool exists = stat(name_or_file, &st) == 0, there = false;
    int status = CLI_OK;
    // A folder that is called like a loaded model is not meant.
    if ((!exists || !S_ISREG(st.st_mode)) && !strchr(name_or_file, '/')) {
        status = cli_name(name_or_file, l.name);
        if (status == CLI_OK)
            status = look_for(common, l.name, &there);
        if (status == CLI_OK && there)
            status = check_how(how, l.name);
        if (status == CLI_OK && !there && !exists)
            status = cli_error("%s: no such file or folder, and no model of that name is loaded",
                               l.name);
    }
    if (status == CLI_OK && there)
        *ret = l;
    if (status != CLI_OK || there)
        return status;
    static unsigned count;
    snprintf(l.name, sizeof(l.name), "tmp-%ld-%u", (long)getpid(), count++);
    struct nibble_load_options options = *how;
    options.name = l.name;
    options.temporary = 1;
    status = cli_load(common, name_or_file, &options, &l.admin);
    if (status != CLI_OK)
        return status;
    *ret = l;
    return CLI_OK;
}

void cli_model_release(struct loaded *l)
{
    if (l->admin) {
        int rc = nibble_unload(l->admin, l->name, 1);
        if (rc < 0)
            cli_failed(l->admin, l->name, rc);
    }
    nibble_close(l->admin);
    *l = (struct loaded){0};
}
