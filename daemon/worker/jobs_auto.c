// See jobs_auto.h. Whatever was decided is in the journal before it is acted on.
#include "daemon/worker/jobs_auto.h"

#include <errno.h>
#include <string.h>

enum { SEARCHED = NB_JOBS_AUTO_RECORDS, JUDGED, SETTLED };

int nb_jobs_auto_visit(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct nb_jobs_auto *a = user;
    if (kind == SEARCHED && bytes <= sizeof(a->searched) && bytes % sizeof(*a->searched) == 0) {
        memcpy(a->searched, data, bytes);
        a->n_searched = bytes / (uint32_t)sizeof(*a->searched);
        return 0;
    }
    if (kind < JUDGED || kind > SETTLED || bytes != sizeof(a->gain))
        return 1;
    memcpy(&a->gain, data, bytes);
    a->judged = true;
    a->settled = kind == SETTLED;
    return 0;
}

static int append(const struct nb_jobs_auto_run *run, uint32_t kind, const void *data, size_t bytes,
                  struct nb_error *e)
{
    return nb_journal_keep(nb_compress_journal(run->compress), kind, data, (uint32_t)bytes, NULL, 0,
                           e);
}

// Of each window. ret: [NB_JOBS_HELD].
static int measure(const struct nb_jobs_auto_run *run, double *ret, uint32_t *ret_n,
                   struct nb_error *e)
{
    struct nb_jobs_calibration *c = run->calibration;
    struct nb_divergence divergence;
    int rc = nb_jobs_calibrate_judge(c, run->fd, NB_JOBS_HELD, &divergence, ret, e);
    *ret_n = rc == 0 ? divergence.tokens / c->sampling.length : 0;
    return rc;
}

static int search(const struct nb_jobs_auto_run *run, struct nb_error *e)
{
    return nb_compress_finish(run->compress, &run->calibration->importance, e);
}

// The tensors go before the record comes: one that is killed between searches again.
int nb_jobs_auto_searched(const struct nb_jobs_auto_run *run, struct nb_jobs_auto *a,
                          struct nb_error *ret_error)
{
    if (a->n_searched)
        return 0;
    int rc = search(run, ret_error);
    if (rc == 0)
        rc = measure(run, a->searched, &a->n_searched, ret_error);
    if (rc == 0)
        rc = nb_compress_again(run->compress, ret_error);
    return rc == 0
               ? append(run, SEARCHED, a->searched, a->n_searched * sizeof(*a->searched), ret_error)
               : rc;
}

static int judge(const struct nb_jobs_auto_run *run, struct nb_jobs_auto *a, struct nb_error *e)
{
    double fed[NB_JOBS_HELD];
    uint32_t n = 0;
    int rc = measure(run, fed, &n, e);
    if (rc < 0)
        return rc;
    if (n != a->n_searched)
        return nb_fail(e, -EBADMSG, "the job's journal is of other text");
    a->gain = nb_gain_of(a->searched, fed, n);
    a->judged = true;
    return append(run, JUDGED, &a->gain, sizeof(a->gain), e);
}

int nb_jobs_auto_fed(const struct nb_jobs_auto_run *run, struct nb_jobs_auto *a,
                     struct nb_error *ret_error)
{
    int rc = a->judged ? 0 : judge(run, a, ret_error);
    if (rc < 0 || a->gain.kept || a->settled)
        return rc;
    rc = nb_compress_again(run->compress, ret_error);
    if (rc == 0)
        rc = search(run, ret_error);
    return rc == 0 ? append(run, SETTLED, &a->gain, sizeof(a->gain), ret_error) : rc;
}
