// Mode `load`: packs a model's files, hostile input, into the image and exits. It may touch its fds
// and nothing else.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/sandbox.h"
#include "daemon/worker/worker.h"
#include "machine/bounds.h"
#include "tensor/hf/folder.h"
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

// ---- The files' names

_Static_assert(NB_WIRE_FILES <= NB_SOURCE_FILES && NB_WIRE_FILE_NAME <= NB_SOURCE_NAME,
               "a source takes all files that a model may have");

struct files {
    struct nb_source_file items[NB_WIRE_FILES];
    char names[NB_WIRE_FILES][NB_WIRE_FILE_NAME];
    uint32_t n;
};

static int receive_files(struct files *ret)
{
    struct nb_link_file packet;
    int rc;
    do {
        rc = nb_link_receive(&packet, NB_LINK_FILE, sizeof(packet));
        if (rc < 0 || packet.files > NB_WIRE_FILES || ret->n == NB_WIRE_FILES)
            return -EPROTO;
        memcpy(ret->names[ret->n], packet.name, NB_WIRE_FILE_NAME - 1);
        ret->items[ret->n] = (struct nb_source_file){ret->names[ret->n], NB_FILE_FD + (int)ret->n};
    } while (++ret->n < packet.files);
    return 0;
}

// ---- The image

static int pack(const struct files *files, uint64_t budget, bool zeros,
                struct nb_link_loaded *loaded, struct nb_error *ret_error)
{
    struct nb_source *source;
    int rc = nb_source_open(files->items, files->n, &source, ret_error);
    if (rc < 0)
        return rc;
    rc = nb_image_size(source, &loaded->bytes, ret_error);
    if (rc >= 0 && loaded->bytes > budget)
        rc = NIBBLE_E_TOO_LARGE;
    uint64_t last = 0;
    const struct nb_pack_options options = {report_progress, &last, zeros};
    if (rc >= 0)
        rc = nb_image_pack(source, NB_IMAGE_FD, &options, &loaded->bytes, ret_error);
    nb_source_close(source);
    loaded->zeros = rc > 0;
    return rc < 0 ? rc : seal();
}

int nb_load_run(char **args)
{
    static struct files files; // some 70 KiB
    struct nb_link_loaded loaded = {0};
    struct nb_error error = {""};
    char *end, reason[NB_LIMIT_TEXT];
    errno = 0;
    uint64_t budget = strtoull(args[0], &end, 10);
    const bool zeros = !strcmp(end, NB_LINK_ZEROS);
    int rc = errno || (*end && !zeros) || end == args[0] ? -EINVAL : receive_files(&files);
    json_object_seed(0); // of hash tables, which needs a file that the sandbox has not
    if (rc == 0)
        rc = nb_sandbox_enter(NB_SANDBOX_LOAD);
    if (rc < 0) {
        nb_link_fault(rc, nb_limit_reason(rc, reason));
        return EXIT_FAILURE;
    }
    rc = pack(&files, budget, zeros, &loaded, &error);
    loaded.header.status = nb_link_status(rc);
    if (rc < 0 && !error.text[0])
        nb_fail(&error, rc, "packing the model: %s",
                rc == NIBBLE_E_TOO_LARGE ? "larger than the memory set aside for it"
                                         : nb_limit_reason(rc, reason));
    snprintf(loaded.text, sizeof(loaded.text), "%.239s", error.text);
    nb_link_send(&loaded, NB_LINK_LOADED, sizeof(loaded));
    return EXIT_SUCCESS;
}
