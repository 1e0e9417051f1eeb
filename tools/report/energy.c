// RAPL's counters: intel-rapl:N is a package on AMD's processors too; intel-rapl:N:M is a part of
// it, and counted in it.
#include "tools/report/energy.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int read_value(struct energy *e, unsigned zone, const char *name, uint64_t *ret)
{
    char path[192];
    snprintf(path, sizeof(path), "%s/intel-rapl:%u/%s", e->root, zone, name);
    FILE *file = fopen(path, "re");
    errno = file ? EIO : errno;
    int found = file ? fscanf(file, "%" SCNu64, ret) : 0;
    if (found != 1)
        snprintf(e->reason, sizeof(e->reason), "not readable: %s: %s", path, strerror(errno));
    if (file)
        fclose(file);
    return found == 1 ? 0 : -1;
}

static void find_packages(struct energy *e)
{
    DIR *folder = opendir(e->root);
    if (!folder)
        snprintf(e->reason, sizeof(e->reason), "not readable: %s: %s", e->root, strerror(errno));
    else
        snprintf(e->reason, sizeof(e->reason), "not readable: %s has no intel-rapl:0", e->root);
    for (struct dirent *entry; folder && (entry = readdir(folder)) && e->n < ENERGY_ZONES;) {
        unsigned zone;
        int end = 0;
        if (sscanf(entry->d_name, "intel-rapl:%u%n", &zone, &end) == 1 && !entry->d_name[end])
            e->zones[e->n++] = zone;
    }
    if (folder)
        closedir(folder);
}

void energy_begin(struct energy *e, const char *root)
{
    *e = (struct energy){.n = 0};
    snprintf(e->root, sizeof(e->root), "%s", root);
    find_packages(e);
    for (unsigned i = 0; i < e->n; i++)
        if (read_value(e, e->zones[i], "energy_uj", &e->from[i]) < 0)
            e->n = 0;
}

double energy_end(struct energy *e)
{
    double joules = 0;
    for (unsigned i = 0; i < e->n; i++) {
        uint64_t now, range;
        if (read_value(e, e->zones[i], "energy_uj", &now) < 0 ||
            read_value(e, e->zones[i], "max_energy_range_uj", &range) < 0)
            return -1;
        joules += 1e-6 * (double)(now >= e->from[i] ? now - e->from[i] : now + range - e->from[i]);
    }
    return e->n ? joules : -1;
}
