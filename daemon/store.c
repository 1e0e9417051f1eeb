// Models outlive a restart of the broker: systemd keeps their sealed images (FDSTORE=), each under
// a name that says all that the broker must know to serve it again. Without systemd nothing here
// does anything.
#include "daemon/broker.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define PREFIX     "model+"
#define STORE_NAME 256 // of systemd, with the NUL

struct nb_kept {
    STAILQ_ENTRY(nb_kept) entry;
    int fd;
    char name[STORE_NAME];
};

// Systemd hands over names with colons between them, and ours has plus signs.
static void replace(char *text, const char *from, const char *to)
{
    for (const char *known; *text; text++)
        if ((known = strchr(from, *text)))
            *text = to[known - from];
}

// model+NAME+DEVICE+PRECISION+CONTEXT+KV, and +FALLBACK where it has one; KV with /TYPE where that
// is not f16.
static void write_name(const struct nb_model *model, char ret[STORE_NAME])
{
    const char *type = model->info.kv_type;
    int usual = !strcmp(type, "f16");
    char device[sizeof model->info.device], fallback[sizeof model->fallback];
    memcpy(device, model->info.device, sizeof device);
    memcpy(fallback, model->fallback, sizeof fallback);
    replace(device, "+:", ",/");
    replace(fallback, "+:", ",/");
    snprintf(ret, STORE_NAME, PREFIX "%s+%s+%s+%" PRIu32 "+%" PRIu64 "%s%s%s%s", model->info.name,
             device, model->info.precision, model->context, model->kv_bytes, usual ? "" : "/",
             usual ? "" : type, *fallback ? "+" : "", fallback);
}

// What stands behind a slash, which becomes the text's end; "" where there is none.
static const char *behind_slash(char *text)
{
    char *slash = strchr(text, '/');
    if (!slash)
        return "";
    *slash = '\0';
    return slash + 1;
}

static int read_name(const char *name, struct nb_wire_load *ret)
{
    struct nb_wire_load m = {.context = 0};
    char kv[40];
    int end = -1, end_6 = -1;
    int n = sscanf(name, PREFIX "%63[^+]+%31[^+]+%15[^+]+%" SCNu32 "+%39[^+]%n+%31[^+]%n", m.name,
                   m.device, m.precision, &m.context, kv, &end, m.fallback, &end_6);
    end = n == 6 ? end_6 : end;
    if (n < 5 || end < 0 || name[end])
        return -EINVAL;
    replace(m.device, ",/", "+:");
    replace(m.fallback, ",/", "+:");
    snprintf(m.kv_type, sizeof m.kv_type, "%.15s", behind_slash(kv));
    m.kv_bytes = strtoull(kv, NULL, 10);
    *ret = m;
    return 0;
}

void nb_store_put(const struct nb_model *model)
{
    char name[STORE_NAME], state[STORE_NAME + 32];
    if (model->owner)
        return;
    write_name(model, name);
    snprintf(state, sizeof state, "FDSTORE=1\nFDNAME=%s", name);
    sd_pid_notify_with_fds(0, 0, state, &model->image_fd, 1);
}

void nb_store_drop(const struct nb_model *model)
{
    char name[STORE_NAME];
    write_name(model, name);
    sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

int nb_store_take(struct nb_broker *broker, int fd, const char *name)
{
    if (strncmp(name, PREFIX, strlen(PREFIX)) != 0)
        return 0;
    struct nb_kept *kept = calloc(1, sizeof *kept);
    if (!kept)
        return 0;
    kept->fd = fd;
    snprintf(kept->name, sizeof kept->name, "%s", name);
    STAILQ_INSERT_TAIL(&broker->kept, kept, entry);
    return 1;
}

static int restore(struct nb_broker *broker, struct nb_kept *kept)
{
    struct nb_wire_load request;
    struct nb_model *model;
    int r = read_name(kept->name, &request);
    if (r < 0)
        return r;
    struct nb_device *device;
    struct nb_refusal refusal;
    r = nb_device_named(broker, request.device, &device, &refusal);
    if (r < 0)
        return r;
    if (nb_model_by_name(broker, request.name))
        return -EEXIST;
    r = nb_model_create(device, &request, &model);
    if (r < 0)
        return r;
    model->image_fd = kept->fd;
    kept->fd = -1;
    r = nb_model_seal(model, UINT64_MAX);
    if (!r)
        r = nb_model_serve(model);
    if (r < 0)
        nb_model_unload(model);
    return r;
}

void nb_store_restore(struct nb_broker *broker)
{
    struct nb_kept *kept;
    while ((kept = STAILQ_FIRST(&broker->kept))) {
        int r = broker->stopping ? 0 : restore(broker, kept);
        if (r < 0)
            nb_log(LOG_ERR, "%s of before the restart is not served again (%s): load it again",
                   kept->name, strerror(-r));
        STAILQ_REMOVE_HEAD(&broker->kept, entry);
        if (kept->fd >= 0)
            close(kept->fd);
        free(kept);
    }
}
