// The kind "folder": a model as a Hugging Face folder, its linear layers rounded to nearest. The
// folder's small files come as one result, because their number depends on the model. One that is
// killed begins again: its bytes depend on the source and the recipe alone.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/worker/jobs.h"
#include "daemon/worker/worker.h"
#include "tensor/hf/folder.h"
#include "tensor/hf/write.h"
#include "tensor/type.h"

#define LEAST_ROOM (1u << 20)  // bytes for the report
#define SOME       (1u << 20)  // bytes that are hashed at a time
#define SYNC_NS    1000000000u // between two syncs
#define TENSOR     1           // a journal's kind

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

// ---- The tensors

struct told { // of a tensor that is in the file
    uint32_t index, pad;
    uint64_t hash;
};

struct running {
    struct nb_work *work;
    const struct nb_hf_writer *w;
    struct nb_journal *journal;
    struct nb_hf_written all;
    uint32_t n_done;
    uint64_t done;      // bytes
    uint64_t synced_ns; // when
    struct nb_error *error;
};

static int hash_tensor(const struct running *r, uint32_t tensor, uint64_t *ret_hash,
                       uint64_t *ret_bytes)
{
    struct nb_hf_extent extents[NB_HF_WRITER_EXTENTS];
    const uint32_t n = nb_hf_writer_extents(r->w, tensor, extents);
    XXH3_state_t *hash = XXH3_createState();
    uint8_t *some = malloc(SOME);
    int rc = hash && some ? 0 : -ENOMEM;
    *ret_bytes = 0;
    if (rc == 0)
        XXH3_64bits_reset(hash);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        for (uint64_t at = 0; at < extents[i].bytes && rc == 0;) {
            const uint64_t left = extents[i].bytes - at;
            ssize_t got = pread(r->work->results[TENSORS], some, left < SOME ? left : SOME,
                                (off_t)(extents[i].offset + at));
            rc = got < 0 ? -errno : got ? 0 : -EIO; // -EIO: the file ends before
            if (rc == 0)
                XXH3_64bits_update(hash, some, (size_t)got);
            at += got > 0 ? (uint64_t)got : 0;
            *ret_bytes += got > 0 ? (uint64_t)got : 0;
        }
    if (rc == 0)
        *ret_hash = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    free(some);
    return rc;
}

// Whether the tensor that a record tells of is the next one and lies in the file.
static int on_record(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct running *r = user;
    struct told told;
    uint64_t hash = 0, n = 0;
    if (kind != TENSOR || bytes != sizeof(told) || r->n_done >= r->all.n_tensors)
        return 1;
    memcpy(&told, data, sizeof(told));
    if (told.index != r->n_done)
        return 1;
    int rc = hash_tensor(r, told.index, &hash, &n);
    if (rc == -ENOMEM)
        return rc;
    if (rc < 0 || hash != told.hash)
        return 1;
    r->n_done++;
    r->done += n;
    return 0;
}

static int sync_now(struct running *r)
{
    int rc = nb_journal_sync(r->journal, &r->work->results[TENSORS], 1);
    r->synced_ns = nb_now_ns();
    return rc < 0 ? nb_fail(r->error, rc, "the result cannot be written: %s", strerror(-rc)) : 0;
}

static int do_tensor(struct running *r, uint32_t i)
{
    struct told told = {.index = i};
    uint64_t bytes = 0;
    int rc = nb_hf_writer_tensor(r->w, i, r->work->results[TENSORS], r->error);
    if (rc < 0)
        return rc;
    rc = hash_tensor(r, i, &told.hash, &bytes);
    if (rc == 0)
        rc = nb_journal_append(r->journal, TENSOR, &told, sizeof(told));
    if (rc < 0)
        return nb_fail(r->error, rc, "the job's journal cannot be written: %s", strerror(-rc));
    r->done += bytes;
    nb_jobs_tell(r->work, "tensors", r->done, r->all.bytes);
    return nb_now_ns() - r->synced_ns < SYNC_NS ? 0 : sync_now(r);
}

static int write_tensors(struct nb_work *work, const struct nb_hf_writer *w, struct nb_error *e)
{
    struct running r = {.work = work, .w = w, .all = nb_hf_writer_written(w)};
    r.error = e;
    int rc = nb_journal_open(work->journal, work->key, on_record, &r, &r.journal, e);
    if (rc == 0)
        rc = nb_hf_writer_begin(w, work->results[TENSORS], e);
    r.synced_ns = nb_now_ns();
    nb_jobs_tell(work, "tensors", r.done, r.all.bytes);
    for (uint32_t i = r.n_done; i < r.all.n_tensors && rc == 0; i++)
        rc = do_tensor(&r, i);
    if (rc == 0)
        rc = sync_now(&r);
    nb_journal_close(r.journal);
    return rc;
}

// ---- The small files

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
    uint32_t to = 0;
    int rc = read_recipe(work->recipe, work->recipe_len, &to, e);
    if (rc == 0)
        rc = nb_source_open(work->files, work->n_files, &source, e);
    if (rc == 0)
        rc = nb_hf_writer_create(source, to, &w, e);
    if (rc == 0)
        rc = make_room(work, w, e);
    if (rc == 0)
        rc = write_tensors(work, w, e);
    if (rc == 0)
        rc = nb_jobs_write_json(work->results[REPORT], nb_hf_writer_report(w), JSON_COMPACT, e);
    if (rc == 0)
        rc = nb_jobs_write_json(work->results[TEXTS], nb_hf_writer_list(w), JSON_COMPACT, e);
    nb_hf_writer_destroy(w);
    nb_source_close(source);
    return rc;
}
