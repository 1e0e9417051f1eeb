// One part of the check as a process: it is given a time, what it prints is kept, and nothing of it
// outlives it.
#pragma once

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>

enum gpu_end { GPU_EXITED, GPU_KILLED, GPU_TIMED_OUT, GPU_STOPPED };

struct gpu_outcome {
    enum gpu_end end;
    int status; // of the exit, or the signal
    double seconds;
    json_t *rows;      // the lines that were JSON objects
    char failed[4096]; // the first lines that say FAIL
    char last[2048];   // the last lines that were words, but for those that end in "ok"
};

// Set by a signal: what runs is ended, and nothing more is begun.
extern volatile sig_atomic_t gpu_stopped;

// Runs it for `limit` seconds at most; all that it prints goes to the file `log` as well, up to a
// bound. The caller drops `rows`.
void gpu_process(const char *const argv[], double limit, const char *log, struct gpu_outcome *ret);
