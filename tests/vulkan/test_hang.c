// A device that does not answer in time is lost, with the cause in words, and nothing waits for it:
// here Mesa's CPU driver, which is given a millisecond for what takes it many.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/vulkan/vulkan.h"
#include "tensor/fail.h"
#include "tensor/type.h"
#include "tests/support/model_file.h"
#include "tests/support/random_model.h"

#define ROWS 256

static void check(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "test-hang: %s\n", what);
    _exit(1);
}

// What the step returns; the model could be opened at all when its buffers took no longer.
static int step(const struct test_model *t)
{
    int32_t tokens[ROWS];
    struct nb_request request = {.sampling = NB_SAMPLING_GREEDY};
    struct nb_sequence *s;
    for (int i = 0; i < ROWS; i++)
        tokens[i] = i;
    check(nb_sequence_create(t->model, NULL, &s) == 0 && nb_sequence_set(s, 0, tokens, ROWS) == 0 &&
              nb_sequence_start(s, &request) == 0,
          "no sequence");
    return nb_model_step(t->model, NULL);
}

int main(void)
{
    const struct random_model model = {2, 1024, 2048, 8, 2, 512, 23, NB_TYPE_Q4_0};
    const struct nb_device_options how = {.timeout_ms = 1};
    struct nb_model_options o = {.max_rows = ROWS};
    struct nb_device *d;
    struct test_model t;
    struct nb_error error = {""};
    char name[] = "vulkan0";
    for (; nb_device_create(name, &how, &d, &error) == 0; name[6]++) {
        struct nb_device_info info;
        d->ops->info(d, &info);
        d->ops->destroy(d);
        if (info.kind == NB_DEVICE_EMULATED)
            break;
    }
    int fd = random_model_create(&model);
    test_device(name);
    test_device_options(&how);
    int rc = test_model_open_fd(fd, 1, &o, &t, &error);
    if (rc == 0) {
        rc = step(&t);
        snprintf(error.text, sizeof(error.text), "%s", t.device->ops->fault(t.device));
    }
    printf("%s\n", error.text);
    check(rc == -ETIMEDOUT, strerror(-rc));
    check(strstr(error.text, " hangs: "), "the cause is not told");
    fflush(stdout);
    _exit(0); // as the worker does: the driver is still busy
}
