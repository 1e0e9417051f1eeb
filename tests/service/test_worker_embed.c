// nibble-worker's serve mode and jobs that embed: vectors beside the engine itself, whatever
// company they have; what is refused; who waits for whom.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "daemon/worker/worker_config.h"
#include "engine/engine.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tests/service/worker_harness.h"
#include "tests/support/random_model.h"

#define N_OF(a) (sizeof(a) / sizeof((a)[0]))
#define ENCODER 2
#define WIDTH   256
#define TEXTS   32
#define LONGEST 512                        // of the encoder: a step's rows
#define MANY    (NB_SANITIZED ? 200 : 600) // texts of a job that takes a while

static const uint32_t models[] = {MODEL, ENCODER};

static int encoder_image(void)
{
    static int image = -1;
    struct random_model r = RANDOM_MODEL;
    r.context = CONTEXT;
    if (image < 0) {
        int file = random_model_create_pooled(&r, true, 1, NULL, 0);
        assert_true(file >= 0);
        image = model_image(file);
        close(file);
    }
    return image;
}

static int start_both(void **state)
{
    start_worker(state);
    struct nb_link_model_ready ready = worker_add_model(&worker, ENCODER, CONTEXT, encoder_image());
    assert_int_equal(ready.header.status, 0);
    assert_int_equal(ready.info.embeds_only, 1);
    assert_int_equal(ready.info.longest_embedded, LONGEST);
    assert_int_equal(ready.info.embedding, WIDTH);
    return 0;
}

// --- the engine itself, in this process, as the oracle

struct text {
    int32_t ids[LONGEST];
    uint32_t n;
};

static struct text text_of(uint64_t seed)
{
    struct text t = {.n = 1 + (uint32_t)(nb_random(seed, 1000) % 60)};
    for (uint32_t i = 0; i < t.n; i++)
        t.ids[i] = (int32_t)(nb_random(seed, i) % RANDOM_VOCAB);
    return t;
}

static void take_vector(void *user, const float *vector, uint32_t n)
{
    assert_int_equal(n, WIDTH);
    memcpy(user, vector, n * sizeof(*vector));
}

static void oracle(uint32_t model, bool normalise, const struct text *texts, uint32_t n,
                   float (*ret)[WIDTH])
{
    static const struct nb_model_events events = {.on_vector = take_vector};
    const struct nb_model_options options = {
        .precision = NB_PRECISION_BALANCED, .max_context = CONTEXT, .kv_bytes = 64u << 20};
    struct nb_image *image;
    struct nb_device *device;
    struct nb_model *m;
    struct nb_error error = {""};
    int fd = model == MODEL ? random_image() : encoder_image();
    assert_int_equal(nb_image_map(fd, 1, &image, &error), 0);
    assert_int_equal(nb_cpu_device_create(1, NULL, &device), 0);
    assert_int_equal(nb_model_open(image, device, &options, &m, &error), 0);
    nb_model_set_events(m, &events);
    for (uint32_t i = 0; i < n; i++) {
        const struct nb_request request = {
            .embed = true, .normalise = normalise, .sampling = NB_SAMPLING_GREEDY};
        struct nb_sequence *s;
        assert_int_equal(nb_sequence_create(m, ret[i], &s), 0);
        assert_int_equal(nb_sequence_set(s, 0, texts[i].ids, texts[i].n), 0);
        assert_int_equal(nb_sequence_start(s, &request), 0);
        while (nb_model_has_work(m))
            assert_int_equal(nb_model_step(m, NULL), 1);
        nb_sequence_destroy(s);
    }
    nb_model_close(m);
    device->ops->destroy(device);
}

// --- jobs

// A job of ids, all in the arena.
static struct nb_desc_embed describe(struct client *c, const struct text *texts, uint32_t n)
{
    struct nb_desc_embed d = {.n = n, .flags = NB_EMBED_TOKENS};
    uint32_t *lengths = calloc(n, sizeof(*lengths));
    assert_non_null(lengths);
    d.input = client_put(c, NULL, 0);
    for (uint32_t i = 0; i < n; i++) {
        memcpy(c->arena + d.input + d.input_len, texts[i].ids, texts[i].n * sizeof(int32_t));
        lengths[i] = texts[i].n;
        d.input_len += texts[i].n * sizeof(int32_t);
    }
    c->used = d.input + d.input_len;
    d.lengths = client_put(c, lengths, n * sizeof(*lengths));
    memset(lengths, 0, n * sizeof(*lengths));
    d.counts = client_put(c, lengths, n * sizeof(*lengths));
    d.out.offset = client_put(c, NULL, 0);
    c->used = d.out.offset + (uint64_t)n * WIDTH * sizeof(float);
    assert_true(c->used <= c->arena_bytes);
    free(lengths);
    return d;
}

static uint64_t submit(struct client *c, const struct nb_desc_embed *d)
{
    return client_submit(c, NB_SUBMIT_EMBED, 0, d, sizeof(*d));
}

static const void *vectors_of(const struct client *c, const struct nb_desc_embed *d)
{
    return c->arena + d->out.offset;
}

static struct text *many_texts(uint32_t n)
{
    struct text *texts = calloc(n, sizeof(*texts));
    assert_non_null(texts);
    for (uint32_t i = 0; i < n; i++)
        texts[i] = text_of(i);
    return texts;
}

// --- right answers

static void vectors_are_the_engines(void **state)
{
    static float right[TEXTS][WIDTH];
    struct text *texts = many_texts(TEXTS);
    for (size_t m = 0; m < 2; m++)
        for (int plain = 0; plain < 2; plain++) {
            struct client c = client_open(&worker, models[m], ARENA);
            oracle(models[m], !plain, texts, TEXTS, right);
            struct nb_desc_embed d = describe(&c, texts, TEXTS);
            d.flags |= plain ? NB_EMBED_PLAIN : 0;
            assert_int_equal(status_of(&c, submit(&c, &d)), 0);
            assert_memory_equal(vectors_of(&c, &d), right, sizeof(right));
            for (uint32_t i = 0; i < TEXTS; i++) {
                assert_int_equal(((uint32_t *)(void *)(c.arena + d.counts))[i], texts[i].n);
                struct nb_desc_embed one = describe(&c, &texts[i], 1);
                one.flags = d.flags;
                assert_int_equal(status_of(&c, submit(&c, &one)), 0);
                assert_memory_equal(vectors_of(&c, &one), right[i], sizeof(right[i]));
            }
            client_close(&c);
        }
    free(texts);
}

// Letters are tokens of these models, and nothing is added to a text.
static void texts_are_tokenized(void **state)
{
    static float right[3][WIDTH];
    const char *words[] = {"hello", "w", "lighthouse"};
    struct text texts[3] = {0};
    struct client c = client_open(&worker, ENCODER, ARENA);
    struct nb_desc_embed d;
    for (uint32_t i = 0; i < 3; i++)
        texts[i].n = (uint32_t)client_tokenize(&c, words[i], NB_TEXT_BOS, texts[i].ids, LONGEST);
    oracle(ENCODER, true, texts, 3, right);
    d = describe(&c, texts, 3);
    d.flags = 0;
    d.input = client_put(&c, "hellowlighthouse", 16);
    d.input_len = 16;
    d.lengths = client_put(&c, (uint32_t[]){5, 1, 10}, 12);
    assert_int_equal(status_of(&c, submit(&c, &d)), 0);
    assert_memory_equal(vectors_of(&c, &d), right, sizeof(right));
    client_close(&c);
}

// Long ones by the helper's thread, with the same result; and their progress is told.
static void long_batches_tell_their_progress(void **state)
{
    struct text *texts = many_texts(MANY);
    struct client c = client_open(&worker, ENCODER, ARENA);
    struct nb_desc_embed ids, text;
    struct answer *a = new_answer(), *b = new_answer();
    char *letters = calloc(MANY, 60);
    uint32_t at = 0;
    for (uint32_t i = 0; i < MANY; i++)
        for (uint32_t j = 0; j < texts[i].n; j++)
            texts[i].ids[j] = letters[at++] = (char)('a' + (texts[i].ids[j] & 15));
    // 'a' is token 97 of a vocabulary that begins with the bytes.
    c.used = 0;
    ids = describe(&c, texts, MANY);
    text = ids;
    text.flags = 0;
    text.input = client_put(&c, letters, at);
    text.input_len = at;
    text.out.offset = client_put(&c, NULL, 0);
    c.used = text.out.offset + MANY * WIDTH * sizeof(float);
    assert_true(client_answer(&c, submit(&c, &ids), ALL, a));
    assert_true(client_answer(&c, submit(&c, &text), ALL, b));
    assert_int_equal(a->done.status | b->done.status, 0);
    assert_true(a->progress > 10 && b->progress > 10);
    assert_memory_equal(vectors_of(&c, &ids), vectors_of(&c, &text), MANY * WIDTH * sizeof(float));
    free(letters);
    free(texts);
    free(a);
    free(b);
    client_close(&c);
}

static void two_clients_and_a_stream_at_once(void **state)
{
    static float right[TEXTS][WIDTH];
    struct text *texts = many_texts(TEXTS);
    struct client c[2], streaming = client_open(&worker, MODEL, ARENA);
    struct answer *alone = continue_text(&streaming, 0, PROMPT, 60), *beside = new_answer();
    int32_t ids[CONTEXT];
    size_t n = client_tokenize(&streaming, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
    struct nb_desc_generate g = greedy(&streaming, ids, n, 60);
    oracle(MODEL, true, texts, TEXTS, right);
    for (int i = 0; i < 2; i++)
        c[i] = client_open(&worker, MODEL, ARENA);
    struct nb_desc_embed d[] = {describe(&c[0], texts, TEXTS), describe(&c[1], texts, TEXTS)};
    uint64_t stream = generate(&streaming, 1, &g);
    uint64_t jobs[] = {submit(&c[0], &d[0]), submit(&c[1], &d[1])};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(status_of(&c[i], jobs[i]), 0);
        assert_memory_equal(vectors_of(&c[i], &d[i]), right, sizeof(right));
        client_close(&c[i]);
    }
    assert_true(client_answer(&streaming, stream, ALL, beside));
    assert_string_equal(beside->text, alone->text);
    client_close(&streaming);
    free(alone);
    free(beside);
    free(texts);
}

// Jobs of one channel, in order; the second's texts fill the lanes that the first's leave.
static void jobs_of_a_channel_queue(void **state)
{
    static float right[TEXTS][WIDTH];
    struct text *texts = many_texts(TEXTS);
    struct client c = client_open(&worker, ENCODER, ARENA);
    struct nb_desc_embed d[NB_JOBS_MAX / 2];
    oracle(ENCODER, true, texts, TEXTS, right);
    for (size_t i = 0; i < N_OF(d); i++) {
        d[i] = describe(&c, texts, TEXTS);
        submit(&c, &d[i]);
    }
    for (size_t done = 0; done < N_OF(d);) {
        struct nb_completion got;
        assert_true(client_next(&c, &got));
        if (got.kind != NB_COMPLETION_DONE)
            continue;
        assert_int_equal(got.user_data, ++done); // none overtakes
        assert_int_equal(got.status, 0);
    }
    for (size_t i = 0; i < N_OF(d); i++)
        assert_memory_equal(vectors_of(&c, &d[i]), right, sizeof(right));
    client_close(&c);
    free(texts);
}

// --- what is refused

static void wrong_descriptors_are_refused_in_a_sentence(void **state)
{
    struct text t = text_of(1), too_long = {.n = LONGEST};
    struct client c = client_open(&worker, ENCODER, ARENA);
    const struct nb_desc_embed good = describe(&c, &t, 1);
    const uint64_t keep = c.used;
    static const struct {
        uint32_t n, flags;
        uint64_t input, input_len, lengths, counts, out;
        uint32_t region, pad;
        int32_t status;
        const char *words;
    } cases[] = {
        {.n = UINT32_MAX, .words = "n is 4294967295: 1 to 4096 texts"},
        {.n = 4097, .words = "n is 4097: 1 to 4096 texts"},
        {.flags = 8, .words = "flags are 0x9: at most 0x7"},
        {.input = ARENA - 4, .words = "input of"},
        {.input = UINT64_MAX - 3, .words = "not all within the 4194304 of the arena"},
        {.input = 2, .words = "aligned to 4"},
        {.input_len = UINT64_MAX, .status = -E2BIG, .words = "bytes: at most 4194304"},
        {.input_len = 4, .words = "the lengths of 1 texts are"},
        {.lengths = ARENA, .words = "lengths of 4 bytes at 4194304"},
        {.lengths = 2, .words = "aligned to 4"},
        {.counts = ARENA, .words = "counts of 1 at 4194304: not all within"},
        {.counts = 2, .words = "aligned to 4"},
        {.out = ARENA - 1020, .status = -EFAULT, .words = "out: 1024 bytes at 4193284 are not all"},
        {.out = UINT64_MAX - 3, .status = -EFAULT, .words = "within region 0"},
        {.out = 2, .status = -EFAULT, .words = "aligned to 4"},
        {.region = 7, .status = -EFAULT, .words = "within region 7"},
        {.pad = 1, .status = -EFAULT, .words = "within region 0"},
    };
    for (size_t i = 0; i < N_OF(cases); i++) {
        struct nb_desc_embed d = good;
        d.n = cases[i].n ? cases[i].n : d.n;
        d.flags |= cases[i].flags;
        d.input = cases[i].input ? cases[i].input : d.input;
        d.input_len = cases[i].input_len ? cases[i].input_len : d.input_len;
        d.lengths = cases[i].lengths ? cases[i].lengths : d.lengths;
        d.counts = cases[i].counts ? cases[i].counts : d.counts;
        d.out.offset = cases[i].out ? cases[i].out : d.out.offset;
        d.out.region = cases[i].region;
        d.out.pad = cases[i].pad;
        c.used = keep;
        refused(&c, submit(&c, &d), cases[i].status ? cases[i].status : -EINVAL, cases[i].words);
    }
    struct nb_desc_embed d = good;
    d.n = 0;
    refused(&c, submit(&c, &d), -EINVAL, "n is 0: 1 to 4096 texts");
    refused(&c, client_submit(&c, NB_SUBMIT_EMBED, 0, &d, sizeof(d) - 8), -EINVAL,
            "a descriptor of 48 bytes");
    // A million lengths that add up to nothing that fits.
    d = describe(&c, &t, 1);
    d.lengths = client_put(&c, (uint32_t[]){UINT32_MAX}, 4);
    refused(&c, submit(&c, &d), -EINVAL, "the lengths of 1 texts are 17179869180 bytes");
    t.ids[t.n - 1] = -1;
    d = describe(&c, &t, 1);
    refused(&c, submit(&c, &d), -EINVAL, "token -1 at");
    too_long.ids[0] = 5;
    d = describe(&c, &too_long, 1);
    assert_int_equal(status_of(&c, submit(&c, &d)), 0);
    client_close(&c);
}

// The DONE says which text it is about.
static void long_and_empty_texts(void **state)
{
    static float whole[WIDTH], cut[WIDTH];
    struct client c = client_open(&worker, ENCODER, ARENA);
    struct text *texts = many_texts(3);
    struct answer *a = new_answer();
    struct nb_desc_embed d = describe(&c, texts, 3);
    uint32_t *lengths = (void *)(c.arena + d.lengths);
    // The same ids, cut otherwise: the second text is empty.
    lengths[0] += lengths[1];
    lengths[1] = 0;
    assert_true(client_answer(&c, submit(&c, &d), ALL, a));
    assert_int_equal(a->done.status, -EINVAL);
    assert_int_equal(a->done.a, 2);
    assert_non_null(strstr(a->reason, "a text without a token has no vector"));
    free(a);
    a = new_answer();
    int32_t many[LONGEST + 1];
    for (uint32_t i = 0; i <= LONGEST; i++)
        many[i] = (int32_t)(i % 250);
    c.used = 0;
    d = describe(&c, texts, 2);
    d.input = client_put(&c, many, sizeof(many));
    d.input_len = sizeof(many);
    d.lengths = client_put(&c, (uint32_t[]){LONGEST + 1}, 4);
    d.n = 1;
    assert_true(client_answer(&c, submit(&c, &d), ALL, a));
    assert_int_equal(a->done.status, NIBBLE_E_CONTEXT);
    assert_int_equal(a->done.a, 1);
    assert_non_null(strstr(a->reason, "513 tokens are more than the 512 that the model embeds"));
    d.flags |= NB_EMBED_TRUNCATE;
    assert_int_equal(status_of(&c, submit(&c, &d)), 0);
    assert_int_equal(*(uint32_t *)(void *)(c.arena + d.counts), LONGEST + 1);
    memcpy(cut, vectors_of(&c, &d), sizeof(cut));
    d.lengths = client_put(&c, (uint32_t[]){LONGEST}, 4);
    d.input_len -= sizeof(int32_t);
    assert_int_equal(status_of(&c, submit(&c, &d)), 0);
    memcpy(whole, vectors_of(&c, &d), sizeof(whole));
    assert_memory_equal(cut, whole, sizeof(cut));
    free(a);
    free(texts);
    client_close(&c);
}

static void an_encoder_does_nothing_else(void **state)
{
    static const char words[] =
        "the model gives vectors of texts and generates none: use nibble embed";
    struct client c = client_open(&worker, ENCODER, ARENA);
    struct nb_desc_generate g = greedy(&c, (int32_t[]){1, 2, 3}, 3, 5);
    const struct nb_desc_score s = {.n_tokens = 3, .tokens = g.tokens, .out_len = 4096};
    const struct nb_desc_tokenize t = {.flags = NB_TEXT_CHAT};
    refused(&c, generate(&c, 0, &g), NIBBLE_E_UNSUPPORTED, words);
    refused(&c, client_submit(&c, NB_SUBMIT_SCORE, 0, &s, sizeof(s)), NIBBLE_E_UNSUPPORTED, words);
    refused(&c, client_submit(&c, NB_SUBMIT_TOKENIZE, 0, &t, sizeof(t)), NIBBLE_E_UNSUPPORTED,
            words);
    client_close(&c);
}

// Of so many jobs, in whatever order they end.
static int count_successes(struct client *c, int jobs)
{
    struct nb_completion got;
    int successes = 0;
    while (jobs > 0) {
        assert_true(client_next(c, &got));
        jobs -= got.kind == NB_COMPLETION_DONE;
        successes += got.kind == NB_COMPLETION_DONE && got.status == 0;
    }
    return successes;
}

// Copies of what waits are bounded, whatever becomes of the jobs.
static void waiting_texts_are_bounded(void **state)
{
    enum { BYTES = 3 << 20 };
    struct client c = client_open(&worker, ENCODER, 32u << 20);
    struct nb_desc_embed d = {.n = 1, .flags = NB_EMBED_TRUNCATE, .input_len = BYTES};
    char *text = malloc(BYTES);
    assert_non_null(text);
    memset(text, 'x', BYTES);
    d.input = client_put(&c, text, BYTES);
    d.lengths = client_put(&c, (uint32_t[]){BYTES}, 4);
    d.counts = client_put(&c, "abcd", 4);
    d.out.offset = client_put(&c, NULL, 0);
    c.used = d.out.offset + WIDTH * sizeof(float);
    uint64_t first = submit(&c, &d), second = submit(&c, &d);
    refused(&c, submit(&c, &d), NIBBLE_E_QUOTA, "bytes of texts wait already: at most 8388608");
    assert_int_equal(status_of(&c, first), 0);
    const struct nb_submission cancel = {.op = NB_SUBMIT_CANCEL, .target = second};
    client_submit_raw(&c, &cancel);
    int32_t status = status_of(&c, second);
    assert_true(status == NIBBLE_E_CANCELLED || status == 0);
    // The cancelled one counts until the helper has let go of it; then there is room for two again.
    for (int tries = 0, room = 0; room < 2; tries++) {
        assert_true(tries < 100);
        submit(&c, &d);
        submit(&c, &d);
        room = count_successes(&c, 2);
    }
    free(text);
    client_close(&c);
}

// --- ends

static void a_cancelled_job_ends_and_the_next_is_right(void **state)
{
    static float right[TEXTS][WIDTH];
    struct text *texts = many_texts(MANY);
    struct client c = client_open(&worker, ENCODER, ARENA);
    oracle(ENCODER, true, texts, TEXTS, right);
    struct nb_desc_embed large = describe(&c, texts, MANY), small = describe(&c, texts, TEXTS);
    struct nb_completion got;
    uint64_t job = submit(&c, &large), next = submit(&c, &small);
    assert_true(client_next(&c, &got)); // some are done
    assert_int_equal(got.kind, NB_COMPLETION_PREFILL);
    assert_int_equal(got.b, MANY);
    const struct nb_submission cancel = {.op = NB_SUBMIT_CANCEL, .target = job};
    client_submit_raw(&c, &cancel);
    while (got.kind != NB_COMPLETION_DONE)
        assert_true(client_next(&c, &got));
    assert_int_equal(got.user_data, job);
    assert_int_equal(got.status, NIBBLE_E_CANCELLED);
    assert_int_equal(status_of(&c, next), 0);
    assert_memory_equal(vectors_of(&c, &small), right, sizeof(right));
    client_close(&c);
    free(texts);
}

static void a_client_that_goes_leaves_nothing(void **state)
{
    struct text *texts = many_texts(MANY);
    for (int i = 0; i < 20; i++) {
        struct client c = client_open(&worker, models[i % 2], ARENA);
        struct nb_desc_embed d = describe(&c, texts, MANY);
        struct nb_completion got;
        submit(&c, &d);
        if (i % 3)
            assert_true(client_next(&c, &got));
        client_close(&c);
    }
    struct client c = client_open(&worker, MODEL, ARENA);
    struct nb_desc_embed d = describe(&c, texts, 1);
    assert_int_equal(status_of(&c, submit(&c, &d)), 0);
    client_close(&c);
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++)
        assert_int_equal(atomic_load(&worker.page->channels[i].jobs), 0);
    free(texts);
}

// A full ring holds the job, and only it.
static void a_client_that_does_not_read_is_held(void **state)
{
    static float right[TEXTS][WIDTH];
    struct text *texts = many_texts(MANY);
    struct client c = client_open(&worker, ENCODER, ARENA);
    struct client other = client_open(&worker, ENCODER, ARENA);
    struct nb_desc_embed d = describe(&c, texts, MANY), small = describe(&other, texts, TEXTS);
    struct nb_completion got = {0};
    oracle(ENCODER, true, texts, TEXTS, right);
    for (uint32_t i = 0; i < NB_CQ_ENTRIES - NB_JOB_SLOTS - 5; i++) {
        while (c.sq_tail - atomic_load(&c.ring->sq_head) >= NB_SQ_ENTRIES)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        client_submit(&c, NB_SUBMIT_NOP, 0, NULL, 0);
    }
    uint64_t job = submit(&c, &d);
    assert_true(becomes(&c.ring->worker_sleeps, NB_SLEEPS_FOR_ROOM));
    assert_int_equal(status_of(&other, submit(&other, &small)), 0);
    assert_memory_equal(vectors_of(&other, &small), right, sizeof(right));
    while (got.user_data != job || got.kind != NB_COMPLETION_DONE)
        assert_true(client_next(&c, &got));
    assert_int_equal(got.status, 0);
    assert_memory_equal(vectors_of(&c, &d), right, sizeof(right));
    client_close(&c);
    client_close(&other);
    free(texts);
}

static void after_a_death_the_same_bytes(void **state)
{
    struct text *texts = many_texts(MANY);
    const size_t bytes = MANY * WIDTH * sizeof(float);
    struct client c = client_open(&worker, ENCODER, ARENA);
    struct nb_desc_embed d = describe(&c, texts, MANY);
    struct nb_completion got;
    assert_int_equal(status_of(&c, submit(&c, &d)), 0);
    void *whole = malloc(bytes);
    memcpy(whole, vectors_of(&c, &d), bytes);
    submit(&c, &d);
    assert_true(client_next(&c, &got));
    worker_kill(&worker);
    client_close(&c);
    start_both(state);
    c = client_open(&worker, ENCODER, ARENA);
    d = describe(&c, texts, MANY);
    assert_int_equal(status_of(&c, submit(&c, &d)), 0);
    assert_memory_equal(vectors_of(&c, &d), whole, bytes);
    client_close(&c);
    free(whole);
    free(texts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_are_the_engines),
        cmocka_unit_test(texts_are_tokenized),
        cmocka_unit_test(long_batches_tell_their_progress),
        cmocka_unit_test(two_clients_and_a_stream_at_once),
        cmocka_unit_test(jobs_of_a_channel_queue),
        cmocka_unit_test(wrong_descriptors_are_refused_in_a_sentence),
        cmocka_unit_test(long_and_empty_texts),
        cmocka_unit_test(an_encoder_does_nothing_else),
        cmocka_unit_test(waiting_texts_are_bounded),
        cmocka_unit_test(a_cancelled_job_ends_and_the_next_is_right),
        cmocka_unit_test(a_client_that_goes_leaves_nothing),
        cmocka_unit_test(a_client_that_does_not_read_is_held),
        cmocka_unit_test(after_a_death_the_same_bytes),
    };
    return cmocka_run_group_tests_name("worker embed", tests, start_both, kill_worker);
}
