// The kind "folder": a model as a Hugging Face folder, its linear layers rounded to nearest, or, of
// NF4, by what calibration has learnt: then a weighted compression writes them to a scratch file,
// and the folder is made of that. The folder's small files come as one result, because their number
// depends on the model.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/worker/jobs_scratch.h"
#include "daemon/worker/worker.h"
#include "quant/recipe.h"
#include "tensor/hf/folder.h"
#include "tensor/hf/write.h"
#include "tensor/type.h"

#define LEAST_ROOM (1u << 20)  // bytes for the report
#define SYNC_NS    1000000000u // between two syncs
#define TENSOR     1           // a journal's kind
#define EMBEDDING  "token_embd.weight"

enum { TENSORS, REPORT, TEXTS }; // results

// ---- The recipe

struct wanted {
    uint32_t to;
    json_t *recipe; // as it came
    bool learns;    // it says how, or there is something to learn from
};

// NF4 alone has an encoder that learns.
static int check_learning(const struct wanted *w, struct nb_error *e)
{
    const char *method = json_string_value(json_object_get(w->recipe, "method"));
    if (w->to != NB_TYPE_NF4)
        return nb_fail(e, -EINVAL,
                       "a folder's %s is rounded to nearest, by \"to\" alone: methods and text are "
                       "of NF4",
                       nb_type_name(w->to));
    if (method && strcmp(method, "search") != 0 && strcmp(method, "gptq") != 0)
        return nb_fail(e, -EINVAL, "a folder's \"method\" is search or gptq");
    return 0;
}

static int check_keys(struct wanted *w, struct nb_error *e)
{
    static const char *const keys[] = {"method", "calibration", "gptq", "effort"};
    size_t n = 1;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        n += json_object_get(w->recipe, keys[i]) != NULL;
    w->learns = n > 1;
    if (n != json_object_size(w->recipe))
        return nb_fail(e, -EINVAL,
                       "a folder's recipe has \"to\", and with NF4 perhaps \"method\", "
                       "\"calibration\", \"gptq\" and \"effort\", and nothing else");
    return w->learns ? check_learning(w, e) : 0;
}

// The caller frees ret->recipe, whatever is returned.
static int read_recipe(const char *text, size_t len, struct wanted *ret, struct nb_error *e)
{
    static const uint32_t types[] = {NB_TYPE_F32, NB_TYPE_F16, NB_TYPE_BF16, NB_TYPE_INT8,
                                     NB_TYPE_NF4};
    json_error_t error;
    *ret = (struct wanted){.recipe = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error)};
    const char *name = json_string_value(json_object_get(ret->recipe, "to"));
    const struct nb_type_info *info = name ? nb_type_by_name(name) : NULL;
    for (size_t i = 0; info && i < sizeof(types) / sizeof(types[0]); i++)
        if (info->type == types[i]) {
            ret->to = info->type;
            return check_keys(ret, e);
        }
    return nb_fail(e, -EINVAL,
                   "a folder's recipe has a \"to\", which is one of F32, F16, BF16, INT8 and NF4");
}

// As a compression's, in which the tensors get the types that the writer asks for. malloc'ed.
static char *learning_recipe(const struct wanted *w, const char *embedding)
{
    json_t *own =
        json_pack("{s:s, s:s, s:s}", "else", "F16", "embedding", embedding, "output", embedding);
    json_object_update(own, w->recipe);
    char *text = json_dumps(own, JSON_COMPACT);
    json_decref(own);
    return text;
}

static int check_recipe(const struct wanted *w, struct nb_error *e)
{
    struct nb_recipe *recipe = NULL;
    char *text = learning_recipe(w, "F16");
    int rc = text ? nb_recipe_parse(text, strlen(text), true, &recipe, e)
                  : nb_fail(e, -ENOMEM, "no memory for the recipe");
    nb_recipe_free(recipe);
    free(text);
    return rc;
}

int nb_jobs_folder_check(const char *recipe, size_t len, struct nb_error *e)
{
    struct wanted w;
    int rc = read_recipe(recipe, len, &w, e);
    if (rc == 0 && w.learns)
        rc = check_recipe(&w, e);
    json_decref(w.recipe);
    return rc;
}

// ---- The tensors

struct told { // of a tensor that is in the file
    uint32_t index, pad;
    uint64_t hash;
};

struct running {
    struct nb_work *work;
    const struct nb_hf_writer *w;
    struct nb_journal *journal; // NULL: all are written anew
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
    struct nb_journal_place places[NB_HF_WRITER_EXTENTS];
    const uint32_t n = nb_hf_writer_extents(r->w, tensor, extents);
    *ret_bytes = 0;
    for (uint32_t i = 0; i < n; i++) {
        places[i] = (struct nb_journal_place){extents[i].offset, extents[i].bytes};
        *ret_bytes += extents[i].bytes;
    }
    return nb_journal_hash(r->work->results[TENSORS], places, n, ret_hash);
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
    const int fd = r->work->results[TENSORS];
    int rc = r->journal ? nb_journal_sync(r->journal, &fd, 1) : fdatasync(fd) < 0 ? -errno : 0;
    r->synced_ns = nb_now_ns();
    return rc < 0 ? nb_fail(r->error, rc, "the result cannot be written: %s", strerror(-rc)) : 0;
}

static int do_tensor(struct running *r, uint32_t i)
{
    struct told told = {.index = i};
    uint64_t bytes = 0;
    int rc = nb_hf_writer_tensor(r->w, i, r->work->results[TENSORS], r->error);
    if (rc < 0 || !r->journal)
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

// What was learnt lies in a file that has its own journal.
static int write_tensors(struct nb_work *work, const struct nb_hf_writer *w, bool learnt,
                         struct nb_error *e)
{
    struct running r = {.work = work, .w = w, .all = nb_hf_writer_written(w)};
    r.error = e;
    int rc = learnt ? 0 : nb_journal_open(work->journal, work->key, on_record, &r, &r.journal, e);
    if (rc == 0)
        rc = nb_hf_writer_begin(w, work->results[TENSORS], e);
    r.synced_ns = nb_now_ns();
    if (!learnt)
        nb_jobs_tell(work, "tensors", r.done, r.all.bytes);
    for (uint32_t i = r.n_done; i < r.all.n_tensors && rc == 0; i++)
        rc = do_tensor(&r, i);
    if (rc == 0)
        rc = sync_now(&r);
    nb_journal_close(r.journal);
    return rc;
}

// ---- All files

// All of the disk that it will need, before the work.
static int make_room(struct nb_work *work, const struct nb_hf_writer *w, struct nb_error *e)
{
    const int fd = work->results[TENSORS];
    const uint64_t bytes = nb_hf_writer_size(w);
    struct stat scratch = {0};
    uint64_t more = LEAST_ROOM;
    uint32_t n;
    const struct nb_hf_text *text = nb_hf_writer_texts(w, &n);
    for (uint32_t i = 0; i < n; i++)
        more += 2 * text[i].len; // in JSON
    if (fstat(work->scratch[0], &scratch) == 0)
        more += (uint64_t)scratch.st_size;
    int rc = nb_jobs_make_room(fd, bytes, more, e);
    if (rc == 0 && ftruncate(fd, (off_t)bytes) < 0)
        rc = nb_fail(e, -errno, "the result cannot be written: %s", strerror(errno));
    return rc;
}

// calibration: what the source's codes were learnt from, borrowed; NULL: they are to be rounded.
static int write_folder(struct nb_work *work, const struct nb_source *source, uint32_t to,
                        const json_t *calibration, struct nb_error *e)
{
    struct nb_hf_writer *w = NULL;
    int rc = nb_hf_writer_create(source, to, &w, e);
    if (rc == 0)
        rc = make_room(work, w, e);
    if (rc == 0)
        rc = write_tensors(work, w, calibration != NULL, e);
    if (rc == 0) {
        json_t *report = nb_hf_writer_report(w);
        if (calibration)
            json_object_set_new(report, "calibration", json_deep_copy(calibration));
        rc = nb_jobs_write_json(work->results[REPORT], report, JSON_COMPACT, e);
    }
    if (rc == 0)
        rc = nb_jobs_write_json(work->results[TEXTS], nb_hf_writer_list(w), JSON_COMPACT, e);
    nb_hf_writer_destroy(w);
    return rc;
}

static int write_nearest(struct nb_work *work, uint32_t to, struct nb_error *e)
{
    struct nb_source *source = NULL;
    int rc = nb_source_open(work->files, work->n_files, &source, e);
    if (rc == 0)
        rc = write_folder(work, source, to, NULL, e);
    nb_source_close(source);
    return rc;
}

static int write_learnt(void *user, const struct nb_source *rounded, const json_t *calibration,
                        struct nb_error *e)
{
    return write_folder(user, rounded, NB_TYPE_NF4, calibration, e);
}

// The type that the writer gives the embedding, and the head, of a coded model.
static int embedding_type(const struct nb_jobs_given *g, const char **ret, struct nb_error *e)
{
    struct nb_source *source = NULL;
    int rc = nb_source_open(g->model, g->n_model, &source, e);
    if (rc < 0)
        return rc;
    const uint32_t i = nb_source_find(source, (struct nb_str){EMBEDDING, strlen(EMBEDDING)});
    *ret = i < source->n_tensors && source->tensors[i].type == NB_TYPE_BF16 ? "BF16" : "F16";
    nb_source_close(source);
    return 0;
}

static int learn(struct nb_work *work, const struct wanted *w, const struct nb_jobs_given *g,
                 struct nb_error *e)
{
    const struct nb_jobs_then then = {.run = write_learnt, .user = work};
    const char *embedding = NULL;
    int rc = embedding_type(g, &embedding, e);
    if (rc < 0)
        return rc;
    char *recipe = learning_recipe(w, embedding);
    rc = recipe ? nb_jobs_weigh(work, recipe, &then, e)
                : nb_fail(e, -ENOMEM, "no memory for the recipe");
    free(recipe);
    return rc == 0 ? nb_jobs_scratch_clear(work, e) : rc;
}

int nb_jobs_folder(struct nb_work *work, struct nb_error *e)
{
    static struct nb_jobs_given g;
    struct wanted w;
    int rc = read_recipe(work->recipe, work->recipe_len, &w, e);
    nb_jobs_sort(work, &g);
    w.learns = w.learns || g.n_texts || g.n_imatrix;
    if (rc == 0 && w.learns)
        rc = check_learning(&w, e);
    if (rc == 0)
        rc = w.learns ? learn(work, &w, &g, e) : write_nearest(work, w.to, e);
    json_decref(w.recipe);
    return rc;
}
