// The harness of the worker's tests. See the header.
#include "tests/service/worker_harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <time.h>
#include <cmocka.h>

#include "tests/support/random_model.h"

#define PATIENCE_MS 60000
#define N_OF(a)     (sizeof(a) / sizeof((a)[0]))
#define FIRST_FD    64 // above the places that a worker's fds go to

// --- processes

static void become(const char *mode, const char *argument, int link, const int *fds, size_t n_fds)
{
    int moved[8];
    moved[0] = fcntl(link, F_DUPFD_CLOEXEC, FIRST_FD);
    for (size_t i = 0; i < n_fds; i++)
        moved[i + 1] = fcntl(fds[i], F_DUPFD_CLOEXEC, FIRST_FD);
    for (size_t i = 0; i <= n_fds; i++)
        dup2(moved[i], NB_LINK_FD + (int)i);
    close_range(NB_LINK_FD + (unsigned)n_fds + 1, ~0u, 0);
    const char *path = getenv("NIBBLE_WORKER");
    if (path)
        execl(path, "nibble-worker", mode, argument, NULL);
    _exit(127);
}

struct worker worker_spawn(const char *mode, const char *argument, const int *fds, size_t n_fds)
{
    int pair[2];
    assert_non_null(getenv("NIBBLE_WORKER"));
    assert_int_equal(nb_wire_pair(SOCK_SEQPACKET, pair), 0);
    struct worker w = {.pid = fork(), .link = pair[0]};
    assert_true(w.pid >= 0);
    if (w.pid == 0)
        become(mode, argument, pair[1], fds, n_fds);
    close(pair[1]);
    return w;
}

int worker_wait(struct worker *w)
{
    int status;
    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    close(w->link);
    if (w->page)
        munmap(w->page, sizeof(*w->page));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void worker_kill(struct worker *w)
{
    assert_true(w->pid > 0); // 0, where none was started, is this program's whole group
    kill(w->pid, SIGKILL);
    assert_int_equal(worker_wait(w), -SIGKILL);
}

// --- the link

static int receive(struct worker *w, void *packet)
{
    int fds[NB_WIRE_FDS_MAX], rc;
    size_t n_fds = 0;
    while ((rc = nb_wire_recv(w->link, packet, fds, &n_fds)) == -EAGAIN) {
        struct pollfd p = {.fd = w->link, .events = POLLIN};
        assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
    }
    assert_int_equal(n_fds, 0);
    return rc;
}

void worker_expect(struct worker *w, uint32_t type, void *packet)
{
    struct nb_wire_header *h = packet;
    do
        assert_true(receive(w, packet) > 0);
    while (h->type != type);
}

bool worker_link_ended(struct worker *w)
{
    alignas(8) char packet[NB_WIRE_MAX];
    int rc;
    while ((rc = receive(w, packet)) > 0)
        ;
    return rc == 0;
}

void worker_send(struct worker *w, uint32_t type, void *packet, uint32_t size, const int *fds,
                 size_t n_fds)
{
    struct nb_wire_header *h = packet;
    h->type = type;
    h->size = size;
    assert_int_equal(nb_wire_send(w->link, packet, size, fds, n_fds), 0);
}

// --- models

const char *model_path(void)
{
    static char path[4096];
    const char *named = getenv("NIBBLE_MODEL"), *home = getenv("HOME");
    if (named)
        return named;
    snprintf(path, sizeof(path), "%s/.cache/nibble/models/SmolLM2-135M-Instruct.Q4_1.gguf",
             home ? home : "");
    return path;
}

struct worker worker_load(const char *budget, int file, int image)
{
    struct nb_link_file packet = {.files = 1, .name = "model.gguf"};
    struct worker w = worker_spawn("load", budget, (int[]){image, file}, 2);
    worker_send(&w, NB_LINK_FILE, &packet, sizeof(packet), NULL, 0);
    return w;
}

int model_image(int file)
{
    alignas(8) char packet[NB_WIRE_MAX];
    const struct nb_link_loaded *loaded = (const void *)packet;
    int image = memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(image >= 0);
    struct worker w = worker_load("1000000000", file, image);
    worker_expect(&w, NB_LINK_LOADED, packet);
    if (loaded->header.status)
        fail_msg("load: %d %s", loaded->header.status, loaded->text);
    assert_int_equal(worker_wait(&w), 0);
    return image;
}

int random_image(void)
{
    static int image = -1;
    struct random_model r = RANDOM_MODEL;
    r.context = CONTEXT;
    if (image < 0) {
        int file = random_model_create(&r);
        assert_true(file >= 0);
        image = model_image(file);
        close(file);
    }
    return image;
}

int real_image(void)
{
    int file = open(model_path(), O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail_msg("no model at %s: run tools/fetch-model", model_path());
    int image = model_image(file);
    close(file);
    return image;
}

struct worker worker_serve(void)
{
    alignas(8) char packet[NB_WIRE_MAX];
    int page = memfd_create("page", MFD_CLOEXEC);
    assert_int_equal(ftruncate(page, sizeof(struct nb_page)), 0);
    int kept = memfd_create("kept", MFD_CLOEXEC); // nothing
    struct worker w = worker_spawn("serve", "cpu", (int[]){page, kept}, 2);
    w.page = mmap(NULL, sizeof(struct nb_page), PROT_READ, MAP_SHARED, page, 0);
    assert_ptr_not_equal(w.page, MAP_FAILED);
    close(page);
    close(kept);
    worker_expect(&w, NB_LINK_DEVICE, packet);
    return w;
}

struct nb_link_model_ready worker_add_model(struct worker *w, uint32_t model, uint32_t context,
                                            int image)
{
    alignas(8) char packet[NB_WIRE_MAX];
    struct nb_link_model_add add = {
        .model = model, .drafts = 1, .params = {.context = context, .kv_bytes = 64u << 20}};
    snprintf(add.name, sizeof(add.name), "m%u", model);
    snprintf(add.params.precision, sizeof(add.params.precision), "balanced");
    worker_send(w, NB_LINK_MODEL_ADD, &add, sizeof(add), &image, 1);
    worker_expect(w, NB_LINK_MODEL_READY, packet);
    return *(const struct nb_link_model_ready *)(const void *)packet;
}

// --- a client

struct client client_open(struct worker *w, uint32_t model, uint64_t arena_bytes)
{
    static uint64_t keys;
    const size_t bytes = NB_CHANNEL_BYTES(arena_bytes);
    struct client c = {.key = ++keys, .arena_bytes = arena_bytes, .next_id = 1};
    int pair[2];
    c.memfd = memfd_create("channel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(c.memfd, (off_t)bytes), 0);
    assert_int_equal(fcntl(c.memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    assert_int_equal(nb_wire_pair(SOCK_STREAM, pair), 0);
    uint8_t *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c.memfd, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    c.sock = pair[0];
    c.ring = (void *)map;
    c.sq = (void *)(map + NB_CHANNEL_SQ_OFFSET);
    c.cq = (void *)(map + NB_CHANNEL_CQ_OFFSET);
    c.arena = map + NB_CHANNEL_ARENA_OFFSET;
    struct nb_link_channel_add add = {
        .channel = c.key, .arena_bytes = arena_bytes, .model = model, .uid = 1000};
    worker_send(w, NB_LINK_CHANNEL_ADD, &add, sizeof(add), (int[]){c.memfd, pair[1]}, 2);
    close(pair[1]);
    return c;
}

void client_close(struct client *c)
{
    munmap(c->ring, NB_CHANNEL_BYTES(c->arena_bytes));
    close(c->memfd);
    close(c->sock);
}

uint64_t client_put(struct client *c, const void *data, size_t len)
{
    uint64_t at = (c->used + 7) & ~(uint64_t)7;
    assert_true(at + len <= c->arena_bytes);
    if (len)
        memcpy(c->arena + at, data, len);
    c->used = at + len;
    return at;
}

void client_submit_raw(struct client *c, const struct nb_submission *submission)
{
    c->sq[c->sq_tail & (NB_SQ_ENTRIES - 1)] = *submission;
    if (nb_ring_publish(&c->ring->sq_tail, ++c->sq_tail, &c->ring->worker_sleeps))
        nb_wake_send(c->sock);
}

uint64_t client_submit(struct client *c, uint32_t op, uint32_t session, const void *desc,
                       uint32_t desc_len)
{
    const struct nb_submission s = {.op = op,
                                    .user_data = c->next_id++,
                                    .session = session,
                                    .desc = client_put(c, desc, desc_len),
                                    .desc_len = desc_len};
    client_submit_raw(c, &s);
    return s.user_data;
}

bool client_next(struct client *c, struct nb_completion *ret)
{
    while (!nb_ring_may_sleep(&c->ring->cq_tail, c->cq_head, &c->ring->client_sleeps) ||
           atomic_load(&c->ring->cq_tail) == c->cq_head) {
        if (atomic_load(&c->ring->cq_tail) != c->cq_head)
            break;
        struct pollfd p = {.fd = c->sock, .events = POLLIN};
        if (poll(&p, 1, PATIENCE_MS) != 1)
            return false;
        if (nb_wake_drain(c->sock) < 0 && atomic_load(&c->ring->cq_tail) == c->cq_head)
            return false;
    }
    *ret = c->cq[c->cq_head & (NB_CQ_ENTRIES - 1)];
    if (nb_ring_release(&c->ring->cq_head, ++c->cq_head, &c->ring->worker_sleeps))
        nb_wake_send(c->sock);
    return true;
}

bool client_hung_up(struct client *c)
{
    for (;;) {
        struct pollfd p = {.fd = c->sock, .events = POLLIN};
        if (poll(&p, 1, PATIENCE_MS) != 1)
            return false;
        if (nb_wake_drain(c->sock) < 0)
            return true;
    }
}

static void add_token(struct answer *a, const struct nb_completion *completion)
{
    assert_true(a->n_tokens < sizeof(a->tokens) / sizeof(a->tokens[0]));
    a->tokens[a->n_tokens] = completion->token;
    a->logprobs[a->n_tokens++] = completion->logprob;
}

bool client_answer(struct client *c, uint64_t job, size_t most, struct answer *a)
{
    struct nb_completion got;
    while (client_next(c, &got)) {
        assert_int_equal(got.user_data, job);
        if (got.kind == NB_COMPLETION_TOKEN)
            add_token(a, &got);
        if (got.kind == NB_COMPLETION_TOKEN || got.kind == NB_COMPLETION_TEXT) {
            assert_true(a->text_len + got.text_len < sizeof(a->text));
            assert_true(got.b <= NB_TEXT_REASONING);
            a->flagged += got.kind == NB_COMPLETION_TOKEN && got.b;
            memset(a->reasoning + a->text_len, got.b != 0, got.text_len);
            memcpy(a->text + a->text_len, got.text, got.text_len);
            a->text_len += got.text_len;
            a->text[a->text_len] = 0;
        }
        if (got.kind == NB_COMPLETION_REASON) {
            assert_true(strlen(a->reason) + got.text_len < sizeof(a->reason));
            strncat(a->reason, got.text, got.text_len);
        }
        a->progress += got.kind == NB_COMPLETION_PREFILL;
        if (got.kind == NB_COMPLETION_DONE) {
            a->done = got;
            return true;
        }
        if (a->n_tokens >= most)
            return true;
    }
    return false;
}

size_t client_tokenize(struct client *c, const char *text, uint32_t flags, int32_t *ret, size_t max)
{
    struct nb_desc_tokenize d = {
        .text_len = strlen(text), .out_max = (uint32_t)max, .flags = flags};
    struct nb_completion done;
    d.text = client_put(c, text, strlen(text));
    d.out = client_put(c, ret, max * sizeof(*ret));
    uint64_t job = client_submit(c, NB_SUBMIT_TOKENIZE, 0, &d, sizeof(d));
    assert_true(client_next(c, &done));
    assert_int_equal(done.user_data, job);
    assert_int_equal(done.kind, NB_COMPLETION_DONE);
    assert_int_equal(done.status, 0);
    assert_true(done.a <= max);
    memcpy(ret, c->arena + d.out, done.a * sizeof(*ret));
    return done.a;
}

struct nb_desc_generate greedy(struct client *c, const int32_t *tokens, size_t n,
                               uint32_t max_tokens)
{
    return (struct nb_desc_generate){
        .tokens = client_put(c, tokens, n * sizeof(*tokens)),
        .n_tokens = (uint32_t)n,
        .max_tokens = max_tokens,
        .top_p = 1,
        .repeat_penalty = 1,
    };
}

// --- what the tests have in common

struct worker worker;

int start_worker(void **state)
{
    worker = worker_serve();
    struct nb_link_model_ready ready = worker_add_model(&worker, MODEL, CONTEXT, random_image());
    if (ready.header.status)
        fail_msg("model: %d %s", ready.header.status, ready.text);
    assert_int_equal(ready.model, MODEL);
    assert_string_equal(ready.info.architecture, "llama");
    assert_int_equal(ready.info.context, CONTEXT);
    assert_true(ready.info.packed_bytes > 0 && ready.info.kv_bytes > 0);
    return 0;
}

int kill_worker(void **state)
{
    worker_kill(&worker);
    return 0;
}

struct answer *new_answer(void)
{
    struct answer *a = calloc(1, sizeof(*a));
    assert_non_null(a);
    return a;
}

uint64_t generate(struct client *c, uint32_t session, const struct nb_desc_generate *d)
{
    return client_submit(c, NB_SUBMIT_GENERATE, session, d, sizeof(*d));
}

// A greedy continuation of `text`, whole.
struct answer *continue_text(struct client *c, uint32_t session, const char *text,
                             uint32_t max_tokens)
{
    int32_t ids[CONTEXT] = {0};
    struct answer *a = new_answer();
    size_t n = client_tokenize(c, text, NB_TEXT_BOS, ids, N_OF(ids));
    struct nb_desc_generate d = greedy(c, ids, n, max_tokens);
    assert_true(client_answer(c, generate(c, session, &d), ALL, a));
    return a;
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

// Waits for what the worker counts in its page to become `want`.
bool becomes(_Atomic uint32_t *value, uint32_t want)
{
    for (int i = 0; i < 1000 && atomic_load(value) != want; i++)
        sleep_ms(10);
    return atomic_load(value) == want;
}

struct nb_page_channel *page_of(const struct client *c)
{
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++)
        if (atomic_load(&worker.page->channels[i].channel) == c->key)
            return &worker.page->channels[i];
    return NULL;
}

int32_t status_of(struct client *c, uint64_t job)
{
    struct answer *a = new_answer();
    assert_true(client_answer(c, job, ALL, a));
    int32_t status = a->done.status;
    // Whoever is refused is told why.
    assert_true((a->reason[0] != 0) == (status < 0 && status != NIBBLE_E_CANCELLED));
    free(a);
    return status;
}

void refused(struct client *c, uint64_t job, int32_t status, const char *words)
{
    struct answer *a = new_answer();
    assert_true(client_answer(c, job, ALL, a));
    assert_int_equal(a->done.status, status);
    if (!strstr(a->reason, words))
        fail_msg("\"%s\" has not \"%s\"", a->reason, words);
    free(a);
}
