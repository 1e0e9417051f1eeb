// Training of a small random model: losses fall, and neither threads, tapes nor a restart change a
// bit; a student's layers are its teacher's.
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

#include "distill/needs.h"
#include "distill/student.h"
#include "distill/train.h"
#include "engine/sampler.h"
#include "tensor/image.h"
#include "tensor/type.h"
#include "tests/support/bytes.h"
#include "tests/support/random_model.h"
#include "tests/support/training.h"

#define WINDOWS 6
#define LENGTH  16
#define STEPS   14
#define LAYERS  3

struct model {
    int file;
    struct nb_source *source, *student;
    struct nb_image *image, *student_image;
    struct nb_plan *plan, *student_plan;
    struct nb_team *team;
    struct nb_windows windows;
};

static const uint32_t from[] = {0, 2};
static const struct nb_student_kept two_layers = {.layers = 2, .layer = from};

static const struct nb_train_options options = {.batch = 2,
                                                .accumulate = 2,
                                                .steps = STEPS,
                                                .warm = 3,
                                                .rate = 3e-3f,
                                                .decay = 0.01f,
                                                .clip = 1,
                                                .temperature = 2,
                                                .hard = 0.3f,
                                                .hidden = 0.5f,
                                                .attention = 0.5f,
                                                .seed = 3,
                                                .memory = 1 << 20};

static int open_model(void **state)
{
    struct random_model r = {LAYERS, 128, 128, 4, 2, 64, 5, NB_TYPE_F16};
    struct nb_error error = {""};
    struct model *m = calloc(1, sizeof(*m));
    assert_non_null(m);
    m->file = random_model_create(&r);
    const struct nb_source_file file = {"model.gguf", m->file};
    assert_int_equal(nb_source_open_gguf(&file, 1, &m->source, &error), 0);
    assert_int_equal(nb_student_open(m->source, NULL, &two_layers, &m->student, &error), 0);
    open_plan(m->source, &m->image, &m->plan);
    open_plan(m->student, &m->student_image, &m->student_plan);
    assert_int_equal(nb_team_create(2, &m->team), 0);
    m->windows = (struct nb_windows){
        .n = WINDOWS, .length = LENGTH, .tokens = calloc(WINDOWS * LENGTH, sizeof(int32_t))};
    assert_non_null(m->windows.tokens);
    for (uint32_t i = 0; i < WINDOWS * LENGTH; i++)
        m->windows.tokens[i] = (int32_t)(nb_random(8, i) % 11); // few: there is something to learn
    *state = m;
    return 0;
}

static int close_model(void **state)
{
    struct model *m = *state;
    nb_windows_finish(&m->windows);
    nb_team_destroy(m->team);
    nb_plan_destroy(m->plan);
    nb_plan_destroy(m->student_plan);
    nb_image_unmap(m->image);
    nb_image_unmap(m->student_image);
    nb_source_close(m->student);
    nb_source_close(m->source);
    close(m->file);
    free(m);
    return 0;
}

// --- Training

static struct nb_train *create(const struct model *m, struct nb_team *team,
                               const struct nb_train_options *o)
{
    const bool taught = o->hard < 1 || o->hidden > 0 || o->attention > 0;
    struct nb_error error = {""};
    struct nb_train *t;
    if (nb_train_create(m->student_plan, taught ? m->plan : NULL, team, &m->windows, o, &t,
                        &error) < 0)
        fail_msg("%s", error.text);
    return t;
}

static struct nb_train_loss measure(const struct model *m, struct nb_train *t)
{
    struct nb_error error = {""};
    struct nb_train_loss each[WINDOWS], sum = {0};
    assert_int_equal(nb_train_measure(t, &m->windows, each, &error), 0);
    for (uint32_t i = 0; i < WINDOWS; i++) {
        sum.hard += each[i].hard / WINDOWS;
        sum.soft += each[i].soft / WINDOWS;
        sum.hidden += each[i].hidden / WINDOWS;
        sum.attention += each[i].attention / WINDOWS;
    }
    return sum;
}

static void losses_fall(void **state)
{
    const struct model *m = *state;
    struct nb_train_options o = options;
    for (int random = 0; random < 2; random++) {
        for (int what = 0; what < 4; what++) {
            o.random = random;
            o.hard = what == 0 ? 1 : 0;
            o.hidden = what == 2 ? 100 : 0;
            o.attention = what == 3 ? 100 : 0;
            struct nb_train *t = create(m, m->team, &o);
            const struct nb_train_loss before = measure(m, t);
            assert_true(steps(t, STEPS).norm > 0);
            const struct nb_train_loss after = measure(m, t);
            const double of[][2] = {{before.hard, after.hard},
                                    {before.soft, after.soft},
                                    {before.hidden, after.hidden},
                                    {before.attention, after.attention}};
            print_message("loss %d: %.4f %.4f\n", what, of[what][0], of[what][1]);
            assert_true(of[what][1] < 0.8 * of[what][0]);
            nb_train_destroy(t);
        }
    }
}

// --- Codes and scales that learn

static const uint32_t coded[] = {NB_TYPE_Q4_0, NB_TYPE_Q4_1, NB_TYPE_Q8_0, NB_TYPE_IQ4_NL};

// All matrices, in turns as each of the types.
static struct nb_train *with_codes(const struct model *m, struct nb_train *t)
{
    struct nb_error error = {""};
    for (uint32_t i = 0; i < nb_train_count(t); i++) {
        const struct nb_train_moved w = nb_train_moved(t, i);
        const struct nb_str name = {w.name, strlen(w.name)};
        const struct nb_encode how = {.type = coded[i % 4]};
        uint64_t n;
        if (w.rows == 1)
            continue;
        uint8_t *encoded = malloc(nb_encoded_bytes(how.type, w.rows, w.cols));
        assert_int_equal(
            nb_encode_matrix(&how, m->team, nb_train_tensor(t, name, &n), w.rows, w.cols, encoded),
            0);
        assert_false(nb_train_encode(t, name, NULL));
        assert_int_equal(nb_train_learn_codes(t, name, how.type, encoded, &error), 0);
        free(encoded);
    }
    return t;
}

// What was measured last is what the bytes decode to.
static void check_codes(const struct nb_train *t)
{
    for (uint32_t i = 0; i < nb_train_count(t); i++) {
        const struct nb_train_moved w = nb_train_moved(t, i);
        const struct nb_type_info *info = nb_type_info(coded[i % 4]);
        uint64_t n;
        const float *x = moved(t, i, &n);
        if (w.rows == 1)
            continue;
        uint8_t *encoded = malloc(nb_encoded_bytes(coded[i % 4], w.rows, w.cols));
        float *decoded = malloc(n * sizeof(*decoded));
        assert_true(nb_train_encode(t, (struct nb_str){w.name, strlen(w.name)}, encoded));
        info->dequantize(encoded, decoded, n / info->block);
        assert_memory_equal(decoded, x, n * sizeof(*x));
        free(decoded);
        free(encoded);
    }
}

static void codes_learn(void **state)
{
    const struct model *m = *state;
    struct nb_train_options o = options;
    struct nb_team *one;
    assert_int_equal(nb_team_create(1, &one), 0);
    o.hard = 0;
    o.hidden = o.attention = 0;
    struct nb_train *a = with_codes(m, create(m, m->team, &o));
    struct nb_train *b = with_codes(m, create(m, one, &o));
    const double before = measure(m, a).soft;
    check_codes(a);
    steps(a, STEPS);
    steps(b, STEPS);
    const double after = measure(m, a).soft;
    print_message("codes: soft %.4f %.4f\n", before, after);
    assert_true(after < 0.8 * before);
    assert_true(measure(m, b).soft == after);
    check_codes(a);
    expect_same(a, b);
    nb_train_destroy(a);
    nb_train_destroy(b);
    nb_team_destroy(one);
}

static void nothing_learns_at_rate_0(void **state)
{
    const struct model *m = *state;
    struct nb_train_options o = options;
    o.rate = 0;
    struct nb_train *a = create(m, m->team, &o), *b = create(m, m->team, &o);
    steps(a, STEPS);
    expect_same(a, b);
    nb_train_destroy(a);
    nb_train_destroy(b);
}

static void threads_and_tapes_change_nothing(void **state)
{
    const struct model *m = *state;
    struct nb_train_options bare = options;
    struct nb_team *one;
    assert_int_equal(nb_team_create(1, &one), 0);
    bare.memory = 0;
    for (uint32_t rank = 0; rank < 4; rank += 3) {
        struct nb_train_options o = options;
        o.adapter = bare.adapter = (struct nb_adapter_choice){.rank = rank, .alpha = 6};
        struct nb_train *a = create(m, m->team, &o), *b = create(m, one, &bare);
        const struct nb_train_loss x = steps(a, 6), y = steps(b, 6);
        assert_memory_equal(&x, &y, sizeof(x));
        expect_same(a, b);
        nb_train_destroy(a);
        nb_train_destroy(b);
    }
    nb_team_destroy(one);
}

// What the student writes depends on its weights, the seed and the batch alone, and the loss falls
// on it too.
static void own_text(void **state)
{
    const struct model *m = *state;
    struct nb_train_options o = options, text = options, bare;
    struct bytes stored = {0};
    struct nb_team *one;
    assert_int_equal(nb_team_create(1, &one), 0);
    o.own = 0.5f;
    o.rate = text.rate = 0;
    bare = o;
    bare.memory = 0;
    struct nb_train *a = create(m, m->team, &o), *b = create(m, one, &bare);
    struct nb_train *c = create(m, m->team, &o), *d = create(m, m->team, &text);
    const struct nb_train_loss x = steps(a, 3), y = steps(b, 3), z = steps(d, 3);
    assert_memory_equal(&x, &y, sizeof(x));
    assert_true(x.soft != z.soft && x.hard != z.hard && x.hard > 0);
    assert_int_equal(nb_train_store(a, write_bytes, &stored), 0);
    assert_int_equal(nb_train_restore(c, read_bytes, &stored), 0);
    const struct nb_train_loss p = steps(a, 1), q = steps(c, 1);
    assert_memory_equal(&p, &q, sizeof(p));
    free(stored.data);
    nb_train_destroy(a);
    nb_train_destroy(b);
    nb_train_destroy(c);
    nb_train_destroy(d);
    nb_team_destroy(one);
    o = options;
    o.own = 1;
    o.hard = 0;
    struct nb_train *e = create(m, m->team, &o);
    const struct nb_train_loss before = measure(m, e);
    assert_true(steps(e, STEPS).hard == 0);
    assert_true(measure(m, e).soft < before.soft);
    nb_train_destroy(e);
}

// With operands and moments of eight bits: nearly the same, and so whatever the threads.
static void narrow_is_near(void **state)
{
    const struct model *m = *state;
    struct nb_train_options narrow = options;
    struct nb_team *one;
    narrow.bf16 = narrow.coded_moments = true;
    assert_int_equal(nb_team_create(1, &one), 0);
    struct nb_train *a = create(m, m->team, &options), *b = create(m, m->team, &narrow);
    struct nb_train *c = create(m, one, &narrow);
    for (int i = 0; i < 4; i++) {
        const struct nb_train_loss x = steps(a, 1), y = steps(b, 1), z = steps(c, 1);
        assert_true(fabs(x.hard - y.hard) < 5e-3 * x.hard && x.hard != y.hard);
        assert_true(fabs(x.soft - y.soft) < 2e-2 * x.soft);
        assert_true(fabs(x.norm - y.norm) < 2e-2 * x.norm);
        assert_memory_equal(&y, &z, sizeof(y));
    }
    expect_same(b, c);
    nb_train_destroy(a);
    nb_train_destroy(b);
    nb_train_destroy(c);
    nb_team_destroy(one);
}

static void threads_change_no_needs(void **state)
{
    const struct model *m = *state;
    struct nb_error error = {""};
    struct nb_team *one;
    struct nb_needs a, b;
    assert_int_equal(nb_team_create(1, &one), 0);
    for (enum nb_needs_by by = NB_NEEDS_BY_GRADIENT; by <= NB_NEEDS_BY_ACTIVATION; by++) {
        assert_int_equal(nb_needs_measure(m->plan, m->team, &m->windows, by, &a, &error), 0);
        assert_int_equal(nb_needs_measure(m->plan, one, &m->windows, by, &b, &error), 0);
        assert_memory_equal(a.layer, b.layer, LAYERS * sizeof(*a.layer));
        for (int cut = 0; cut < NB_CUTS; cut++) {
            const size_t n = (size_t)a.n[cut] * (cut == NB_CUT_WIDTH ? 1 : LAYERS);
            assert_memory_equal(a.of[cut], b.of[cut], n * sizeof(double));
            assert_true(a.of[cut][0] > 0 && a.of[cut][n - 1] > 0);
        }
        nb_needs_finish(&a);
        nb_needs_finish(&b);
    }
    nb_team_destroy(one);
}

// Two batches of a step are one of twice the windows, but for the order of sums.
static void batches_add_up(void **state)
{
    const struct model *m = *state;
    struct nb_train_options whole = options;
    whole.batch = 4;
    whole.accumulate = 1;
    struct nb_train *a = create(m, m->team, &options), *b = create(m, m->team, &whole);
    const struct nb_train_loss x = steps(a, 1), y = steps(b, 1);
    assert_true(fabs(x.hard - y.hard) < 1e-5 && fabs(x.soft - y.soft) < 1e-5);
    assert_true(fabs(x.norm - y.norm) < 1e-4 * x.norm);
    nb_train_destroy(a);
    nb_train_destroy(b);
}

// --- Adapters

static const struct nb_adapter_choice four = {.rank = 4, .alpha = 8};

// It begins as the model, learns, and what is not adapted stays.
static void adapters_learn(void **state)
{
    const struct model *m = *state;
    struct nb_train_options o = options, whole = options;
    o.hard = whole.hard = 1;
    o.hidden = whole.hidden = o.attention = whole.attention = 0;
    o.rate = 3e-2f;
    o.adapter = four;
    struct nb_train *a = create(m, m->team, &o), *b = create(m, m->team, &whole);
    const double before = measure(m, a).hard;
    assert_true(before == measure(m, b).hard);
    steps(a, STEPS);
    print_message("an adapter: hard %.3f %.3f\n", before, measure(m, a).hard);
    assert_true(measure(m, a).hard < 0.8 * before);
    assert_int_equal(nb_train_count(a), 2 * 2 * 7);
    assert_true(nb_train_weights(a) < nb_train_weights(b) / 10);
    nb_train_destroy(a);
    nb_train_destroy(b);
}

// The gradients of an adapter of one layer alone are those of an adapter of all layers, beside
// factors that have not moved: layers below are left out, and nothing is lost.
static void adapters_of_some_matrices(void **state)
{
    const struct model *m = *state;
    struct nb_train_options o = options, some = options;
    o.clip = some.clip = 0;
    o.adapter = some.adapter = four;
    some.adapter.n_roles = 2;
    strcpy(some.adapter.roles[0], "ffn_down");
    strcpy(some.adapter.roles[1], "attn_v");
    struct nb_train *a = create(m, m->team, &o), *b = create(m, m->team, &some);
    steps(a, 1);
    steps(b, 1);
    assert_int_equal(nb_train_count(b), 2 * 2 * 2);
    for (uint32_t i = 0; i < nb_train_count(b); i++) {
        uint64_t n, same;
        const struct nb_train_moved w = nb_train_moved(b, i);
        const float *x = moved(b, i, &n);
        const float *y = nb_train_tensor(a, (struct nb_str){w.name, strlen(w.name)}, &same);
        assert_non_null(y);
        assert_int_equal(n, same);
        assert_memory_equal(x, y, n * sizeof(*x));
    }
    nb_train_destroy(a);
    nb_train_destroy(b);
}

// --- The state

static struct nb_train *as_it_is(const struct model *m, struct nb_train *t)
{
    return t;
}

static void goes_on(const struct model *m, const struct nb_adapter_choice *adapter,
                    struct nb_train *(*with)(const struct model *m, struct nb_train *t))
{
    struct nb_train_options o = options, other = options;
    struct bytes stored = {0};
    o.adapter = other.adapter = *adapter;
    o.coded_moments = other.coded_moments = adapter->rank > 0;
    struct nb_train *a = with(m, create(m, m->team, &o)), *b = with(m, create(m, m->team, &o));
    other.rate *= 2;
    struct nb_train *c = with(m, create(m, m->team, &other));
    steps(a, 7);
    assert_int_equal(nb_train_store(a, write_bytes, &stored), 0);
    assert_int_equal(nb_train_restore(b, read_bytes, &stored), 0);
    assert_int_equal(nb_train_done(b), 7);
    steps(a, STEPS - 7);
    steps(b, STEPS - 7);
    measure(m, a); // codes are decoded then
    measure(m, b);
    expect_same(a, b);
    stored.at = 0;
    assert_int_equal(nb_train_restore(c, read_bytes, &stored), -ESTALE);
    for (size_t at = 40; at < stored.n; at += stored.n / 7) {
        stored.at = 0;
        stored.data[at] ^= 1;
        assert_int_equal(nb_train_restore(b, read_bytes, &stored), -EBADMSG);
        stored.data[at] ^= 1;
    }
    free(stored.data);
    nb_train_destroy(a);
    nb_train_destroy(b);
    nb_train_destroy(c);
}

static void goes_on_from_what_was_stored(void **state)
{
    static const struct nb_adapter_choice none = {0};
    goes_on(*state, &none, as_it_is);
    goes_on(*state, &four, as_it_is);
    goes_on(*state, &none, with_codes);
}

// --- What is refused

static void expect_refused(const struct model *m, const struct nb_train_options *o,
                           const struct nb_plan *teacher, int rc, const char *why)
{
    struct nb_error error = {""};
    struct nb_train *t = NULL;
    assert_int_equal(nb_train_create(m->student_plan, teacher, m->team, &m->windows, o, &t, &error),
                     rc);
    if (!strstr(error.text, why))
        fail_msg("%s", error.text);
}

static void what_is_refused(void **state)
{
    struct model m = *(struct model *)*state;
    const struct {
        struct nb_train_options o;
        const char *why;
    } bad[] = {{{.rate = NAN}, "out of range"},
               {{.hard = 1.5f}, "out of range"},
               {{.temperature = 0}, "out of range"},
               {{.batch = WINDOWS + 1}, "windows"},
               {{.batch = 0}, "windows"},
               {{.accumulate = 0}, "steps"}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct nb_train_options o = options;
        if (i == 0)
            o.rate = bad[i].o.rate;
        if (i == 1)
            o.hard = bad[i].o.hard;
        if (i == 2)
            o.temperature = bad[i].o.temperature;
        if (i == 3 || i == 4)
            o.batch = bad[i].o.batch;
        if (i == 5)
            o.accumulate = bad[i].o.accumulate;
        expect_refused(&m, &o, m.plan, -EINVAL, bad[i].why);
    }
    struct nb_train_options o = options;
    o.adapter = four;
    o.adapter.alpha = 0;
    expect_refused(&m, &o, m.plan, -EINVAL, "alpha");
    o.adapter = (struct nb_adapter_choice){.rank = 129, .alpha = 1};
    expect_refused(&m, &o, m.plan, -EINVAL, "rows of 128");
    o.adapter = four;
    o.adapter.n_roles = 1;
    strcpy(o.adapter.roles[0], "attn");
    expect_refused(&m, &o, m.plan, -EINVAL, "no layer has a matrix \"attn\"");
    expect_refused(&m, &options, NULL, -EINVAL, "need a teacher");
    o = options;
    o.own = 1;
    expect_refused(&m, &o, m.plan, -EINVAL, "set \"hard\" to 0");
    o.own = 0.5f;
    o.hard = 1;
    o.hidden = o.attention = 0;
    expect_refused(&m, &o, NULL, -EINVAL, "judged by a teacher");
    o.own = 2;
    expect_refused(&m, &o, m.plan, -EINVAL, "out of range");
    m.windows.length = 65;
    m.windows.n = 2;
    expect_refused(&m, &options, m.plan, -EINVAL, "context of 64");
    m = *(struct model *)*state;
    m.windows.tokens[7] += RANDOM_VOCAB;
    expect_refused(&m, &options, m.plan, -EINVAL, "vocabulary");
    m.windows.tokens[7] -= RANDOM_VOCAB;
    nb_train_destroy(NULL);
}

static void high_rates_are_told(void **state)
{
    const struct model *m = *state;
    struct nb_train_options o = options;
    struct nb_error error = {""};
    struct nb_train_loss loss;
    o.rate = 1;
    o.warm = 0;
    o.clip = 0;
    o.decay = 1;
    o.schedule = NB_SCHEDULE_CONSTANT;
    o.steps = 4000;
    struct nb_train *t = create(m, m->team, &o);
    uint64_t n;
    const struct nb_str norm = {"output_norm.weight", 18};
    float *x = (float *)nb_train_tensor(t, norm, &n); // what a rate that is too high leaves
    x[0] = INFINITY;
    assert_int_equal(nb_train_step(t, &loss, &error), -EDOM);
    assert_non_null(strstr(error.text, "not finite"));
    assert_int_equal(nb_train_done(t), 0);
    nb_train_destroy(t);
}

// --- Students

static void layers_are_the_teachers(void **state)
{
    const struct model *m = *state;
    const struct nb_source *t = m->source, *s = m->student;
    struct nb_error error = {""};
    static float x[128 * 128], y[128 * 128];
    uint64_t n = 0;
    assert_int_equal(nb_gguf_u64(s->metadata, "llama.block_count", &n), 0);
    assert_int_equal(n, 2);
    assert_int_equal(nb_gguf_n_keys(s->metadata), nb_gguf_n_keys(t->metadata));
    uint32_t layers = 0;
    for (uint32_t i = 0; i < s->n_tensors; i++) {
        char name[64];
        const struct nb_source_tensor *own = &s->tensors[i];
        snprintf(name, sizeof(name), "%.*s", (int)own->name.len, own->name.data);
        if (!strncmp(name, "blk.1.", 6))
            name[4] = '2';
        layers += !strncmp(name, "blk.", 4);
        const uint32_t of = nb_source_find(t, (struct nb_str){name, strlen(name)});
        assert_true(of < t->n_tensors);
        const uint64_t rows = nb_source_rows(own) < 64 ? nb_source_rows(own) : 64;
        assert_int_equal(nb_source_read(s, own, 0, rows, x, &error), 0);
        assert_int_equal(nb_source_read(t, &t->tensors[of], 0, rows, y, &error), 0);
        assert_memory_equal(x, y, rows * nb_source_row_bytes(own));
    }
    assert_int_equal(layers, 2 * (t->n_tensors - (s->n_tensors - layers)) / LAYERS);
    uint32_t evenly[6];
    nb_student_evenly(30, 6, evenly);
    assert_memory_equal(evenly, ((uint32_t[]){0, 6, 12, 17, 23, 29}), sizeof(evenly));
    nb_student_evenly(30, 1, evenly);
    assert_int_equal(evenly[0], 0);
    nb_student_evenly(2, 2, evenly);
    assert_int_equal(evenly[1], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_fall),
        cmocka_unit_test(codes_learn),
        cmocka_unit_test(nothing_learns_at_rate_0),
        cmocka_unit_test(threads_and_tapes_change_nothing),
        cmocka_unit_test(own_text),
        cmocka_unit_test(narrow_is_near),
        cmocka_unit_test(threads_change_no_needs),
        cmocka_unit_test(batches_add_up),
        cmocka_unit_test(adapters_learn),
        cmocka_unit_test(adapters_of_some_matrices),
        cmocka_unit_test(goes_on_from_what_was_stored),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(high_rates_are_told),
        cmocka_unit_test(layers_are_the_teachers),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
