// Keeps a model's pipelines few: each costs a driver 10 to 300 ms, and a model of many weight types
// names one for each tile of each. What computes least does with fewer tiles then. Must not change
// a result: every tile gives the same bits.
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// Dispatches that share their pipelines.
struct family {
    uint16_t pipeline[NB_TIER_TILES]; // as they are named
    uint32_t tiles;                   // that differ
    double work;
};

struct families {
    struct family *family;
    uint32_t n, *of; // of each dispatch
    bool *used;      // of each pipeline
};

static uint32_t count_pipelines(const struct nb_device_model *m, bool *used)
{
    uint32_t n = 0;
    memset(used, 0, m->pipelines.n * sizeof(*used));
    for (uint32_t i = 0; i < m->program.n; i++)
        for (uint32_t t = 0; t < NB_TIER_TILES; t++) {
            bool *it = &used[m->program.dispatches[i].pipeline[t]];
            n += !*it;
            *it = true;
        }
    return n;
}

static void list_families(const struct nb_device_model *m, struct families *all)
{
    for (uint32_t i = 0; i < m->program.n; i++) {
        const struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
        struct family *f = all->family, *end = f + all->n;
        while (f < end && memcmp(f->pipeline, p->pipeline, sizeof(f->pipeline)) != 0)
            f++;
        if (f == end) {
            *f = (struct family){.tiles = 1};
            memcpy(f->pipeline, p->pipeline, sizeof(f->pipeline));
            for (uint32_t t = 1; t < NB_TIER_TILES; t++)
                f->tiles += p->pipeline[t] != p->pipeline[t - 1];
            all->n++;
        }
        f->work += (double)p->units * p->cols;
        all->of[i] = (uint32_t)(f - all->family);
    }
}

// The one with more tiles than `kept` that computes least.
static struct family *lightest(const struct families *all, uint32_t kept)
{
    struct family *least = NULL;
    for (struct family *f = all->family; f < all->family + all->n; f++)
        if (f->tiles > kept && (!least || f->work < least->work))
            least = f;
    return least;
}

// Keeps the first tile, for one row, and with two the last, for many.
static void narrow(struct nb_device_model *m, const struct families *all, struct family *f,
                   uint32_t kept)
{
    const uint8_t other = kept == 1 ? 0 : NB_TIER_TILES - 1;
    for (uint32_t i = 0; i < m->program.n; i++)
        for (uint32_t t = 1; &all->family[all->of[i]] == f && t < NB_TIER_TILES; t++) {
            m->program.dispatches[i].stand_in[t] = other;
            m->program.dispatches[i].pipeline[t] = f->pipeline[other];
        }
    f->tiles = kept;
}

int nb_vulkan_pipelines_limit(struct nb_device_model *m)
{
    struct families all = {.family = calloc(m->program.n, sizeof(*all.family)),
                           .of = calloc(m->program.n, sizeof(*all.of)),
                           .used = calloc(m->pipelines.n, sizeof(*all.used))};
    int rc = all.family && all.of && all.used ? 0 : -ENOMEM;
    if (rc == 0)
        list_families(m, &all);
    for (uint32_t kept = NB_TIER_TILES - 1; rc == 0 && kept > 0; kept--)
        while (count_pipelines(m, all.used) > NB_VULKAN_PIPELINES) {
            struct family *f = lightest(&all, kept);
            if (!f)
                break;
            narrow(m, &all, f, kept);
        }
    free(all.family);
    free(all.of);
    free(all.used);
    return rc;
}
