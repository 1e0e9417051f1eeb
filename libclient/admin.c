// Loading and unloading, on an admin connection.
#include "libclient/client.h"

#include <errno.h>

#define UNLOAD_MS 60000

static bool valid_name(const char *name)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = name ? strlen(name) : 0;
    return n > 0 && n < NB_NAME_MAX && strspn(name, allowed) == n;
}

static int check_name(nibble *c, const char *name)
{
    return valid_name(name)
               ? 0
               : nb_fail(c, -EINVAL, "a model's name is 1 to %d of [A-Za-z0-9._-]: \"%s\"",
                         NB_NAME_MAX - 1, name ? name : "");
}

// Copies an optional string with its NUL; a longer one is nothing that the daemon could know.
static int put(nibble *c, char *to, size_t size, const char *what, const char *text)
{
    size_t n = text ? strlen(text) : 0;
    if (n >= size)
        return nb_fail(c, -EINVAL, "no such %s: \"%s\"", what, text);
    memcpy(to, text ? text : "", n + 1);
    return 0;
}

int nibble_load(nibble *c, int fd, const struct nibble_load_options *options)
{
    struct nb_wire_load request = {.context = options->context,
                                   .kv_bytes = options->kv_bytes,
                                   .gpu_layers = options->gpu_layers,
                                   .temporary = options->temporary != 0};
    int r = check_name(c, options->name);
    if (r == 0)
        r = put(c, request.name, sizeof request.name, "name", options->name);
    if (r == 0)
        r = put(c, request.device, sizeof request.device, "device", options->device);
    if (r == 0)
        r = put(c, request.precision, sizeof request.precision, "precision", options->precision);
    if (r == 0)
        r = put(c, request.kv_type, sizeof request.kv_type, "KV type", options->kv_type);
    if (r == 0)
        r = put(c, request.fallback, sizeof request.fallback, "device", options->fallback);
    if (r < 0)
        return r;
    if (c->requesting)
        return nb_fail(c, -EBUSY, "a load is under way on this connection");
    struct nb_packet reply;
    struct nb_load load = {.options = options};
    c->load = &load;
    r = nb_request(c, NB_WIRE_LOAD, &request, &fd, &reply, -1);
    c->load = NULL;
    if (r == -ECANCELED)
        return nb_fail(c, NIBBLE_E_CANCELLED, "the load of %s was cancelled", options->name);
    return r < 0 ? r : 0;
}

int nibble_unload(nibble *c, const char *name, int force)
{
    struct nb_wire_unload request = {.force = force != 0};
    struct nb_packet reply;
    int r = check_name(c, name);
    if (r < 0)
        return r;
    memcpy(request.name, name, strlen(name) + 1);
    r = nb_request(c, NB_WIRE_UNLOAD, &request, NULL, &reply, UNLOAD_MS);
    return r < 0 ? r : 0;
}
