// A filter for the oracle: `trial awq|smooth|permute TYPE ROWS COLS TOKENS HEAD REPEATS THREADS`
// reads a matrix [rows][cols], inputs of it [tokens][cols], the means of their squares [cols], and
// two sizes of each of COLS / REPEATS channels, whose heads have HEAD: of inputs and of weights. To
// stdout go the scales (or the order, as floats) if they are taken, to stderr what the search says.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/awq.h"
#include "quant/permute.h"
#include "quant/smooth.h"
#include "tensor/type.h"

static float *read_floats(size_t n)
{
    float *x = malloc(n * sizeof(*x));
    if (!x || fread(x, sizeof(*x), n, stdin) != n)
        exit(2);
    return x;
}

static int search(const char *method, struct nb_trial *t, const float *size_x, const float *size_w,
                  uint32_t n, float *ret, struct nb_gain *gain)
{
    uint32_t *order = calloc(n, sizeof(*order));
    int rc = -1;
    if (!strcmp(method, "awq"))
        rc = nb_awq_search(t, size_x, n, ret, gain);
    else if (!strcmp(method, "smooth"))
        rc = nb_smooth_search(t, size_x, size_w, n, ret, gain);
    else if (order)
        rc = nb_permute_search(t, NULL, size_w, size_x, n, order, gain);
    for (uint32_t i = 0; order && i < n && !strcmp(method, "permute"); i++)
        ret[i] = (float)order[i];
    free(order);
    return rc;
}

int main(int argc, char **argv)
{
    const struct nb_type_info *info = argc == 9 ? nb_type_by_name(argv[2]) : NULL;
    if (!info) {
        fprintf(stderr, "usage: trial METHOD TYPE ROWS COLS TOKENS HEAD REPEATS THREADS\n");
        return 2;
    }
    const uint32_t rows = (uint32_t)atoi(argv[3]), cols = (uint32_t)atoi(argv[4]);
    const uint32_t tokens = (uint32_t)atoi(argv[5]), repeats = (uint32_t)atoi(argv[7]);
    const struct nb_joint joint = {.experts = 1,
                                   .n = cols / repeats,
                                   .head = (uint32_t)atoi(argv[6]),
                                   .repeats = repeats,
                                   .scales = true,
                                   .permutes = true};
    float *w = read_floats((size_t)rows * cols), *x = read_floats((size_t)tokens * cols);
    float *mean = read_floats(cols), *size_x = read_floats(joint.n), *size_w = read_floats(joint.n);
    float *ret = calloc(joint.n, sizeof(*ret));
    const struct nb_trial_reader reader = {w, rows, info->type};
    const struct nb_trial_options o = {.joint = &joint,
                                       .cols = cols,
                                       .readers = &reader,
                                       .n_readers = 1,
                                       .x = x,
                                       .rows = tokens / 2,
                                       .held = tokens - tokens / 2,
                                       .mean = mean,
                                       .int8 = !strcmp(argv[1], "smooth")};
    struct nb_team *team = NULL;
    struct nb_trial *t = NULL;
    struct nb_gain gain = {.taken = false};
    int rc = ret ? nb_team_create((uint32_t)atoi(argv[8]), &team) : -1;
    if (rc == 0)
        rc = nb_trial_create(&o, team, &t);
    if (rc == 0)
        rc = search(argv[1], t, size_x, size_w, joint.n, ret, &gain);
    if (rc == 0 && gain.taken)
        fwrite(ret, sizeof(*ret), joint.n, stdout);
    fprintf(stderr, "{\"taken\": %d, \"exponent\": %.9g, \"before\": %.9g, \"after\": %.9g}\n",
            gain.taken, (double)gain.exponent, gain.before, gain.after);
    nb_trial_destroy(t);
    nb_team_destroy(team);
    free(ret);
    free(size_w);
    free(size_x);
    free(mean);
    free(x);
    free(w);
    return rc < 0 || fflush(stdout) != 0;
}
