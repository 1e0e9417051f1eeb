// cc hello.c $(pkg-config --cflags --libs nibble) -o hello && ./hello smol "Why is the sky blue?"
#include <nibble.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    nibble *connection = NULL;
    nibble_session *session;
    nibble_job *job;
    struct nibble_message message = {"user", argc > 2 ? argv[2] : "Hello!"};
    struct nibble_prompt prompt = {.size = sizeof(prompt), .messages = &message, .n_messages = 1};
    struct nibble_event event = {.error = 0};
    struct nibble_generate_options options;
    nibble_generate_options_init(&options, sizeof(options));
    options.max_tokens = 200;
    if (nibble_connect(NULL, &connection) < 0 ||
        nibble_session_open(connection, argc > 1 ? argv[1] : "smol", NULL, &session) < 0 ||
        nibble_generate(session, &prompt, &options, NULL, NULL, &job) < 0) {
        fprintf(stderr, "hello: %s\n", nibble_error(connection));
        return 1;
    }
    while (nibble_job_next(job, &event, -1) == 1)
        fwrite(event.text, 1, event.text_len, stdout);
    if (event.error)
        fprintf(stderr, "hello: %s\n", event.reason);
    nibble_close(connection); // and with it session and job
    return event.error != 0;
}
