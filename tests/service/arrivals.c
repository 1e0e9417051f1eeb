// Clients that come at random: prompts of 1 to 2000 tokens, some sampled, some cancelled in the
// middle. Every answer must be, token for token, the one that the same prompt got alone; and the
// daemon must have run steps that carried prefill and decode rows of different sessions.
//
//   arrivals SOCKET MODEL [JOBS [SEED]]      exit status 0 when all that holds
#include <errno.h>
#include <nibble.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_JOBS   256
#define MAX_PROMPT 2000
#define MAX_GEN    32

struct arrival {
    int32_t prompt[MAX_PROMPT];
    uint32_t prompt_len, gen, cancel_after; // cancel_after 0: runs to its end
    struct nibble_sampling sampling;
    int32_t alone[MAX_GEN];
    uint32_t alone_len;
    // the run under way
    nibble *connection;
    nibble_session *session;
    nibble_job *job;
    int32_t tokens[MAX_GEN];
    uint32_t len;
    int started, done, error;
};

static struct arrival arrivals[MAX_JOBS];
static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static void draw(struct arrival *a, uint32_t vocab)
{
    // Lengths over all orders of magnitude, so that a few are long.
    static const uint32_t limits[] = {4, 32, 200, 600, MAX_PROMPT};
    a->prompt_len = 1 + random_below(limits[random_below(5)]);
    for (uint32_t i = 0; i < a->prompt_len; i++)
        a->prompt[i] = (int32_t)random_below(vocab);
    a->gen = 4 + random_below(MAX_GEN - 4);
    a->cancel_after = random_below(4) ? 0 : 1 + random_below(a->gen - 2);
    a->sampling = (struct nibble_sampling){.top_p = 1, .repeat_penalty = 1};
    if (random_below(2))
        a->sampling = (struct nibble_sampling){.temperature = 0.9f,
                                               .top_k = 40,
                                               .top_p = 0.95f,
                                               .repeat_penalty = 1.1f,
                                               .repeat_window = 64,
                                               .seed = random_below(1u << 30)};
}

static void on_event(nibble_job *job, const struct nibble_event *event, void *user)
{
    struct arrival *a = user;
    if (event->type == NIBBLE_EVENT_TOKEN && a->len < MAX_GEN) {
        a->tokens[a->len++] = event->token;
        if (a->cancel_after && a->len == a->cancel_after)
            nibble_job_cancel(job);
    } else if (event->type == NIBBLE_EVENT_DONE) {
        a->done = 1;
        a->error = event->error;
    }
}

static void start(struct arrival *a, const char *socket, const char *model)
{
    struct nibble_generate_options options;
    nibble_generate_options_init(&options, sizeof(options));
    options.sampling = a->sampling;
    options.max_tokens = a->gen;
    options.ignore_eos = 1;
    struct nibble_prompt prompt = {
        .size = sizeof(prompt), .tokens = a->prompt, .n_tokens = a->prompt_len};
    a->len = 0;
    a->done = a->error = 0;
    a->started = 1;
    int rc = nibble_connect(socket, &a->connection);
    if (rc < 0)
        fail("connect: %s", nibble_strerror(rc));
    if (nibble_session_open(a->connection, model, NULL, &a->session) < 0 ||
        nibble_generate(a->session, &prompt, &options, on_event, a, &a->job) < 0)
        fail("start: %s", nibble_error(a->connection));
}

static void finish(struct arrival *a)
{
    if (a->error && !(a->cancel_after && a->error == NIBBLE_E_CANCELLED))
        fail("a job failed: %s", nibble_strerror(a->error));
    nibble_job_free(a->job);
    nibble_session_close(a->session);
    nibble_close(a->connection);
    a->connection = NULL;
}

static void run_alone(struct arrival *a, const char *socket, const char *model)
{
    uint32_t cancel_after = a->cancel_after;
    a->cancel_after = 0;
    start(a, socket, model);
    int rc = nibble_job_wait(a->job);
    if (rc < 0)
        fail("alone: %s", nibble_strerror(rc));
    finish(a);
    memcpy(a->alone, a->tokens, sizeof(a->alone));
    a->alone_len = a->len;
    a->cancel_after = cancel_after;
    a->started = 0;
}

static void dispatch_ready(struct pollfd *fds, uint32_t n, uint32_t *running)
{
    for (uint32_t i = 0; i < n; i++) {
        struct arrival *a = &arrivals[i];
        if (fds[i].fd < 0 || !fds[i].revents)
            continue;
        int rc = nibble_dispatch(a->connection, 0);
        if (rc < 0)
            fail("dispatch: %s", nibble_error(a->connection));
        if (a->done) {
            finish(a);
            --*running;
        }
    }
}

static void run_together(const char *socket, const char *model, uint32_t n)
{
    struct pollfd fds[MAX_JOBS];
    uint32_t next = 0, running = 0;
    while (next < n || running) {
        // A new client comes when the last wait was short enough, several at a time at the start.
        if (next < n && (running < 3 || random_below(3) == 0)) {
            start(&arrivals[next++], socket, model);
            running++;
        }
        for (uint32_t i = 0; i < n; i++)
            fds[i] = (struct pollfd){
                arrivals[i].connection ? nibble_get_fd(arrivals[i].connection) : -1, POLLIN, 0};
        if (poll(fds, n, next < n ? (int)random_below(40) : -1) < 0 && errno != EINTR)
            fail("poll: %s", strerror(errno));
        dispatch_ready(fds, n, &running);
    }
}

static void compare(const struct arrival *a, uint32_t i)
{
    uint32_t least = a->cancel_after ? a->cancel_after : a->alone_len;
    if (a->len < least || a->len > a->alone_len)
        fail("job %u: %u tokens, alone %u", i, a->len, a->alone_len);
    for (uint32_t t = 0; t < a->len; t++)
        if (a->tokens[t] != a->alone[t])
            fail("job %u, token %u: %d, alone %d", i, t, a->tokens[t], a->alone[t]);
}

static struct nibble_status read_status(const char *socket, const char *model, uint32_t *ret_vocab)
{
    nibble *connection;
    nibble_session *session = NULL;
    struct nibble_status status;
    int rc = nibble_connect(socket, &connection);
    if (rc < 0)
        fail("%s: %s", socket, nibble_strerror(rc));
    if (nibble_get_status(connection, &status) < 0 ||
        nibble_session_open(connection, model, NULL, &session) < 0)
        fail("%s", nibble_error(connection));
    *ret_vocab = nibble_session_model(session)->vocab;
    nibble_session_close(session);
    nibble_close(connection);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        fail("usage: arrivals SOCKET MODEL [JOBS [SEED]]");
    uint32_t n = argc > 3 ? (uint32_t)atoi(argv[3]) : 24, vocab;
    random_state = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
    if (n < 2 || n > MAX_JOBS)
        fail("JOBS: 2 to %d", MAX_JOBS);
    read_status(argv[1], argv[2], &vocab);
    for (uint32_t i = 0; i < n; i++) {
        draw(&arrivals[i], vocab);
        run_alone(&arrivals[i], argv[1], argv[2]);
    }
    struct nibble_status before = read_status(argv[1], argv[2], &vocab);
    run_together(argv[1], argv[2], n);
    struct nibble_status after = read_status(argv[1], argv[2], &vocab);
    uint32_t cancelled = 0;
    for (uint32_t i = 0; i < n; i++) {
        compare(&arrivals[i], i);
        cancelled += arrivals[i].cancel_after != 0;
    }
    if (after.mixed_steps == before.mixed_steps)
        fail("no step carried prefill and decode rows of different sessions");
    printf("%u jobs (%u cancelled) as alone; %llu steps, %llu of them mixed\n", n, cancelled,
           (unsigned long long)(after.steps - before.steps),
           (unsigned long long)(after.mixed_steps - before.mixed_steps));
    return 0;
}
