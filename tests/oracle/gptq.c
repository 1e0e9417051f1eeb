// A filter for the oracle: `gptq TYPE ROWS COLS TOKENS PASSES DAMPING THREADS [order] [size]
// [float] [residual] [SHARE | N:M]` reads the matrix [rows][cols] and its inputs [tokens][cols]
// from stdin, then, where named, the float model's inputs [tokens][cols] and the residual
// [tokens][rows]. It writes the encoded matrix to stdout and the report to stderr, with seconds of
// processor time.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "quant/encode.h"
#include "quant/gptq.h"
#include "quant/hessian.h"
#include "tensor/type.h"

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool has(int argc, char **argv, const char *word)
{
    for (int i = 8; i < argc; i++)
        if (strcmp(argv[i], word) == 0)
            return true;
    return false;
}

static float *read_floats(size_t n)
{
    float *x = malloc(n * sizeof(*x));
    if (!x || fread(x, sizeof(*x), n, stdin) != n)
        exit(2);
    return x;
}

static uint16_t *narrow(struct nb_team *team, const float *x, const float *minus, size_t rows,
                        uint32_t cols)
{
    uint16_t *ret = malloc(rows * cols * sizeof(*ret));
    if (!ret)
        exit(2);
    const struct nb_grad_rows from = {x, cols, (uint32_t)rows}, less = {minus, cols, from.n};
    nb_hessian_narrow(team, &from, minus ? &less : NULL, cols, ret);
    return ret;
}

static double *zeros(size_t n)
{
    double *x = calloc(n, sizeof(*x));
    if (!x)
        exit(2);
    return x;
}

// The word that begins with a digit.
static struct nb_sparsity sparsity(int argc, char **argv)
{
    struct nb_sparsity s = {.by = NB_SPARSE_SPARSEGPT};
    for (int i = 8; i < argc; i++)
        if (argv[i][0] >= '0' && argv[i][0] <= '9' &&
            sscanf(argv[i], "%u:%u", &s.keep, &s.of) != 2) {
            s.keep = s.of = 0;
            s.share = atof(argv[i]);
        }
    return s;
}

int main(int argc, char **argv)
{
    const struct nb_type_info *info = argc > 7 ? nb_type_by_name(argv[1]) : NULL;
    if (!info) {
        fprintf(stderr, "usage: gptq TYPE ROWS COLS TOKENS PASSES DAMPING THREADS [WORD]...\n");
        return 2;
    }
    uint32_t rows = (uint32_t)atoi(argv[2]), cols = (uint32_t)atoi(argv[3]);
    size_t tokens = (size_t)atoi(argv[4]);
    float *w = read_floats((size_t)rows * cols), *x = read_floats(tokens * cols);
    float *f = has(argc, argv, "float") ? read_floats(tokens * cols) : NULL;
    float *r = has(argc, argv, "residual") ? read_floats(tokens * rows) : NULL;
    double *h = zeros((size_t)cols * cols), *c = zeros((size_t)cols * cols);
    double *left = zeros((size_t)rows * cols);
    struct nb_team *team = NULL;
    struct nb_factor *factor = NULL;
    struct nb_factor_options options = {(float)atof(argv[6]), has(argc, argv, "order")};
    if (nb_team_create((uint32_t)atoi(argv[7]), &team) < 0)
        exit(2);
    double start = seconds();
    uint16_t *inputs = narrow(team, x, NULL, tokens, cols);
    int rc = nb_hessian_add(team, h, inputs, tokens, cols);
    double summed = seconds();
    uint16_t *more = f ? narrow(team, f, x, tokens, cols) : NULL;
    if (f && rc == 0)
        rc = nb_cross_add(team, c, more, cols, inputs, tokens, cols);
    uint16_t *behind = r ? narrow(team, r, NULL, tokens, rows) : NULL;
    if (r && rc == 0)
        rc = nb_cross_add(team, left, behind, rows, inputs, tokens, cols);
    double crossed = seconds();
    if (rc == 0)
        rc = nb_factor_create(team, h, cols, &options, &factor);
    double factored = seconds();
    struct nb_gptq how = {.type = info->type,
                          .factor = factor,
                          .by_size = has(argc, argv, "size"),
                          .passes = (uint32_t)atoi(argv[5]),
                          .sparse = sparsity(argc, argv),
                          .cross = f ? c : NULL,
                          .residual = r ? left : NULL,
                          .mismatch = f || r ? 1 : 0};
    struct nb_gptq_report report = {0, 0, 0};
    size_t bytes = nb_encoded_bytes(info->type, rows, cols);
    void *dst = malloc(bytes);
    if (rc == 0)
        rc = dst ? nb_gptq_encode(&how, team, w, rows, cols, dst, &report) : -1;
    if (rc < 0)
        fprintf(stderr, "%s\n", strerror(-rc));
    else
        fprintf(stderr,
                "{\"nearest\": %.9g, \"columns\": %.9g, \"refined\": %.9g, \"damping\": %g, "
                "\"dead\": %u, "
                "\"hessian_s\": %.4f, \"factor_s\": %.4f, \"encode_s\": %.4f}\n",
                report.nearest, report.columns, report.refined, (double)nb_factor_damping(factor),
                nb_factor_dead(factor), summed - start, factored - crossed, seconds() - factored);
    if (rc == 0)
        fwrite(dst, 1, bytes, stdout);
    nb_factor_destroy(factor);
    nb_team_destroy(team);
    free(dst);
    free(inputs);
    free(more);
    free(behind);
    free(left);
    free(c);
    free(h);
    free(r);
    free(f);
    free(x);
    free(w);
    return rc < 0 || fflush(stdout) != 0;
}
