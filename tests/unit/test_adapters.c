// Adapters that sequences have: what they add beside doubles, beside the merged model, in company;
// and whatever bytes an adapter has, it is taken or refused with a sentence.
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

#include "engine/adapter.h"
#include "engine/model.h"
#include "tensor/adapters.h"
#include "tensor/image.h"
#include "tests/support/model_file.h"
#include "tests/support/random_model.h"

enum { TOKENS = 40, MOST = 5, WIDTH = 256 };

static struct test_model open_model(int fd, enum nb_precision precision, uint32_t max_rows)
{
    const struct nb_model_options o = {
        .precision = precision, .kv_type = NB_KV_F32, .max_context = 128, .max_rows = max_rows};
    struct test_model t;
    struct nb_error error = {""};
    if (test_model_open_fd(fd, 2, &o, &t, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    return t;
}

static struct nb_adapter *open_adapter(struct nb_model *m, const struct random_model *r,
                                       uint32_t rank, uint32_t type, uint64_t seed, double scale)
{
    struct nb_error error = {""};
    struct nb_image *image;
    struct nb_adapter *a = NULL;
    const int fd = random_adapter_create(r, rank, type, seed);
    assert_true(fd >= 0);
    if (test_image_map(fd, &image, &error) < 0 ||
        nb_adapter_create(m, image, "a", scale, &a, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    return a;
}

// A sequence with an adapter, and the logits of its rows.
struct watch {
    struct nb_sequence *s;
    const struct nb_adapter *adapter;
    float logits[TOKENS][RANDOM_VOCAB];
    float input[TOKENS][WIDTH]; // of the head
};

// In the order of the rows of a step that the head computes.
static struct {
    uint32_t head, n, told;
    float row[MOST * TOKENS][WIDTH];
} seen;

static void on_input(void *user, uint32_t op, const float *x, uint32_t n, uint32_t width,
                     const uint16_t *expert)
{
    if (op != seen.head)
        return;
    assert_true(width == WIDTH && n <= MOST * TOKENS);
    seen.n = n;
    seen.told = 0;
    memcpy(seen.row, x, n * sizeof(seen.row[0]));
}

static void on_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    struct watch *w = user;
    assert_true(vocab == RANDOM_VOCAB && position < TOKENS);
    memcpy(w->logits[position], logits, sizeof(w->logits[0]));
    if (seen.n)
        memcpy(w->input[position], seen.row[seen.told++], sizeof(w->input[0]));
}

// Scores the same text with each of n adapters at once.
static void run(struct nb_model *m, struct watch *w, uint32_t n)
{
    int32_t tokens[TOKENS];
    const struct nb_request r = {.sampling = NB_SAMPLING_GREEDY, .score = true};
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)(nb_random(5, i) % RANDOM_VOCAB);
    nb_model_set_events(m, &(struct nb_model_events){.on_logits = on_logits});
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(nb_sequence_create(m, &w[i], &w[i].s), 0);
        nb_sequence_adapt(w[i].s, w[i].adapter);
        assert_int_equal(nb_sequence_set(w[i].s, 0, tokens, TOKENS), 0);
        assert_int_equal(nb_sequence_start(w[i].s, &r), 0);
    }
    while (nb_model_has_work(m))
        assert_int_equal(nb_model_step(m, NULL), 1);
    for (uint32_t i = 0; i < n; i++)
        nb_sequence_destroy(w[i].s);
}

static double dot(const struct nb_packed *p, uint32_t row, const double *x)
{
    float w[512];
    double sum = 0;
    assert_true(p->cols <= 512);
    nb_layout_dequantize_row(p, row, w);
    for (uint32_t i = 0; i < p->cols; i++)
        sum += (double)w[i] * x[i];
    return sum;
}

// Of one row: what the adapter has added to the plain logits is by * B (A x).
static void expect_added(const struct nb_adapter_pair *pair, const float *x, const float *plain,
                         const float *adapted)
{
    double in[WIDTH], thin[512];
    for (uint32_t i = 0; i < WIDTH; i++)
        in[i] = (double)x[i];
    for (uint32_t k = 0; k < pair->a.rows; k++)
        thin[k] = (double)pair->by * dot(&pair->a, k, in);
    for (uint32_t r = 0; r < RANDOM_VOCAB; r++) {
        const double wanted = (double)plain[r] + dot(&pair->b, r, thin);
        assert_true(fabs((double)adapted[r] - wanted) < 1e-5 * (1 + fabs(wanted)));
    }
}

// Adapters of the head alone, whose inputs and results can be seen, of ranks and types that kernels
// cut differently.
static void beside_doubles(void **unused)
{
    static const struct {
        uint32_t rank, type;
        double scale;
    } of[MOST] = {{1, NB_TYPE_F32, 2},
                  {5, NB_TYPE_F16, -1},
                  {0, 0, 0},
                  {16, NB_TYPE_BF16, 0.5},
                  {67, NB_TYPE_F32, 1}};
    static struct watch w[MOST];
    struct random_model r = RANDOM_MODEL;
    struct test_model t = open_model(random_model_create(&r), NB_PRECISION_EXACT, 64);
    const struct nb_plan *plan = t.model->plan;
    const struct nb_op *head = &plan->ops[plan->n_ops - 1];
    struct nb_adapter *adapters[MOST] = {NULL};
    assert_true(head->kind == NB_OP_LINEAR && head->section == NB_SECTION_HEAD);
    for (uint32_t i = 0; i < MOST; i++) {
        if (!of[i].rank)
            continue;
        adapters[i] = open_adapter(t.model, &r, of[i].rank, of[i].type, 10 + i, of[i].scale);
        for (uint32_t j = 0; j < plan->n_matrices; j++)
            if (&plan->matrices[j] != head->w)
                adapters[i]->pairs[j].a.rows = 0;
        w[i].adapter = adapters[i];
    }
    seen.head = plan->n_ops - 1;
    nb_cpu_capture(t.model->dm, on_input, NULL);
    run(t.model, w, MOST);
    seen.n = 0;
    for (uint32_t i = 0; i < MOST; i++)
        for (uint32_t p = 0; p < TOKENS; p++) {
            const struct nb_adapter_pair *pair = nb_adapter_pair(w[i].adapter, plan, head);
            assert_memory_equal(w[i].input[p], w[2].input[p], sizeof(w[i].input[p]));
            if (pair)
                expect_added(pair, w[i].input[p], w[2].logits[p], w[i].logits[p]);
        }
    for (uint32_t i = 0; i < MOST; i++)
        nb_adapter_destroy(adapters[i]);
    test_model_close(&t);
}

static int merge(const struct random_model *r, int adapter)
{
    const int base = random_model_create(r), image = memfd_create("merged", MFD_CLOEXEC);
    const struct nb_source_file file = {"m.gguf", base}, lora = {"adapter/0.7/a.gguf", adapter};
    struct nb_source *s;
    struct nb_error error = {""};
    uint64_t bytes;
    assert_int_equal(nb_source_open_gguf(&file, 1, &s, &error), 0);
    assert_int_equal(nb_adapters_add(s, &lora, 1, &error), 0);
    assert_int_equal(nb_image_pack(s, image, NULL, &bytes, &error), 0);
    nb_source_close(s);
    close(base);
    return image;
}

// The whole model, every matrix: beside one whose image has B A merged into its weights.
static void beside_merged(void **unused)
{
    static struct watch w[2], merged;
    const struct nb_model_options o = {
        .precision = NB_PRECISION_EXACT, .kv_type = NB_KV_F32, .max_context = 128};
    struct random_model r = RANDOM_MODEL;
    r.type = NB_TYPE_F32;
    const int adapter = random_adapter_create(&r, 7, NB_TYPE_F32, 3), fd = merge(&r, adapter);
    struct test_model t = open_model(random_model_create(&r), NB_PRECISION_EXACT, 64), other = {0};
    struct nb_error error = {""};
    struct nb_image *image;
    struct nb_adapter *a = open_adapter(t.model, &r, 7, NB_TYPE_F32, 3, 0.7);
    w[1].adapter = a;
    run(t.model, w, 2);
    assert_int_equal(nb_image_map(fd, 0, &image, &error), 0);
    other.device = t.device;
    assert_int_equal(nb_model_open(image, t.device, &o, &other.model, &error), 0);
    run(other.model, &merged, 1);
    double most = 0, off = 0, apart = 0;
    for (uint32_t p = 0; p < TOKENS; p++)
        for (uint32_t i = 0; i < RANDOM_VOCAB; i++) {
            const double is = (double)w[1].logits[p][i], wanted = (double)merged.logits[p][i];
            most = fmax(most, fabs(wanted));
            off = fmax(off, fabs(is - wanted));
            apart = fmax(apart, fabs((double)w[0].logits[p][i] - wanted));
        }
    print_message("%.1e of the largest logit beside the merged model\n", off / most);
    assert_true(off < 1e-4 * most && apart > 0.1 * most);
    nb_model_close(other.model);
    nb_adapter_destroy(a);
    test_model_close(&t);
    close(adapter);
    close(fd);
}

// Each part of a split device has its own layers' factors: the bits are those of one device.
static void cut(void **unused)
{
    static const char *const names[] = {"cpu", "cpu:1+cpu", "cpu:1+cpu:1+cpu"};
    static struct watch w[3][2];
    struct random_model r = RANDOM_MODEL;
    for (uint32_t i = 0; i < 3; i++) {
        test_device(names[i]);
        struct test_model t = open_model(random_model_create(&r), NB_PRECISION_BALANCED, 64);
        struct nb_adapter *a = open_adapter(t.model, &r, 7, NB_TYPE_F16, 3, 0.7);
        w[i][1].adapter = a;
        run(t.model, w[i], 2);
        nb_adapter_destroy(a);
        test_model_close(&t);
        for (uint32_t j = 0; j < 2; j++)
            assert_memory_equal(w[i][j].logits, w[0][j].logits, sizeof(w[i][j].logits));
    }
    assert_memory_not_equal(w[0][0].logits, w[0][1].logits, sizeof(w[0][0].logits));
    test_device("cpu");
}

// ---- Refusals

static void refuse(struct nb_model *m, int fd, const char *wanted)
{
    struct nb_error error = {""};
    struct nb_image *image;
    struct nb_adapter *a;
    assert_int_equal(test_image_map(fd, &image, &error), 0);
    assert_true(nb_adapter_create(m, image, "style", 1, &a, &error) < 0);
    if (!strstr(error.text, wanted))
        fail_msg("%s", error.text);
    nb_image_unmap(image);
    close(fd);
}

static void refusals(void **unused)
{
    struct random_model r = RANDOM_MODEL, wide = r, deep = r;
    struct test_model t = open_model(random_model_create_experts(&r, 4, 2), NB_PRECISION_FAST, 64);
    refuse(t.model, random_model_create(&r), "style: its general.type is nothing and not adapter");
    refuse(t.model, random_adapter_create(&r, 4, NB_TYPE_F32, 1),
           "changes blk.0.ffn_gate.weight, which this model has not: it is of another base");
    test_model_close(&t);
    t = open_model(random_model_create(&r), NB_PRECISION_FAST, 64);
    wide.embedding = 512;
    deep.layers = 4;
    refuse(t.model, random_adapter_create(&wide, 4, NB_TYPE_F32, 1), "it is of another base");
    refuse(t.model, random_adapter_create(&deep, 4, NB_TYPE_F32, 1),
           "changes blk.3.attn_q.weight, which this model has not");
    refuse(t.model, random_adapter_create(&r, 32, NB_TYPE_Q8_0, 1), "is of type Q8_0");
    test_model_close(&t);
    wide.heads = 4;
    t = open_model(random_model_create_pooled(&r, true, 1, NULL, 0), NB_PRECISION_FAST, 64);
    refuse(t.model, random_adapter_create(&r, 4, NB_TYPE_F32, 1),
           "its general.architecture is llama and not bert");
    test_model_close(&t);
}

static void damage(uint8_t *bytes, size_t size, uint32_t times, uint64_t *state)
{
    for (uint32_t j = 0; j < times; j++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        bytes[(*state >> 32) % size] = (uint8_t)(*state >> 56);
    }
}

// The file's first bytes, or its image's, are damaged.
static void any_bytes(void **unused)
{
    enum { TRIES = 1600, HEAD = 3000 };
    static uint8_t whole[1 << 20], bytes[1 << 20];
    struct random_model r = {1, 32, 32, 2, 1, 128, 1, NB_TYPE_F32};
    struct test_model t = open_model(random_model_create(&r), NB_PRECISION_FAST, 64);
    uint64_t state = 1;
    uint32_t taken = 0;
    for (uint32_t i = 0; i < TRIES; i++) {
        struct nb_error error = {""};
        struct nb_image *image = NULL;
        struct nb_adapter *a = NULL;
        const bool of_image = i % 2;
        int fd = random_adapter_create(&r, 3, NB_TYPE_F32, 1), packed = -1, rc = 0;
        uint64_t size = 0;
        if (of_image) {
            struct nb_source *s;
            const struct nb_source_file file = {"a.gguf", fd};
            packed = memfd_create("image", MFD_CLOEXEC);
            assert_int_equal(nb_source_open_gguf(&file, 1, &s, &error), 0);
            assert_int_equal(nb_image_pack(s, packed, NULL, &size, &error), 0);
            nb_source_close(s);
        }
        const ssize_t n = pread(of_image ? packed : fd, whole, sizeof(whole), 0);
        assert_true(n > HEAD && n < (ssize_t)sizeof(whole));
        memcpy(bytes, whole, (size_t)n);
        damage(bytes, HEAD, 1 + i % 3, &state);
        assert_int_equal(pwrite(of_image ? packed : fd, bytes, (size_t)n, 0), n);
        rc =
            of_image ? nb_image_map(packed, 0, &image, &error) : test_image_map(fd, &image, &error);
        if (rc == 0)
            rc = nb_adapter_create(t.model, image, "a", 1, &a, &error);
        assert_true(rc == 0 || *error.text);
        if (rc < 0 && image)
            nb_image_unmap(image);
        taken += rc == 0;
        nb_adapter_destroy(a);
        close(fd);
        if (packed >= 0)
            close(packed);
    }
    print_message("%u of %d were taken\n", taken, TRIES);
    assert_true(taken > TRIES / 20 && taken < TRIES * 19 / 20);
    test_model_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(beside_doubles),
                                       cmocka_unit_test(beside_merged), cmocka_unit_test(cut),
                                       cmocka_unit_test(refusals), cmocka_unit_test(any_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
