// Models outlive a restart of the broker: systemd keeps their sealed images (FDSTORE=), each under
// a name that says all that the broker must know to serve it again. Without systemd nothing here
// does anything.
#include "daemon/store.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/log.h"
#include "daemon/model.h"
#include "daemon/params.h"
#include "daemon/refusal.h"
#include "daemon/split.h"
#include "libclient/wire.h"

#define PREFIX      "model+"
#define ADAPTER     "adapter+"
#define DRAFTER     "drafter+"
#define STORE_NAME  256 // of systemd, with the NUL
#define NAME_SPACE  (2 * NB_NAME_MAX)
#define NO_FALLBACK "-"

struct nb_stored_image {
    STAILQ_ENTRY(nb_stored_image) entry;
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

// Systemd takes ASCII alone: any other name is written as % and the digits of its bytes.
static void write_ascii(const char *name, char ret[NAME_SPACE])
{
    const char *c = name;
    while (*c > 0 && *c < 0x7f)
        c++;
    if (!*c) {
        snprintf(ret, NAME_SPACE, "%s", name);
        return;
    }
    *ret++ = '%';
    for (; *name; name++)
        ret += snprintf(ret, 3, "%02x", (unsigned char)*name);
}

static int read_ascii(const char *text, char ret[NB_NAME_MAX])
{
    size_t n = 0;
    if (*text != '%') {
        snprintf(ret, NB_NAME_MAX, "%.63s", text);
        return 0;
    }
    for (text++; n < NB_NAME_MAX - 1 && sscanf(text, "%2hhx", (unsigned char *)&ret[n]) == 1; n++)
        text += text[1] ? 2 : 1;
    ret[n] = '\0';
    return *text ? -EINVAL : 0;
}

// model+NAME+DEVICE+FALLBACK, - where it has none, and the parameters (params.h); of an adapter
// adapter+NAME+BASE+SCALE, and so of a drafter. False: systemd takes no name as long as that.
static bool write_name(const struct nb_model *model, char ret[STORE_NAME])
{
    char name[NAME_SPACE], base[NAME_SPACE], params[NB_PARAMS_TEXT];
    char device[sizeof(model->info.device)], fallback[sizeof(model->fallback)];
    memcpy(device, model->info.device, sizeof(device));
    snprintf(fallback, sizeof(fallback), "%s", *model->fallback ? model->fallback : NO_FALLBACK);
    replace(device, "+:", ",/");
    replace(fallback, "+:", ",/");
    write_ascii(model->info.name, name);
    write_ascii(model->info.base, base);
    nb_params_write(&model->params, params);
    int n =
        model->base
            ? snprintf(ret, STORE_NAME, "%s%s+%s+%.9g", model->info.is_drafter ? DRAFTER : ADAPTER,
                       name, base, model->info.scale)
            : snprintf(ret, STORE_NAME, PREFIX "%s+%s+%s%s", name, device, fallback, params);
    return n < STORE_NAME;
}

static bool is_drafter(const char *name)
{
    return !strncmp(name, DRAFTER, strlen(DRAFTER));
}

static bool has_base(const char *name)
{
    return is_drafter(name) || !strncmp(name, ADAPTER, strlen(ADAPTER));
}

static int read_with_base(const char *name, struct nb_wire_load *ret)
{
    struct nb_wire_load m = {.drafter = is_drafter(name)};
    char text[NAME_SPACE], base[NAME_SPACE];
    int end = -1;
    int n = sscanf(name, "%*[a-z]+%127[^+]+%127[^+]+%f%n", text, base, &m.scale, &end);
    if (n < 3 || end < 0 || name[end] || read_ascii(text, m.name) < 0 ||
        read_ascii(base, m.base) < 0)
        return -EINVAL;
    *ret = m;
    return 0;
}

static int read_name(const char *name, struct nb_wire_load *ret)
{
    struct nb_wire_load m = {.force = 0};
    char text[NAME_SPACE];
    int end = -1;
    int n = sscanf(name, PREFIX "%127[^+]+%31[^+]+%31[^+]%n", text, m.device, m.fallback, &end);
    if (n < 3 || end < 0 || read_ascii(text, m.name) < 0)
        return -EINVAL;
    if (!strcmp(m.fallback, NO_FALLBACK))
        *m.fallback = '\0';
    replace(m.device, ",/", "+:");
    replace(m.fallback, ",/", "+:");
    int rc = nb_params_read(name + end, &m.params);
    if (rc == 0)
        *ret = m;
    return rc;
}

void nb_store_put(const struct nb_model *model)
{
    char name[STORE_NAME], state[STORE_NAME + 32];
    if (model->owner || (model->base && model->base->owner))
        return;
    if (!write_name(model, name)) {
        nb_log(LOG_WARNING,
               "%s would not outlive a restart of the daemon: give it or its base a shorter name",
               model->info.name);
        return;
    }
    snprintf(state, sizeof(state), "FDSTORE=1\nFDNAME=%s", name);
    sd_pid_notify_with_fds(0, 0, state, &model->image_fd, 1);
}

void nb_store_drop(const struct nb_model *model)
{
    char name[STORE_NAME];
    if (write_name(model, name))
        sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

int nb_store_take(struct nb_broker *broker, int fd, const char *name)
{
    if (strncmp(name, PREFIX, strlen(PREFIX)) != 0 && !has_base(name))
        return 0;
    struct nb_stored_image *image = calloc(1, sizeof(*image));
    if (!image)
        return 0;
    image->fd = fd;
    snprintf(image->name, sizeof(image->name), "%s", name);
    STAILQ_INSERT_TAIL(&broker->stored, image, entry);
    return 1;
}

static int restore(struct nb_broker *broker, struct nb_stored_image *image)
{
    struct nb_wire_load request = {.force = 0};
    struct nb_model *model;
    struct nb_device *device;
    struct nb_refusal refusal;
    int rc = (has_base(image->name) ? read_with_base : read_name)(image->name, &request);
    if (rc < 0)
        return rc;
    const struct nb_model *base = *request.base ? nb_model_by_name(broker, request.base) : NULL;
    if (*request.base && (!base || base->base))
        return -ENOENT;
    device = base ? base->device : NULL;
    rc = base ? 0 : nb_device_named(broker, request.device, &device, &refusal);
    if (rc < 0)
        return rc;
    if (nb_model_by_name(broker, request.name))
        return -EEXIST;
    rc = nb_model_create(device, &request, &model);
    if (rc < 0)
        return rc;
    model->image_fd = image->fd;
    image->fd = -1;
    rc = nb_model_seal(model, UINT64_MAX);
    if (!rc)
        rc = nb_model_serve(model);
    if (rc < 0)
        nb_model_unload(model);
    return rc;
}

// Models, or the adapters and drafters that go with them.
static void restore_all(struct nb_broker *broker, bool with_base)
{
    struct nb_stored_image *image, *next;
    for (image = STAILQ_FIRST(&broker->stored); image; image = next) {
        next = STAILQ_NEXT(image, entry);
        if (has_base(image->name) != with_base)
            continue;
        int rc = broker->stopping ? 0 : restore(broker, image);
        if (rc < 0)
            nb_log(LOG_ERR, "%s of before the restart is not served again (%s): load it again",
                   image->name, strerror(-rc));
        STAILQ_REMOVE(&broker->stored, image, nb_stored_image, entry);
        if (image->fd >= 0)
            close(image->fd);
        free(image);
    }
}

void nb_store_restore(struct nb_broker *broker)
{
    restore_all(broker, false);
    restore_all(broker, true);
}
