// What the verbs of `nibble` share: options, connections, output. A verb is a file with one
// function.
#pragma once

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

enum option_kind { OPTION_FLAG, OPTION_STRING, OPTION_UINT, OPTION_U64, OPTION_SIZE, OPTION_FLOAT };

// One option of a verb; `target` is a bool, const char *, uint32_t, uint64_t, uint64_t or float by
// kind.
struct option_spec {
    const char *name;
    char letter; // 0: none
    enum option_kind kind;
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

// "error: ..." on stderr; returns CLI_FAILED, or CLI_USAGE with cli_usage_error.
int cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
int cli_usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Connects, or says why not and returns NULL.
nibble *cli_connect(const struct common *common);
nibble *cli_connect_admin(const struct common *common);
// Opens a session, or says why not and returns NULL.
nibble_session *cli_session(nibble *connection, const char *model, uint64_t arena_bytes);
// Whether the session's model is on the device still that it was on at first; says so when not,
// because figures of two devices are none. CLI_OK or CLI_FAILED.
int cli_stayed(const nibble_session *session, const char *device);
// Says the connection's last failure: "what: sentence". Returns CLI_FAILED.
int cli_failed(nibble *connection, const char *what, int code);

// Every row of a listing in malloc'ed memory; NULL after saying why not.
struct nibble_model *cli_models(nibble *connection, size_t *ret_n);
struct nibble_device *cli_devices(nibble *connection, size_t *ret_n);
struct nibble_holder *cli_holders(nibble *connection, size_t *ret_n);

// n zeroed elements; never NULL: without memory the command ends with status 1.
void *cli_alloc(size_t n, size_t size);
// The file's bytes with a NUL behind them, malloc'ed; "-" is standard input. NULL after saying why
// not.
char *cli_read_file(const char *path, size_t *ret_len);
// "98.4 MB" in a static buffer of a small ring.
const char *cli_bytes(uint64_t bytes);
double cli_now(void); // seconds, monotonic
int cli_compare_doubles(const void *a, const void *b);
double cli_median(double *values, size_t n); // sorts

// Progress on stderr when it is a terminal: "what  42 %"; done == total ends the line.
void cli_progress(const char *what, uint64_t done, uint64_t total);

// A model by name, or a file that is loaded for this command alone, as `how` says, under a name of
// its own.
struct loaded {
    char name[64];
    nibble *admin; // set when it is to be unloaded
};
int cli_model_or_file(const struct common *common, const char *name_or_file,
                      const struct nibble_load_options *how, struct loaded *ret);
void cli_model_release(struct loaded *l);
// Loads `file` with progress, over a connection that the caller closes. Returns an exit status.
int cli_load(const struct common *common, const char *file, struct nibble_load_options *options,
             nibble **ret_admin);

int verb_load(const struct verb *verb, int argc, char **argv);
int verb_unload(const struct verb *verb, int argc, char **argv);
int verb_models(const struct verb *verb, int argc, char **argv);
int verb_devices(const struct verb *verb, int argc, char **argv);
int verb_status(const struct verb *verb, int argc, char **argv);
int verb_top(const struct verb *verb, int argc, char **argv);
int verb_doctor(const struct verb *verb, int argc, char **argv);
int verb_run(const struct verb *verb, int argc, char **argv);
int verb_tokenize(const struct verb *verb, int argc, char **argv);
int verb_eval(const struct verb *verb, int argc, char **argv);
int verb_bench(const struct verb *verb, int argc, char **argv);
