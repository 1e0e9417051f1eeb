// engine-logits MODEL.gguf TOKENS.bin --precision P --ctx N --window N --threads T --device D
//               --runs RUN,... --embed --generate N -o OUT
// The engine's logits for a file of int32 tokens (little-endian), for the Python oracles to
// compare: windows of N tokens, each in a sequence of its own. OUT has, for each run, float32
// [tokens][vocabulary], with --embed [windows][embedding]; then the N int32 tokens that go on
// after the first window. A run is `whole`: a window after the other; `together`: all in the same
// steps; `normalised`: whole, each vector made 1 long; or a number: whole, by so many tokens at a
// time.
// With no arguments each line of the standard input is one call's, apart by tabs, and is answered
// by `status N`: what a driver has compiled for one call is there for the next.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/model_file.h"
#include "tensor/fail.h"

enum { WORDS = 40 }; // of a call

struct arguments {
    const char *model, *tokens, *out;
    char *runs;
    enum nb_precision precision;
    uint32_t ctx, window, threads, generate;
    bool embed;
};

static int parse(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {{"precision", required_argument, NULL, 'p'},
                                            {"ctx", required_argument, NULL, 'c'},
                                            {"window", required_argument, NULL, 'w'},
                                            {"device", required_argument, NULL, 'd'},
                                            {"threads", required_argument, NULL, 't'},
                                            {"runs", required_argument, NULL, 'r'},
                                            {"generate", required_argument, NULL, 'g'},
                                            {"embed", no_argument, NULL, 'e'},
                                            {NULL, 0, NULL, 0}};
    uint32_t *const numbers[] = {
        ['c'] = &a->ctx, ['w'] = &a->window, ['t'] = &a->threads, ['g'] = &a->generate};
    int c;
    while ((c = getopt_long(argc, argv, "o:", options, NULL)) >= 0)
        if (c == 'o')
            a->out = optarg;
        else if (c == 'd')
            test_device(optarg);
        else if (c == 'r')
            a->runs = optarg;
        else if (c == 'e')
            a->embed = true;
        else if (c == '?' || (c == 'p' && test_precision(optarg, &a->precision) < 0))
            return -EINVAL;
        else if (c != 'p')
            *numbers[c] = (uint32_t)strtoul(optarg, NULL, 10);
    if (argc - optind != 2 || !a->out || !a->ctx)
        return -EINVAL;
    a->window = a->window ? a->window : a->ctx;
    a->model = argv[optind];
    a->tokens = argv[optind + 1];
    return 0;
}

static int32_t *read_tokens(const char *path, uint32_t *ret_n)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    int32_t *tokens = NULL;
    uint32_t n = 0;
    for (int32_t t; fread(&t, sizeof(t), 1, f) == 1; tokens[n++] = t)
        if (n % 4096 == 0) {
            int32_t *more = reallocarray(tokens, n + 4096, sizeof(t));
            if (!more) {
                free(tokens);
                tokens = NULL;
                break;
            }
            tokens = more;
        }
    fclose(f);
    *ret_n = n;
    return tokens;
}

struct window {
    int out;
    off_t at; // of its first row in `out`
    const int32_t *tokens;
    uint32_t n;
    struct nb_sequence *sequence;
};

static void put(struct window *w, off_t at, const void *data, size_t bytes)
{
    if (pwrite(w->out, data, bytes, at) != (ssize_t)bytes)
        perror("engine-logits");
}

static void on_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    struct window *w = user;
    size_t row = vocab * sizeof(float);
    put(w, w->at + (off_t)(position * row), logits, row);
}

static void on_vector(void *user, const float *vector, uint32_t n)
{
    struct window *w = user;
    put(w, w->at, vector, n * sizeof(float));
}

static void on_token(void *user, int32_t token, float logprob)
{
    struct window *w = user;
    put(w, w->at, &token, sizeof(token));
    w->at += (off_t)sizeof(token);
}

static int work(struct nb_model *m)
{
    int rc = 0;
    while (nb_model_has_work(m) && rc >= 0)
        rc = nb_model_step(m, NULL);
    return rc < 0 ? rc : 0;
}

// Gives a window's tokens [from, from + n) to its sequence; they are computed by steps.
static int give(struct window *w, uint32_t from, uint32_t n, struct nb_request r)
{
    int rc = nb_sequence_set(w->sequence, from, w->tokens + from, n);
    r.score_from = from;
    return rc < 0 ? rc : nb_sequence_start(w->sequence, &r);
}

static int run_alone(struct nb_model *m, struct window *w, uint32_t piece,
                     const struct nb_request *r)
{
    int rc = 0;
    for (uint32_t from = 0; from < w->n && rc >= 0; from += piece)
        if ((rc = give(w, from, w->n - from < piece ? w->n - from : piece, *r)) == 0)
            rc = work(m);
    return rc;
}

static int run(struct nb_model *m, const struct arguments *a, const char *name, struct window *w,
               uint32_t n)
{
    const struct nb_request r = {.sampling = NB_SAMPLING_GREEDY,
                                 .score = !a->embed,
                                 .embed = a->embed,
                                 .normalise = !strcmp(name, "normalised")};
    uint32_t piece = (uint32_t)strtoul(name, NULL, 10);
    bool together = !strcmp(name, "together");
    int rc = 0;
    for (uint32_t i = 0; i < n && rc >= 0; i++) {
        if ((rc = nb_sequence_create(m, &w[i], &w[i].sequence)) < 0)
            break;
        if (together) {
            rc = give(&w[i], 0, w[i].n, r);
            continue;
        }
        rc = run_alone(m, &w[i], piece ? piece : w[i].n, &r);
        nb_sequence_destroy(w[i].sequence);
        w[i].sequence = NULL;
    }
    rc = rc < 0 ? rc : work(m);
    for (uint32_t i = 0; i < n; i++)
        nb_sequence_destroy(w[i].sequence);
    return rc;
}

static int generate(struct nb_model *m, struct window *w, uint32_t n)
{
    const struct nb_request r = {
        .sampling = NB_SAMPLING_GREEDY, .max_tokens = n, .ignore_eos = true};
    int rc = nb_sequence_create(m, w, &w->sequence);
    if (rc == 0 && (rc = give(w, 0, w->n, r)) == 0)
        rc = work(m);
    nb_sequence_destroy(w->sequence);
    return rc;
}

// Cuts the tokens into windows, whose rows follow each other in `out` from `at` on; returns where
// they end.
static off_t cut(const struct arguments *a, const struct nb_model_info *info, const int32_t *tokens,
                 uint32_t n, int out, off_t at, struct window *ret)
{
    for (uint32_t first = 0; first < n; first += a->window, ret++) {
        uint32_t len = n - first < a->window ? n - first : a->window;
        *ret = (struct window){.out = out, .at = at, .tokens = tokens + first, .n = len};
        at += (off_t)(sizeof(float) * (a->embed ? info->embedding : (size_t)len * info->vocab));
    }
    return at;
}

static int run_all(struct nb_model *m, const struct arguments *a, const int32_t *tokens, uint32_t n,
                   int out)
{
    struct nb_model_info info;
    nb_model_info(m, &info);
    nb_model_set_events(m, &(struct nb_model_events){.on_logits = on_logits,
                                                     .on_vector = on_vector,
                                                     .on_token = on_token});
    uint32_t n_windows = (n + a->window - 1) / a->window;
    struct window *w = n ? calloc(n_windows, sizeof(*w)) : NULL;
    if (!w)
        return n ? -ENOMEM : -EINVAL;
    off_t at = 0;
    int rc = 0;
    for (char *name = strtok(a->runs, ","); name && rc >= 0; name = strtok(NULL, ",")) {
        at = cut(a, &info, tokens, n, out, at, w);
        rc = run(m, a, name, w, n_windows);
    }
    w[0].at = at;
    if (rc >= 0 && a->generate)
        rc = generate(m, &w[0], a->generate);
    free(w);
    return rc;
}

static int call(int argc, char **argv)
{
    char whole[] = "whole";
    struct arguments a = {.precision = NB_PRECISION_BALANCED, .ctx = 512, .runs = whole};
    if (parse(argc, argv, &a) < 0) {
        fprintf(stderr,
                "usage: engine-logits MODEL.gguf TOKENS.bin [--precision fast|balanced|exact]"
                " [--ctx N] [--window N] [--threads T] [--device D]"
                " [--runs whole|together|normalised|N,...] [--embed] [--generate N] -o OUT\n");
        return 2;
    }
    uint32_t n = 0;
    int32_t *tokens = read_tokens(a.tokens, &n);
    int out = tokens ? open(a.out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666) : -1;
    if (out < 0) {
        fprintf(stderr, "engine-logits: %s: %s\n", tokens ? a.out : a.tokens, strerror(errno));
        return 1;
    }
    struct nb_error error;
    struct test_model t;
    // Nothing is rounded at `exact`, as in the service.
    const enum nb_kv_type kv = a.precision == NB_PRECISION_EXACT ? NB_KV_F32 : NB_KV_F16;
    struct nb_model_options options = {
        .precision = a.precision, .kv_type = kv, .max_context = a.ctx};
    if (test_model_open(a.model, a.threads, &options, &t, &error) < 0) {
        fprintf(stderr, "engine-logits: %s\n", error.text);
        free(tokens);
        close(out);
        return 1;
    }
    int rc = run_all(t.model, &a, tokens, n, out);
    test_model_close(&t);
    free(tokens);
    if (close(out) || rc < 0) {
        fprintf(stderr, "engine-logits: %s\n", strerror(rc < 0 ? -rc : errno));
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return call(argc, argv);
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        char *words[WORDS] = {argv[0]}, *rest = line;
        int n = 1;
        line[strcspn(line, "\n")] = 0;
        while (n < WORDS && (words[n] = strsep(&rest, "\t")))
            n++;
        optind = 0; // from the first word again
        printf("status %d\n", call(n, words));
        fflush(stdout);
    }
    free(line);
    return 0;
}
