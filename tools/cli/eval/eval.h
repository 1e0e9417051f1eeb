// What `nibble eval` was asked for, and a model that it asks. The units beside this one measure;
// each puts what it found into the JSON object of the model.
#pragma once

#include "tools/cli/cli.h"
#include "tools/report/stats.h"

// A file's bytes; `name` is as it was given.
struct eval_input {
    const char *name;
    char *data;
    size_t len;
};

struct eval_task;

struct eval {
    struct common common;
    struct option_list text_files, task_files;
    const char *reference, *passages_file, *report, *request;
    struct nibble_load_options how; // of a file
    uint32_t window, max_windows, queries, runs;
    uint32_t prompt, gen; // tokens of a request
    float price;          // an hour
    uint64_t seed;        // of the bootstrap
    bool cost;
    // Read before any model is loaded.
    struct eval_input texts[OPTION_LIST_MAX], passages;
    struct eval_task *tasks[OPTION_LIST_MAX];
};

// What is usual; the rest is zero.
struct eval eval_usual(void);
// Reads the inputs that `e` names and measures the models (names, or files that are loaded for it),
// beside the reference where there is one. What was found is {"method", "reference", "models":
// [...]}, as report.h takes it; the caller lets go of it, in any case. An exit status.
int eval_run(struct eval *e, char *const *names, int n, json_t **ret_found);
// What tables and charts call the models, "label": their short names, or what was given where two
// are alike.
void eval_label(json_t *models);

struct eval_model {
    const char *given; // by the user
    struct loaded loaded;
    nibble *connection;
    nibble_session *session;
    struct nibble_model about; // as it was at first
    const char *role;          // "the model", "the reference": what errors call it
    float *vectors;            // of the passages, once they were asked for
};

// Opens the model by name, or loads the file as `how` says. An exit status; closed by
// eval_model_close, in any case.
int eval_model_open(const struct eval *e, const char *given, const char *role,
                    const struct nibble_load_options *how, struct eval_model *ret);
void eval_model_close(struct eval_model *m);
// The text's ids, with what the model wants at a text's begin; freed by the caller. Negative after
// saying why not.
int eval_tokenize(struct eval_model *m, const char *text, size_t len, unsigned flags,
                  int32_t **ret_ids);
// The size in bytes of the file, of all of its parts, or of the folder's files; 0: it is a loaded
// model's name.
uint64_t eval_file_bytes(const struct eval_model *m);

// A row's log-partition and its top token; the former is finite if and only if the row is.
double eval_log_sum_exp(const float *logits, size_t vocab, size_t *ret_top);

// A number; null where it is none.
json_t *eval_number(double value);
// [low, high]; null where there is none.
json_t *eval_interval(struct stats_interval i);
