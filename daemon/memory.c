// How much memory may still be taken: of the machine, of the control groups that the service lives
// in, and by the settings.
#include "daemon/broker.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *nb_human(uint64_t bytes, char buf[24])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    unsigned u = 0;
    while (value >= 1024 && u + 1 < sizeof units / sizeof *units) {
        value /= 1024;
        u++;
    }
    snprintf(buf, 24, u ? "%.1f %s" : "%.0f %s", value, units[u]);
    return buf;
}

// The number after `key` at a line's start, times `scale`; `fallback` where there is none.
static uint64_t read_key(const char *path, const char *key, uint64_t scale, uint64_t fallback)
{
    FILE *file = fopen(path, "re");
    char line[256];
    uint64_t value = fallback;
    size_t n = strlen(key);
    while (file && fgets(line, sizeof line, file)) {
        char *end;
        if (strncmp(line, key, n))
            continue;
        uint64_t v = strtoull(line + n, &end, 10);
        if (end != line + n)
            value = v * scale;
        break;
    }
    if (file)
        fclose(file);
    return value;
}

// One group's room: its limit less what it cannot give back.
static uint64_t group_room(const char *dir)
{
    char path[640];
    snprintf(path, sizeof path, "%s/memory.max", dir);
    uint64_t max = read_key(path, "", 1, UINT64_MAX); // "max" is no number
    if (max == UINT64_MAX)
        return max;
    snprintf(path, sizeof path, "%s/memory.current", dir);
    uint64_t used = read_key(path, "", 1, 0);
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    uint64_t cache = read_key(path, "inactive_file ", 1, 0) + read_key(path, "active_file ", 1, 0);
    used = used > cache ? used - cache : 0;
    return max > used ? max - used : 0;
}

// The least room of our control group (version 2) and those above it.
static uint64_t groups_room(void)
{
    char line[512], dir[576];
    uint64_t room = UINT64_MAX;
    FILE *file = fopen("/proc/self/cgroup", "re");
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file))
        found = !strncmp(line, "0::/", 4);
    if (file)
        fclose(file);
    if (!found)
        return room;
    line[strcspn(line, "\n")] = 0;
    for (char *group = line + 3; *group; *strrchr(group, '/') = 0) {
        snprintf(dir, sizeof dir, "/sys/fs/cgroup%s", group);
        uint64_t r = group_room(dir);
        room = r < room ? r : room;
    }
    return room;
}

static uint64_t models_take(const struct nb_broker *broker)
{
    uint64_t taken = nb_images_bytes(broker);
    struct nb_model *model;
    TAILQ_FOREACH(model, &broker->models, of_broker)
    taken += model->info.kv_bytes;
    struct nb_worker *worker;
    TAILQ_FOREACH(worker, &broker->workers, entry)
    taken += worker->held_bytes;
    return taken;
}

uint64_t nb_memory_budget(const struct nb_broker *broker, char *ret_why, size_t why_size)
{
    uint64_t available = read_key("/proc/meminfo", "MemAvailable:", 1024, 0);
    uint64_t group = groups_room(), limit = broker->config.memory_bytes;
    uint64_t reserve = broker->config.reserve_bytes, taken = models_take(broker);
    char kept[24];
    const char *what = "MemAvailable";
    uint64_t room = available;
    if (group < room) {
        room = group;
        what = "the control group's limit";
    }
    room = room > reserve ? room - reserve : 0;
    snprintf(ret_why, why_size, "%s, less %s kept free", what, nb_human(reserve, kept));
    uint64_t allowed = !limit ? UINT64_MAX : limit > taken ? limit - taken : 0;
    if (allowed < room) {
        room = allowed;
        snprintf(ret_why, why_size, "bytes in [memory] of the settings, less the other models");
    }
    return room;
}
