// `bandwidth [THREADS]`: gigabytes a second at which so many threads together read memory that no
// cache holds, the best of seven passes over 512 MiB. What a decode's speed is held against.
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/cpu/threads.h"

#define BYTES  (UINT64_C(512) << 20)
#define PIECE  (UINT64_C(1) << 20)
#define PASSES 7

struct pass {
    const uint64_t *words;
    atomic_uint next;
    atomic_uint_fast64_t sum; // so that nothing is left out
};

static void read_pieces(void *arg, uint32_t thread)
{
    struct pass *p = arg;
    uint64_t sums[8] = {0};
    for (uint64_t i; (i = atomic_fetch_add(&p->next, 1)) < BYTES / PIECE;) {
        const uint64_t *w = p->words + i * (PIECE / sizeof(*w));
        for (uint64_t k = 0; k < PIECE / sizeof(*w); k += 8)
            for (unsigned j = 0; j < 8; j++)
                sums[j] += w[k + j];
    }
    for (unsigned j = 0; j < 8; j++)
        atomic_fetch_add(&p->sum, sums[j]);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? atoi(argv[1]) : 2;
    struct nb_team *team = NULL;
    uint64_t *words = aligned_alloc(4096, BYTES);
    if (threads < 1 || !words || nb_team_create((uint32_t)threads, &team) < 0) {
        fprintf(stderr, "usage: bandwidth [THREADS]\n");
        return 2;
    }
    memset(words, 1, BYTES);
    double best = 0;
    for (unsigned i = 0; i < PASSES; i++) {
        struct pass p = {.words = words};
        const double start = seconds();
        nb_team_run(team, read_pieces, &p);
        const double speed = 1e-9 * (double)BYTES / (seconds() - start);
        best = speed > best ? speed : best;
    }
    nb_team_destroy(team);
    free(words);
    return printf("%.2f\n", best) < 0;
}
