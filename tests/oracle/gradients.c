// gradients MODEL.gguf TOKENS.bin logits|vectors OUT LENGTH...
// The float engine's results and gradients for sequences of so many of the file's int32 tokens
// each, for test_gradients.py to compare. OUT has float32 numbers: the logits [rows][vocabulary] or
// the vectors [rows][embedding]; the loss; and the loss's gradient in each
// tensor, whose names and sizes go to stdout, a line each. Of logits the loss is the mean
// cross-entropy of each sequence's next tokens, of vectors the sum of y_i sin(i) over all of their
// numbers, in the order of rows. All is computed again with one thread, and with everything kept:
// another bit ends it with status 1. So do logits that are more than 1e-5 of the largest off when
// tokens come one after the other, and earlier ones' keys and values are kept.
//
// gradients --device NAME TOKENS.bin LENGTH,LENGTH MODEL.gguf...
// The same of several models on a device, beside the CPU: a line for each, with how far results and
// the worst tensor's gradients are off, of the largest. Status 1: over 1e-5, or the first has other
// bits when it is done again.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/device.h"
#include "engine/plan.h"
#include "grad/grad.h"
#include "tensor/image.h"
#include "tests/support/apart.h"
#include "tests/support/pack.h"

#define SEQUENCES 8
#define CONTEXT   128

struct run {
    const struct nb_plan *plan;
    struct nb_grad_sequence sequence[SEQUENCES];
    uint32_t n_sequences, rows;
    bool embeds;
    uint32_t threads, slice; // rows of the head at once
    bool keeps;
    struct nb_device *device; // NULL: the CPU
};

struct result {
    float *numbers; // as OUT has them
    size_t n;
};

static void *need(void *p)
{
    if (p)
        return p;
    fprintf(stderr, "gradients: out of memory\n");
    exit(1);
}

static void need_ok(int rc, const char *what)
{
    if (rc == 0)
        return;
    fprintf(stderr, "gradients: %s: %s\n", what, strerror(-rc));
    exit(1);
}

// --- The loss

// The token that follows a row, or -1.
static int32_t next_token(const struct run *r, uint32_t row)
{
    for (uint32_t i = 0; i < r->n_sequences; i++) {
        if (row + 1 < r->sequence[i].n)
            return r->sequence[i].token[row + 1];
        if (row < r->sequence[i].n)
            return -1;
        row -= r->sequence[i].n;
    }
    return -1;
}

static double cross_entropy(const struct run *r, uint32_t row, const float *logits, float *d)
{
    const uint32_t vocab = r->plan->hp.vocab;
    const int32_t target = next_token(r, row);
    const double share = 1.0 / (r->rows - r->n_sequences);
    double most = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        most = fmax(most, logits[i]);
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - most);
    for (uint32_t i = 0; i < vocab; i++)
        d[i] = target < 0
                   ? 0.0f
                   : (float)(share * (exp(logits[i] - most) / sum - (i == (uint32_t)target)));
    return target < 0 ? 0 : share * (most + log(sum) - logits[target]);
}

static double sines(const struct run *r, uint32_t row, const float *y, float *d)
{
    double loss = 0;
    for (uint32_t i = 0; i < r->plan->hp.embedding; i++) {
        const double s = sin((double)row * r->plan->hp.embedding + i);
        d[i] = (float)s;
        loss += s * y[i];
    }
    return loss;
}

// --- Passes

// An engine with threads of its own.
struct engine {
    struct nb_team *team;
    struct nb_grad *g;
};

static struct engine open_engine(const struct nb_plan *plan, uint32_t threads,
                                 struct nb_device *device)
{
    struct nb_error error = {""};
    struct engine e;
    need_ok(nb_team_create(threads, &e.team), "team");
    need_ok(nb_grad_open_on(plan, e.team, device, &e.g, &error), error.text);
    return e;
}

static void close_engine(const struct engine *e)
{
    nb_grad_close(e->g);
    nb_team_destroy(e->team);
}

// The head forward and backward by slices of rows.
static double head(const struct run *r, struct nb_grad *g, const float *x, float *ret_y,
                   float *ret_d)
{
    const uint32_t e = r->plan->hp.embedding, width = r->embeds ? e : r->plan->hp.vocab;
    float *d = need(malloc((size_t)r->slice * width * sizeof(*d)));
    double loss = 0;
    for (uint32_t at = 0; at < r->rows; at += r->slice) {
        const uint32_t n = r->rows - at < r->slice ? r->rows - at : r->slice;
        float *y = ret_y + (size_t)at * width;
        need_ok(nb_grad_head(g, n, x + (size_t)at * e, r->embeds ? y : NULL, r->embeds ? NULL : y),
                "head");
        for (uint32_t i = 0; i < n; i++)
            loss += (r->embeds ? sines : cross_entropy)(r, at + i, y + (size_t)i * width,
                                                        d + (size_t)i * width);
        need_ok(nb_grad_head_back(g, n, x + (size_t)at * e, r->embeds ? d : NULL,
                                  r->embeds ? NULL : d, ret_d + (size_t)at * e),
                "head, back");
    }
    free(d);
    return loss;
}

static double pass(const struct run *r, struct nb_grad *g, float *ret_y)
{
    const uint32_t layers = r->plan->hp.n_layers;
    const size_t numbers = (size_t)r->rows * r->plan->hp.embedding;
    float *x = need(malloc((layers + 2) * numbers * sizeof(*x)));
    float *d = x + (layers + 1) * numbers;
    struct nb_tape **tape = need(calloc(layers, sizeof(*tape)));
    need_ok(nb_grad_begin(g, x), "begin");
    for (uint32_t i = 0; i < layers; i++) {
        need_ok(r->keeps ? nb_tape_create(g, i, &tape[i]) : 0, "tape");
        need_ok(nb_grad_layer(g, i, x + i * numbers, tape[i], x + (i + 1) * numbers), "layer");
    }
    double loss = head(r, g, x + layers * numbers, ret_y, d);
    for (uint32_t i = layers; i > 0; i--) {
        need_ok(nb_grad_layer_back(g, i - 1, x + (i - 1) * numbers, tape[i - 1], d, true),
                "layer, back");
        nb_tape_destroy(tape[i - 1]);
    }
    need_ok(nb_grad_begin_back(g, d), "begin, back");
    free(tape);
    free(x);
    return loss;
}

static size_t size_of(const struct nb_grad_tensor *t)
{
    return (size_t)t->experts * t->rows * t->cols;
}

static struct result compute(const struct run *r)
{
    struct nb_error error = {""};
    const struct engine e = open_engine(r->plan, r->threads, r->device);
    uint32_t n;
    need_ok(nb_grad_batch(e.g, r->sequence, r->n_sequences, &error), error.text);
    struct nb_grad_tensor *t = nb_grad_tensors(e.g, &n);
    const size_t y = (size_t)r->rows * (r->embeds ? r->plan->hp.embedding : r->plan->hp.vocab);
    struct result out = {.n = y + 1};
    for (uint32_t i = 0; i < n; i++)
        out.n += size_of(&t[i]);
    out.numbers = need(calloc(out.n, sizeof(*out.numbers)));
    float *at = out.numbers + y + 1;
    for (uint32_t i = 0; i < n; at += size_of(&t[i++]))
        t[i].gradient = at;
    out.numbers[y] = (float)pass(r, e.g, out.numbers);
    close_engine(&e);
    return out;
}

// --- The program

static void name_tensors(const struct nb_plan *plan)
{
    const struct engine e = open_engine(plan, 1, NULL);
    uint32_t n;
    const struct nb_grad_tensor *t = nb_grad_tensors(e.g, &n);
    for (uint32_t i = 0; i < n; i++)
        printf("%.*s %u %u %u\n", (int)t[i].name.len, t[i].name.data, t[i].experts, t[i].rows,
               t[i].cols);
    close_engine(&e);
}

static struct nb_plan *open_plan(const char *path)
{
    const struct nb_plan_options options = {.precision = NB_PRECISION_EXACT,
                                            .max_context = CONTEXT};
    struct nb_error error = {""};
    struct nb_image *image;
    struct nb_plan *plan;
    uint64_t bytes;
    const int file = open(path, O_RDONLY | O_CLOEXEC), memory = memfd_create("image", MFD_CLOEXEC);
    need_ok(file < 0 || memory < 0 ? -errno : 0, path);
    need_ok(test_pack(file, memory, NULL, &bytes, &error), error.text);
    need_ok(nb_image_map(memory, 0, &image, &error), error.text);
    need_ok(nb_plan_create(image, &options, &plan, &error), error.text);
    return plan;
}

static void read_sequences(const char *path, char *const *lengths, int n_lengths, struct run *r)
{
    FILE *f = need(fopen(path, "rb"));
    for (int i = 0; i < n_lengths && r->n_sequences < SEQUENCES; i++) {
        const uint32_t n = (uint32_t)strtoul(lengths[i], NULL, 10);
        int32_t *token = need(calloc(n + 1, sizeof(*token)));
        need_ok(fread(token, sizeof(*token), n, f) == n ? 0 : -ENODATA, path);
        r->sequence[r->n_sequences++] = (struct nb_grad_sequence){token, n, 0};
        r->rows += n;
    }
    fclose(f);
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static int compare(const struct result *a, const struct result *b, const char *what)
{
    for (size_t i = 0; i < a->n; i++)
        if (bits_of(a->numbers[i]) != bits_of(b->numbers[i])) {
            fprintf(stderr, "gradients: %s: number %zu of %zu is another\n", what, i, a->n);
            return 1;
        }
    return 0;
}

// --- Token by token

#define PIECES_BOUND 1e-5

// The logits of a sequence.
static void run_pieces(const struct run *r, struct nb_grad *g, const struct nb_grad_sequence *s,
                       float *ret)
{
    const uint32_t e = r->plan->hp.embedding;
    struct nb_grad_cache *cache;
    struct nb_error error = {""};
    float *x = need(malloc(2 * e * sizeof(*x)));
    need_ok(nb_grad_cache_create(g, 1, s->n, &cache), "cache");
    nb_grad_continue(g, cache);
    for (uint32_t i = 0; i < s->n; i++, ret += r->plan->hp.vocab) {
        const struct nb_grad_sequence piece = {s->token + i, 1, i};
        need_ok(nb_grad_batch(g, &piece, 1, &error), error.text);
        need_ok(nb_grad_forward(g, x, e), "forward");
        need_ok(nb_grad_head(g, 1, x, NULL, ret), "head");
    }
    nb_grad_continue(g, NULL);
    nb_grad_cache_destroy(cache);
    free(x);
}

static int check_pieces(const struct run *r, const struct result *whole)
{
    const size_t logits = (size_t)r->rows * r->plan->hp.vocab;
    if (r->embeds)
        return 0;
    float *found = need(malloc(logits * sizeof(*found))), *at = found;
    const struct engine e = open_engine(r->plan, r->threads, NULL);
    for (uint32_t i = 0; i < r->n_sequences; at += r->sequence[i++].n * r->plan->hp.vocab)
        run_pieces(r, e.g, &r->sequence[i], at);
    const double off = apart_of(found, whole->numbers, logits, 0);
    if (off > PIECES_BOUND)
        fprintf(stderr, "gradients: token by token logits are %.1e off\n", off);
    close_engine(&e);
    free(found);
    return off > PIECES_BOUND;
}

// --- On a device

#define DEVICE_BOUND 1e-5

// Where a tensor's gradients are nothing but rounding they are held beside the model's largest.
#define SMALL 0.03

static int compare_device(struct run *r, const char *name, bool again)
{
    const struct result cpu = compute(&(struct run){.plan = r->plan,
                                                    .sequence = {r->sequence[0], r->sequence[1]},
                                                    .n_sequences = r->n_sequences,
                                                    .rows = r->rows,
                                                    .embeds = r->embeds,
                                                    .threads = r->threads,
                                                    .slice = r->slice});
    const struct result found = compute(r), second = again ? compute(r) : found;
    const size_t y = (size_t)r->rows * (r->embeds ? r->plan->hp.embedding : r->plan->hp.vocab);
    const double results = apart_of(found.numbers, cpu.numbers, y, 0);
    const double all = largest_of(cpu.numbers + y + 1, cpu.n - y - 1);
    const struct engine e = open_engine(r->plan, 1, NULL);
    uint32_t n, worst = 0;
    double most = 0;
    const struct nb_grad_tensor *t = nb_grad_tensors(e.g, &n);
    size_t at = y + 1;
    for (uint32_t i = 0; i < n; at += size_of(&t[i++])) {
        const double one =
            apart_of(found.numbers + at, cpu.numbers + at, size_of(&t[i]), SMALL * all);
        worst = one > most ? i : worst;
        most = fmax(most, one);
    }
    printf("%s results %.1e, %u gradients %.1e (%.*s)\n", name, results, n, most,
           (int)t[worst].name.len, t[worst].name.data);
    fflush(stdout);
    close_engine(&e);
    return !(results <= DEVICE_BOUND && most <= DEVICE_BOUND) +
           compare(&found, &second, "a second time");
}

static int beside_device(const char *device, const char *tokens, char *lengths, char **models,
                         int n_models)
{
    struct run r = {.threads = 2, .slice = 64};
    struct nb_error error = {""};
    char *const all[] = {strtok(lengths, ","), strtok(NULL, ",")};
    read_sequences(tokens, all, 2, &r);
    need_ok(nb_device_create(device, &(struct nb_device_options){.threads = 2}, &r.device, &error),
            error.text);
    int failed = 0;
    for (int i = 0; i < n_models; i++) {
        r.plan = open_plan(models[i]);
        r.embeds = r.plan->hp.for_vectors;
        failed += compare_device(&r, models[i], i == 0);
    }
    r.device->ops->destroy(r.device);
    return failed || n_models == 0;
}

int main(int argc, char **argv)
{
    if (argc > 5 && !strcmp(argv[1], "--device"))
        return beside_device(argv[2], argv[3], argv[4], argv + 5, argc - 5);
    if (argc < 6) {
        fprintf(stderr, "usage: gradients MODEL.gguf TOKENS.bin logits|vectors OUT LENGTH...\n"
                        "       gradients --device NAME TOKENS.bin LENGTH,LENGTH MODEL.gguf...\n");
        return 2;
    }
    struct run r = {.plan = open_plan(argv[1]), .threads = 2};
    read_sequences(argv[2], argv + 5, argc - 5, &r);
    r.embeds = !strcmp(argv[3], "vectors");
    r.slice = 50;
    const struct result first = compute(&r);
    r.threads = 1;
    const struct result alone = compute(&r);
    r.threads = 2;
    r.keeps = true;
    const struct result kept = compute(&r);
    int status = compare(&first, &alone, "one thread") + compare(&first, &kept, "all kept") +
                 check_pieces(&r, &first);
    FILE *f = need(fopen(argv[4], "wb"));
    if (fwrite(first.numbers, sizeof(float), first.n, f) != first.n || fclose(f))
        status = 1;
    name_tensors(r.plan);
    return status ? 1 : 0;
}
