// Rows of losses (grad/loss.h): a part of loops_tmpl.h, which alone includes it.

static float largest(const float *x, uint32_t n)
{
    float partial[LANES], most = -INFINITY;
    for (int lane = 0; lane < LANES; lane++)
        partial[lane] = -INFINITY;
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            partial[lane] = x[i + lane] > partial[lane] ? x[i + lane] : partial[lane];
    for (int lane = 0; lane < LANES; lane++)
        most = partial[lane] > most ? partial[lane] : most;
    for (; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

// The logarithm of the sum of exp(by * x).
static float log_sum(const float *x, float by, uint32_t n)
{
    const float most = largest(x, n);
    float sum;
    SUM(sum, n, exp_of(by * (x[at] - most)));
    return by * most + logf(sum);
}

struct softmaxes {
    float above, below, weight; // logarithms of the reference's and the logits' sums
};

static inline void diverge(const struct softmaxes *s, const float *restrict reference,
                           float *restrict logits, int lanes, float *restrict partial)
{
    for (int lane = 0; lane < lanes; lane++) {
        const float p = reference[lane] - s->above, q = logits[lane] - s->below;
        const float share = exp_of(p);
        partial[lane] += share * (p - q);
        logits[lane] = s->weight * (exp_of(q) - share);
    }
}

static float divergence(const float *reference, float *logits, uint32_t n, float weight)
{
    const struct softmaxes s = {log_sum(reference, 1, n), log_sum(logits, 1, n), weight};
    float partial[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        diverge(&s, reference + i, logits + i, LANES, partial);
    diverge(&s, reference + i, logits + i, (int)(n - i), partial);
    return fold(partial);
}

struct targets {
    float by;                 // one over the temperature
    float above, below, full; // logarithms of sums: the reference's, the logits' warm and cold
    float soft, hard;         // weights of the gradients
    float mix;
};

static inline void draw(const struct targets *t, const float *restrict reference,
                        float *restrict logits, int lanes, float *restrict partial)
{
    for (int lane = 0; lane < lanes; lane++) {
        const float p = t->by * reference[lane] - t->above, q = t->by * logits[lane] - t->below;
        const float share = exp_of(p), cold = exp_of(logits[lane] - t->full);
        partial[lane] += share * (p - q);
        logits[lane] = t->soft * (exp_of(q) - share) + t->hard * cold;
    }
}

// log(x / m) of a share x that is e^away times the other's in m = own * x + (1 - own) * other. What
// is left out of its range has no share that counts.
static inline float over_mixture(float own, float away)
{
    const float other = exp_of(away < -80 ? 80 : -away);
    return own > 0 ? -logf(own + (1 - own) * other) : away;
}

// Of D's two terms, what a number adds to each: share * log(share / m).
static inline void compare(const struct targets *t, const float *restrict reference,
                           const float *restrict logits, int lanes, float *restrict of_p,
                           float *restrict of_q)
{
    for (int lane = 0; lane < lanes; lane++) {
        const float p = t->by * reference[lane] - t->above, q = t->by * logits[lane] - t->below;
        of_p[lane] += exp_of(p) * over_mixture(t->mix, p - q);
        of_q[lane] += exp_of(q) * over_mixture(1 - t->mix, q - p);
    }
}

static inline void draw_mixed(const struct targets *t, const float *restrict reference,
                              float *restrict logits, int lanes, float mean)
{
    for (int lane = 0; lane < lanes; lane++) {
        const float p = t->by * reference[lane] - t->above, q = t->by * logits[lane] - t->below;
        const float pull = exp_of(q) * (over_mixture(1 - t->mix, q - p) - mean);
        logits[lane] = t->soft * pull + t->hard * exp_of(logits[lane] - t->full);
    }
}

// Returns D, and moves logits to their gradient.
static float distil_mixed(struct targets *t, const float *reference, float *logits, uint32_t n)
{
    const float own = t->mix < 1 ? 1 - t->mix : 1;
    float of_p[LANES] = {0}, of_q[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        compare(t, reference + i, logits + i, LANES, of_p, of_q);
    compare(t, reference + i, logits + i, (int)(n - i), of_p, of_q);
    const float mean = fold(of_q);
    t->soft *= own;
    for (i = 0; i + LANES <= n; i += LANES)
        draw_mixed(t, reference + i, logits + i, LANES, mean);
    draw_mixed(t, reference + i, logits + i, (int)(n - i), mean);
    return t->mix * fold(of_p) + own * mean;
}

static float distil_forward(const struct targets *t, const float *reference, float *logits,
                            uint32_t n)
{
    float partial[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        draw(t, reference + i, logits + i, LANES, partial);
    draw(t, reference + i, logits + i, (int)(n - i), partial);
    return fold(partial);
}

// What the label says of a row; false: the row is left out, and has no gradient. full: log_sum.
static bool judge_label(int32_t label, float full, float *logits, uint32_t n, float *ret_soft,
                        float *ret_hard)
{
    *ret_hard = label < 0 ? 0 : full - logits[label];
    *ret_soft = 0;
    if (label == NB_LEFT_OUT)
        memset(logits, 0, n * sizeof(*logits));
    return label != NB_LEFT_OUT;
}

static void distil(const struct nb_distil_loss *how, const float *reference, int32_t label,
                   float *logits, uint32_t n, float *ret_soft, float *ret_hard)
{
    const float temperature = how->temperature, full = log_sum(logits, 1, n);
    struct targets t = {
        .by = 1 / temperature, .full = full, .soft = how->soft * temperature, .mix = how->mix};
    if (!judge_label(label, full, logits, n, ret_soft, ret_hard))
        return;
    t.hard = label < 0 ? 0 : how->hard;
    if (reference) {
        t.above = log_sum(reference, t.by, n);
        t.below = log_sum(logits, t.by, n);
        *ret_soft = temperature * temperature *
                    (t.mix > 0 ? distil_mixed(&t, reference, logits, n)
                               : distil_forward(&t, reference, logits, n));
    }
    for (uint32_t i = 0; !reference && i < n; i++)
        logits[i] = t.hard * exp_of(logits[i] - full);
    if (label >= 0)
        logits[label] -= t.hard;
}

// The gradient's parts where the reference keeps a part of its tokens.
struct kept {
    float by, below, others, full; // logarithms of sums: the logits' warm, of those not kept, cold
    float rest;                    // of what is not kept: the logits' share less the reference's
    float soft, hard;
};

// Adds the kept tokens' part of D; what the reference leaves for the others.
static float compare_kept(const struct kept *k, const struct nb_kept *reference, const float *own,
                          float *soft)
{
    double left = 1;
    for (uint32_t i = 0; i < reference->n; i++) {
        const float p = k->by * reference->logit[i].logit - reference->log_sum;
        const float share = exp_of(p);
        *soft += share * (p - (k->by * own[i] - k->below));
        left -= (double)share;
    }
    return left > 0 ? (float)left : 0;
}

static void draw_kept(const struct kept *k, const struct nb_kept *reference, const float *own,
                      float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        logits[i] = k->soft * k->rest * exp_of(k->by * logits[i] - k->others) +
                    k->hard * exp_of(logits[i] - k->full);
    for (uint32_t i = 0; i < reference->n; i++) {
        const float p = exp_of(k->by * reference->logit[i].logit - reference->log_sum);
        logits[reference->logit[i].id] =
            k->soft * (exp_of(k->by * own[i] - k->below) - p) + k->hard * exp_of(own[i] - k->full);
    }
}

static void distil_kept(const struct nb_distil_loss *how, const struct nb_kept *reference,
                        int32_t label, float *logits, uint32_t n, float *ret_soft, float *ret_hard)
{
    const float temperature = how->temperature;
    float own[NB_LESSONS_KEPT], soft = 0;
    struct kept k = {.by = 1 / temperature, .soft = how->soft * temperature};
    k.full = log_sum(logits, 1, n);
    if (!judge_label(label, k.full, logits, n, ret_soft, ret_hard))
        return;
    k.hard = label < 0 ? 0 : how->hard;
    k.below = log_sum(logits, k.by, n);
    for (uint32_t i = 0; i < reference->n; i++) { // set aside, so that the others have a sum
        own[i] = logits[reference->logit[i].id];
        logits[reference->logit[i].id] = -1e30f;
    }
    k.others = log_sum(logits, k.by, n);
    const float left = compare_kept(&k, reference, own, &soft), others = k.others - k.below;
    if (left > 0)
        soft += left * (logf(left) - (others < -80 ? -80 : others)); // where there are any
    k.rest = exp_of(others) - left;
    draw_kept(&k, reference, own, logits, n);
    *ret_soft = temperature * temperature * soft;
    if (label >= 0)
        logits[label] -= k.hard;
}
