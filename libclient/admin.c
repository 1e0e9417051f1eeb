// Loading and unloading, on an admin connection.
#include "libclient/client.h"

#include <errno.h>

#include "libclient/files.h"
#include "libclient/sentence.h"

#define UNLOAD_MS 60000

static int check_name(nibble *c, const char *name)
{
    if (name && nb_name_sound(name, NB_NAME_MAX))
        return 0;
    return nb_fail(c, -EINVAL, "a model's name is 1 to %d bytes: " NB_NAME_RULE ": \"%s\"",
                   NB_NAME_MAX - 1, name ? name : "");
}

// Copies an optional string with its NUL. The daemon cannot know a longer one.
static int put(nibble *c, char *to, size_t size, const char *what, const char *text)
{
    size_t n = text ? strlen(text) : 0;
    if (n >= size)
        return nb_fail(c, -EINVAL, "no such %s: \"%s\"", what, text);
    memcpy(to, text ? text : "", n + 1);
    return 0;
}

// Hands the files over, for the LOAD that comes next.
static int send_files(nibble *c, const char *path, const struct nibble_load_options *options,
                      float *ret_scale)
{
    struct nb_model_files files = {0};
    char sentence[NB_SENTENCE] = "out of memory";
    struct nb_packet reply;
    int rc = options->base && !options->draft_for
                 ? nb_model_files_open_adapter(path, &files, ret_scale, sentence, sizeof(sentence))
                 : nb_model_files_open(path, &files, sentence, sizeof(sentence));
    if (rc < 0)
        return nb_fail(c, rc, "%s", sentence);
    rc = nb_model_files_add_adapters(&files, options->adapters, options->n_adapters, sentence,
                                     sizeof(sentence));
    if (rc < 0)
        nb_fail(c, rc, "%s", sentence);
    for (size_t i = 0; i < files.n && rc >= 0; i++) {
        struct nb_wire_file request = {.name = ""};
        memcpy(request.name, files.items[i].name, sizeof(request.name));
        rc = nb_request(c, NB_WIRE_FILE, &request, &files.items[i].fd, &reply, -1);
    }
    nb_model_files_close(&files);
    return rc;
}

int nibble_load(nibble *c, const char *path, const struct nibble_load_options *given)
{
    struct nibble_load_options own, *options = &own;
    int rc = nb_options_read(c, NB_OPTIONS_LOAD, given, options);
    if (rc < 0)
        return rc;
    struct nb_wire_load request = {
        .gpu_layers = options->gpu_layers,
        .force = options->force != 0,
        .temporary = options->temporary != 0,
        .drafter = options->draft_for != NULL,
        .params = {.context = options->context, .kv_bytes = options->kv_bytes}};
    struct nb_load_params *params = &request.params;
    rc = check_name(c, options->name);
    if (rc == 0)
        rc = put(c, request.name, sizeof(request.name), "name", options->name);
    if (rc == 0)
        rc = put(c, request.device, sizeof(request.device), "device", options->device);
    if (rc == 0)
        rc = put(c, params->precision, sizeof(params->precision), "precision", options->precision);
    if (rc == 0)
        rc = put(c, params->kv_type, sizeof(params->kv_type), "KV type", options->kv_type);
    if (rc == 0)
        rc = put(c, request.fallback, sizeof(request.fallback), "device", options->fallback);
    if (rc == 0)
        rc = put(c, request.base, sizeof(request.base), "model",
                 options->draft_for ? options->draft_for : options->base);
    if (rc == 0 && options->base && options->n_adapters)
        rc = nb_fail(c, -EINVAL, "an adapter takes no other adapters: load each under its name");
    if (rc == 0 && options->base && options->draft_for)
        rc = nb_fail(c, -EINVAL, "a file is an adapter (base) or a drafter (draft_for), not both");
    if (rc < 0)
        return rc;
    if (c->requesting)
        return nb_fail(c, -EBUSY, "a load is under way on this connection");
    if ((rc = send_files(c, path, options, &request.scale)) < 0)
        return rc;
    struct nb_packet reply;
    struct nb_load load = {.options = options};
    c->load = &load;
    rc = nb_request(c, NB_WIRE_LOAD, &request, NULL, &reply, -1);
    c->load = NULL;
    if (rc == -ECANCELED)
        return nb_fail(c, NIBBLE_E_CANCELLED, "the load of %s was cancelled", options->name);
    return rc < 0 ? rc : 0;
}

int nibble_unload(nibble *c, const char *name, int force)
{
    struct nb_wire_unload request = {.force = force != 0};
    struct nb_packet reply;
    int rc = check_name(c, name);
    if (rc < 0)
        return rc;
    memcpy(request.name, name, strlen(name) + 1);
    rc = nb_request(c, NB_WIRE_UNLOAD, &request, NULL, &reply, UNLOAD_MS);
    return rc < 0 ? rc : 0;
}
