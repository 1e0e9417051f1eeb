// The losses of training and AdamW beside the same in doubles.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/cpu/kernels.h"
#include "engine/sampler.h"
#include "grad/adam.h"
#include "grad/grad.h"
#include "grad/loops.h"
#include "grad/loss.h"
#include "tensor/image.h"
#include "tensor/type.h"
#include "tests/support/random_model.h"

struct model {
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_team *team;
};

static int open_model(void **state)
{
    const struct random_model r = {1, 32, 32, 2, 1, 64, 5, NB_TYPE_F32};
    const struct nb_plan_options exact = {.precision = NB_PRECISION_EXACT};
    struct model *m = calloc(1, sizeof(*m));
    struct nb_error error = {""};
    struct nb_source *source;
    uint64_t bytes;
    assert_non_null(m);
    const struct nb_source_file file = {"model.gguf", random_model_create(&r)};
    const int fd = memfd_create("image", MFD_CLOEXEC);
    assert_int_equal(nb_source_open_gguf(&file, 1, &source, &error), 0);
    assert_true(nb_image_pack(source, fd, NULL, &bytes, &error) >= 0);
    assert_int_equal(nb_image_map(fd, 0, &m->image, &error), 0);
    assert_int_equal(nb_plan_create(m->image, &exact, &m->plan, &error), 0);
    assert_int_equal(nb_team_create(2, &m->team), 0);
    nb_source_close(source);
    close(fd);
    close(file.fd);
    *state = m;
    return 0;
}

static int close_model(void **state)
{
    struct model *m = *state;
    nb_team_destroy(m->team);
    nb_plan_destroy(m->plan);
    nb_image_unmap(m->image);
    free(m);
    return 0;
}

static double log_sum(const float *x, double by)
{
    double sum = exp(by * (double)x[0]);
    for (int i = 1; i < RANDOM_VOCAB; i++)
        sum += exp(by * (double)x[i]);
    return log(sum);
}

// The gradient's formula is not trusted: it is compared with differences of the loss.
static double loss_of(const struct nb_distil_loss *how, const float *p, const float *q,
                      int32_t label, double *ret_soft, double *ret_hard)
{
    const double by = 1 / (double)how->temperature, above = p ? log_sum(p, by) : 0;
    const double below = log_sum(q, by);
    const double mix = (double)how->mix;
    double of_p = 0, of_q = 0;
    for (int i = 0; p && i < RANDOM_VOCAB; i++) {
        const double a = by * (double)p[i] - above, b = by * (double)q[i] - below;
        const double m = log(mix * exp(a) + (1 - mix) * exp(b));
        of_p += exp(a) * (a - m);
        of_q += exp(b) * (b - m);
    }
    const double apart = mix > 0 && mix < 1 ? mix * of_p + (1 - mix) * of_q : of_p + of_q;
    *ret_soft =
        label == NB_LEFT_OUT ? 0 : (double)how->temperature * (double)how->temperature * apart;
    *ret_hard = label < 0 ? 0 : log_sum(q, 1) - (double)q[label];
    return (double)how->soft * *ret_soft + (double)how->hard * *ret_hard;
}

// Rows of both losses, each steeper than the one before; q: near p.
#define JUDGED 5
static const int32_t labels[JUDGED] = {3, NB_NO_LABEL, RANDOM_VOCAB - 1, 0, NB_LEFT_OUT};

static void make_logits(float *p, float *q)
{
    for (uint32_t i = 0; i < JUDGED * RANDOM_VOCAB; i++) {
        const uint32_t row = i / RANDOM_VOCAB;
        p[i] = 1e-9f * (float)(int32_t)nb_random(1, i) * (float)(1 + row * 5);
        q[i] = p[i] + 1e-9f * (float)(int32_t)nb_random(2, i);
    }
}

static void losses_beside_doubles(void **state)
{
    const struct model *m = *state;
    static const float mixes[] = {0, 0.3f, 0.9f, 1};
    struct nb_distil_loss how = {.temperature = 2.5f, .soft = 0.25f, .hard = 0.5f};
    static float p[JUDGED * RANDOM_VOCAB], q[JUDGED * RANDOM_VOCAB], d[JUDGED * RANDOM_VOCAB];
    float soft[JUDGED], hard[JUDGED];
    struct nb_error error = {""};
    struct nb_grad *g;
    double worst = 0;
    assert_int_equal(nb_grad_open(m->plan, m->team, &g, &error), 0);
    make_logits(p, q);
    for (int kind = 0; kind < 5; kind++) {
        const bool taught = kind < 4; // last without a teacher
        how.mix = mixes[kind % 4];
        memcpy(d, q, sizeof(d));
        nb_grad_distil(g, JUDGED, &how, taught ? p : NULL, labels, d, soft, hard);
        for (int r = 0; r < JUDGED; r++) {
            const float *of = taught ? p + r * RANDOM_VOCAB : NULL;
            float *x = q + r * RANDOM_VOCAB;
            double s, h;
            loss_of(&how, of, x, labels[r], &s, &h);
            assert_true(fabs((double)soft[r] - s) < 2e-5 * (1 + s));
            assert_true(fabs((double)hard[r] - h) < 2e-5 * (1 + h));
            for (int i = 0; i < RANDOM_VOCAB; i += 3) {
                const float kept = x[i];
                x[i] = kept + 0x1p-10f;
                const double up = loss_of(&how, of, x, labels[r], &s, &h), high = (double)x[i];
                x[i] = kept - 0x1p-10f;
                const double slope =
                    (up - loss_of(&how, of, x, labels[r], &s, &h)) / (high - (double)x[i]);
                x[i] = kept;
                const double off = fabs((double)d[r * RANDOM_VOCAB + i] - slope);
                worst = off > worst ? off : worst;
            }
        }
    }
    print_message("the gradients' largest difference from differences: %.1e\n", worst);
    assert_true(worst < 2e-6);
    memcpy(d, q, sizeof(d));
    d[5] = NAN;
    nb_grad_distil(g, 1, &how, p, labels, d, soft, hard);
    assert_true(isnan(soft[0]) && isnan(hard[0]));
    nb_grad_close(g);
}

// The same of what is kept of p; what is left of each is one number.
static double loss_kept(const struct nb_distil_loss *how, const struct nb_kept *p, const float *q,
                        int32_t label, double *ret_soft, double *ret_hard)
{
    const double by = 1 / (double)how->temperature, below = log_sum(q, by);
    double of_p = 0, others = 0, apart = 0;
    for (uint32_t i = 0, next = 0; i < RANDOM_VOCAB; i++)
        if (next < p->n && p->logit[next].id == i)
            next++;
        else
            others += exp(by * (double)q[i] - below);
    for (uint32_t i = 0; i < p->n; i++) {
        const double a = by * (double)p->logit[i].logit - (double)p->log_sum;
        const double b = by * (double)q[p->logit[i].id] - below;
        of_p += exp(a);
        apart += exp(a) * (a - b);
    }
    if (of_p < 1)
        apart += (1 - of_p) * (log1p(-of_p) - log(others));
    *ret_soft =
        label == NB_LEFT_OUT ? 0 : (double)how->temperature * (double)how->temperature * apart;
    *ret_hard = label < 0 ? 0 : log_sum(q, 1) - (double)q[label];
    return (double)how->soft * *ret_soft + (double)how->hard * *ret_hard;
}

// Few, half and all but one are kept, of rows that are flat and steep.
static void kept_beside_doubles(void **state)
{
    const struct model *m = *state;
    const struct nb_distil_loss how = {.temperature = 2.5f, .soft = 0.25f, .hard = 0.5f};
    static const uint32_t steps[] = {97, 2, 1};
    static float p[JUDGED * RANDOM_VOCAB], q[JUDGED * RANDOM_VOCAB], d[JUDGED * RANDOM_VOCAB];
    static struct nb_kept_logit logits[JUDGED][RANDOM_VOCAB];
    struct nb_kept kept[JUDGED];
    float soft[JUDGED], hard[JUDGED];
    struct nb_error error = {""};
    struct nb_grad *g;
    double worst = 0;
    assert_int_equal(nb_grad_open(m->plan, m->team, &g, &error), 0);
    make_logits(p, q);
    for (int kind = 0; kind < 3; kind++) {
        for (uint32_t r = 0; r < JUDGED; r++) {
            kept[r] = (struct nb_kept){logits[r], 0, 0};
            for (uint32_t i = 1; i < RANDOM_VOCAB && kept[r].n < NB_LESSONS_KEPT; i += steps[kind])
                logits[r][kept[r].n++] = (struct nb_kept_logit){i, p[r * RANDOM_VOCAB + i]};
            kept[r].log_sum =
                (float)log_sum(p + (size_t)r * RANDOM_VOCAB, 1 / (double)how.temperature);
        }
        memcpy(d, q, sizeof(d));
        nb_grad_distil_kept(g, JUDGED, &how, kept, labels, d, soft, hard);
        for (int r = 0; r < JUDGED; r++) {
            float *x = q + r * RANDOM_VOCAB;
            double s, h;
            loss_kept(&how, &kept[r], x, labels[r], &s, &h);
            assert_true(fabs((double)soft[r] - s) < 3e-5 * (1 + s));
            assert_true(fabs((double)hard[r] - h) < 2e-5 * (1 + h));
            for (int i = 0; i < RANDOM_VOCAB; i++) {
                const float was = x[i];
                x[i] = was + 0x1p-10f;
                const double up = loss_kept(&how, &kept[r], x, labels[r], &s, &h),
                             high = (double)x[i];
                x[i] = was - 0x1p-10f;
                const double slope =
                    (up - loss_kept(&how, &kept[r], x, labels[r], &s, &h)) / (high - (double)x[i]);
                x[i] = was;
                worst = fmax(worst, fabs((double)d[r * RANDOM_VOCAB + i] - slope));
            }
        }
    }
    print_message("of what is kept, likewise: %.1e\n", worst);
    assert_true(worst < 2e-6);
    nb_grad_close(g);
}

// As the type's own conversion has it, of every exponent and of numbers that are none.
static void narrowed_to_nearest(void **state)
{
    enum { N = 1 << 16 };
    static float x[N];
    static uint16_t narrow[N];
    for (uint32_t i = 0; i < N; i++) {
        const uint32_t bits = (i << 16) + (uint32_t)nb_random(4, i) % 65536 / (1 + i % 3) * (i % 2);
        memcpy(&x[i], &bits, sizeof(bits));
    }
    nb_loops_best()->narrow(x, narrow, N);
    for (uint32_t i = 0; i < N; i++)
        if (isnan(x[i]))
            assert_true((narrow[i] & 0x7fff) > 0x7f80);
        else
            assert_int_equal(narrow[i], nb_f32_to_bf16(x[i]));
}

// The codes are those of the devices, whose scale stands under a row or is fixed.
static void codes_are_the_devices(void **state)
{
    enum { ROWS = 5, COLS = 96 };
    float y[COLS];
    struct nb_act a;
    void *memory = aligned_alloc(64, (nb_act_bytes(ROWS, COLS) + 63) / 64 * 64);
    assert_non_null(memory);
    nb_act_init(&a, memory, ROWS, COLS, 1);
    for (uint32_t i = 0; i < ROWS * COLS; i++)
        a.x[i] = i / COLS == 1 ? 0 : 1e-9f * (float)(int32_t)nb_random(i / COLS, i % COLS);
    for (int fixed = 0; fixed < 2; fixed++) {
        a.scaled = fixed ? NB_INPUT_FIXED : NB_INPUT_ROW;
        a.range = 0.7f;
        nb_kernels_best()->quantize(&a, 0, ROWS);
        for (uint32_t i = 0; i < ROWS; i++) {
            const size_t at = (size_t)i * COLS;
            nb_loops_best()->round_codes(a.x + at, fixed ? a.range : 0, y, COLS);
            for (uint32_t j = 0; j < COLS; j++)
                assert_true(y[j] == a.s[(at + j) / 32] * (float)a.q1[at + j]);
        }
    }
    float none[COLS] = {1, NAN, INFINITY};
    nb_loops_best()->round_codes(none, 0, y, COLS);
    assert_true(isnan(y[1]) && isnan(y[2]));
    free(memory);
}

enum { N = 40007 };
static double at[N], average[N], squares[N]; // AdamW's numbers and moments, in doubles

static struct nb_adam adam_of(uint32_t t)
{
    return (struct nb_adam){.rate = 0.01f,
                            .decay = 0.1f,
                            .scale = 0.5f,
                            .first = 0.9f,
                            .second = 0.95f,
                            .first_by = (float)(1 / (1 - pow(0.9, t))),
                            .second_by = (float)(1 / (1 - pow(0.95, t))),
                            .floor = 1e-8f,
                            .draw = (uint32_t)nb_random(9, t)};
}

static void begin(float *x)
{
    memset(average, 0, sizeof(average));
    memset(squares, 0, sizeof(squares));
    for (uint32_t i = 0; i < N; i++)
        at[i] = x[i] = 1e-9f * (float)(int32_t)nb_random(1, i);
}

static void step_in_doubles(uint32_t t, const float *g)
{
    const double first = 1 - pow(0.9, t), second = 1 - pow(0.95, t);
    for (uint32_t i = 0; i < N; i++) {
        const double s = 0.5 * (double)g[i];
        average[i] = 0.9 * average[i] + 0.1 * s;
        squares[i] = 0.95 * squares[i] + 0.05 * s * s;
        at[i] -= 0.01 * (average[i] / first / (sqrt(squares[i] / second) + 1e-8) + 0.1 * at[i]);
    }
}

static void adam_beside_doubles(void **state)
{
    const struct model *m = *state;
    static float x[N], g[N], first[N], second[N];
    double sum, plain = 0;
    begin(x);
    for (uint32_t t = 1; t <= 5; t++) {
        const struct nb_adam how = adam_of(t);
        for (uint32_t i = 0; i < N; i++)
            g[i] = i % 5 ? 1e-9f * (float)(int32_t)nb_random(t + 1, i) : 0;
        nb_adam_step(m->team, &how, g, N, x, first, second);
        step_in_doubles(t, g);
        for (uint32_t i = 0; i < N; i++)
            assert_true(fabs((double)x[i] - at[i]) < 2e-6);
    }
    assert_int_equal(nb_adam_squares(m->team, g, N, &sum), 0);
    for (uint32_t i = 0; i < N; i++)
        plain += (double)g[i] * (double)g[i];
    assert_true(fabs(sum - plain) < 1e-6 * plain);
}

// Gradients of a block's numbers differ by up to ten thousand times, and are noise, the worst for
// moments. Numbers go nearly their way, and second moments are right on the average, also when
// they have faded for a while.
static void coded_moments(void **state)
{
    const struct model *m = *state;
    enum { STEPS = 60, QUIET = 40, GROUPS = 5 };
    static float x[N], g[N];
    static struct nb_adam_block blocks[(N + NB_ADAM_BLOCK - 1) / NB_ADAM_BLOCK];
    double moved[GROUPS] = {0}, apart[GROUPS] = {0}, ratio[GROUPS] = {0};
    uint32_t n[GROUPS] = {0};
    begin(x);
    for (uint32_t t = 1; t <= STEPS + QUIET; t++) {
        const struct nb_adam how = adam_of(t);
        for (uint32_t i = 0; i < N; i++)
            g[i] = t > STEPS ? 0
                             : 1e-9f * (float)(int32_t)nb_random(t + 1, i) /
                                   powf(10, (float)(i % GROUPS));
        nb_adam_step_coded(m->team, &how, g, N, x, blocks);
        step_in_doubles(t, g);
    }
    for (uint32_t i = 0; i < N; i++) {
        const struct nb_adam_block *b = &blocks[i / NB_ADAM_BLOCK];
        const double v = (double)b->second_most * pow(b->second[i % NB_ADAM_BLOCK] / 255.0, 8);
        const double start = (double)(1e-9f * (float)(int32_t)nb_random(1, i));
        apart[i % GROUPS] += ((double)x[i] - at[i]) * ((double)x[i] - at[i]);
        moved[i % GROUPS] += (at[i] - start) * (at[i] - start);
        ratio[i % GROUPS] += v / squares[i];
        n[i % GROUPS]++;
    }
    for (uint32_t i = 0; i < GROUPS; i++) {
        const double way = sqrt(apart[i] / moved[i]), mean = ratio[i] / n[i];
        print_message("coded moments, gradients of 1e-%u: %.3f of their way apart, second moments "
                      "%.3f of what they are\n",
                      i, way, mean);
        assert_true(way < 0.2 && fabs(mean - 1) < 0.03);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(coded_moments),       cmocka_unit_test(losses_beside_doubles),
        cmocka_unit_test(kept_beside_doubles), cmocka_unit_test(adam_beside_doubles),
        cmocka_unit_test(narrowed_to_nearest), cmocka_unit_test(codes_are_the_devices),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
