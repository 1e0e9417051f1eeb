// What comes before the tensors of a weighted compression: the importance of each matrix's columns,
// measured on the client's text or read from his importance matrix. The sums so far are told in the
// journal now and then, so that a worker's death loses a batch of windows and no more.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/worker/jobs_calibrate.h"
#include "daemon/worker/jobs_statistics.h"
#include "quant/calibrate.h"
#include "quant/imatrix.h"

#define RECORD      NB_COMPRESS_RECORDS   // kind: a part of the sums
#define PART        (UINT64_C(32) << 20)  // bytes of sums in a record
#define STORED      (UINT64_C(512) << 20) // bytes of sums in the journal, but for one more
#define CHECKPOINTS 64                    // at most
#define RANGE       (16u << 10)           // bytes of a matrix's histogram, about
#define STATISTICS  1                     // of what is kept for other jobs: how it is measured
#define LOAD        0.0002 // of a tensor's byte, a token's: of the time that they take

// Before the bytes of a part.
struct part {
    uint32_t windows, pad; // that the sums are of
    uint64_t at, total;    // bytes
};

// ---- The journal

// Both kinds of sums, one behind the other: how many bytes the first has, then these, then the
// others'.
static int store(const struct nb_jobs_calibration *c, uint8_t **ret, size_t *ret_len)
{
    void *sums = NULL, *ranges = NULL;
    size_t n = 0, n_ranges = 0;
    int rc = nb_importance_store(&c->importance, &sums, &n);
    if (rc == 0)
        rc = nb_ranges_store(&c->ranges, &ranges, &n_ranges);
    const uint64_t first = n;
    uint8_t *data = rc == 0 ? malloc(sizeof(first) + n + n_ranges) : NULL;
    if (data) {
        memcpy(data, &first, sizeof(first));
        memcpy(data + sizeof(first), sums, n);
        memcpy(data + sizeof(first) + n, ranges, n_ranges);
        *ret = data;
        *ret_len = sizeof(first) + n + n_ranges;
    }
    free(sums);
    free(ranges);
    return rc < 0 ? rc : data ? 0 : -ENOMEM;
}

static int restore(struct nb_jobs_calibration *c, const uint8_t *data, size_t len)
{
    uint64_t first = 0;
    nb_importance_finish(&c->importance);
    nb_ranges_finish(&c->ranges);
    if (len < sizeof(first))
        return -EINVAL;
    memcpy(&first, data, sizeof(first));
    if (first > len - sizeof(first))
        return -EINVAL;
    data += sizeof(first);
    int rc = nb_importance_restore(data, first, &c->importance);
    return rc < 0 ? rc : nb_ranges_restore(data + first, len - sizeof(first) - first, &c->ranges);
}

int nb_jobs_calibrate_visit(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct nb_jobs_calibration *c = user;
    struct part part;
    if (kind == NB_JOBS_FOLD_RECORD)
        return nb_jobs_fold_visit(&c->fold, data, bytes);
    if (kind != RECORD || bytes < sizeof(part))
        return 1;
    memcpy(&part, data, sizeof(part));
    const uint64_t n = bytes - sizeof(part);
    if (part.at == 0) {
        free(c->coming);
        c->coming = malloc(part.total ? part.total : 1);
        c->came = 0;
        if (!c->coming)
            return -ENOMEM;
    }
    if (!c->coming || part.at != c->came || n > part.total - part.at)
        return 1;
    memcpy((uint8_t *)c->coming + part.at, (const uint8_t *)data + sizeof(part), n);
    c->came += n;
    if (c->came < part.total)
        return 0;
    c->done = part.windows;
    return restore(c, c->coming, part.total) < 0 ? 1 : 0;
}

static int append_part(struct nb_jobs_calibration *c, struct part *head, const uint8_t *data,
                       uint64_t n, uint8_t *record)
{
    memcpy(record, head, sizeof(*head));
    memcpy(record + sizeof(*head), data + head->at, n);
    return nb_journal_append(c->journal, RECORD, record, (uint32_t)(sizeof(*head) + n));
}

static int append(struct nb_jobs_calibration *c)
{
    uint8_t *data = NULL;
    size_t len = 0;
    int rc = store(c, &data, &len);
    uint8_t *record = rc == 0 ? malloc(sizeof(struct part) + (len < PART ? len : PART)) : NULL;
    struct part head = {.windows = c->done, .total = len};
    rc = rc < 0 ? rc : record ? 0 : -ENOMEM;
    for (uint64_t n; head.at < len && rc == 0; head.at += n) {
        n = len - head.at < PART ? len - head.at : PART;
        rc = append_part(c, &head, data, n, record);
    }
    free(record);
    free(data);
    return rc == 0 ? nb_journal_sync(c->journal, NULL, 0) : rc;
}

// ---- What is kept for other jobs

// A folded model is another model.
static bool keeps(const struct nb_jobs_calibration *c)
{
    return c->imatrix < 0 && !c->fold.methods;
}

// Beside the files themselves: what the sums depend on.
static void make_key(const struct nb_jobs_calibration *c, uint8_t ret[NB_JOBS_STATISTICS_KEY])
{
    const uint32_t of[] = {STATISTICS,          c->sampling.samples,  c->sampling.length,
                           c->sampling.seed,    c->sampling.held_out, c->sees_ranges,
                           (uint32_t)c->n_texts};
    XXH128_canonical_t key;
    XXH128_canonicalFromHash(&key, XXH3_128bits(of, sizeof(of)));
    memcpy(ret, &key, sizeof(key));
}

static bool recall(struct nb_jobs_calibration *c)
{
    uint8_t key[NB_JOBS_STATISTICS_KEY];
    void *data = NULL;
    size_t len = 0;
    make_key(c, key);
    bool there = keeps(c) && nb_jobs_statistics_read(c->work->statistics, key, &data, &len) == 0 &&
                 restore(c, data, len) == 0;
    free(data);
    return there;
}

void nb_jobs_calibrate_keep(const struct nb_jobs_calibration *c)
{
    uint8_t key[NB_JOBS_STATISTICS_KEY], *data = NULL;
    size_t len = 0;
    make_key(c, key);
    if (keeps(c) && !c->known && store(c, &data, &len) == 0)
        nb_jobs_statistics_write(c->work->statistics, key, data, len);
    free(data);
}

// ---- The run

// Windows between two checkpoints.
static uint32_t stride(const struct nb_jobs_calibration *c)
{
    const uint64_t bytes = 8 * c->importance.values + (uint64_t)RANGE * c->ranges.count + 1;
    const uint64_t fit = STORED / bytes;
    const uint64_t n = fit < 1 ? 1 : fit < CHECKPOINTS ? fit : CHECKPOINTS;
    return (uint32_t)((c->sampling.samples + n - 1) / n);
}

static void tell(struct nb_jobs_calibration *c)
{
    char what[64];
    snprintf(what, sizeof(what), "calibrating %u/%u", c->done, c->sampling.samples);
    const uint64_t before = c->writing + c->folding;
    nb_jobs_tell(c->work, what, before + c->load * c->done / c->sampling.samples,
                 before + c->load + c->bytes);
}

static int after(void *user, uint32_t done)
{
    struct nb_jobs_calibration *c = user;
    c->done = done;
    tell(c);
    if (done < c->sampling.samples && done - c->stored < stride(c))
        return 0;
    c->stored = done;
    int rc = append(c);
    return rc < 0 ? nb_fail(c->error, rc, "the job's journal cannot be written: %s", strerror(-rc))
                  : 0;
}

static void on_writing(void *user, uint64_t done, uint64_t total)
{
    struct nb_jobs_calibration *c = user;
    nb_jobs_tell(c->work, "the model writes its calibration text", c->writing * done / total,
                 c->writing + c->folding + c->load + c->bytes);
}

int nb_jobs_calibrate_open(struct nb_jobs_calibration *c, struct nb_error *ret_error)
{
    const struct nb_calibrate how = {.source = c->source,
                                     .texts = c->texts,
                                     .n_texts = c->n_texts,
                                     .samples = c->sampling.samples,
                                     .length = c->sampling.length,
                                     .held_out = c->sampling.held_out,
                                     .seed = c->sampling.seed,
                                     .given = &c->text,
                                     .team = c->work->team,
                                     .allowed = &c->work->allowed,
                                     .writing = on_writing,
                                     .user = c};
    return c->open ? 0 : nb_calibration_open(&how, &c->open, ret_error);
}

int nb_jobs_calibrate_judging(struct nb_jobs_calibration *c, struct nb_judging *ret,
                              struct nb_error *ret_error)
{
    int rc = nb_jobs_calibrate_open(c, ret_error);
    if (rc < 0)
        return rc;
    const uint32_t vocab = nb_calibration_plan(c->open)->hp.vocab;
    const uint32_t room = nb_judge_room(vocab, c->sampling.length);
    if (!room)
        return nb_fail(ret_error, -EINVAL,
                       "a result is judged by windows of %u tokens at most (--length)",
                       nb_judge_room(vocab, 1));
    c->judged = *nb_calibration_held_out(c->open);
    c->judged.n = c->judged.n < room ? c->judged.n : room;
    *ret = (struct nb_judging){.source = c->source,
                               .image = nb_calibration_image(c->open),
                               .windows = &c->judged,
                               .allowed = &c->work->allowed,
                               .team = c->work->team};
    return 0;
}

int nb_jobs_calibrate_judge(struct nb_jobs_calibration *c, int fd, uint32_t most,
                            struct nb_divergence *ret, double *ret_windows,
                            struct nb_error *ret_error)
{
    const struct nb_source_file file = {"model.gguf", fd};
    struct nb_source *result = NULL;
    struct nb_judge *judge = NULL;
    struct nb_judging how;
    int rc = nb_jobs_calibrate_judging(c, &how, ret_error);
    c->judged.n = c->judged.n < most ? c->judged.n : most;
    if (rc == 0)
        rc = nb_source_open_gguf(&file, 1, &result, ret_error);
    if (rc == 0)
        rc = nb_judge_open(&how, &judge, ret_error);
    if (rc == 0)
        rc = nb_judge_measure_source(judge, result, ret, ret_error);
    if (rc == 0 && ret_windows)
        nb_judge_windows(judge, ret_windows);
    nb_judge_close(judge);
    nb_source_close(result);
    return rc;
}

void nb_jobs_calibrate_close(struct nb_jobs_calibration *c)
{
    if (c->open)
        nb_calibration_give(c->open, &c->text);
    nb_calibration_close(c->open);
    c->open = NULL;
}

static int measure(struct nb_jobs_calibration *c, struct nb_error *e)
{
    c->error = e;
    c->stored = c->done;
    tell(c);
    int rc = nb_jobs_calibrate_open(c, e);
    if (rc == 0 && c->sees_ranges)
        nb_calibration_see(c->open, &c->ranges);
    return rc == 0 ? nb_calibration_run(c->open, c->done, &c->importance, after, c, e) : rc;
}

int nb_jobs_calibrate_run(struct nb_jobs_calibration *c, struct nb_journal *journal,
                          struct nb_error *ret_error)
{
    c->journal = journal;
    free(c->coming);
    c->coming = NULL;
    if (c->imatrix >= 0)
        return nb_imatrix_read(c->imatrix, &c->importance, ret_error);
    return c->done < c->sampling.samples && !c->by_the_way ? measure(c, ret_error) : 0;
}

uint64_t nb_jobs_calibrate_load(const struct nb_jobs_calibration *c, uint64_t bytes)
{
    return (uint64_t)((double)bytes * LOAD * c->sampling.samples * c->sampling.length);
}

// Of a run's token: a product and a sum for each weight, but for the embedding's.
static double operations(const struct nb_source *s)
{
    const char embedding[] = "token_embd.weight";
    const uint32_t without = nb_source_find(s, (struct nb_str){embedding, sizeof(embedding) - 1});
    double weights = 0;
    for (uint32_t i = 0; i < s->n_tensors; i++)
        if (s->tensors[i].n_dims > 1 && i != without)
            weights += (double)nb_source_rows(&s->tensors[i]) * (double)s->tensors[i].dims[0];
    return 2 * weights;
}

void nb_jobs_calibrate_init(struct nb_jobs_calibration *c, uint64_t size, uint64_t after)
{
    c->known = c->done < c->sampling.samples && !c->by_the_way && recall(c);
    if (c->known)
        c->done = c->sampling.samples;
    if (c->imatrix < 0)
        nb_jobs_pace(c->work, operations(c->source) / ((double)size * LOAD));
    c->bytes = after;
    const uint64_t run = c->imatrix < 0 ? nb_jobs_calibrate_load(c, size) : 0;
    c->load = c->by_the_way || c->known ? 0 : run;
    c->writing = c->n_texts ? 0 : run; // about as much work, as a fold is
    c->folding = c->fold.methods ? run : 0;
}

void nb_jobs_calibrate_finish(struct nb_jobs_calibration *c)
{
    nb_jobs_calibrate_close(c);
    nb_windows_finish(&c->text.learnt);
    nb_windows_finish(&c->text.held_out);
    nb_jobs_fold_finish(&c->fold);
    nb_importance_finish(&c->importance);
    nb_ranges_finish(&c->ranges);
    free(c->coming);
}
