// Lines for the administrator, on stderr: with priorities for the journal when stderr is connected
// to it. Each says what happened and what can be done. What a client can cause goes through
// NB_LOG_LIMITED: a flood is one line and a count.
#pragma once

#include <stdint.h>
#include <syslog.h>

struct nb_log_gate {
    uint64_t since_us; // of the last line let through
    unsigned held;     // how many were not
};

void nb_log(int priority, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Whether a line may be written now: at most one in 10 s for each gate. Tells how many were held
// back since.
int nb_log_gate(struct nb_log_gate *gate);

#define NB_LOG_LIMITED(priority, ...)                                                              \
    do {                                                                                           \
        static struct nb_log_gate gate_;                                                           \
        if (nb_log_gate(&gate_))                                                                   \
            nb_log(priority, __VA_ARGS__);                                                         \
    } while (0)
