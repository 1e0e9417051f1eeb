// Mode `load`: packs one model file, hostile input, into the image and exits. It may touch its
// three fds and nothing else.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/sandbox.h"
#include "daemon/worker/worker.h"
#include "tensor/image.h"

#define PROGRESS_EVERY (4u << 20) // bytes

static int report_progress(void *user, uint64_t done, uint64_t total)
{
    uint64_t *last = user;
    if (done < total && done - *last < PROGRESS_EVERY)
        return 0;
    *last = done;
    struct nb_wire_progress packet = {.done = done, .total = total};
    nb_link_send(&packet, NB_LINK_PROGRESS, sizeof(packet));
    return 0;
}

static int seal(void)
{
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    if (fcntl(NB_IMAGE_FD, F_GET_SEALS) < 0)
        return errno == EINVAL ? 0 : -errno; // a cache file: nothing to seal
    return fcntl(NB_IMAGE_FD, F_ADD_SEALS, seals) < 0 ? -errno : 0;
}

static int pack(uint64_t budget, struct nb_link_loaded *loaded)
{
    int r = nb_image_size(NB_FILE_FD, &loaded->bytes, loaded->text, sizeof(loaded->text));
    if (r < 0)
        return r;
    if (loaded->bytes > budget)
        return NIBBLE_E_TOO_LARGE;
    uint64_t last = 0;
    r = nb_image_pack(NB_FILE_FD, NB_IMAGE_FD, report_progress, &last, &loaded->bytes, loaded->text,
                      sizeof(loaded->text));
    return r < 0 ? r : seal();
}

int nb_load_run(char **args)
{
    struct nb_link_loaded loaded = {0};
    char *end;
    errno = 0;
    uint64_t budget = strtoull(args[0], &end, 10);
    int r = errno || *end || !*args[0] ? -EINVAL : nb_sandbox_enter(NB_SANDBOX_LOAD);
    if (r < 0) {
        nb_log("load: %s", strerror(-r));
        return EXIT_FAILURE;
    }
    r = pack(budget, &loaded);
    loaded.header.status = nb_link_status(r);
    if (r < 0 && !loaded.text[0])
        snprintf(loaded.text, sizeof(loaded.text), "packing the model: %s",
                 r == NIBBLE_E_TOO_LARGE ? "larger than the memory set aside for it"
                                         : strerror(-r));
    nb_link_send(&loaded, NB_LINK_LOADED, sizeof(loaded));
    return EXIT_SUCCESS;
}
