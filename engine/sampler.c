// Choosing a token. docs/numerics.md ("Sampling") defines the choice; nothing here may depend on
// more than the log, the parameters and the seed. The whole vocabulary is never sorted: top-k keeps
// a heap of k, top-p takes from a heap until it has enough.
#include "engine/sampler.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// --- Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)

uint64_t nb_random(uint64_t seed, uint64_t counter)
{
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), 0, 0};
    uint32_t k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53 * c[0], b = (uint64_t)0xCD9E8D57 * c[2];
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b,
                            (uint32_t)(a >> 32) ^ c[3] ^ k[1], (uint32_t)a};
        memcpy(c, next, sizeof(c));
        k[0] += 0x9E3779B9;
        k[1] += 0xBB67AE85;
    }
    return c[0] | (uint64_t)c[1] << 32;
}

int nb_sampling_check(const struct nb_sampling *s)
{
    bool fine = s->temperature >= 0 && s->temperature <= 100 && s->top_p >= 0 && s->top_p <= 1 &&
                s->min_p >= 0 && s->min_p <= 1 && s->repeat_penalty > 0 &&
                s->repeat_penalty <= 100 && s->repeat_window <= NB_REPEAT_WINDOW_MAX;
    return fine ? 0 : -EINVAL;
}

// --- Repetition penalty: once for each distinct token of the window, which a small open hash
// remembers together with the logit it had, for log-probabilities are of the unmodified
// distribution.

#define SEEN_SIZE (2 * NB_REPEAT_WINDOW_MAX)

struct seen {
    uint32_t n;
    struct {
        int32_t token; // + 1; 0: empty
        float logit;
    } slot[SEEN_SIZE];
};

static uint32_t slot_of(const struct seen *seen, int32_t token)
{
    uint32_t i = (uint32_t)token * 2654435761u % SEEN_SIZE;
    while (seen->slot[i].token && seen->slot[i].token != token + 1)
        i = (i + 1) % SEEN_SIZE;
    return i;
}

static void penalize(const struct nb_sampling *s, float *logits, uint32_t vocab, const int32_t *log,
                     uint32_t log_len, struct seen *seen)
{
    uint32_t window = s->repeat_window < log_len ? s->repeat_window : log_len;
    for (uint32_t i = log_len - window; i < log_len; i++) {
        int32_t token = log[i];
        uint32_t slot = slot_of(seen, token);
        if (token < 0 || (uint32_t)token >= vocab || seen->slot[slot].token)
            continue;
        seen->slot[slot].token = token + 1;
        seen->slot[slot].logit = logits[token];
        logits[token] = logits[token] > 0 ? logits[token] / s->repeat_penalty
                                          : logits[token] * s->repeat_penalty;
    }
}

#define FEW 1024 // candidates that lie on the stack

// --- Candidates, in the order of engine/candidate.h

// A heap whose root is the candidate that comes last (`keep_best`) or first.
static void sift(struct nb_candidate *heap, uint32_t n, uint32_t i, bool keep_best)
{
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= n)
            return;
        if (child + 1 < n && nb_candidate_before(heap[child + 1], heap[child]) != keep_best)
            child++;
        if (nb_candidate_before(heap[child], heap[i]) == keep_best)
            return;
        struct nb_candidate c = heap[i];
        heap[i] = heap[child];
        heap[child] = c;
        i = child;
    }
}

static void heapify(struct nb_candidate *heap, uint32_t n, bool keep_best)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift(heap, n, i, keep_best);
}

// min-p compares weights exp((logit - max) / T) with min_p: in logits, a threshold.
static double least_of(const struct nb_sampling *s, float max)
{
    return s->min_p > 0 ? max + s->temperature * log((double)s->min_p) : -INFINITY;
}

static bool is_left(struct nb_candidate c, double least)
{
    return c.logit > -INFINITY && !(c.logit < least);
}

// The candidates that top-k and min-p leave, in no order.
static uint32_t collect(const struct nb_sampling *s, uint32_t k, const float *logits,
                        uint32_t vocab, float max, struct nb_candidate *out)
{
    double least = least_of(s, max);
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        struct nb_candidate c = {logits[i], (int32_t)i};
        if (!is_left(c, least))
            continue;
        if (n < k) {
            out[n++] = c;
            if (n == k && k < vocab)
                heapify(out, n, true);
        } else if (nb_candidate_before(c, out[0])) {
            out[0] = c;
            sift(out, n, 0, true);
        }
    }
    return n;
}

static double weight_of(const struct nb_sampling *s, struct nb_candidate c, float max)
{
    return exp(((double)c.logit - max) / s->temperature);
}

static int by_id(const void *a, const void *b)
{
    const struct nb_candidate *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

// Keeps the best candidates whose weights together reach top_p of the whole; they end at the
// array's tail.
static struct nb_candidate *nucleus(const struct nb_sampling *s, struct nb_candidate *c,
                                    uint32_t *n, float max)
{
    double total = 0, sum = 0;
    for (uint32_t i = 0; i < *n; i++)
        total += weight_of(s, c[i], max);
    heapify(c, *n, false);
    uint32_t left = *n;
    while (left) {
        struct nb_candidate best = c[0];
        c[0] = c[--left];
        sift(c, left, 0, false);
        c[left] = best;
        sum += weight_of(s, best, max);
        if (sum >= s->top_p * total)
            break;
    }
    *n -= left;
    return c + left;
}

static int32_t draw(const struct nb_sampling *s, const struct nb_candidate *c, uint32_t n,
                    float max, uint32_t position)
{
    double total = 0, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        total += weight_of(s, c[i], max);
    double u = (double)(nb_random(s->seed, position) >> 11) * 0x1p-53 * total;
    int32_t id = -1;
    for (uint32_t i = 0; i < n && sum <= u; i++) {
        sum += weight_of(s, c[i], max);
        id = c[i].id;
    }
    return id;
}

// From what top-k and min-p leave, in the order of id, as every sum is.
static int32_t choose(const struct nb_sampling *s, struct nb_candidate *kept, uint32_t n, float max,
                      uint32_t position)
{
    if (s->top_p < 1) {
        kept = nucleus(s, kept, &n, max);
        qsort(kept, n, sizeof(*kept), by_id);
    }
    return draw(s, kept, n, max, position);
}

static int sample(const struct nb_sampling *s, const float *logits, uint32_t vocab, float max,
                  uint32_t position, int32_t *ret_token)
{
    uint32_t k = s->top_k && s->top_k < vocab ? s->top_k : vocab;
    struct nb_candidate few[FEW], *all = k <= FEW ? few : malloc(k * sizeof(*all));
    if (!all)
        return -ENOMEM;
    uint32_t n = collect(s, k, logits, vocab, max, all);
    if (k < vocab)
        qsort(all, n, sizeof(*all), by_id);
    *ret_token = choose(s, all, n, max, position);
    if (all != few)
        free(all);
    return 0;
}

// --- The whole

static int32_t best_of(const float *logits, uint32_t vocab)
{
    int32_t best = -1;
    float most = -INFINITY;
    for (uint32_t i = 0; i < vocab; i++)
        if (logits[i] > most) {
            most = logits[i];
            best = (int32_t)i;
        }
    return best;
}

static double log_sum_exp(const float *logits, uint32_t vocab, float max)
{
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        if (logits[i] > -INFINITY)
            sum += exp((double)logits[i] - max);
    return max + log(sum);
}

// By their bits and without a branch, so that it is a fraction of the search for the best.
bool nb_logits_are_finite(const float *logits, uint32_t n)
{
    uint32_t odd = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, logits + i, sizeof(bits));
        odd |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !odd;
}

static bool is_finite(const float *logits, int32_t best)
{
    return best >= 0 && logits[best] < INFINITY;
}

static bool penalizes(const struct nb_sampling *s)
{
    return s->repeat_penalty != 1 && s->repeat_window;
}

int nb_sample(const struct nb_sampling *s, float *logits, uint32_t vocab, const int32_t *log,
              uint32_t log_len, uint32_t position, int32_t *ret_token, float *ret_logprob)
{
    struct seen seen;
    bool penalty = penalizes(s);
    if (!nb_logits_are_finite(logits, vocab))
        return -EBADMSG;
    int32_t best = best_of(logits, vocab);
    double lse = s->logprobs ? log_sum_exp(logits, vocab, logits[best]) : 0;
    if (penalty) {
        memset(&seen, 0, sizeof(seen));
        penalize(s, logits, vocab, log, log_len, &seen);
        best = best_of(logits, vocab);
        if (!is_finite(logits, best)) // a tiny or a large penalty can leave none
            return -EDOM;
    }
    int32_t token = best;
    if (s->temperature > 0) {
        int rc = sample(s, logits, vocab, logits[best], position, &token);
        if (rc < 0)
            return rc;
    }
    if (s->logprobs) {
        uint32_t slot = penalty ? slot_of(&seen, token) : 0;
        float logit = penalty && seen.slot[slot].token ? seen.slot[slot].logit : logits[token];
        *ret_logprob = (float)(logit - lse);
    }
    *ret_token = token;
    return 0;
}

// --- From candidates that a device has picked

uint32_t nb_sampling_suffices(const struct nb_sampling *s)
{
    if (s->logprobs || penalizes(s))
        return 0;
    uint32_t k = s->temperature > 0 ? s->top_k : 1;
    return k <= NB_CANDIDATES_MAX ? k : 0;
}

int nb_sample_best(const struct nb_sampling *s, struct nb_candidate *best, uint32_t n,
                   uint32_t position, int32_t *ret_token)
{
    const float max = n ? best[0].logit : -INFINITY;
    if (!isfinite(max))
        return -EBADMSG;
    int32_t token = best[0].id;
    if (s->temperature > 0) {
        double least = least_of(s, max);
        uint32_t left = 0;
        while (left < n && is_left(best[left], least))
            left++;
        qsort(best, left, sizeof(*best), by_id);
        token = choose(s, best, left, max, position);
    }
    *ret_token = token;
    return 0;
}
