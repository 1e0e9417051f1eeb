// End-to-end tuning of a small random model: the loss falls, the bytes are what the passes computed
// with, and neither threads, tapes nor a restart change a bit.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/sampler.h"
#include "grad/loss.h"
#include "quant/encode.h"
#include "quant/tune.h"
#include "tensor/image.h"
#include "tensor/type.h"
#include "tests/support/bytes.h"
#include "tests/support/pack.h"
#include "tests/support/random_model.h"

#define WINDOWS  6
#define LENGTH   24
#define MATRICES 24
#define STEPS    12

struct model {
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_team *team;
    struct nb_windows windows;
    struct nb_tune_matrix matrices[MATRICES];
    size_t bytes[MATRICES];
    uint32_t n;
};

static const struct nb_tune_options options = {.batch = 2,
                                               .steps = STEPS,
                                               .code_rate = 0.02f,
                                               .scale_rate = 0.004f,
                                               .vector_rate = 0.004f,
                                               .layer_code_rate = 0.02f,
                                               .layer_scale_rate = 0.004f,
                                               .layer_vector_rate = 0.004f,
                                               .seed = 3,
                                               .memory = 1 << 20};

// --- A model

// Matrices of layers have this type or that; the embedding is Q8_0, the head a float one.
static uint32_t type_of(const char *name)
{
    static const uint32_t types[] = {NB_TYPE_Q4_0, NB_TYPE_Q2_K, NB_TYPE_IQ4_NL,
                                     NB_TYPE_Q4_1, NB_TYPE_Q3_K, NB_TYPE_Q4_K};
    unsigned hash = 0;
    for (const char *c = name; *c; c++)
        hash = hash * 7 + (unsigned)*c;
    return strncmp(name, "blk.", 4) == 0        ? types[hash % 6]
           : strcmp(name, "output.weight") == 0 ? NB_TYPE_BF16
                                                : NB_TYPE_Q8_0;
}

static void encode(struct model *m, struct nb_grad *g, const struct nb_grad_tensor *t)
{
    struct nb_tune_matrix *to = &m->matrices[m->n];
    char *name = strndup(t->name.data, t->name.len);
    assert_non_null(name);
    const size_t rows = (size_t)t->experts * t->rows;
    const struct nb_encode how = {.type = type_of(name)};
    float *w = calloc(rows * t->cols, sizeof(*w));
    m->bytes[m->n] = nb_encoded_bytes(how.type, rows, t->cols);
    void *encoded = malloc(m->bytes[m->n]);
    assert_true(w && encoded && m->n < MATRICES);
    nb_grad_dequantize(g, t, w);
    assert_int_equal(nb_encode_matrix(&how, m->team, w, rows, t->cols, encoded), 0);
    free(w);
    *to = (struct nb_tune_matrix){.name = name, .type = how.type, .encoded = encoded};
    m->n++;
}

static void encode_all(struct model *m)
{
    struct nb_error error = {""};
    struct nb_grad *g;
    uint32_t n;
    assert_int_equal(nb_grad_open(m->plan, m->team, &g, &error), 0);
    const struct nb_grad_tensor *t = nb_grad_tensors(g, &n);
    for (uint32_t i = 0; i < n; i++)
        if (t[i].matrix)
            encode(m, g, &t[i]);
    nb_grad_close(g);
}

static int open_model(void **state)
{
    struct random_model r = {2, 256, 256, 4, 2, 64, 5, NB_TYPE_F16};
    const struct nb_plan_options exact = {.precision = NB_PRECISION_EXACT};
    struct nb_error error = {""};
    struct model *m = calloc(1, sizeof(*m));
    uint64_t bytes;
    const int file = random_model_create(&r), image = memfd_create("image", MFD_CLOEXEC);
    assert_true(m && file >= 0 && image >= 0);
    assert_int_equal(test_pack(file, image, NULL, &bytes, &error), 0);
    assert_int_equal(nb_image_map(image, 0, &m->image, &error), 0);
    close(file);
    close(image);
    assert_int_equal(nb_plan_create(m->image, &exact, &m->plan, &error), 0);
    assert_int_equal(nb_team_create(2, &m->team), 0);
    m->windows = (struct nb_windows){
        .n = WINDOWS, .length = LENGTH, .tokens = calloc(WINDOWS * LENGTH, sizeof(int32_t))};
    assert_non_null(m->windows.tokens);
    for (uint32_t i = 0; i < WINDOWS * LENGTH; i++)
        m->windows.tokens[i] = (int32_t)(nb_random(8, i) % RANDOM_VOCAB);
    encode_all(m);
    *state = m;
    return 0;
}

static int close_model(void **state)
{
    struct model *m = *state;
    for (uint32_t i = 0; i < m->n; i++) {
        free((void *)m->matrices[i].name);
        free((void *)m->matrices[i].encoded);
    }
    nb_windows_finish(&m->windows);
    nb_team_destroy(m->team);
    nb_plan_destroy(m->plan);
    nb_image_unmap(m->image);
    free(m);
    return 0;
}

static struct nb_tune *create(const struct model *m, struct nb_team *team,
                              const struct nb_tune_options *o)
{
    struct nb_error error = {""};
    struct nb_tune *t;
    assert_int_equal(nb_tune_create(m->plan, team, &m->windows, m->matrices, m->n, o, &t, &error),
                     0);
    return t;
}

static double steps(struct nb_tune *t, int n)
{
    struct nb_error error = {""};
    double loss = 0;
    for (int i = 0; i < n; i++)
        assert_int_equal(nb_tune_step(t, &loss, &error), 0);
    return loss;
}

static double measure(struct nb_tune *t, const struct nb_windows *w)
{
    struct nb_error error = {""};
    double kl[WINDOWS], sum = 0;
    assert_int_equal(nb_tune_measure(t, w, kl, &error), 0);
    for (uint32_t i = 0; i < w->n; i++)
        sum += kl[i];
    return sum / w->n;
}

// --- What came out, as bytes

static struct bytes result_of(const struct model *m, const struct nb_tune *t)
{
    struct bytes b = {0};
    struct nb_str name;
    const float *x;
    uint32_t n;
    for (uint32_t i = 0; i < m->n; i++) {
        uint8_t *encoded = malloc(m->bytes[i]);
        assert_non_null(encoded);
        nb_tune_encode(t, i, encoded);
        add_bytes(&b, encoded, m->bytes[i]);
        free(encoded);
    }
    for (uint32_t i = 0; (x = nb_tune_vector(t, i, &name, &n)); i++)
        add_bytes(&b, x, n * sizeof(*x));
    return b;
}

static void expect_same(const struct model *m, struct nb_tune *a, struct nb_tune *b)
{
    struct bytes x = result_of(m, a), y = result_of(m, b);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.data, y.data, x.n);
    free(x.data);
    free(y.data);
}

// --- Tests

static void the_loss_falls(void **state)
{
    struct model *m = *state;
    struct nb_tune_options o = options;
    struct nb_error error = {""};
    struct nb_tune_report report;
    o.steps = 40;
    struct nb_tune *t = create(m, m->team, &o);
    nb_tune_report(t, &report);
    assert_int_equal(report.tuned, m->n - 1);
    assert_int_equal(report.fixed, 1);
    assert_true(report.vectors >= 5 && report.taped == 2);
    const double before = measure(t, &m->windows);
    struct bytes start = result_of(m, t);
    assert_memory_equal(start.data, m->matrices[0].encoded, m->bytes[0]);
    steps(t, 40);
    const double after = measure(t, &m->windows);
    print_message("KL %g, then %g\n", before, after);
    assert_true(before > 0 && after < 0.7 * before);
    assert_int_equal(nb_tune_done(t), 40);
    assert_int_equal(nb_tune_step(t, NULL, &error), -EALREADY);
    free(start.data);
    nb_tune_destroy(t);
}

// A model of the encoded bytes, taken as they are, is the tuned one to the bit.
static void bytes_are_what_was_computed_with(void **state)
{
    struct model *m = *state;
    struct model fixed = *m;
    struct nb_tune_options o = options;
    o.vector_rate = 0;
    struct nb_tune *t = create(m, m->team, &o), *u;
    steps(t, STEPS);
    for (uint32_t i = 0; i < m->n; i++) {
        void *encoded = malloc(m->bytes[i]);
        assert_non_null(encoded);
        nb_tune_encode(t, i, encoded);
        fixed.matrices[i].encoded = encoded;
        fixed.matrices[i].fixed = true;
    }
    u = create(&fixed, m->team, &o);
    struct nb_tune_report report;
    nb_tune_report(u, &report);
    assert_int_equal(report.fixed, m->n);
    const double tuned = measure(t, &m->windows), taken = measure(u, &m->windows);
    assert_true(tuned == taken);
    for (uint32_t i = 0; i < m->n; i++)
        free((void *)fixed.matrices[i].encoded);
    nb_tune_destroy(t);
    nb_tune_destroy(u);
}

static void threads_and_tapes_change_nothing(void **state)
{
    struct model *m = *state;
    struct nb_tune_options o = options;
    struct nb_team *alone;
    o.layer_steps = 3;
    assert_int_equal(nb_team_create(1, &alone), 0);
    struct nb_tune *a = create(m, m->team, &o), *b = create(m, alone, &o);
    o.memory = 0;
    struct nb_tune *c = create(m, m->team, &o);
    const int all = STEPS + 2 * 3;
    const double loss = steps(a, all);
    assert_true(steps(b, all) == loss && steps(c, all) == loss);
    expect_same(m, a, b);
    expect_same(m, a, c);
    nb_tune_destroy(a);
    nb_tune_destroy(b);
    nb_tune_destroy(c);
    nb_team_destroy(alone);
}

// Layers by themselves: each one's error falls, and so does the whole model's.
static void layers_come_nearer(void **state)
{
    struct model *m = *state;
    struct nb_tune_options o = options;
    o.layer_steps = 20;
    o.steps = 0;
    struct nb_tune *t = create(m, m->team, &o);
    const double before = measure(t, &m->windows);
    for (int layer = 0; layer < 2; layer++) {
        const double first = steps(t, 1), last = steps(t, 19);
        print_message("layer %d: %g, then %g\n", layer, first, last);
        assert_true(first > 0 && last < 0.8 * first);
    }
    const double after = measure(t, &m->windows);
    print_message("KL %g, then %g\n", before, after);
    assert_true(after < 0.8 * before);
    nb_tune_destroy(t);
}

// In a layer's steps, between two layers, and in steps of the whole model.
static void goes_on_from_what_was_stored(void **state)
{
    struct model *m = *state;
    struct nb_tune_options o = options;
    o.layer_steps = 3;
    for (int first = 2; first < 10; first += 2) {
        struct bytes stored = {0};
        struct nb_tune *a = create(m, m->team, &o), *b = create(m, m->team, &o);
        steps(a, first);
        assert_int_equal(nb_tune_store(a, write_bytes, &stored), 0);
        assert_int_equal(stored.n, nb_tune_stored_bytes(a));
        assert_int_equal(nb_tune_restore(b, read_bytes, &stored), 0);
        assert_int_equal(nb_tune_done(b), first);
        assert_true(steps(a, STEPS + 6 - first) == steps(b, STEPS + 6 - first));
        expect_same(m, a, b);
        free(stored.data);
        nb_tune_destroy(a);
        nb_tune_destroy(b);
    }
}

static void expect_not_restored(struct nb_tune *t, struct bytes *stored, int rc)
{
    stored->at = 0;
    assert_int_equal(nb_tune_restore(t, read_bytes, stored), rc);
}

static void damaged_states_are_refused(void **state)
{
    struct model *m = *state;
    struct nb_tune_options o = options;
    struct bytes stored = {0};
    struct nb_tune *a = create(m, m->team, &options);
    assert_int_equal(nb_tune_store(a, write_bytes, &stored), 0);
    expect_not_restored(a, &stored, 0);
    stored.data[stored.n / 2] ^= 1;
    expect_not_restored(a, &stored, -EBADMSG);
    stored.data[stored.n / 2] ^= 1;
    stored.n -= 100;
    expect_not_restored(a, &stored, -EIO);
    o.seed++;
    struct nb_tune *b = create(m, m->team, &o);
    expect_not_restored(b, &stored, -ESTALE);
    free(stored.data);
    nb_tune_destroy(a);
    nb_tune_destroy(b);
}

static void expect_refused(const struct model *m, const struct nb_tune_options *o, int rc,
                           const char *why)
{
    struct nb_error error = {""};
    struct nb_tune *t = NULL;
    assert_int_equal(
        nb_tune_create(m->plan, m->team, &m->windows, m->matrices, m->n, o, &t, &error), rc);
    assert_null(t);
    if (!strstr(error.text, why))
        fail_msg("%s", error.text);
}

static void what_is_refused(void **state)
{
    struct model bad = *(struct model *)*state;
    struct nb_tune_options o = options;
    o.batch = WINDOWS + 1;
    expect_refused(&bad, &o, -EINVAL, "there are 6 windows");
    o = options;
    o.code_rate = NAN;
    expect_refused(&bad, &o, -EINVAL, "no number");
    bad.matrices[0].name = "blk.0.attn_norm.weight";
    expect_refused(&bad, &options, -EINVAL, "no matrix of the model");
    bad = *(struct model *)*state;
    bad.matrices[1].name = bad.matrices[0].name;
    expect_refused(&bad, &options, -EINVAL, "named twice");
    bad = *(struct model *)*state;
    bad.windows.length = 65;
    bad.windows.n = 2;
    expect_refused(&bad, &options, -EINVAL, "context of 64");
    bad = *(struct model *)*state;
    const int32_t kept = bad.windows.tokens[7];
    bad.windows.tokens[7] = RANDOM_VOCAB;
    expect_refused(&bad, &options, -EINVAL, "vocabulary");
    bad.windows.tokens[7] = kept;
    nb_tune_destroy(NULL);
}

// Rates that leave no numbers behind end the work, and nothing has moved by that step.
static void high_rates_are_told(void **state)
{
    struct model *m = *state;
    struct nb_tune_options o = options;
    struct nb_error error = {""};
    o.vector_rate = 3e38f;
    struct nb_tune *t = create(m, m->team, &o);
    int rc = 0;
    for (int i = 0; i < 4 && rc == 0; i++)
        rc = nb_tune_step(t, NULL, &error);
    assert_int_equal(rc, -EDOM);
    assert_non_null(strstr(error.text, "not finite"));
    nb_tune_destroy(t);
}

// --- The loss

static void divergence_beside_doubles(void **state)
{
    struct model *m = *state;
    enum { N = 3 };
    static float p[N * RANDOM_VOCAB], q[N * RANDOM_VOCAB], d[N * RANDOM_VOCAB], kl[N];
    struct nb_error error = {""};
    struct nb_grad *g;
    assert_int_equal(nb_grad_open(m->plan, m->team, &g, &error), 0);
    for (uint32_t i = 0; i < N * RANDOM_VOCAB; i++) {
        const uint32_t row = i / RANDOM_VOCAB;
        p[i] = 1e-9f * (float)(int32_t)nb_random(1, i) * (float)(1 + row * 10);
        d[i] = q[i] = p[i] + 2e-10f * (float)(int32_t)nb_random(2, i);
    }
    nb_grad_divergence(g, N, p, d, 0.25f, kl);
    for (int r = 0; r < N; r++) {
        const float *a = p + r * RANDOM_VOCAB, *b = q + r * RANDOM_VOCAB;
        double above = 0, below = 0, sum = 0;
        for (int i = 0; i < RANDOM_VOCAB; i++) {
            above += exp((double)a[i]);
            below += exp((double)b[i]);
        }
        for (int i = 0; i < RANDOM_VOCAB; i++) {
            const double x = exp((double)a[i]) / above, y = exp((double)b[i]) / below;
            sum += x * (log(x) - log(y));
            assert_true(fabs((double)d[r * RANDOM_VOCAB + i] - 0.25 * (y - x)) < 1e-6);
        }
        assert_true(fabs((double)kl[r] - sum) < 1e-5 * (1 + sum));
    }
    d[5] = NAN;
    nb_grad_divergence(g, 1, p, d, 1, kl);
    assert_true(isnan(kl[0]));
    nb_grad_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_loss_falls),
        cmocka_unit_test(bytes_are_what_was_computed_with),
        cmocka_unit_test(threads_and_tapes_change_nothing),
        cmocka_unit_test(layers_come_nearer),
        cmocka_unit_test(goes_on_from_what_was_stored),
        cmocka_unit_test(damaged_states_are_refused),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(high_rates_are_told),
        cmocka_unit_test(divergence_beside_doubles),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
