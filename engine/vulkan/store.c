// A list, the last taken or given first: some tens of pipelines, looked through when a model is
// opened, prepared or closed.
#include "engine/vulkan/store.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct entry *next;
    const struct nb_tier_variant *variant;
    uint32_t constants[CONST_TIER];
    VkPipeline pipeline;
    uint32_t users;
};

struct nb_vulkan_store {
    pthread_mutex_t lock;
    struct entry *first; // the one that was taken or given last
};

int nb_vulkan_store_create(struct nb_vulkan_store **ret)
{
    struct nb_vulkan_store *store = calloc(1, sizeof(*store));
    if (!store)
        return -ENOMEM;
    pthread_mutex_init(&store->lock, NULL);
    *ret = store;
    return 0;
}

static void destroy(struct nb_vulkan_device *d, struct entry *e)
{
    d->vk.DestroyPipeline(d->device, e->pipeline, NULL);
    free(e);
}

void nb_vulkan_store_destroy(struct nb_vulkan_device *d)
{
    struct nb_vulkan_store *store = d->store;
    if (!store)
        return;
    for (struct entry *e = store->first, *next; e; e = next) {
        next = e->next;
        destroy(d, e);
    }
    pthread_mutex_destroy(&store->lock);
    free(store);
}

static void put_first(struct nb_vulkan_store *store, struct entry *e)
{
    e->next = store->first;
    store->first = e;
}

static struct entry *unlink_entry(struct entry **at)
{
    struct entry *e = *at;
    *at = e->next;
    return e;
}

static struct entry *find(struct nb_vulkan_store *store, const struct nb_tier_variant *variant,
                          const uint32_t constants[CONST_TIER])
{
    for (struct entry **at = &store->first; *at; at = &(*at)->next)
        if ((*at)->variant == variant &&
            !memcmp((*at)->constants, constants, sizeof((*at)->constants)))
            return unlink_entry(at);
    return NULL;
}

static int make(struct nb_vulkan_device *d, const struct nb_tier_variant *variant,
                const uint32_t constants[CONST_TIER], struct entry **ret)
{
    struct entry *e = calloc(1, sizeof(*e));
    int rc = e ? nb_vulkan_pipeline(d, variant, constants, &e->pipeline) : -ENOMEM;
    if (rc < 0) {
        free(e);
        return rc;
    }
    e->variant = variant;
    memcpy(e->constants, constants, sizeof(e->constants));
    *ret = e;
    return 0;
}

int nb_vulkan_store_take(struct nb_vulkan_device *d, const struct nb_tier_variant *variant,
                         const uint32_t constants[CONST_TIER], VkPipeline *ret)
{
    struct nb_vulkan_store *store = d->store;
    pthread_mutex_lock(&store->lock);
    struct entry *e = find(store, variant, constants);
    if (!e) {
        pthread_mutex_unlock(&store->lock); // others make theirs meanwhile
        int rc = make(d, variant, constants, &e);
        if (rc < 0)
            return rc;
        pthread_mutex_lock(&store->lock);
    }
    e->users++;
    *ret = e->pipeline;
    put_first(store, e);
    pthread_mutex_unlock(&store->lock);
    return 0;
}

// All but the last NB_VULKAN_IDLE that nobody has.
static void trim(struct nb_vulkan_device *d, struct nb_vulkan_store *store)
{
    uint32_t idle = 0;
    for (struct entry **at = &store->first; *at;) {
        if ((*at)->users || ++idle <= NB_VULKAN_IDLE)
            at = &(*at)->next;
        else
            destroy(d, unlink_entry(at));
    }
}

void nb_vulkan_store_give(struct nb_vulkan_device *d, VkPipeline pipeline)
{
    struct nb_vulkan_store *store = d->store;
    if (!pipeline)
        return;
    pthread_mutex_lock(&store->lock);
    for (struct entry **at = &store->first; *at; at = &(*at)->next) {
        if ((*at)->pipeline != pipeline)
            continue;
        struct entry *e = unlink_entry(at);
        e->users--;
        put_first(store, e);
        break;
    }
    trim(d, store);
    pthread_mutex_unlock(&store->lock);
}
