// `nibble`, the command line: a table of verbs. It is an application like any other: all it knows
// of the daemon comes through libnibble.
#include "tools/cli/cli.h"

#include <stdio.h>
#include <string.h>

static const struct verb verbs[] = {
    {"run", "NAME [PROMPT]", "answer a prompt, or chat without one", verb_run},
    {"models", "", "list the loaded models", verb_models},
    {"devices", "", "list the devices", verb_devices},
    {"status", "", "what the daemon holds and has done", verb_status},
    {"top", "", "who holds which memory", verb_top},
    {"load", "FILE", "load a GGUF model file (administrator)", verb_load},
    {"unload", "NAME", "unload a model (administrator)", verb_unload},
    {"tokenize", "NAME TEXT", "the token ids of a text", verb_tokenize},
    {"eval", "NAME|FILE", "perplexity on a text, and KL divergence from a reference", verb_eval},
    {"bench", "NAME", "measure prefill and decode", verb_bench},
    {"doctor", "", "check this machine and the daemon", verb_doctor},
};
#define N_VERBS (sizeof verbs / sizeof verbs[0])

static void print_help(FILE *out)
{
    fprintf(out, "usage: nibble VERB [options]\n\n");
    for (size_t i = 0; i < N_VERBS; i++)
        fprintf(out, "  %-10s %-16s %s\n", verbs[i].name, verbs[i].arguments, verbs[i].summary);
    fprintf(out, "\n`nibble VERB --help` lists a verb's options. --socket PATH or NIBBLE_SOCKET "
                 "name the daemon's\n"
                 "socket; listings and results have --json. Exit status: 0, 1 (it failed), 2 (bad "
                 "usage).\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return CLI_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return CLI_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("nibble %s\n", nibble_version());
        return CLI_OK;
    }
    for (size_t i = 0; i < N_VERBS; i++)
        if (!strcmp(argv[1], verbs[i].name))
            return verbs[i].run(&verbs[i], argc - 1, argv + 1);
    return cli_usage_error("no verb '%s'; `nibble --help` lists them", argv[1]);
}
