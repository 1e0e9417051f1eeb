// Reads nibbled.conf through inih. Unknown names and values out of bounds are refused by line,
// never ignored.
#include "daemon/config.h"

#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum unit { COUNT, BYTES, SECONDS };

struct setting {
    const char *section, *name;
    size_t offset;
    enum unit unit;
    uint64_t fallback, min, max; // in the setting's own terms: seconds are kept in milliseconds
};

#define AT(field) offsetof(struct nb_config, field)
static const struct setting settings[] = {
    {"limits", "channels-per-connection", AT(channels_per_connection), COUNT, 16, 1, 256},
    {"limits", "connections", AT(connections), COUNT, 1024, 1, 65536},
    {"limits", "queue-bytes", AT(queue_bytes), BYTES, 64 << 10, 4 << 10, 16 << 20},
    {"memory", "bytes", AT(memory_bytes), BYTES, 0, 0, UINT64_C(1) << 46},
    {"memory", "reserve", AT(reserve_bytes), BYTES, 256 << 20, 0, UINT64_C(1) << 46},
    {"supervision", "start", AT(start_ms), SECONDS, 60000, 100, 86400000},
    {"supervision", "hang", AT(hang_ms), SECONDS, 60000, 100, 86400000},
    {"supervision", "deaths", AT(deaths), COUNT, 5, 1, 16},
    {"supervision", "deaths-window", AT(deaths_window_ms), SECONDS, 60000, 100, 86400000},
    {"supervision", "backoff", AT(backoff_ms), SECONDS, 100, 1, 60000},
    {"supervision", "drain", AT(drain_ms), SECONDS, 30000, 0, 3600000},
    {"supervision", "hello", AT(hello_ms), SECONDS, 5000, 10, 60000},
    {"serving", "drafts", AT(drafts), COUNT, 1, 0, 1},
    {"jobs", "running", AT(jobs_running), COUNT, 1, 1, 64},
    {"jobs", "idle", AT(jobs_idle), COUNT, 1, 0, 1},
    {"jobs", "keep", AT(jobs_keep_ms), SECONDS, 604800000, 1000, UINT64_C(31536000000)},
};
#define N_SETTINGS (sizeof(settings) / sizeof(*settings))

static uint64_t *value_at(struct nb_config *config, size_t offset)
{
    return (uint64_t *)((char *)config + offset);
}

void nb_config_init(struct nb_config *ret)
{
    for (int r = 0; r < NB_RES_COUNT; r++)
        ret->limits[r] = nb_resources[r].fallback;
    for (size_t i = 0; i < N_SETTINGS; i++)
        *value_at(ret, settings[i].offset) = settings[i].fallback;
}

// A number with the unit's suffixes: 1024-based K, M, G, T for bytes; fractions for seconds, kept
// in milliseconds.
static int parse_value(const char *text, enum unit unit, uint64_t *ret)
{
    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    char *end;
    errno = 0;
    if (unit == SECONDS) {
        double s = strtod(text, &end);
        if (*end || errno || !(s >= 0 && s < 1e9))
            return -EINVAL;
        *ret = (uint64_t)(s * 1000 + 0.5);
        return 0;
    }
    uint64_t n = strtoull(text, &end, 10);
    static const char suffixes[] = "KMGT";
    const char *suffix =
        *end && unit == BYTES ? strchr(suffixes, toupper((unsigned char)*end)) : NULL;
    unsigned shift = suffix ? 10 * (unsigned)(suffix - suffixes + 1) : 0;
    if (errno || end[suffix ? 1 : 0] || n > UINT64_MAX >> shift)
        return -EINVAL;
    *ret = n << shift;
    return 0;
}

struct reading {
    struct nb_config *config;
    char complaint[160]; // the first one; "": none
};

static int complain(struct reading *r, const char *section, const char *name, const char *what)
{
    if (!*r->complaint)
        snprintf(r->complaint, sizeof(r->complaint), "[%s] %s: %s", section, name, what);
    return 0; // inih: stop counting this line as good
}

static int on_setting(void *user, const char *section, const char *name, const char *value)
{
    struct reading *r = user;
    if (!strcmp(section, "limits"))
        for (int i = 0; i < NB_RES_COUNT; i++)
            if (!strcmp(name, nb_resources[i].setting))
                return !parse_value(value, nb_resources[i].is_bytes ? BYTES : COUNT,
                                    &r->config->limits[i]) ||
                       complain(r, section, name, "not a number");
    for (size_t i = 0; i < N_SETTINGS; i++) {
        const struct setting *s = &settings[i];
        uint64_t v;
        if (strcmp(section, s->section) || strcmp(name, s->name))
            continue;
        if (parse_value(value, s->unit, &v) < 0)
            return complain(r, section, name, "not a number of this kind");
        if (v < s->min || v > s->max)
            return complain(r, section, name, "out of bounds");
        *value_at(r->config, s->offset) = v;
        return 1;
    }
    return complain(r, section, name, "no such setting");
}

int nb_config_load(struct nb_config *config, const char *path, struct nb_refusal *refusal)
{
    struct reading r = {config, ""};
    int line = ini_parse(path, on_setting, &r);
    if (!line)
        return 0;
    if (line < 0)
        return nb_refuse(refusal, -EINVAL, "%s: cannot be read (%s)", path, strerror(errno));
    return nb_refuse(refusal, -EINVAL, "%s:%d: %s", path, line,
                     *r.complaint ? r.complaint : "not a setting");
}
