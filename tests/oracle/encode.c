// A filter for the oracle: `encode TYPE reference|search plain|size COLS THREADS [importance]`
// turns rows of floats on stdin into blocks on stdout. With `importance` the first row is that.
// `encode time TYPE EFFORT ROWS COLS` prints nanoseconds of processor time a weight for random
// rows.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "quant/encode.h"
#include "tensor/type.h"

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int measure(const char *type, const char *effort, uint64_t rows, uint64_t cols)
{
    const struct nb_type_info *info = nb_type_by_name(type);
    struct nb_encode how = {.type = info ? info->type : NB_TYPE_END,
                            .effort = strcmp(effort, "search") == 0 ? NB_EFFORT_SEARCH
                                                                    : NB_EFFORT_REFERENCE,
                            .by_size = true};
    size_t bytes = nb_encoded_bytes(how.type, rows, cols);
    float *x = malloc(rows * cols * sizeof(*x));
    void *dst = malloc(bytes);
    if (!x || !dst || !bytes)
        exit(2);
    uint64_t state = 1;
    for (uint64_t i = 0; i < rows * cols; i++) {
        float sum = 0;
        for (unsigned k = 0; k < 4; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += (float)(state >> 40) * 0x1p-24f - 0.5f;
        }
        x[i] = 0.05f * sum;
    }
    memset(dst, 1, bytes);
    double before = seconds();
    int rc = nb_encode_rows(&how, x, rows, cols, dst);
    printf("%s %s %.2f ns\n", type, effort,
           (seconds() - before) * 1e9 / (double)rows / (double)cols);
    free(x);
    free(dst);
    return rc < 0;
}

static float *read_all(size_t *ret_n)
{
    size_t size = 1 << 20, n = 0;
    float *x = malloc(size * sizeof(*x));
    for (size_t got; x && (got = fread(x + n, sizeof(*x), size - n, stdin)) > 0;) {
        n += got;
        if (n < size)
            continue;
        float *more = reallocarray(x, size *= 2, sizeof(*x));
        if (!more)
            free(x);
        x = more;
    }
    *ret_n = n;
    return x;
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "time") == 0)
        return measure(argv[2], argv[3], strtoul(argv[4], NULL, 10), strtoul(argv[5], NULL, 10));
    const struct nb_type_info *info = argc > 5 ? nb_type_by_name(argv[1]) : NULL;
    if (!info) {
        fprintf(stderr,
                "usage: encode TYPE reference|search plain|size COLS THREADS [importance]\n");
        return 2;
    }
    size_t n, cols = strtoul(argv[4], NULL, 10);
    float *x = read_all(&n);
    bool weighted = argc == 7;
    struct nb_encode how = {.type = info->type,
                            .effort = strcmp(argv[2], "search") == 0 ? NB_EFFORT_SEARCH
                                                                     : NB_EFFORT_REFERENCE,
                            .by_size = strcmp(argv[3], "size") == 0,
                            .importance = weighted ? x : NULL};
    size_t rows = n / cols - weighted, bytes = nb_encoded_bytes(info->type, rows, cols);
    void *dst = malloc(bytes);
    struct nb_team *team = NULL;
    int rc = dst ? nb_team_create((uint32_t)strtoul(argv[5], NULL, 10), &team) : -1;
    if (rc == 0)
        rc = nb_encode_matrix(&how, team, x + (weighted ? cols : 0), rows, cols, dst);
    if (rc == 0)
        fwrite(dst, 1, bytes, stdout);
    else
        fprintf(stderr, "%s\n", strerror(-rc));
    nb_team_destroy(team);
    free(dst);
    free(x);
    return rc == 0 && fflush(stdout) == 0 ? 0 : 1;
}
