// Opens a model file in this process, by the same steps as the service: pack, map, open.
#include "tests/support/model_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tensor/fail.h"
#include "tensor/image.h"
#include "tests/support/pack.h"

const char *test_model_path(const char *path)
{
    static char cached[PATH_MAX];
    if (path)
        return path;
    if (getenv("NIBBLE_MODEL"))
        return getenv("NIBBLE_MODEL");
    const char *home = getenv("HOME");
    snprintf(cached, sizeof(cached), "%s/.cache/nibble/models/SmolLM2-135M-Instruct.Q4_1.gguf",
             home ? home : "");
    return cached;
}

int test_image_map(int fd, struct nb_image **ret, struct nb_error *error)
{
    int memfd = memfd_create("model", MFD_CLOEXEC);
    if (memfd < 0)
        return nb_fail(error, -errno, "memfd: %s", strerror(errno));
    uint64_t bytes;
    int rc = test_pack(fd, memfd, NULL, &bytes, error);
    if (rc == 0)
        rc = nb_image_map(memfd, 0, ret, error);
    close(memfd);
    return rc;
}

static char device_name[64] = "cpu";
static const char *device_tier;
static struct nb_device_options device_options;

void test_device(const char *name)
{
    snprintf(device_name, sizeof(device_name), "%s", name);
    char *colon = strchr(device_name, '+') ? NULL : strchr(device_name, ':');
    device_tier = colon ? colon + 1 : NULL;
    if (colon)
        *colon = 0;
}

void test_device_options(const struct nb_device_options *options)
{
    device_options = options ? *options : (struct nb_device_options){.threads = 0};
}

// A Vulkan device whose model was closed, with what its driver has compiled; none where `device` is
// NULL.
static struct test_model idle;
enum { MADE = sizeof(idle.made) };

// A CPU has compiled nothing; one that measures, or begins with what another had to keep, is always
// new.
static void tell_how(const struct nb_device_options *how, char ret[MADE])
{
    ret[0] = 0;
    if (strncmp(device_name, "cpu", 3) != 0 && !how->cache && !how->warm && !how->allowed)
        snprintf(ret, MADE, "%s %s %u %u %u %lu %lu %lu %d", device_name,
                 how->tier ? how->tier : "", how->threads, how->tile, how->timeout_ms,
                 how->memory_bytes, how->buffer_bytes, how->window_bytes, how->weights);
}

static int open_device(const struct nb_device_options *how, struct test_model *t,
                       struct nb_error *ret_error)
{
    tell_how(how, t->made);
    if (!idle.device || strcmp(idle.made, t->made) != 0)
        return nb_device_create(device_name, how, &t->device, ret_error);
    t->device = idle.device;
    idle.device = NULL;
    return 0;
}

void test_device_forget(void)
{
    if (idle.device)
        idle.device->ops->destroy(idle.device);
    idle.device = NULL;
}

static void close_device(struct test_model *t)
{
    static bool once;
    if (!once)
        atexit(test_device_forget);
    once = true;
    if (!t->made[0]) {
        t->device->ops->destroy(t->device);
        return;
    }
    test_device_forget();
    idle = *t;
}

int test_model_open_fd(int fd, uint32_t threads, const struct nb_model_options *options,
                       struct test_model *ret, struct nb_error *ret_error)
{
    struct nb_image *image = NULL;
    int rc = test_image_map(fd, &image, ret_error);
    if (rc < 0)
        return rc;
    struct test_model t = {0};
    struct nb_device_options how = device_options;
    how.threads = threads;
    how.tier = device_tier ? device_tier : how.tier;
    rc = open_device(&how, &t, ret_error);
    if (rc == 0)
        rc = nb_model_open(image, t.device, options, &t.model, ret_error);
    if (rc < 0) {
        nb_image_unmap(image);
        test_model_close(&t);
        return rc;
    }
    *ret = t;
    return 0;
}

int test_model_open(const char *path, uint32_t threads, const struct nb_model_options *options,
                    struct test_model *ret, struct nb_error *ret_error)
{
    path = test_model_path(path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return nb_fail(ret_error, -errno, "%s: %s", path, strerror(errno));
    int rc = test_model_open_fd(fd, threads, options, ret, ret_error);
    close(fd);
    return rc;
}

void test_model_close(struct test_model *t)
{
    nb_model_close(t->model);
    if (t->device)
        close_device(t);
}

int test_precision(const char *name, enum nb_precision *ret)
{
    static const char *const names[] = {"fast", "balanced", "exact"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(name, names[i])) {
            *ret = (enum nb_precision)i;
            return 0;
        }
    return -EINVAL;
}
