// Runs every variant of a model's dispatches once, on no rows, because a driver that compiles at
// the first dispatch (Mesa's CPU driver: 30 to 300 ms a shader) should do so when the model is
// opened, not while somebody waits for an answer. Computes nothing.
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdlib.h>

// A submission for each, so that none takes as long as all of them together.
static int run_alone(struct nb_device_model *m, uint32_t rows, const struct nb_vulkan_dispatch *p)
{
    VkCommandBuffer c;
    int rc = nb_vulkan_begin(m->device, true, &c);
    if (rc < 0)
        return rc;
    nb_vulkan_dispatch(m, c, rows, p);
    return nb_vulkan_run_once(m->device, c);
}

int nb_vulkan_warm(struct nb_device_model *m)
{
    uint32_t *word = m->step.map;
    bool *warm = calloc(m->n_pipelines + 1, sizeof(*warm));
    if (!warm)
        return -ENOMEM;
    word[0] = word[1] = 0; // rows, and rows of the head
    int rc = 0;
    for (uint32_t rows = 1; rows <= m->padded_rows && rc == 0; rows *= 2)
        for (uint32_t i = 0; i < m->n_dispatches && rc == 0; i++) {
            const struct nb_vulkan_dispatch *p = &m->dispatches[i];
            bool *done = &warm[p->pipeline[nb_vulkan_tile(p, rows)]];
            if (!*done)
                rc = run_alone(m, rows, p);
            *done = true;
        }
    free(warm);
    return rc;
}
