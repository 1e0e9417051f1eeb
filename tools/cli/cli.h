// What the verbs of `nibble` share: options, connections, output. A verb is a file with one
// function.
#pragma once

#include <jansson.h>
#include <nibble.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Exit statuses of the contract.
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct verb {
    const char *name;
    const char *arguments; // as the usage line shows them
    const char *summary;
    int (*run)(const struct verb *verb, int argc, char **argv);
};

// What an option takes: its type, the range of its number (OPTION_LIST: how often it may be given).
struct option_kind {
    enum { FLAG, STRING, LIST, UINT, U64, SIZE, FLOAT } type;
    double min, max;
};
// clang-format off
#define OPTION_FLAG            {FLAG, 0, 0}
#define OPTION_STRING          {STRING, 0, 0}
#define OPTION_LIST(most)      {LIST, 0, most}
#define OPTION_UINT(min, max)  {UINT, min, max}
#define OPTION_U64             {U64, 0, 0}
#define OPTION_SIZE            {SIZE, 0, 0}
#define OPTION_FLOAT(min, max) {FLOAT, min, max}
// clang-format on

// What an option that may be repeated has gathered.
#define OPTION_LIST_MAX 32
struct option_list {
    const char *items[OPTION_LIST_MAX];
    size_t n;
};

// One option of a verb; `target` is a bool, const char *, struct option_list, uint32_t, uint64_t,
// uint64_t or float by type.
struct option_spec {
    const char *name;
    char letter; // 0: none
    struct option_kind kind;
    void *target;
    const char *value; // the value's name in the help
    const char *help;
};

// Options that every verb has.
struct common {
    const char *socket; // NULL: the default
    bool json;
};

// Parses argv by `specs` (ended by a NULL name) and the common options; the rest are arguments, in
// ret_args. Returns their number, or a negative value when the verb is over: -1 - exit status.
int cli_parse(const struct verb *verb, const struct option_spec *specs, struct common *common,
              int argc, char **argv, int min_args, int max_args, char ***ret_args);
#define CLI_EXIT(parsed) (-1 - (parsed))
// A number with an optional decimal (k, M, G) or binary (Ki, Mi, Gi) suffix; -EINVAL.
int cli_parse_size(const char *text, uint64_t *ret);

// Opens what is closed of the standard streams, so that no socket of ours takes its number. First
// thing in main.
void cli_streams_open(void);
// Writes out what stdout still holds: the verb's status, or CLI_FAILED after saying why it cannot
// be written. Last thing in main.
int cli_streams_close(int status);
// A write to stdout has failed with this errno; cli_streams_close tells of it.
void cli_streams_failed(int error);

// "error: ..." on stderr, without control characters; returns CLI_FAILED, or CLI_USAGE with
// cli_usage_error.
int cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
int cli_usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Connects, or says why not and returns NULL.
nibble *cli_connect(const struct common *common);
nibble *cli_connect_admin(const struct common *common);
// Opens a session, or says why not and returns NULL. `adapter`: the name of one, or NULL.
nibble_session *cli_session(nibble *connection, const char *model, const char *adapter,
                            uint64_t arena_bytes, enum nibble_drafts drafts);
// Its arena_bytes for a text of so many bytes: as much again for every four of them (an id each),
// and 0, the usual, for short ones.
uint64_t cli_room(uint64_t text_bytes);
// Whether the session's model is on the device still that it was on at first; says so when not,
// because figures of two devices are none. CLI_OK or CLI_FAILED.
int cli_stayed(const nibble_session *session, const char *device);
// The text's ids by the session's model, malloc'ed; flags: NIBBLE_TOKENIZE_*. How many; negative
// after saying why not, where `what` is what was asked.
int cli_tokenize(nibble *connection, nibble_session *session, const char *what, const char *text,
                 size_t len, unsigned flags, int32_t **ret_ids);
// What follows "the model" of one that has no template to go by, with the reason; returns `ret`.
#define CLI_LACK_SIZE 256
const char *cli_template_lack(const struct nibble_model *model, char ret[CLI_LACK_SIZE]);
// Whether the model generates; says so when it only embeds. CLI_OK or CLI_FAILED.
int cli_generates(const struct nibble_model *model);
// Says the connection's last failure: "what: sentence". Returns CLI_FAILED.
int cli_failed(nibble *connection, const char *what, int code);

// Every row of a listing in malloc'ed memory; NULL after saying why not.
struct nibble_model *cli_models(nibble *connection, size_t *ret_n);
// The model of that name as the daemon lists it; `name` is "" where it lists none.
struct nibble_model cli_find_model(nibble *connection, const char *name);
struct nibble_device *cli_devices(nibble *connection, size_t *ret_n);
struct nibble_holder *cli_holders(nibble *connection, size_t *ret_n);
struct nibble_finding *cli_findings(nibble *connection, size_t *ret_n);
struct nibble_jobs_row *cli_jobs(nibble *connection, size_t *ret_n);

// n zeroed elements; never NULL: without memory the command ends with status 1.
void *cli_alloc(size_t n, size_t size);
// The file's bytes, 64 MiB at most, with a NUL behind them, malloc'ed; "-" is standard input. NULL
// after saying why not.
char *cli_read_file(const char *path, size_t *ret_len);
// Prints JSON and a newline, and lets go of the value (NULL: there was no memory for it). An exit
// status.
int cli_print_json(json_t *value, size_t flags);
// "98.4 MB" in a static buffer of a small ring.
const char *cli_bytes(uint64_t bytes);
double cli_now(void); // seconds, monotonic
int cli_compare_doubles(const void *a, const void *b);
double cli_median(double *values, size_t n); // sorts

// Progress on stderr when it is a terminal: "what  42 %"; done == total ends the line.
void cli_progress(const char *what, uint64_t done, uint64_t total);

// Before work whose result a file will be: whether it can be written there. A folder, a device or a
// symbolic link is never replaced; what else is there is with `force`. An exit status.
int cli_output_check(const char *out, bool force);
// A file that appears whole or not at all: it is written beside `out`, under a name of its own,
// which is removed when a signal ends the process. One at a time. Without `force` none is replaced.
// An exit status.
int cli_output_open(const char *out, bool force, int *ret_fd);
// One whose writing takes long: OUT.part, which stays when it is interrupted, is opened for reading
// too, at its begin, with what an earlier call has left in it. No other process has it meanwhile.
int cli_output_resume(const char *out, bool force, int *ret_fd);
// Closes it. With CLI_OK it is made durable and gets its name; with any other `status`, or where
// that fails, it is removed (OUT.part stays). The exit status then.
int cli_output_close(const char *out, bool force, int fd, int status);

// A model's name as it was given, in the form in which names are compared (NFC); or the one that a
// file without a --name gets. An exit status.
#define CLI_NAME_SIZE 64 // with the NUL
int cli_name(const char *given, char ret[CLI_NAME_SIZE]);
int cli_name_of_file(const char *file, char ret[CLI_NAME_SIZE]);

// A model by name, or a file that is loaded for this command alone, as `how` says, under a name of
// its own.
struct loaded {
    char name[CLI_NAME_SIZE];
    nibble *admin; // set when it is to be unloaded
};
int cli_model_or_file(const struct common *common, const char *name_or_file,
                      const struct nibble_load_options *how, struct loaded *ret);
void cli_model_release(struct loaded *l);
// Loads the file or folder `path` with progress, over a connection that the caller closes. Returns
// an exit status.
int cli_load(const struct common *common, const char *path, struct nibble_load_options *options,
             nibble **ret_admin);

int verb_load(const struct verb *verb, int argc, char **argv);
int verb_convert(const struct verb *verb, int argc, char **argv);
int verb_compress(const struct verb *verb, int argc, char **argv);
int verb_teach(const struct verb *verb, int argc, char **argv);
int verb_distill(const struct verb *verb, int argc, char **argv);
int verb_pipeline(const struct verb *verb, int argc, char **argv);
int verb_jobs(const struct verb *verb, int argc, char **argv);
int verb_cancel(const struct verb *verb, int argc, char **argv);
int verb_pause(const struct verb *verb, int argc, char **argv);
int verb_resume(const struct verb *verb, int argc, char **argv);
int verb_wait(const struct verb *verb, int argc, char **argv);
int verb_result(const struct verb *verb, int argc, char **argv);
int verb_unload(const struct verb *verb, int argc, char **argv);
int verb_models(const struct verb *verb, int argc, char **argv);
int verb_devices(const struct verb *verb, int argc, char **argv);
int verb_status(const struct verb *verb, int argc, char **argv);
int verb_top(const struct verb *verb, int argc, char **argv);
int verb_doctor(const struct verb *verb, int argc, char **argv);
int verb_run(const struct verb *verb, int argc, char **argv);
int verb_render(const struct verb *verb, int argc, char **argv);
int verb_tokenize(const struct verb *verb, int argc, char **argv);
int verb_embed(const struct verb *verb, int argc, char **argv);
int verb_eval(const struct verb *verb, int argc, char **argv);
int verb_bench(const struct verb *verb, int argc, char **argv);
