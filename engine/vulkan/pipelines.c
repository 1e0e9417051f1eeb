// The pipelines of a model: named while its program is made, each once, then made when they are
// wanted, several on as many threads as this process has cores, because a driver takes 10 to 100 ms
// for one.
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/pipelines.h"
#include "engine/vulkan/store.h"

#define MAX_THREADS 8

int nb_vulkan_pipeline_name(struct nb_vulkan_pipelines *p, const struct nb_tier_variant *variant,
                            const uint32_t constants[CONST_TIER])
{
    if (!p->list) {
        p->list = calloc(NB_VULKAN_NAMED, sizeof(*p->list));
        p->n = 0;
    }
    if (!p->list)
        return -ENOMEM;
    uint32_t i = 0;
    for (; i < p->n; i++)
        if (p->list[i].variant->module == variant->module &&
            p->list[i].variant->local == variant->local &&
            !memcmp(p->list[i].constants, constants, sizeof(p->list[i].constants)))
            return (int)i;
    if (i == NB_VULKAN_NAMED)
        return -EOVERFLOW;
    p->list[i].variant = variant;
    memcpy(p->list[i].constants, constants, sizeof(p->list[i].constants));
    return (int)p->n++;
}

struct making {
    struct nb_vulkan_pipelines *pipelines;
    const uint16_t *list;
    uint32_t n;
    atomic_uint next;
    pthread_mutex_t lock;
    pthread_cond_t done; // one more is made, or failed
    int rc;
};

static void *make_some(void *user)
{
    struct making *making = user;
    uint32_t i;
    while ((i = atomic_fetch_add(&making->next, 1)) < making->n) {
        struct nb_vulkan_pipeline *p = &making->pipelines->list[making->list[i]];
        VkPipeline made = VK_NULL_HANDLE;
        int rc = nb_vulkan_store_take(making->pipelines->device, p->variant, p->constants, &made);
        pthread_mutex_lock(&making->lock);
        p->pipeline = made;
        if (rc < 0)
            making->rc = rc;
        pthread_cond_signal(&making->done);
        pthread_mutex_unlock(&making->lock);
    }
    return NULL;
}

static uint32_t cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof(set), &set) < 0 ? 1 : (uint32_t)CPU_COUNT(&set);
}

static int wait_until_made(struct making *making, const struct nb_vulkan_pipeline *p)
{
    pthread_mutex_lock(&making->lock);
    while (!p->pipeline && making->rc == 0)
        pthread_cond_wait(&making->done, &making->lock);
    int rc = making->rc;
    pthread_mutex_unlock(&making->lock);
    nb_device_beat(&making->pipelines->device->base);
    return rc;
}

int nb_vulkan_pipelines_make(struct nb_vulkan_pipelines *p, const uint16_t *list, uint32_t n,
                             int (*made)(void *user, uint32_t pipeline), void *user)
{
    struct making making = {.pipelines = p,
                            .list = list,
                            .n = n,
                            .lock = PTHREAD_MUTEX_INITIALIZER,
                            .done = PTHREAD_COND_INITIALIZER};
    pthread_t thread[MAX_THREADS];
    uint32_t most = cores() < MAX_THREADS ? cores() : MAX_THREADS, threads = 0;
    int rc = 0;
    while (n > 1 && threads < most &&
           pthread_create(&thread[threads], NULL, make_some, &making) == 0)
        threads++;
    if (threads == 0)
        make_some(&making);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        if ((rc = wait_until_made(&making, &p->list[list[i]])) == 0 && made)
            rc = made(user, list[i]);
    atomic_store(&making.next, n); // after a failure the rest is not begun
    while (threads > 0)
        pthread_join(thread[--threads], NULL);
    return rc;
}

void nb_vulkan_pipeline_drop(struct nb_vulkan_pipelines *p, uint32_t i)
{
    nb_vulkan_store_give(p->device, p->list[i].pipeline);
    p->list[i].pipeline = VK_NULL_HANDLE;
    p->list[i].ready = false;
}

void nb_vulkan_pipelines_finish(struct nb_vulkan_pipelines *p)
{
    for (uint32_t i = 0; i < p->n; i++)
        nb_vulkan_pipeline_drop(p, i);
    free(p->list);
    p->list = NULL;
    p->n = 0;
}
