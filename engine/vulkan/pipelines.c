// The pipelines of a model: named while its program is made, each once, then made when they are
// wanted, several on as many threads as this process has cores, because a driver takes 10 to 100 ms
// for one.
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/model.h"

#define MAX_THREADS 8

int nb_vulkan_pipeline_name(struct nb_device_model *m, const struct nb_tier_variant *variant,
                            const uint32_t constants[NB_VULKAN_CONSTANTS])
{
    if (!m->pipelines) {
        m->pipelines = calloc(NB_VULKAN_NAMED, sizeof(*m->pipelines));
        m->n_pipelines = 0;
    }
    if (!m->pipelines)
        return -ENOMEM;
    uint32_t i = 0;
    for (; i < m->n_pipelines; i++)
        if (m->pipelines[i].variant->module == variant->module &&
            m->pipelines[i].variant->local == variant->local &&
            !memcmp(m->pipelines[i].constants, constants, sizeof(m->pipelines[i].constants)))
            return (int)i;
    if (i == NB_VULKAN_NAMED)
        return -EOVERFLOW;
    m->pipelines[i].variant = variant;
    memcpy(m->pipelines[i].constants, constants, sizeof(m->pipelines[i].constants));
    return (int)m->n_pipelines++;
}

struct making {
    struct nb_device_model *m;
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
    struct nb_device_model *m = making->m;
    uint32_t i;
    while ((i = atomic_fetch_add(&making->next, 1)) < making->n) {
        struct nb_vulkan_pipeline *p = &m->pipelines[making->list[i]];
        VkPipeline made = VK_NULL_HANDLE;
        int rc = nb_vulkan_pipeline(m->device, p->variant, p->constants, &made);
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
    nb_device_beat(&making->m->device->base);
    return rc;
}

int nb_vulkan_pipelines_make(struct nb_device_model *m, const uint16_t *list, uint32_t n,
                             int (*made)(void *user, uint32_t pipeline), void *user)
{
    struct making making = {.m = m,
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
        if ((rc = wait_until_made(&making, &m->pipelines[list[i]])) == 0 && made)
            rc = made(user, list[i]);
    atomic_store(&making.next, n); // after a failure the rest is not begun
    while (threads > 0)
        pthread_join(thread[--threads], NULL);
    return rc;
}

void nb_vulkan_pipeline_drop(struct nb_device_model *m, uint32_t i)
{
    m->device->vk.DestroyPipeline(m->device->device, m->pipelines[i].pipeline, NULL);
    m->pipelines[i].pipeline = VK_NULL_HANDLE;
    m->pipelines[i].ready = false;
}

void nb_vulkan_pipelines_destroy(struct nb_device_model *m)
{
    for (uint32_t i = 0; i < m->n_pipelines; i++)
        nb_vulkan_pipeline_drop(m, i);
    free(m->pipelines);
    m->pipelines = NULL;
    m->n_pipelines = 0;
}
