// The kind "folder": a model as a Hugging Face folder, its linear layers rounded to nearest. The
// folder's small files come as one result, because their number depends on the model. One that is
// killed begins again: its bytes depend on the source and the recipe alone.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/worker/jobs.h"
#include "tensor/hf/folder.h"
#include "tensor/hf/write.h"
#include "tensor/type.h"

#define LEAST_ROOM (1u << 20) // bytes for the report

enum { TENSORS, REPORT, TEXTS }; // results

static int read_recipe(const char *text, size_t len, uint32_t *ret, struct nb_error *e)
{
    static const uint32_t types[] = {NB_TYPE_F32, NB_TYPE_F16, NB_TYPE_BF16, NB_TYPE_INT8,
                                     NB_TYPE_NF4};
    json_error_t error;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    const char *name = json_string_value(json_object_get(root, "to"));
    const struct nb_type_info *info = name ? nb_type_by_name(name) : NULL;
    int rc = -EINVAL;
    for (size_t i = 0; info && i < sizeof(types) / sizeof(types[0]); i++)
        if (info->type == types[i]) {
            *ret = info->type;
            rc = 0;
        }
    if (json_object_size(root) != 1)
        rc = -EINVAL;
    json_decref(root);
    return rc < 0
               ? nb_fail(e, rc, "a folder's recipe has \"to\" alone: F32, F16, BF16, INT8 or NF4")
               : 0;
}

int nb_jobs_folder_check(const char *recipe, size_t len, struct nb_error *e)
{
    uint32_t to;
    return read_recipe(recipe, len, &to, e);
}

static int on_progress(void *user, uint64_t done, uint64_t total)
{
    nb_jobs_tell(user, "tensors", done, total);
    return 0;
}

// A result that is one JSON object; takes it.
static int write_json(int fd, json_t *root, struct nb_error *e)
{
    if (!root)
        return nb_fail(e, -ENOMEM, "no memory for the report, or a text of the folder is no UTF-8");
    int rc = ftruncate(fd, 0) < 0 || lseek(fd, 0, SEEK_SET) < 0 ? -errno : 0;
    if (rc == 0 && json_dumpfd(root, fd, JSON_COMPACT) < 0)
        rc = errno ? -errno : -EIO;
    if (rc == 0 && fdatasync(fd) < 0)
        rc = -errno;
    json_decref(root);
    return rc < 0 ? nb_fail(e, rc, "the report cannot be written: %s", strerror(-rc)) : 0;
}

// All of the disk that it will need, before the work.
static int make_room(struct nb_work *work, const struct nb_hf_writer *w, struct nb_error *e)
{
    const int fd = work->results[TENSORS];
    const uint64_t bytes = nb_hf_writer_size(w);
    uint64_t texts = LEAST_ROOM;
    uint32_t n;
    const struct nb_hf_text *text = nb_hf_writer_texts(w, &n);
    for (uint32_t i = 0; i < n; i++)
        texts += 2 * text[i].len; // in JSON
    int rc = nb_jobs_need(bytes + texts);
    if (rc < 0)
        return nb_fail(e, rc, "the daemon did not answer");
    if ((fallocate(fd, 0, 0, (off_t)bytes) < 0 && errno != EOPNOTSUPP) ||
        ftruncate(fd, (off_t)bytes) < 0)
        return nb_fail(e, -errno, "the state directory has no room for %llu bytes: %s",
                       (unsigned long long)bytes, strerror(errno));
    return 0;
}

int nb_jobs_folder(struct nb_work *work, struct nb_error *e)
{
    struct nb_source *source = NULL;
    struct nb_hf_writer *w = NULL;
    struct nb_hf_written written;
    uint32_t to = 0;
    int rc = read_recipe(work->recipe, work->recipe_len, &to, e);
    if (rc == 0)
        rc = nb_source_open(work->files, work->n_files, &source, e);
    if (rc == 0)
        rc = nb_hf_writer_create(source, to, &w, e);
    if (rc == 0)
        rc = make_room(work, w, e);
    if (rc == 0)
        rc = nb_hf_writer_run(w, work->results[TENSORS], on_progress, work, &written, e);
    if (rc == 0 && fdatasync(work->results[TENSORS]) < 0)
        rc = nb_fail(e, -errno, "the result cannot be written: %s", strerror(errno));
    if (rc == 0)
        rc = write_json(work->results[REPORT], nb_hf_writer_report(w), e);
    if (rc == 0)
        rc = write_json(work->results[TEXTS], nb_hf_writer_list(w), e);
    nb_hf_writer_destroy(w);
    nb_source_close(source);
    return rc;
}
