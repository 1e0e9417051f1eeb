// Memory for what a span makes of some rows: one allocation, each buffer at a multiple of 64
// bytes.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grad/room.h"

#define LINE 64

// Lays pieces out one behind the other; without memory it only counts.
struct layout {
    uint8_t *memory;
    size_t at;
};

static void *take(struct layout *l, size_t n, size_t size)
{
    void *p = l->memory ? l->memory + l->at : NULL;
    l->at += (n * size + LINE - 1) / LINE * LINE;
    return p;
}

// The pieces of a tape; returns their bytes. `kept`: of each buffer, whether it is here.
static size_t lay(const struct nb_grad *g, const struct nb_span *s, uint32_t rows, const bool *kept,
                  uint8_t *memory, // NOLINT(*non-const-parameter)
                  struct nb_tape *tape)
{
    const struct nb_hparams *hp = &g->plan->hp;
    const size_t chosen = (size_t)rows * hp->n_chosen;
    struct layout l = {.memory = memory};
    for (uint32_t i = 0; i < s->n_buffers; i++) {
        const size_t n = kept[i] ? nb_buffer_rows(g, s, i, rows) : 0;
        float *data = take(&l, n, s->buffers[i].width * sizeof(float));
        if (n && memory)
            tape->data[i] = data;
    }
    tape->routing.expert = take(&l, chosen, sizeof(*tape->routing.expert));
    tape->routing.place = take(&l, chosen, sizeof(*tape->routing.place));
    tape->routing.token = take(&l, chosen, sizeof(*tape->routing.token));
    tape->routing.first =
        take(&l, hp->n_chosen ? hp->n_experts + 1 : 0, sizeof(*tape->routing.first));
    return l.at;
}

size_t nb_tape_size(const struct nb_grad *g, const struct nb_span *s, uint32_t rows,
                    const bool *kept)
{
    struct nb_tape counted = {.data = NULL};
    return lay(g, s, rows, kept, NULL, &counted);
}

static int set_data(const struct nb_span *s, struct nb_tape *tape)
{
    float **data = realloc(tape->data, s->n_buffers * sizeof(*data));
    if (!data)
        return -ENOMEM;
    memset(data, 0, s->n_buffers * sizeof(*data)); // NOLINT(bugprone-sizeof-expression)
    tape->data = data;
    tape->span = s;
    return 0;
}

int nb_tape_fit(const struct nb_grad *g, const struct nb_span *s, uint32_t rows, const bool *kept,
                struct nb_tape *tape)
{
    if (set_data(s, tape) < 0)
        return -ENOMEM;
    tape->rows = rows;
    const size_t wanted = nb_tape_size(g, s, rows, kept);
    if (wanted > tape->bytes) {
        free(tape->memory);
        tape->memory = aligned_alloc(LINE, wanted);
        tape->bytes = tape->memory ? wanted : 0;
    }
    if (wanted && !tape->memory)
        return -ENOMEM;
    lay(g, s, rows, kept, tape->memory, tape);
    return 0;
}

void nb_tape_finish(struct nb_tape *tape)
{
    free(tape->memory);
    free(tape->data);
}
