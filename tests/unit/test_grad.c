// What the float engine promises its callers, on a small model of quantized matrices: batches that
// it refuses, gradients that are wanted alone, tensors replaced, inputs shown.
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

#include "grad/grad.h"
#include "tensor/image.h"
#include "tests/support/pack.h"
#include "tests/support/random_model.h"

#define E    64
#define ROWS 90

struct machine {
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_team *team;
    struct nb_grad *g;
    float x[ROWS * E], y[ROWS * E], d[ROWS * E];
};

static int32_t token_of(uint32_t i)
{
    return (int32_t)(i * 7 % RANDOM_VOCAB);
}

// x of a batch of one sequence or both.
static void begin(struct machine *m, uint32_t sequences)
{
    struct nb_error error = {""};
    int32_t token[ROWS];
    for (uint32_t i = 0; i < ROWS; i++)
        token[i] = token_of(i);
    const struct nb_grad_sequence sequence[] = {{token, 71, 0}, {token + 71, ROWS - 71, 3}};
    assert_int_equal(nb_grad_batch(m->g, sequence, sequences, &error), 0);
    assert_int_equal(nb_grad_begin(m->g, m->x), 0);
}

static int open_machine(void **state)
{
    struct random_model r = {2, E, 96, 4, 2, 128, 1, NB_TYPE_Q4_1};
    struct nb_error error = {""};
    struct machine *m = calloc(1, sizeof(*m));
    uint64_t bytes;
    const int file = random_model_create(&r), image = memfd_create("image", MFD_CLOEXEC);
    assert_true(m && file >= 0 && image >= 0);
    assert_int_equal(test_pack(file, image, NULL, &bytes, &error), 0);
    assert_int_equal(nb_image_map(image, 0, &m->image, &error), 0);
    close(file);
    close(image);
    const struct nb_plan_options options = {.precision = NB_PRECISION_EXACT};
    assert_int_equal(nb_plan_create(m->image, &options, &m->plan, &error), 0);
    assert_int_equal(nb_team_create(2, &m->team), 0);
    assert_int_equal(nb_grad_open(m->plan, m->team, &m->g, &error), 0);
    begin(m, 2);
    *state = m;
    return 0;
}

static int close_machine(void **state)
{
    struct machine *m = *state;
    nb_grad_close(m->g);
    nb_team_destroy(m->team);
    nb_plan_destroy(m->plan);
    nb_image_unmap(m->image);
    free(m);
    return 0;
}

static void fill(struct machine *m)
{
    for (int i = 0; i < ROWS * E; i++)
        m->d[i] = sinf((float)i);
}

// Backward through the first layer, from numbers that are always the same.
static void back(struct machine *m, bool to_input)
{
    fill(m);
    assert_int_equal(nb_grad_layer_back(m->g, 0, m->x, NULL, m->d, to_input), 0);
}

static size_t size_of(const struct nb_grad_tensor *t)
{
    return (size_t)t->experts * t->rows * t->cols;
}

static float *zeros(size_t n)
{
    float *x = calloc(n, sizeof(*x));
    assert_non_null(x);
    return x;
}

// --- Batches

static void expect_refused(struct machine *m, const struct nb_grad_sequence *s, uint32_t n, int rc,
                           const char *why)
{
    struct nb_error error = {""};
    assert_int_equal(nb_grad_batch(m->g, s, n, &error), rc);
    assert_non_null(strstr(error.text, why));
}

static void refused_batches(void **state)
{
    static const int32_t token[] = {1, 2, RANDOM_VOCAB, -1};
    const struct nb_grad_sequence empty = {token, 0, 0}, outside = {token, 3, 0},
                                  negative = {token + 3, 1, 0}, late = {token, 2, 127},
                                  wrapped = {token, 2, UINT32_MAX};
    struct machine *m = *state;
    expect_refused(m, NULL, 0, -EINVAL, "no sequences");
    expect_refused(m, &empty, 1, -EINVAL, "no tokens");
    expect_refused(m, &outside, 1, -EINVAL, "vocabulary of 300");
    expect_refused(m, &negative, 1, -EINVAL, "token -1");
    expect_refused(m, &late, 1, -EINVAL, "context of 128");
    expect_refused(m, &wrapped, 1, -EINVAL, "context of 128");
    back(m, true); // the batch of before is still there
}

static void refused_parts(void **state)
{
    struct machine *m = *state;
    const struct nb_plan part = nb_plan_part(m->plan, 0, 1, true, false);
    struct nb_grad *g = NULL;
    struct nb_error error;
    assert_int_equal(nb_grad_open(&part, m->team, &g, &error), -EINVAL);
    assert_null(g);
}

// --- What is wanted

static void wanted_alone(void **state)
{
    static const char *const names[] = {"blk.0.attn_q.weight", "blk.0.attn_norm.weight",
                                        "blk.0.ffn_down.weight", "blk.0.ffn_norm.weight"};
    struct machine *m = *state;
    struct nb_grad_tensor *t[4];
    float *all[4], d[ROWS * E];
    for (int i = 0; i < 4; i++) {
        t[i] = nb_grad_find(m->g, names[i]);
        assert_non_null(t[i]);
        t[i]->gradient = all[i] = zeros(size_of(t[i]));
    }
    back(m, true);
    memcpy(d, m->d, sizeof(d));
    for (int i = 0; i < 4; i++)
        t[i]->gradient = NULL;
    back(m, true);
    assert_memory_equal(m->d, d, sizeof(d));
    for (int i = 0; i < 4; i++) {
        float *alone = t[i]->gradient = zeros(size_of(t[i]));
        back(m, false);
        assert_memory_equal(alone, all[i], size_of(t[i]) * sizeof(*alone));
        t[i]->gradient = NULL;
        free(alone);
        free(all[i]);
    }
    assert_null(nb_grad_find(m->g, "blk.0.attn_q"));
}

static void gradients_add_up(void **state)
{
    struct machine *m = *state;
    struct nb_grad_tensor *t = nb_grad_find(m->g, "blk.0.ffn_gate.weight");
    float *once = zeros(size_of(t)), *twice = zeros(size_of(t));
    t->gradient = once;
    back(m, false);
    t->gradient = twice;
    back(m, false);
    back(m, false);
    for (size_t i = 0; i < size_of(t); i++)
        assert_float_equal(twice[i], 2 * once[i], 1e-4);
    t->gradient = NULL;
    free(once);
    free(twice);
}

// --- Weights

static void own_values(void **state)
{
    struct machine *m = *state;
    struct nb_grad_tensor *t = nb_grad_find(m->g, "blk.0.attn_v.weight");
    float *w = zeros(size_of(t)), y[ROWS * E];
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, m->y), 0);
    nb_grad_dequantize(m->g, t, w);
    for (uint32_t r = 0; r < t->rows; r++) {
        float row[E];
        nb_layout_dequantize_row(&t->matrix->packed, r, row);
        assert_memory_equal(row, w + (size_t)r * E, sizeof(row));
    }
    t->values = w;
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, y), 0);
    assert_memory_equal(y, m->y, sizeof(y));
    w[5] += 1;
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, y), 0);
    assert_memory_not_equal(y, m->y, sizeof(y));
    // Values that go are not remembered, also where another layer came between.
    assert_int_equal(nb_grad_layer(m->g, 1, m->x, NULL, y), 0);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, y), 0);
    t->values = NULL;
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, y), 0);
    assert_memory_equal(y, m->y, sizeof(y));
    free(w);
}

static void replaced_matrix(void **state)
{
    struct machine *m = *state;
    struct nb_grad_tensor *t = nb_grad_find(m->g, "blk.0.ffn_up.weight");
    const struct nb_packed before = t->matrix->packed;
    struct nb_packed other;
    float y[ROWS * E];
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, m->y), 0);
    assert_int_equal(nb_packed_init(&other, NB_TYPE_F32, t->rows, t->cols), 0);
    uint8_t *data = aligned_alloc(64, nb_packed_bytes(&other));
    assert_non_null(data);
    memset(data, 0, nb_packed_bytes(&other));
    other.data = data;
    assert_int_equal(nb_plan_replace(m->plan, t->name, &other, 0), 0);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, y), 0);
    assert_memory_not_equal(y, m->y, sizeof(y));
    assert_int_equal(nb_plan_replace(m->plan, t->name, &before, 0), 0);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, y), 0);
    assert_memory_equal(y, m->y, sizeof(y));
    free(data);
}

// --- Inputs

struct seen {
    uint32_t calls, rows;
    float last[E]; // the last row's, of the head
};

static void see(void *user, const struct nb_grad_tensor *w, uint32_t expert, const float *x,
                size_t stride, uint32_t n)
{
    struct seen *s = user;
    s->calls++;
    s->rows += n;
    assert_int_equal(expert, 0);
    if (w->cols == E)
        memcpy(s->last, x + (n - 1) * stride, sizeof(s->last));
}

static void shown_inputs(void **state)
{
    struct machine *m = *state;
    struct seen s = {0};
    float *logits = zeros((size_t)ROWS * RANDOM_VOCAB), vectors[ROWS * E];
    const struct nb_grad_tensor *head = nb_grad_find(m->g, "output.weight");
    nb_grad_see(m->g, see, &s);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, m->y), 0);
    assert_int_equal(s.calls, 7);
    assert_int_equal(s.rows, 7 * ROWS);
    back(m, true); // what is computed again is not shown
    assert_int_equal(s.calls, 7);
    assert_int_equal(nb_grad_head(m->g, ROWS, m->y, vectors, logits), 0);
    assert_int_equal(s.calls, 8);
    assert_memory_equal(s.last, vectors + (ROWS - 1) * E, sizeof(s.last));
    double sum = 0;
    float row[E];
    nb_layout_dequantize_row(&head->matrix->packed, 17, row);
    for (int i = 0; i < E; i++)
        sum += (double)row[i] * s.last[i];
    assert_float_equal(logits[(ROWS - 1) * RANDOM_VOCAB + 17], sum, 1e-4);
    nb_grad_see(m->g, NULL, NULL);
    free(logits);
}

static void tape_of_a_layer(void **state)
{
    struct machine *m = *state;
    struct nb_tape *tape = NULL;
    float d[ROWS * E], y[ROWS * E];
    back(m, true);
    memcpy(d, m->d, sizeof(d));
    assert_true(nb_tape_bytes(m->g, 0) > sizeof(d));
    assert_int_equal(nb_tape_create(m->g, 0, &tape), 0);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, m->y), 0);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, tape, y), 0);
    assert_memory_equal(y, m->y, sizeof(y));
    // What is computed meanwhile does not touch it.
    assert_int_equal(nb_grad_layer(m->g, 1, y, NULL, m->y), 0);
    fill(m);
    assert_int_equal(nb_grad_layer_back(m->g, 0, m->x, tape, m->d, true), 0);
    assert_memory_equal(m->d, d, sizeof(d));
    assert_int_equal(nb_grad_layer(m->g, 1, m->x, tape, m->y), -EINVAL);
    assert_int_equal(nb_grad_layer_back(m->g, 1, m->x, tape, m->d, true), -EINVAL);
    nb_tape_destroy(tape);
}

static void tape_of_smaller_batches(void **state)
{
    struct machine *m = *state;
    struct nb_tape *tape = NULL, *small = NULL;
    float d[71 * E], y[71 * E];
    assert_int_equal(nb_tape_create(m->g, 0, &tape), 0);
    begin(m, 1);
    assert_int_equal(nb_tape_create(m->g, 0, &small), 0);
    fill(m);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, y), 0);
    assert_int_equal(nb_grad_layer_back(m->g, 0, m->x, NULL, m->d, true), 0);
    memcpy(d, m->d, sizeof(d));
    fill(m);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, tape, m->y), 0);
    assert_memory_equal(m->y, y, sizeof(y));
    assert_int_equal(nb_grad_layer_back(m->g, 0, m->x, tape, m->d, true), 0);
    assert_memory_equal(m->d, d, sizeof(d));
    begin(m, 2);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, small, m->y), -EINVAL);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, tape, m->y), 0);
    nb_tape_destroy(tape);
    nb_tape_destroy(small);
}

static void stages_of_a_layer(void **state)
{
    static const uint32_t matrices[] = {3, 1, 2, 1}; // q k v, o, gate up, down
    struct machine *m = *state;
    struct nb_grad_tensor *w[NB_GRAD_SITE];
    struct nb_grad_rows in, stream;
    assert_int_equal(nb_grad_sites(m->g, 1), 4);
    size_t most = sizeof(m->x) / sizeof(*m->x);
    for (uint32_t i = 0; i < 4; i++)
        most = nb_grad_state_floats(m->g, 1, i) > most ? nb_grad_state_floats(m->g, 1, i) : most;
    float *at = zeros(most);
    memcpy(at, m->x, sizeof(m->x));
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(nb_grad_stage(m->g, 1, i, at, at), 0);
        assert_int_equal(nb_grad_site_matrices(m->g, 1, i, w), matrices[i]);
        in = nb_grad_site_input(m->g, 1, i, 0, at);
        assert_int_equal(in.n, ROWS);
        stream = nb_grad_site_stream(m->g, 1, i, w[0], at);
        assert_int_equal(stream.n, i % 2 ? ROWS : 0);
        for (uint32_t row = 0; i == 1 && row < ROWS; row++)
            assert_memory_equal(stream.x + row * stream.stride, m->x + (size_t)row * E,
                                E * sizeof(*m->x));
    }
    assert_int_equal(nb_grad_state_floats(m->g, 1, 4), ROWS * E);
    assert_int_equal(nb_grad_stage(m->g, 1, 4, at, at), 0);
    assert_int_equal(nb_grad_layer(m->g, 1, m->x, NULL, m->y), 0);
    assert_memory_equal(at, m->y, sizeof(m->y));
    assert_int_equal(nb_grad_sites(m->g, 2), 1); // the head
    free(at);
}

// --- Going on

// The two sequences' tokens [from, at) of 70, through all layers: the last rows of both to `ret`.
static void run_piece(struct machine *m, uint32_t from, uint32_t at, float *ret)
{
    struct nb_error error = {""};
    int32_t token[2][70];
    struct nb_grad_sequence s[2];
    const size_t n = at - from;
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t j = 0; j < 70; j++)
            token[i][j] = token_of(i * 31 + j);
        s[i] = (struct nb_grad_sequence){token[i] + from, at - from, from};
    }
    float *x = zeros(4 * n * E);
    assert_int_equal(nb_grad_batch(m->g, s, 2, &error), 0);
    assert_int_equal(nb_grad_forward(m->g, x, 2 * n * E), 0);
    for (uint32_t i = 0; i < 2; i++)
        memcpy(ret + (size_t)i * E, x + ((i + 1) * n - 1) * E, E * sizeof(*x));
    free(x);
}

// Pieces of 1, 2 and 64 tokens and more, by a cache that held other text before.
static void going_on(void **state)
{
    static const uint32_t ends[] = {3, 4, 5, 6, 66, 68, 69, 70};
    struct machine *m = *state;
    struct nb_grad_cache *cache;
    struct nb_error error = {""};
    float whole[2 * E], pieces[2 * E];
    assert_int_equal(nb_grad_cache_create(m->g, 2, 70, &cache), 0);
    for (uint32_t turn = 0; turn < 2; turn++)
        for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
            nb_grad_continue(m->g, cache);
            run_piece(m, i ? ends[i - 1] : 0, ends[i], pieces);
            nb_grad_continue(m->g, NULL);
            run_piece(m, 0, ends[i], whole);
            for (int j = 0; j < 2 * E; j++)
                assert_true(fabsf(pieces[j] - whole[j]) < 1e-5f * (1 + fabsf(whole[j])));
        }
    nb_grad_continue(m->g, cache);
    const int32_t token[] = {1, 2, 3};
    const struct nb_grad_sequence three[] = {{token, 1, 0}, {token, 1, 0}, {token, 1, 0}},
                                  late = {token, 3, 68};
    expect_refused(m, three, 3, -EINVAL, "other sequences");
    expect_refused(m, &late, 1, -EINVAL, "other sequences");
    nb_grad_continue(m->g, NULL);
    assert_int_equal(nb_grad_batch(m->g, &late, 1, &error), 0);
    nb_grad_cache_destroy(cache);
    begin(m, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_batches),
        cmocka_unit_test(refused_parts),
        cmocka_unit_test(wanted_alone),
        cmocka_unit_test(gradients_add_up),
        cmocka_unit_test(own_values),
        cmocka_unit_test(replaced_matrix),
        cmocka_unit_test(shown_inputs),
        cmocka_unit_test(tape_of_a_layer),
        cmocka_unit_test(tape_of_smaller_batches),
        cmocka_unit_test(stages_of_a_layer),
        cmocka_unit_test(going_on),
    };
    return cmocka_run_group_tests(tests, open_machine, close_machine);
}
