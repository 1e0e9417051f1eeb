// What one answer, a chat and a rendering share: how the model is asked, and what it is told.
#pragma once

#include "tools/cli/cli.h"

// What goes into the model's template beside the prompt.
struct conversation_options {
    const char *system;
    const char *messages_file, *tools_file, *documents_file, *template_file;
    struct option_list variables; // NAME=JSON
    bool has_raw;                 // the verb has --raw, which may be recommended
};
#define CONVERSATION_OPTIONS(c)                                                                    \
    {"system", 0, OPTION_STRING, &(c)->system, "TEXT", "the system message"},                      \
        {"messages",    0,                                                                         \
         OPTION_STRING, &(c)->messages_file,                                                       \
         "FILE",        "the conversation so far, a JSON array of messages (-: standard input)"},  \
        {"tools",          0,      OPTION_STRING,                                                  \
         &(c)->tools_file, "FILE", "tools for the template, a JSON array"},                        \
        {"documents",          0,      OPTION_STRING,                                              \
         &(c)->documents_file, "FILE", "documents for the template, a JSON array"},                \
        {"template-var",                                                                           \
         0,                                                                                        \
         OPTION_LIST(OPTION_LIST_MAX),                                                             \
         &(c)->variables,                                                                          \
         "NAME=JSON",                                                                              \
         "a variable of the template, as enable_thinking=false; what is no JSON is a string"},     \
    {                                                                                              \
        "template", 0, OPTION_STRING, &(c)->template_file, "FILE",                                 \
            "this template in the place of the model's own"                                        \
    }

// A conversation as it grows, with what the template is given beside it.
struct conversation {
    json_t *messages;
    char *tools, *documents, *variables, *template_text; // NULL: none
    bool has_raw;                                        // as in the options
    char *written; // the messages as they were last given to the library
};

// Reads the files and parses the variables: an exit status, after saying what is wrong.
int conversation_init(struct conversation *c, const struct conversation_options *options);
void conversation_finish(struct conversation *c);
// A message at the end. `reasoning` may be NULL. An exit status.
int conversation_add(struct conversation *c, const char *role, const char *content,
                     const char *reasoning);
// Takes the last message away.
void conversation_take_back(struct conversation *c);
// Takes the oldest message of the user away with what answers it; the system's stay. False: no more
// than one is there.
bool conversation_forget(struct conversation *c);
// The shared memory for a session that is asked with it; 0: the usual.
uint64_t conversation_room(struct conversation *c);
// As the library takes it; valid until the next call on the conversation.
struct nibble_chat conversation_chat(struct conversation *c);

// PROMPT and standard input as one text, malloc'ed; NULL: there is neither. An exit status.
// `prompt` NULL: standard input alone; "-" stands for it.
int prompt_read(const char *prompt, const struct conversation_options *about, char **ret_text,
                size_t *ret_len);
// Whether no two of prompt and files are standard input; says which when they are. An exit status.
int prompt_check(const char *prompt, const struct conversation_options *about);
// Whether there is a template to go by; says what can be done when not. An exit status.
int conversation_check(const struct conversation *c, const struct nibble_model *model);

struct run {
    struct common common;
    struct nibble_generate_options generate;
    struct conversation_options about;
    struct option_list stop;
    bool raw, verbose, show_thinking;
    const char *adapter_name; // as it was given; NULL: none
    char adapter[CLI_NAME_SIZE];
    const char *drafts_name; // NULL: the default
    enum nibble_drafts drafts;
    nibble *connection;
    nibble_session *session;
    struct conversation conversation;
};

// Text that grows.
struct text {
    char *data; // NULL: nothing yet
    size_t len, room;
};

struct answer {
    struct text content, reasoning;
    int error; // of this process: it has no memory, or stdout takes no more
    bool cancelled;
    enum nibble_finish finish;
    struct nibble_timings timings;
    uint32_t proposed, accepted; // tokens
};

// From here on Ctrl-C cancels the answer that runs, and does nothing else.
void answer_catch_interrupts(void);
// Asks, and shows the answer as it comes. Returns 0 or the job's error, which is not said yet;
// NIBBLE_E_CANCELLED after Ctrl-C.
int answer_run(struct run *run, const struct nibble_prompt *prompt, struct answer *ret);
// Ends its line, says what ended it, and prints it with --json: an exit status. `r` is
// answer_run's.
int answer_end(struct run *run, const struct answer *a, int rc);
void answer_finish(struct answer *a);

// A chat on the terminal: an exit status.
int chat_run(struct run *run);
