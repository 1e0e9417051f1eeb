// The pipelines of a model: named while its program is made, each once, then made together on as
// many threads as this process has cores, because a driver takes 10 to 100 ms for one.
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/model.h"

#define MAX_PIPELINES 256
#define MAX_THREADS   8

int nb_vulkan_pipeline_name(struct nb_device_model *m, const struct nb_tier_variant *variant,
                            const uint32_t constants[NB_VULKAN_CONSTANTS])
{
    if (!m->pipelines) {
        m->pipelines = calloc(MAX_PIPELINES, sizeof(*m->pipelines));
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
    if (i == MAX_PIPELINES)
        return -EOVERFLOW;
    m->pipelines[i].variant = variant;
    memcpy(m->pipelines[i].constants, constants, sizeof(m->pipelines[i].constants));
    return (int)m->n_pipelines++;
}

struct making {
    struct nb_device_model *m;
    atomic_uint next;
    atomic_int rc;
};

static void *make_some(void *user)
{
    struct making *making = user;
    struct nb_device_model *m = making->m;
    uint32_t i;
    while ((i = atomic_fetch_add(&making->next, 1)) < m->n_pipelines) {
        struct nb_vulkan_pipeline *p = &m->pipelines[i];
        int rc = p->wanted && !p->pipeline
                     ? nb_vulkan_pipeline(m->device, p->variant, p->constants, &p->pipeline)
                     : 0;
        if (rc < 0)
            atomic_store(&making->rc, rc);
    }
    return NULL;
}

static uint32_t cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof(set), &set) < 0 ? 1 : (uint32_t)CPU_COUNT(&set);
}

int nb_vulkan_pipelines_make(struct nb_device_model *m)
{
    struct making making = {.m = m};
    pthread_t thread[MAX_THREADS];
    uint32_t wanted = cores() - 1, n = 0;
    wanted = wanted < MAX_THREADS ? wanted : MAX_THREADS;
    // A thread less only takes longer: this one makes all that is left.
    while (n < wanted && pthread_create(&thread[n], NULL, make_some, &making) == 0)
        n++;
    make_some(&making);
    while (n > 0)
        pthread_join(thread[--n], NULL);
    for (uint32_t i = 0; i < m->n_pipelines; i++)
        if (!m->pipelines[i].wanted) {
            m->device->vk.DestroyPipeline(m->device->device, m->pipelines[i].pipeline, NULL);
            m->pipelines[i].pipeline = VK_NULL_HANDLE;
        }
    return atomic_load(&making.rc);
}

void nb_vulkan_pipelines_destroy(struct nb_device_model *m)
{
    for (uint32_t i = 0; i < m->n_pipelines; i++)
        m->device->vk.DestroyPipeline(m->device->device, m->pipelines[i].pipeline, NULL);
    free(m->pipelines);
    m->pipelines = NULL;
    m->n_pipelines = 0;
}
