// See client_util.h.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/wire/client_util.h"

struct fake *fake;
nibble *connection;
nibble_session *session;
static int first_free_fd;

static int lowest_free_fd(void)
{
    int fd = dup(0);
    close(fd);
    return fd;
}

void client_begin(void)
{
    first_free_fd = lowest_free_fd();
}

int client_set_up(void **state)
{
    fake = fake_start();
    if (nibble_connect(fake->path, &connection) != 0)
        return -1;
    return nibble_session_open(connection, "m0", NULL, &session);
}

int client_tear_down(void **state)
{
    nibble_close(connection);
    int violations = fake->violations;
    fake_stop(fake);
    if (lowest_free_fd() != first_free_fd)
        fprintf(stderr, "an fd was lost\n");
    return violations || lowest_free_fd() != first_free_fd;
}

void on_event(nibble_job *job, const struct nibble_event *event, void *user)
{
    struct collected *got = user;
    assert_false(got->done);
    got->prefills += event->type == NIBBLE_EVENT_PREFILL;
    got->moves += event->type == NIBBLE_EVENT_MOVED;
    if (event->device)
        snprintf(got->devices + strlen(got->devices), sizeof(got->devices) - strlen(got->devices),
                 "%s@%u ", event->device, got->tokens);
    if (event->type == NIBBLE_EVENT_TOKEN) {
        assert_true(got->len + event->text_len < sizeof(got->text));
        memcpy(got->text + got->len, event->text, event->text_len);
        memset(got->reasoning + got->len, event->reasoning, event->text_len);
        got->len += event->text_len;
        got->tokens += event->token >= 0;
        if (event->text_len > got->longest)
            got->longest = event->text_len;
    }
    if (event->type == NIBBLE_EVENT_DONE) {
        got->done = true;
        got->finish = event->finish;
        got->error = event->error;
        got->timings = event->timings;
    }
}

nibble_job *begin_tokens(nibble_session *on, const char *prompt, uint32_t max_tokens,
                         nibble_callback callback, void *user)
{
    int32_t tokens[4096];
    size_t n = strlen(prompt);
    for (size_t i = 0; i < n; i++)
        tokens[i] = (unsigned char)prompt[i];
    struct nibble_prompt given = {.size = sizeof(given), .tokens = tokens, .n_tokens = n};
    struct nibble_generate_options options;
    nibble_generate_options_init(&options, sizeof(options));
    options.max_tokens = max_tokens;
    nibble_job *job = NULL;
    assert_int_equal(nibble_generate(on, &given, &options, callback, user, &job), 0);
    return job;
}

void generate_text(nibble_session *on, const char *prompt, uint32_t max_tokens, char *ret_text)
{
    struct collected got = {0};
    nibble_job *job = begin_tokens(on, prompt, max_tokens, on_event, &got);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_int_equal(got.len, max_tokens);
    memcpy(ret_text, got.text, got.len);
}
