// What tests of sessions and jobs share: a fake daemon, a connection and a session for each test,
// and events collected. cmocka.h comes first.
#pragma once

#include "tests/wire/fake.h"

extern struct fake *fake;
extern nibble *connection;
extern nibble_session *session; // on m0; closed by the test's end if the test has not

struct collected {
    char text[8192];
    bool reasoning[8192]; // of each byte of text
    size_t len, longest;
    unsigned tokens, prefills, moves;
    char devices[64]; // that the job moved to, and after how many tokens
    bool done;
    enum nibble_finish finish;
    int error;
    struct nibble_timings timings;
};
void on_event(nibble_job *job, const struct nibble_event *event, void *user); // a struct collected

// A job on the bytes of `prompt` as tokens.
nibble_job *begin_tokens(nibble_session *on, const char *prompt, uint32_t max_tokens,
                         nibble_callback callback, void *user);
// The same to its end; its text must be max_tokens bytes.
void generate_text(nibble_session *on, const char *prompt, uint32_t max_tokens, char *ret_text);

void client_begin(void); // in main: notes which fds there are
int client_set_up(void **state);
int client_tear_down(void **state); // fails when an fd is lost or the fake saw the protocol broken
#define CLIENT_TEST(name) cmocka_unit_test_setup_teardown(name, client_set_up, client_tear_down)
