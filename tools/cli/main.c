// `nibble`, the command line: a table of verbs. It is an application like any other: all it knows
// of the daemon comes through libnibble.
#include "tools/cli/cli.h"

#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>

static const struct verb verbs[] = {
    {"run", "NAME [PROMPT]", "answer a prompt, or chat without one", verb_run},
    {"models", "", "list the loaded models", verb_models},
    {"devices", "", "list the devices", verb_devices},
    {"status", "", "what the daemon holds and has done", verb_status},
    {"top", "", "who holds which memory", verb_top},
    {"load", "FILE|DIR", "load a GGUF or a Hugging Face folder (administrator)", verb_load},
    {"convert", "FILE|DIR", "write a model's files as one GGUF file", verb_convert},
    {"compress", "FILE|DIR", "write a model in smaller types, as a job of the service",
     verb_compress},
    {"teach", "NAME", "write what a model makes of a text, for students to learn from", verb_teach},
    {"distill", "FILE|DIR", "train a smaller model by a larger one, as a job of the service",
     verb_distill},
    {"pipeline", "FILE|DIR", "make a model smaller in steps that are judged, to given targets",
     verb_pipeline},
    {"jobs", "", "list the jobs of the service", verb_jobs},
    {"wait", "ID", "wait until a job is finished", verb_wait},
    {"result", "ID", "fetch what a job has made", verb_result},
    {"pause", "ID", "stop a job for a while", verb_pause},
    {"resume", "ID", "go on with a paused or failed job", verb_resume},
    {"cancel", "ID", "end a job and remove it", verb_cancel},
    {"unload", "NAME", "unload a model (administrator)", verb_unload},
    {"render", "NAME [PROMPT]", "what a conversation becomes by the template", verb_render},
    {"tokenize", "NAME TEXT", "the token ids of a text", verb_tokenize},
    {"embed", "NAME TEXT...", "vectors of texts", verb_embed},
    {"eval", "NAME|FILE...", "quality on texts and tasks beside a reference, and cost", verb_eval},
    {"bench", "NAME", "measure prefill and decode", verb_bench},
    {"doctor", "", "check this machine and the daemon", verb_doctor},
};
#define N_VERBS (sizeof(verbs) / sizeof(verbs[0]))

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

// Texts are UTF-8 on either side, whatever the environment says of the terminal. Numbers stay as C
// has them.
static void choose_locale(void)
{
    const char *charset = setlocale(LC_CTYPE, "") ? nl_langinfo(CODESET) : "";
    if (strcmp(charset, "UTF-8") && !setlocale(LC_CTYPE, "C.UTF-8"))
        setlocale(LC_CTYPE, "en_US.UTF-8");
}

static int run_verb(int argc, char **argv)
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

int main(int argc, char **argv)
{
    cli_streams_open();
    choose_locale();
    return cli_streams_close(run_verb(argc, argv));
}
