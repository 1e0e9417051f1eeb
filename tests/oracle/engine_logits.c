// engine-logits MODEL.gguf TOKENS.bin --precision P --ctx N --threads T --device D -o LOGITS.f32
// The engine's logits for a file of int32 tokens (little-endian), as float32 [tokens][vocabulary]:
// windows of N tokens, each in a sequence of its own, for the Python oracles to compare.
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/model_file.h"

struct arguments {
    const char *model, *tokens, *out;
    enum nb_precision precision;
    uint32_t ctx, threads;
};

static int parse(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {{"precision", required_argument, NULL, 'p'},
                                            {"ctx", required_argument, NULL, 'c'},
                                            {"device", required_argument, NULL, 'd'},
                                            {"threads", required_argument, NULL, 't'},
                                            {NULL, 0, NULL, 0}};
    int c;
    while ((c = getopt_long(argc, argv, "o:", options, NULL)) >= 0)
        if (c == 'o')
            a->out = optarg;
        else if (c == 'c')
            a->ctx = (uint32_t)strtoul(optarg, NULL, 10);
        else if (c == 'd')
            test_device(optarg);
        else if (c == 't')
            a->threads = (uint32_t)strtoul(optarg, NULL, 10);
        else if (c != 'p' || test_precision(optarg, &a->precision) < 0)
            return -EINVAL;
    if (argc - optind != 2 || !a->out || !a->ctx)
        return -EINVAL;
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

static void on_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    FILE *out = user;
    if (fwrite(logits, sizeof(float), vocab, out) != vocab)
        perror("engine-logits");
}

static int run(const struct arguments *a, struct nb_model *m, const int32_t *tokens, uint32_t n,
               FILE *out)
{
    nb_model_set_events(m, &(struct nb_model_events){.on_logits = on_logits});
    struct nb_sequence *s;
    int rc = nb_sequence_create(m, out, &s);
    if (rc < 0)
        return rc;
    struct nb_request r = {.sampling = NB_SAMPLING_GREEDY, .score = true};
    for (uint32_t i = 0; i < n && rc >= 0; i += a->ctx) {
        uint32_t window = n - i < a->ctx ? n - i : a->ctx;
        if ((rc = nb_sequence_set(s, 0, tokens + i, window)) < 0 ||
            (rc = nb_sequence_start(s, &r)) < 0)
            break;
        while (nb_model_has_work(m) && rc >= 0)
            rc = nb_model_step(m, NULL);
    }
    nb_sequence_destroy(s);
    return rc < 0 ? rc : 0;
}

int main(int argc, char **argv)
{
    struct arguments a = {.precision = NB_PRECISION_BALANCED, .ctx = 512};
    if (parse(argc, argv, &a) < 0) {
        fprintf(
            stderr,
            "usage: engine-logits MODEL.gguf TOKENS.bin [--precision fast|balanced|exact] [--ctx N]"
            " [--threads T] [--device D] -o LOGITS.f32\n");
        return 2;
    }
    uint32_t n = 0;
    int32_t *tokens = read_tokens(a.tokens, &n);
    FILE *out = tokens ? fopen(a.out, "wb") : NULL;
    if (!out) {
        fprintf(stderr, "engine-logits: %s: %s\n", tokens ? a.out : a.tokens, strerror(errno));
        return 1;
    }
    char error[256];
    struct test_model t;
    struct nb_model_options options = {.precision = a.precision, .max_context = a.ctx};
    if (test_model_open(a.model, a.threads, &options, &t, error, sizeof(error)) < 0) {
        fprintf(stderr, "engine-logits: %s\n", error);
        return 1;
    }
    int rc = run(&a, t.model, tokens, n, out);
    test_model_close(&t);
    free(tokens);
    if (fclose(out) || rc < 0) {
        fprintf(stderr, "engine-logits: %s\n", strerror(rc < 0 ? -rc : errno));
        return 1;
    }
    return 0;
}
