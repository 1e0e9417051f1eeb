// nibble-worker: one binary with a table of modes, started by the broker with its files at fixed
// numbers (daemon/link.h). It runs what is hostile or may crash (model files, users' text,
// drivers), so that the broker need not.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "daemon/worker/worker.h"

struct nb_mode {
    const char *name, *args;
    int n_args;
    int (*run)(char **args);
};
static const struct nb_mode modes[] = {
    {"probe", "", 0, nb_probe_run},
    {"load", " BUDGET[" NB_LINK_ZEROS "]", 1, nb_load_run},
    {"serve", " DEVICE", 1, nb_serve_run},
    {"job", " store|run", 1, nb_jobs_run},
};
#define N_MODES (sizeof(modes) / sizeof(modes[0]))

static int usage(void)
{
    fprintf(stderr, "nibble-worker is started by nibbled. Modes:\n");
    for (size_t i = 0; i < N_MODES; i++)
        fprintf(stderr, "  nibble-worker %s%s\n", modes[i].name, modes[i].args);
    return 2;
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < N_MODES; i++) {
        if (strcmp(argv[1], modes[i].name) || argc != 2 + modes[i].n_args)
            continue;
        // A terminal's ^C goes to the whole process group: it is the broker's to answer.
        signal(SIGINT, SIG_IGN);
        signal(SIGPIPE, SIG_IGN);
        signal(SIGXFSZ, SIG_IGN);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        return modes[i].run(argv + 2);
    }
    return usage();
}
