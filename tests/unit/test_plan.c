// What a plan is run as on the CPU, op by op or many at once, and what calibration and compression
// need of it: the inputs of its matrices seen as they are computed, and matrices replaced in place.
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

#include "engine/cpu/device.h"
#include "engine/plan.h"
#include "engine/route.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tests/support/pack.h"
#include "tests/support/random_model.h"

#define ROWS 40

struct machine {
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_device *device;
    struct nb_device_model *model;
    uint32_t block[ROWS / 32 + 1];
};

static void open_file(struct machine *m, int file)
{
    struct nb_error error = {""};
    uint64_t bytes;
    int image = memfd_create("image", MFD_CLOEXEC);
    assert_true(file >= 0 && image >= 0);
    assert_int_equal(test_pack(file, image, NULL, &bytes, &error), 0);
    assert_int_equal(nb_image_map(image, 0, &m->image, &error), 0);
    close(file);
    close(image);
    const struct nb_plan_options options = {.precision = NB_PRECISION_EXACT};
    assert_int_equal(nb_plan_create(m->image, &options, &m->plan, &error), 0);
    const struct nb_device_options device = {.threads = 2};
    assert_int_equal(nb_device_create("cpu", &device, &m->device, &error), 0);
    const struct nb_device_model_options model = {.kv_blocks = ROWS / 32 + 1, .max_rows = ROWS};
    assert_int_equal(m->device->ops->model_open(m->device, m->plan, &model, &m->model, &error), 0);
    for (uint32_t i = 0; i <= ROWS / 32; i++)
        m->block[i] = i;
}

static void open_machine(struct machine *m, int type)
{
    struct random_model r = RANDOM_MODEL;
    r.type = type;
    open_file(m, random_model_create(&r));
}

static void close_machine(struct machine *m)
{
    m->device->ops->model_close(m->model);
    m->device->ops->destroy(m->device);
    nb_plan_destroy(m->plan);
    nb_image_unmap(m->image);
}

// `n` tokens from position 0 on; the logits of the last two.
static const float *step(struct machine *m, uint32_t n)
{
    int32_t token[ROWS];
    uint32_t position[ROWS], sequence[ROWS] = {0}, wanted[2] = {n - 2, n - 1};
    const uint32_t *const blocks[] = {m->block};
    float *logits = NULL;
    for (uint32_t i = 0; i < n; i++) {
        token[i] = (int32_t)(i * 7 % RANDOM_VOCAB);
        position[i] = i;
    }
    const struct nb_rows rows = {.n = n,
                                 .token = token,
                                 .position = position,
                                 .sequence = sequence,
                                 .blocks = blocks,
                                 .n_logits = 2,
                                 .logits_row = wanted};
    assert_int_equal(m->device->ops->step(m->model, &rows, &logits), 0);
    return logits;
}

// --- Stages

// llama has a form of its own for all that lies between two barriers.
static void llama_takes_five_stages_a_layer(void **state)
{
    struct machine m;
    open_machine(&m, NB_TYPE_F16);
    assert_int_equal(m.model->n_stages, 2 + 5 * m.plan->n_layers);
    close_machine(&m);
}

static enum nb_cpu_stage_kind alone(enum nb_op_kind kind)
{
    return kind == NB_OP_LINEAR      ? NB_CPU_PRODUCTS
           : kind == NB_OP_ATTENTION ? NB_CPU_ATTENTION
                                     : NB_CPU_ROWS;
}

// A family that has no such form runs op by op: the same bits.
static void op_by_op_gives_the_same(void **state)
{
    const uint32_t counts[] = {3, ROWS};
    struct machine m;
    open_machine(&m, -1);
    const size_t bytes = (size_t)2 * m.plan->hp.vocab * sizeof(float);
    struct nb_cpu_stage *fused = m.model->stages, *single = calloc(m.plan->n_ops, sizeof(*single));
    const uint32_t n_fused = m.model->n_stages;
    for (uint32_t i = 0; i < m.plan->n_ops; i++) {
        const enum nb_cpu_stage_kind kind = alone(m.plan->ops[i].kind);
        single[i] = (struct nb_cpu_stage){
            .kind = kind, .first = i, .n = 1, .n_products = kind == NB_CPU_PRODUCTS};
    }
    for (uint32_t c = 0; c < 2; c++) {
        float *want = malloc(bytes);
        m.model->stages = fused;
        m.model->n_stages = n_fused;
        memcpy(want, step(&m, counts[c]), bytes);
        m.model->stages = single;
        m.model->n_stages = m.plan->n_ops;
        assert_memory_equal(step(&m, counts[c]), want, bytes);
        free(want);
    }
    m.model->stages = fused;
    free(single);
    close_machine(&m);
}

// --- Captures

struct seen {
    const struct nb_plan *plan;
    uint32_t n, last, rows;
    float head[2 * 512]; // what the head is multiplied by
};

static void on_input(void *user, uint32_t op, const float *x, uint32_t n, uint32_t width,
                     const uint16_t *expert)
{
    struct seen *s = user;
    const struct nb_op *of = &s->plan->ops[op];
    assert_int_equal(of->kind, NB_OP_LINEAR);
    assert_int_equal(width, of->w->packed.cols);
    assert_null(expert);
    assert_true(s->n == 0 || op > s->last);
    assert_int_equal(n, op < s->plan->tail ? s->rows : 2);
    for (uint32_t i = 0; i < n * width; i++)
        assert_true(isfinite(x[i]));
    if (of->out.value == NB_VALUE_LOGITS)
        memcpy(s->head, x, (size_t)n * width * sizeof(*x));
    s->last = op;
    s->n++;
}

// Few rows and many take different ways to their inputs.
static void inputs_are_seen(void **state)
{
    const uint32_t counts[] = {3, ROWS};
    struct machine m;
    open_machine(&m, NB_TYPE_F32);
    uint32_t matrices = 0;
    for (uint32_t i = 0; i < m.plan->n_ops; i++)
        matrices += m.plan->ops[i].kind == NB_OP_LINEAR;
    for (uint32_t c = 0; c < 2; c++) {
        struct seen s = {.plan = m.plan, .rows = counts[c]};
        nb_cpu_capture(m.model, on_input, &s);
        const float *logits = step(&m, counts[c]);
        assert_int_equal(s.n, matrices);
        const struct nb_packed *head = &m.plan->ops[s.last].w->packed;
        float *row = calloc(head->cols, sizeof(*row));
        for (uint32_t r = 0; r < head->rows; r++) {
            double sum = 0;
            nb_layout_dequantize_row(head, r, row);
            for (uint32_t k = 0; k < head->cols; k++)
                sum += (double)row[k] * (double)s.head[head->cols + k];
            assert_true(fabs(sum - (double)logits[head->rows + r]) < 1e-4);
        }
        free(row);
    }
    nb_cpu_capture(m.model, NULL, NULL);
    (void)step(&m, 3);
    close_machine(&m);
}

// --- Captures of experts

#define EXPERTS 5
#define CHOSEN  3
#define WIDTH   256 // of the residual stream, and of an expert's inner rows

struct mixture {
    const struct machine *machine;
    uint32_t tokens, n_seen;
    float token[ROWS * WIDTH]; // what the gates are multiplied by
    uint16_t choice[ROWS * CHOSEN];
    float inner[ROWS * CHOSEN * WIDTH]; // what the last matrices are multiplied by
    uint16_t expert[ROWS * CHOSEN];
    const struct nb_op *down; // whose result the next op's input shows; or NULL
};

static double dot(const struct nb_matrix *w, uint32_t expert, uint32_t row, const float *x)
{
    float weights[WIDTH];
    const struct nb_packed p = nb_matrix_of_expert(w, expert);
    double sum = 0;
    nb_layout_dequantize_row(&p, row, weights);
    for (uint32_t k = 0; k < WIDTH; k++)
        sum += (double)weights[k] * (double)x[k];
    return sum;
}

static void check_near(double want, float got)
{
    assert_true(fabs(want - (double)got) < 1e-4 * (1 + fabs(want)));
}

static void gate_is_seen(struct mixture *s, const float *x, uint32_t n, const uint16_t *expert)
{
    s->tokens = n;
    memcpy(s->token, x, (size_t)n * WIDTH * sizeof(*x));
    memcpy(s->choice, expert, (size_t)n * CHOSEN * sizeof(*expert));
    for (uint32_t i = 0; i < n * CHOSEN; i++)
        assert_true(expert[i] < EXPERTS &&
                    expert[i] != expert[i / CHOSEN * CHOSEN + (i + 1) % CHOSEN]);
}

// Row `row` is what `expert` makes of the token: some columns of it, computed from what its gates
// were shown.
static void check_inner(const struct mixture *s, const struct nb_op *down, uint32_t row,
                        uint32_t expert, uint32_t token)
{
    const float *x = s->token + (size_t)token * WIDTH;
    assert_int_equal(s->expert[row], expert);
    for (uint32_t c = row % 7; c < WIDTH; c += 61) {
        const double gate = dot(down[-3].w, expert, c, x), up = dot(down[-2].w, expert, c, x);
        check_near(gate / (1 + exp(-gate)) * up, s->inner[row * WIDTH + c]);
    }
}

static void down_is_seen(struct mixture *s, const struct nb_op *op, const float *x, uint32_t n,
                         const uint16_t *expert)
{
    uint32_t row = 0;
    assert_int_equal(n, s->tokens * CHOSEN);
    memcpy(s->inner, x, (size_t)n * WIDTH * sizeof(*x));
    memcpy(s->expert, expert, (size_t)n * sizeof(*expert));
    for (uint32_t e = 0; e < EXPERTS; e++)
        for (uint32_t i = 0; i < n; i++)
            if (s->choice[i] == e)
                check_inner(s, op, row++, e, i / CHOSEN);
    assert_int_equal(row, n);
    s->down = op;
    s->n_seen++;
}

// The rows that were shown, times the matrices of the experts that were named.
static void check_results(struct mixture *s)
{
    const struct nb_op *op = s->down;
    for (uint32_t i = 0; op && i < s->tokens * CHOSEN; i++)
        for (uint32_t c = i % 5; c < WIDTH; c += 67)
            check_near(dot(op->w, s->expert[i], c, s->inner + i * WIDTH),
                       nb_cpu_row(s->machine->model, &op->out, i)[c]);
    s->down = NULL;
}

static void on_expert_input(void *user, uint32_t op, const float *x, uint32_t n, uint32_t width,
                            const uint16_t *expert)
{
    struct mixture *s = user;
    const struct nb_op *of = &s->machine->plan->ops[op];
    const bool in = nb_value_is_of_experts(of->in.value),
               out = nb_value_is_of_experts(of->out.value);
    assert_int_equal(width, WIDTH);
    check_results(s);
    if (!out)
        assert_null(expert);
    else if (!expert)
        fail_msg("op %u: of experts, and nobody says of which", op);
    else if (in)
        down_is_seen(s, of, x, n, expert);
    else
        gate_is_seen(s, x, n, expert);
}

static void inputs_of_experts_are_seen(void **state)
{
    const uint32_t counts[] = {3, ROWS};
    const struct random_model r = {2, WIDTH, WIDTH, 4, 2, 512, 1, NB_TYPE_F32};
    struct machine m;
    open_file(&m, random_model_create_experts(&r, EXPERTS, CHOSEN));
    for (uint32_t c = 0; c < 2; c++) {
        struct mixture *s = calloc(1, sizeof(*s));
        s->machine = &m;
        nb_cpu_capture(m.model, on_expert_input, s);
        (void)step(&m, counts[c]);
        check_results(s);
        assert_int_equal(s->n_seen, r.layers);
        free(s);
    }
    close_machine(&m);
}

// --- The weights of the chosen

static void faint_experts_have_finite_weights(void **state)
{
    // Of the first row every sigmoid is 0; the others' best two are below and above 2^-14.
    static const float scores[][4] = {
        {-200, -300, -250, -400}, {-14, -12, -13, -40}, {-5, -4, -6, -9}};
    const struct nb_hparams hp = {.n_experts = 4,
                                  .n_chosen = 2,
                                  .gating = NB_GATING_SIGMOID,
                                  .expert_weights_norm = true,
                                  .expert_weights_scale = 2};
    for (int i = 0; i < 3; i++) {
        uint16_t expert[2];
        float weight[2];
        double p[2], sum = 0;
        nb_route(&hp, NULL, scores[i], expert, weight);
        for (int c = 0; c < 2; c++)
            sum += p[c] = 1 / (1 + exp(-(double)scores[i][expert[c]]));
        for (int c = 0; c < 2; c++)
            assert_true(fabs((double)weight[c] - 2 * p[c] / fmax(sum, 6.103515625e-5)) < 1e-6);
    }
}

// --- Replacing

static struct nb_str name_of(const char *name)
{
    return (struct nb_str){name, strlen(name)};
}

// The matrix as another type, twice as large: of powers of two everything is exact.
static struct nb_packed doubled(const struct nb_packed *from)
{
    struct nb_packed to;
    float *rows = calloc((size_t)from->rows * from->cols, sizeof(*rows));
    assert_int_equal(nb_packed_init(&to, NB_TYPE_F32, from->rows, from->cols), 0);
    uint8_t *data = NULL;
    assert_int_equal(posix_memalign((void **)&data, 64, nb_packed_bytes(&to)), 0);
    for (uint32_t r = 0; r < from->rows; r++)
        nb_layout_dequantize_row(from, r, rows + (size_t)r * from->cols);
    for (size_t i = 0; i < (size_t)from->rows * from->cols; i++)
        rows[i] *= 2;
    nb_layout_pack(&to, rows, data, 0, (from->rows + NB_GROUP_ROWS - 1) / NB_GROUP_ROWS);
    free(rows);
    to.data = data;
    return to;
}

static void a_matrix_is_replaced(void **state)
{
    struct machine m;
    open_machine(&m, NB_TYPE_F16);
    const uint32_t vocab = m.plan->hp.vocab;
    float *before = calloc((size_t)2 * vocab, sizeof(*before));
    memcpy(before, step(&m, ROWS), (size_t)2 * vocab * sizeof(*before));
    const struct nb_packed *head = &m.plan->ops[m.plan->n_ops - 1].w->packed;
    struct nb_packed twice = doubled(head);
    assert_int_equal(nb_plan_replace(m.plan, name_of("output.weight"), &twice, 0), 0);
    const float *after = step(&m, ROWS);
    for (uint32_t i = 0; i < 2 * vocab; i++)
        assert_true(after[i] == 2 * before[i]);
    assert_int_equal(nb_plan_replace(m.plan, name_of("blk.0.ffn_up.weight"), &twice, 0), -EINVAL);
    assert_int_equal(nb_plan_replace(m.plan, name_of("blk.9.ffn_up.weight"), &twice, 0), -ENOENT);
    free((void *)(uintptr_t)twice.data);
    free(before);
    close_machine(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_takes_five_stages_a_layer),
        cmocka_unit_test(op_by_op_gives_the_same),
        cmocka_unit_test(inputs_are_seen),
        cmocka_unit_test(inputs_of_experts_are_seen),
        cmocka_unit_test(faint_experts_have_finite_weights),
        cmocka_unit_test(a_matrix_is_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
