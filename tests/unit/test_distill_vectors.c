// Training of a small random encoder by its teacher's vectors, on lines of unequal lengths, and of
// a decoder by hidden states of another width: losses fall, and neither threads, tapes nor a
// restart change a bit. The losses' gradients beside differences in doubles.
#include <errno.h>
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

#include "distill/cosine.h"
#include "distill/student.h"
#include "distill/train.h"
#include "engine/sampler.h"
#include "tensor/image.h"
#include "tests/support/bytes.h"
#include "tests/support/random_model.h"
#include "tests/support/training.h"

#define LINES  11
#define LENGTH 16
#define STEPS  12
#define MEAN   1 // pooling_type

struct model {
    int file; // 0: none
    struct nb_source *source, *student;
    struct nb_image *image;
    struct nb_plan *plan;
};

struct room {
    struct model encoder, first, wide, narrow; // `first`: the encoder's first layer
    struct nb_team *team, *one;
    struct nb_windows lines;
};

static const struct nb_train_options options = {.batch = 4,
                                                .accumulate = 2,
                                                .steps = STEPS,
                                                .warm = 2,
                                                .rate = 3e-3f,
                                                .clip = 1,
                                                .temperature = 1,
                                                .hidden = 0.5f,
                                                .attention = 0.3f,
                                                .cosine = 1,
                                                .relation = 2,
                                                .seed = 3,
                                                .memory = 1 << 20};

static void open_model(struct model *m, int fd)
{
    const struct nb_source_file file = {"model.gguf", fd};
    struct nb_error error = {""};
    assert_int_equal(nb_source_open_gguf(&file, 1, &m->source, &error), 0);
    m->file = fd;
    open_plan(m->source, &m->image, &m->plan);
}

static void close_model(struct model *m)
{
    nb_plan_destroy(m->plan);
    nb_image_unmap(m->image);
    nb_source_close(m->student);
    nb_source_close(m->source);
    if (m->file)
        close(m->file);
}

static int open_room(void **state)
{
    static const uint32_t layer = 0;
    static const struct nb_student_kept one = {.layers = 1, .layer = &layer};
    struct random_model r = {2, 64, 96, 4, 4, 64, 5, NB_TYPE_F16};
    struct nb_error error = {""};
    struct room *m = calloc(1, sizeof(*m));
    assert_non_null(m);
    open_model(&m->encoder, random_model_create_pooled(&r, true, MEAN, NULL, 0));
    assert_int_equal(nb_student_open(m->encoder.source, NULL, &one, &m->first.student, &error), 0);
    open_plan(m->first.student, &m->first.image, &m->first.plan);
    r.kv_heads = 2;
    open_model(&m->wide, random_model_create(&r));
    r.embedding = 32;
    r.seed = 6;
    open_model(&m->narrow, random_model_create(&r));
    assert_int_equal(nb_team_create(2, &m->team), 0);
    assert_int_equal(nb_team_create(1, &m->one), 0);
    m->lines = (struct nb_windows){.n = LINES,
                                   .length = LENGTH,
                                   .tokens = calloc(LINES * LENGTH, sizeof(int32_t)),
                                   .end = calloc(LINES, sizeof(uint32_t))};
    assert_true(m->lines.tokens && m->lines.end);
    for (uint32_t i = 0, at = 0; i < LINES; i++) {
        const uint32_t n = i == 4 ? LENGTH : 2 + (uint32_t)(nb_random(7, i) % 12);
        for (uint32_t j = 0; j < n; j++, at++)
            m->lines.tokens[at] = (int32_t)(nb_random(8, at) % RANDOM_VOCAB);
        m->lines.end[i] = at;
    }
    *state = m;
    return 0;
}

static int close_room(void **state)
{
    struct room *m = *state;
    nb_windows_finish(&m->lines);
    nb_team_destroy(m->team);
    nb_team_destroy(m->one);
    close_model(&m->encoder);
    close_model(&m->first);
    close_model(&m->wide);
    close_model(&m->narrow);
    free(m);
    return 0;
}

// --- Losses beside differences

enum { TEXTS = 5, WIDTH = 7, OTHER = 4 };

static double relation_of(const float *x, const float *y)
{
    double sum = 0;
    for (int i = 0; i < TEXTS; i++)
        for (int j = 0; j < TEXTS; j++) {
            double xx = 0, yy = 0, xy = 0, uu = 0, vv = 0, uv = 0;
            for (int k = 0; k < WIDTH; k++) {
                xx += (double)x[i * WIDTH + k] * (double)x[i * WIDTH + k];
                yy += (double)x[j * WIDTH + k] * (double)x[j * WIDTH + k];
                xy += (double)x[i * WIDTH + k] * (double)x[j * WIDTH + k];
            }
            for (int k = 0; k < OTHER; k++) {
                uu += (double)y[i * OTHER + k] * (double)y[i * OTHER + k];
                vv += (double)y[j * OTHER + k] * (double)y[j * OTHER + k];
                uv += (double)y[i * OTHER + k] * (double)y[j * OTHER + k];
            }
            const double off = xy / sqrt(xx * yy) - uv / sqrt(uu * vv);
            sum += i == j ? 0 : off * off;
        }
    return sum / (TEXTS * (TEXTS - 1));
}

static double cosine_of(const float *x, const float *y)
{
    double sum = 0;
    for (int i = 0; i < TEXTS; i++)
        sum += nb_away(x + i * WIDTH, y + i * WIDTH, WIDTH, 0, NULL);
    return sum;
}

// The slope of a loss in x[i], by differences.
static double slope(double loss(const float *, const float *), float *x, const float *y, int i)
{
    const float kept = x[i];
    x[i] = kept + 0x1p-10f;
    const double up = loss(x, y), high = (double)x[i];
    x[i] = kept - 0x1p-10f;
    const double found = (up - loss(x, y)) / (high - (double)x[i]);
    x[i] = kept;
    return found;
}

static void gradients_beside_differences(void **state)
{
    static float x[TEXTS * WIDTH], y[TEXTS * WIDTH], of_relation[TEXTS * WIDTH],
        of_cosine[TEXTS * WIDTH];
    const struct nb_vectors a = {x, WIDTH}, b = {y, OTHER};
    float each[TEXTS];
    double sum = 0, worst = 0;
    for (uint32_t i = 0; i < TEXTS * WIDTH; i++) {
        x[i] = 1e-9f * (float)(int32_t)nb_random(1, i);
        y[i] = 1e-9f * (float)(int32_t)nb_random(2, i);
    }
    assert_int_equal(nb_relation(&a, &b, TEXTS, 3, each, of_relation), 0);
    for (int i = 0; i < TEXTS; i++) {
        sum += (double)each[i] / TEXTS;
        nb_away(x + i * WIDTH, y + i * WIDTH, WIDTH, 3, of_cosine + i * WIDTH);
    }
    assert_true(fabs(sum - relation_of(x, y)) < 1e-6);
    for (int i = 0; i < TEXTS * WIDTH; i++) {
        worst = fmax(worst, fabs((double)of_relation[i] - 3 * slope(relation_of, x, y, i)));
        worst = fmax(worst, fabs((double)of_cosine[i] - 3 * slope(cosine_of, x, y, i)));
    }
    print_message("the gradients' largest difference from differences: %.1e\n", worst);
    assert_true(worst < 2e-6);
}

// Where there is nothing to compare, nothing is pulled; what is not finite is seen.
static void edges_of_relations(void **state)
{
    float x[] = {1, 2, 0, 0, 3, -1}, d[6] = {0}, each[3];
    const struct nb_vectors a = {x, 2}, none = {x, 0};
    assert_int_equal(nb_relation(&a, &a, 3, 1, each, d), 0);
    for (int i = 0; i < 6; i++)
        assert_true(d[i] == 0 && each[i / 2] == 0);
    assert_int_equal(nb_relation(&a, &none, 1, 1, each, d), 0);
    assert_true(each[0] == 0 && d[0] == 0);
    assert_int_equal(nb_relation(&a, &none, 2, 1, each, d), 0);
    assert_true(each[0] == 0 && d[2] == 0 && d[3] == 0); // the second is zero
    x[3] = NAN;
    assert_int_equal(nb_relation(&a, &a, 2, 1, each, NULL), 0);
    assert_true(isnan(each[0]) && isnan(each[1]));
    assert_true(isnan(nb_away(x, x + 2, 2, 0, NULL)));
}

// --- Training

static struct nb_train *create(const struct room *m, const struct model *student,
                               const struct model *teacher, struct nb_team *team,
                               const struct nb_train_options *o)
{
    struct nb_error error = {""};
    struct nb_train *t;
    if (nb_train_create(student->plan, teacher->plan, team, &m->lines, o, &t, &error) < 0)
        fail_msg("%s", error.text);
    return t;
}

static struct nb_train_loss measure(const struct room *m, struct nb_train *t)
{
    struct nb_error error = {""};
    struct nb_train_loss each[LINES], sum = {0};
    assert_int_equal(nb_train_measure(t, &m->lines, each, &error), 0);
    for (uint32_t i = 0; i < LINES; i++) {
        sum.hidden += each[i].hidden / LINES;
        sum.cosine += each[i].cosine / LINES;
        sum.relation += each[i].relation / LINES;
    }
    return sum;
}

// Options of a decoder that learns hidden states of another width.
static struct nb_train_options of_hidden(void)
{
    struct nb_train_options o = options;
    o.cosine = o.relation = o.attention = 0;
    o.hidden = 5;
    return o;
}

static void losses_fall(void **state)
{
    const struct room *m = *state;
    for (int what = 0; what < 3; what++) {
        struct nb_train_options o = options;
        o.cosine = what == 0 ? 1 : 0;
        o.relation = what == 1 ? 30 : 0;
        o.hidden = what == 2 ? 1 : 0;
        o.attention = 0;
        o.random = what != 2;
        struct nb_train *t = create(m, &m->first, &m->encoder, m->team, &o);
        const struct nb_train_loss before = measure(m, t);
        assert_true(steps(t, STEPS).norm > 0);
        const struct nb_train_loss after = measure(m, t);
        print_message("cosine %.3f %.3f, relation %.4f %.4f, hidden %.3f %.3f\n", before.cosine,
                      after.cosine, before.relation, after.relation, before.hidden, after.hidden);
        assert_true(what != 0 || after.cosine < 0.8 * before.cosine);
        assert_true(what != 1 || after.relation < 0.8 * before.relation);
        assert_true(what != 2 || after.hidden < 0.8 * before.hidden);
        nb_train_destroy(t);
    }
    const struct nb_train_options o = of_hidden();
    struct nb_train *t = create(m, &m->narrow, &m->wide, m->team, &o);
    const double before = measure(m, t).hidden;
    steps(t, STEPS);
    print_message("projected: hidden %.3f %.3f\n", before, measure(m, t).hidden);
    assert_true(measure(m, t).hidden < 0.9 * before);
    nb_train_destroy(t);
}

static void threads_and_tapes_change_nothing(void **state)
{
    const struct room *m = *state;
    for (int what = 0; what < 3; what++) {
        struct nb_train_options o = what < 2 ? options : of_hidden(), bare;
        o.bf16 = what == 1;
        bare = o;
        bare.memory = 0;
        const struct model *student = what < 2 ? &m->first : &m->narrow;
        const struct model *teacher = what < 2 ? &m->encoder : &m->wide;
        struct nb_train *a = create(m, student, teacher, m->team, &o);
        struct nb_train *b = create(m, student, teacher, m->one, &bare);
        const struct nb_train_loss x = steps(a, 6), y = steps(b, 6);
        assert_memory_equal(&x, &y, sizeof(x));
        expect_same(a, b);
        nb_train_destroy(a);
        nb_train_destroy(b);
    }
}

static void goes_on(const struct room *m, const struct model *student, const struct model *teacher,
                    const struct nb_train_options *o)
{
    struct bytes stored = {0};
    struct nb_train_options other = *o;
    other.relation += 1;
    struct nb_train *a = create(m, student, teacher, m->team, o);
    struct nb_train *b = create(m, student, teacher, m->team, o);
    steps(a, 5);
    assert_int_equal(nb_train_store(a, write_bytes, &stored), 0);
    assert_true(stored.n > nb_train_state_bytes(a));
    assert_int_equal(nb_train_restore(b, read_bytes, &stored), 0);
    steps(a, STEPS - 5);
    steps(b, STEPS - 5);
    expect_same(a, b);
    if (o->cosine > 0) {
        struct nb_train *c = create(m, student, teacher, m->team, &other);
        stored.at = 0;
        assert_int_equal(nb_train_restore(c, read_bytes, &stored), -ESTALE);
        nb_train_destroy(c);
    }
    free(stored.data);
    nb_train_destroy(a);
    nb_train_destroy(b);
}

static void goes_on_from_what_was_stored(void **state)
{
    const struct room *m = *state;
    const struct nb_train_options projected = of_hidden();
    goes_on(m, &m->first, &m->encoder, &options);
    goes_on(m, &m->narrow, &m->wide, &projected);
}

// The projection is no part of what the student is.
static void projections_are_nobodys(void **state)
{
    const struct room *m = *state;
    struct nb_train_options o = of_hidden();
    struct nb_train *a = create(m, &m->narrow, &m->wide, m->team, &o);
    o.hidden = 0;
    struct nb_train *b = create(m, &m->narrow, &m->wide, m->team, &o);
    uint64_t n;
    assert_int_equal(nb_train_count(a), nb_train_count(b));
    assert_int_equal(nb_train_weights(a), nb_train_weights(b));
    assert_int_equal(nb_train_state_bytes(a) - nb_train_state_bytes(b), 12 * 64 * 32);
    assert_null(nb_train_tensor(a, (struct nb_str){"projection", 10}, &n));
    nb_train_destroy(a);
    nb_train_destroy(b);
}

// --- Lines

static void lines_are_held_out(void **state)
{
    const struct room *m = *state;
    struct nb_windows all, held;
    uint32_t n, of, at = 0;
    assert_int_equal(nb_windows_spread(&m->lines, LINES, &all), 0);
    assert_memory_equal(all.end, m->lines.end, LINES * sizeof(*all.end));
    assert_memory_equal(all.tokens, m->lines.tokens, nb_windows_tokens(&all) * sizeof(int32_t));
    assert_int_equal(nb_windows_hold_out(&all, 3, &held), 0);
    assert_true(held.n == 3 && all.n == LINES - 3);
    for (uint32_t i = 0; i < LINES; i++) { // the second of four, and so on: 1, 5, 9
        const bool out = i % 4 == 1;
        const int32_t *x = nb_window(&m->lines, i, &n);
        const int32_t *y = nb_window(out ? &held : &all, out ? i / 4 : at++, &of);
        assert_int_equal(n, of);
        assert_memory_equal(x, y, n * sizeof(*x));
    }
    nb_windows_finish(&all);
    nb_windows_finish(&held);
}

// --- What is refused

static void expect_refused(const struct room *m, const struct model *student,
                           const struct nb_plan *teacher, const struct nb_train_options *o, int rc,
                           const char *why)
{
    struct nb_error error = {""};
    struct nb_train *t = NULL;
    assert_int_equal(nb_train_create(student->plan, teacher, m->team, &m->lines, o, &t, &error),
                     rc);
    if (!strstr(error.text, why))
        fail_msg("%s", error.text);
}

static void what_is_refused(void **state)
{
    const struct room *m = *state;
    struct nb_train_options o = options;
    expect_refused(m, &m->first, NULL, &o, -EINVAL, "of a teacher");
    expect_refused(m, &m->narrow, m->wide.plan, &o, -EINVAL, "not made for vectors");
    expect_refused(m, &m->encoder, m->narrow.plan, &o, -EINVAL, "have no cosine");
    o.relation = -1;
    expect_refused(m, &m->first, m->encoder.plan, &o, -EINVAL, "out of range");
    o = options;
    o.adapter = (struct nb_adapter_choice){.rank = 2, .alpha = 2};
    expect_refused(m, &m->first, m->encoder.plan, &o, -ENOTSUP, "adapters");
    o = options;
    o.cosine = o.relation = o.hidden = o.attention = 0;
    expect_refused(m, &m->first, m->encoder.plan, &o, -EINVAL, "of a teacher");
    expect_refused(m, &m->narrow, m->encoder.plan, &o, -ENOTSUP, "has no logits");
    o = options;
    o.batch = LINES + 1;
    expect_refused(m, &m->first, m->encoder.plan, &o, -EINVAL, "there are 11 windows");
}

static void what_is_not_finite_is_told(void **state)
{
    const struct room *m = *state;
    struct nb_error error = {""};
    struct nb_train_loss loss;
    struct nb_train *t = create(m, &m->first, &m->encoder, m->team, &options);
    const struct nb_str norm = {"blk.0.layer_output_norm.weight", 30};
    uint64_t n;
    float *x = (float *)nb_train_tensor(t, norm, &n);
    x[0] = INFINITY;
    assert_int_equal(nb_train_step(t, &loss, &error), -EDOM);
    assert_int_equal(nb_train_done(t), 0);
    nb_train_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_beside_differences),
        cmocka_unit_test(edges_of_relations),
        cmocka_unit_test(losses_fall),
        cmocka_unit_test(threads_and_tapes_change_nothing),
        cmocka_unit_test(goes_on_from_what_was_stored),
        cmocka_unit_test(projections_are_nobodys),
        cmocka_unit_test(lines_are_held_out),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(what_is_not_finite_is_told),
    };
    return cmocka_run_group_tests(tests, open_room, close_room);
}
