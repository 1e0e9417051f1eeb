// tune MODEL.gguf [KEY=VALUE]... train=FILE... held=FILE...
// End-to-end tuning by itself, for figures (docs/numbers.md): every matrix is encoded to `type`
// (the embedding to `embedding`) with searched scales, tuned on windows of the files `train`, and
// measured on those of each file `held`. A line of JSON for each step goes to stderr, the KL before
// and after, with a bound of 95 %, to stdout. `start=FILE.gguf` begins with that file's matrices
// instead (error feedback's, say), and `out=FILE.gguf` gets a copy of it with what tuning made of
// them, vectors included.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "engine/plan.h"
#include "engine/text/tokenizer.h"
#include "grad/grad.h"
#include "quant/encode.h"
#include "quant/tune.h"
#include "tensor/image.h"
#include "tensor/type.h"
#include "tests/support/pack.h"

#define FILES 16

struct run {
    const char *type, *embedding, *out;
    double steps, batch, length, windows, held_windows, code, scale, vector, seed, threads, memory;
    double layer_steps, layer_code, layer_scale, layer_vector, fixes_embedding,
        reference; // encoding without a search
    struct nb_source_file train[FILES], held[FILES];
    uint32_t n_train, n_held;
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_team *team;
    struct nb_tokenizer *tokenizer;
    struct nb_tune *tune;
    struct nb_tune_matrix *matrices;
    uint32_t n_matrices;
    struct nb_source *start; // or NULL
    struct nb_source_file start_file;
    struct nb_windows train_windows, of_held[FILES];
};

static void *need(void *p)
{
    if (p)
        return p;
    fprintf(stderr, "tune: out of memory\n");
    exit(1);
}

static void need_ok(int rc, const char *what)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "tune: %s: %s\n", what, strerror(-rc));
    exit(1);
}

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// --- Arguments

static bool take_number(struct run *r, const char *key, const char *value)
{
    const struct {
        const char *key;
        double *to;
    } keys[] = {{"steps", &r->steps},
                {"batch", &r->batch},
                {"length", &r->length},
                {"windows", &r->windows},
                {"held-windows", &r->held_windows},
                {"code", &r->code},
                {"scale", &r->scale},
                {"vector", &r->vector},
                {"layer-steps", &r->layer_steps},
                {"layer-code", &r->layer_code},
                {"layer-scale", &r->layer_scale},
                {"layer-vector", &r->layer_vector},
                {"seed", &r->seed},
                {"threads", &r->threads},
                {"memory", &r->memory},
                {"fixes-embedding", &r->fixes_embedding},
                {"reference", &r->reference}};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (!strcmp(key, keys[i].key)) {
            *keys[i].to = atof(value);
            return true;
        }
    return false;
}

static void take_file(struct nb_source_file *files, uint32_t *n, const char *path)
{
    files[*n] = (struct nb_source_file){path, open(path, O_RDONLY | O_CLOEXEC)};
    need_ok(files[*n].fd < 0 ? -errno : 0, path);
    *n += *n + 1 < FILES;
}

static void open_start(struct run *r, const char *path)
{
    struct nb_error error = {""};
    r->start_file = (struct nb_source_file){path, open(path, O_RDONLY | O_CLOEXEC)};
    need_ok(r->start_file.fd < 0 ? -errno : 0, path);
    need_ok(nb_source_open_gguf(&r->start_file, 1, &r->start, &error), error.text);
}

static void take_argument(struct run *r, char *arg)
{
    char *value = strchr(arg, '=');
    need_ok(value ? 0 : -EINVAL, arg);
    *value++ = 0;
    if (!strcmp(arg, "train"))
        take_file(r->train, &r->n_train, value);
    else if (!strcmp(arg, "held"))
        take_file(r->held, &r->n_held, value);
    else if (!strcmp(arg, "start"))
        open_start(r, value);
    else if (!strcmp(arg, "out"))
        r->out = value;
    else if (!strcmp(arg, "type"))
        r->type = value;
    else if (!strcmp(arg, "embedding"))
        r->embedding = value;
    else
        need_ok(take_number(r, arg, value) ? 0 : -EINVAL, arg);
}

// --- What is tuned

static void open_model(struct run *r, const char *path)
{
    const struct nb_plan_options options = {.precision = NB_PRECISION_EXACT, .kv_type = NB_KV_F32};
    struct nb_error error = {""};
    uint64_t bytes;
    const int file = open(path, O_RDONLY | O_CLOEXEC), memory = memfd_create("image", MFD_CLOEXEC);
    need_ok(file < 0 || memory < 0 ? -errno : 0, path);
    need_ok(test_pack(file, memory, NULL, &bytes, &error), error.text);
    need_ok(nb_image_map(memory, 0, &r->image, &error), error.text);
    need_ok(nb_plan_create(r->image, &options, &r->plan, &error), error.text);
    need_ok(nb_tokenizer_create(nb_image_metadata(r->image), &r->tokenizer, &error), error.text);
    need_ok(nb_team_create((uint32_t)r->threads, &r->team), "threads");
}

static void open_windows(struct run *r)
{
    struct nb_error error = {""};
    need_ok(nb_windows_create(r->tokenizer, r->train, r->n_train, (uint32_t)r->windows,
                              (uint32_t)r->length, &r->train_windows, &error),
            error.text);
    for (uint32_t i = 0; i < r->n_held; i++)
        need_ok(nb_windows_create(r->tokenizer, &r->held[i], 1, (uint32_t)r->held_windows,
                                  (uint32_t)r->length, &r->of_held[i], &error),
                error.text);
}

static const struct nb_source_tensor *find_start(const struct run *r, struct nb_str name)
{
    for (uint32_t i = 0; r->start && i < r->start->n_tensors; i++) {
        const struct nb_str *s = &r->start->tensors[i].name;
        if (s->len == name.len && !memcmp(s->data, name.data, name.len))
            return &r->start->tensors[i];
    }
    return NULL;
}

static void *read_start(const struct run *r, const struct nb_source_tensor *t)
{
    struct nb_error error = {""};
    void *data = need(malloc(t->bytes));
    need_ok(nb_source_read(r->start, t, 0, nb_source_rows(t), data, &error), error.text);
    return data;
}

static void *search(struct run *r, struct nb_grad *g, const struct nb_grad_tensor *t, uint32_t type)
{
    const size_t rows = (size_t)t->experts * t->rows;
    const struct nb_encode how = {
        .type = type, .effort = r->reference != 0 ? NB_EFFORT_REFERENCE : NB_EFFORT_SEARCH};
    float *w = need(malloc(rows * t->cols * sizeof(*w)));
    void *encoded = need(malloc(nb_encoded_bytes(type, rows, t->cols)));
    nb_grad_dequantize(g, t, w);
    need_ok(nb_encode_matrix(&how, r->team, w, rows, t->cols, encoded), "encoding");
    free(w);
    return encoded;
}

static bool take_matrix(struct run *r, struct nb_grad *g, const struct nb_grad_tensor *t,
                        struct nb_tune_matrix *ret)
{
    const struct nb_source_tensor *start = find_start(r, t->name);
    char *name = need(strndup(t->name.data, t->name.len));
    const bool embeds = !strcmp(name, "token_embd.weight");
    const struct nb_type_info *info =
        start ? nb_type_info(start->type) : nb_type_by_name(embeds ? r->embedding : r->type);
    need_ok(info ? 0 : -EINVAL, "type");
    if (t->cols % info->block) {
        free(name);
        return false;
    }
    *ret = (struct nb_tune_matrix){.name = name,
                                   .type = info->type,
                                   .encoded =
                                       start ? read_start(r, start) : search(r, g, t, info->type),
                                   .fixed = embeds && r->fixes_embedding != 0};
    return true;
}

static void open_tune(struct run *r)
{
    struct nb_error error = {""};
    struct nb_grad *g;
    uint32_t n, count = 0;
    need_ok(nb_grad_open(r->plan, r->team, &g, &error), error.text);
    const struct nb_grad_tensor *t = nb_grad_tensors(g, &n);
    struct nb_tune_matrix *m = need(calloc(n, sizeof(*m)));
    for (uint32_t i = 0; i < n; i++)
        if (t[i].matrix)
            count += take_matrix(r, g, &t[i], &m[count]);
    nb_grad_close(g);
    const struct nb_tune_options options = {.batch = (uint32_t)r->batch,
                                            .steps = (uint32_t)r->steps,
                                            .code_rate = (float)r->code,
                                            .scale_rate = (float)r->scale,
                                            .vector_rate = (float)r->vector,
                                            .layer_steps = (uint32_t)r->layer_steps,
                                            .layer_code_rate = (float)r->layer_code,
                                            .layer_scale_rate = (float)r->layer_scale,
                                            .layer_vector_rate = (float)r->layer_vector,
                                            .seed = (uint64_t)r->seed,
                                            .memory = (uint64_t)r->memory};
    need_ok(
        nb_tune_create(r->plan, r->team, &r->train_windows, m, count, &options, &r->tune, &error),
        error.text);
    struct nb_tune_report report;
    nb_tune_report(r->tune, &report);
    fprintf(stderr, "{\"tuned\": %u, \"fixed\": %u, \"vectors\": %u, \"taped\": %u}\n",
            report.tuned, report.fixed, report.vectors, report.taped);
    r->matrices = m;
    r->n_matrices = count;
}

static void close_tune(struct run *r)
{
    nb_tune_destroy(r->tune);
    for (uint32_t i = 0; i < r->n_matrices; i++) {
        free((void *)r->matrices[i].name);
        free((void *)r->matrices[i].encoded);
    }
    free(r->matrices);
}

// --- The result

static void write_at(int out, const struct nb_source_tensor *t, const void *data, size_t bytes)
{
    need_ok(bytes == t->bytes && t->n_pieces == 1 ? 0 : -EINVAL, "tensor");
    for (size_t at = 0; at < bytes;) {
        ssize_t n =
            pwrite(out, (const char *)data + at, bytes - at, (off_t)(t->pieces[0].offset + at));
        need_ok(n < 0 ? -errno : 0, "out");
        at += (size_t)n;
    }
}

static void write_result(const struct run *r)
{
    const int out = open(r->out, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    struct nb_str name;
    const float *x;
    uint32_t n;
    char buffer[1 << 16];
    ssize_t got;
    need_ok(out < 0 ? -errno : 0, r->out);
    for (off_t at = 0; (got = pread(r->start_file.fd, buffer, sizeof(buffer), at)) > 0; at += got)
        need_ok(pwrite(out, buffer, (size_t)got, at) == got ? 0 : -EIO, r->out);
    for (uint32_t i = 0; i < r->n_matrices; i++) {
        const struct nb_tune_matrix *m = &r->matrices[i];
        const struct nb_source_tensor *t = find_start(r, (struct nb_str){m->name, strlen(m->name)});
        if (!t)
            continue;
        nb_tune_encode(r->tune, i, (void *)m->encoded);
        write_at(out, t, m->encoded, t->bytes);
    }
    for (uint32_t i = 0; (x = nb_tune_vector(r->tune, i, &name, &n)); i++)
        if (find_start(r, name))
            write_at(out, find_start(r, name), x, n * sizeof(*x));
    close(out);
}

// --- Running it

static void measure(const struct run *r, const char *when)
{
    struct nb_error error = {""};
    for (uint32_t i = 0; i < r->n_held; i++) {
        const uint32_t n = r->of_held[i].n;
        double *kl = need(calloc(n, sizeof(*kl))), sum = 0, squares = 0;
        need_ok(nb_tune_measure(r->tune, &r->of_held[i], kl, &error), error.text);
        for (uint32_t j = 0; j < n; j++)
            sum += kl[j];
        for (uint32_t j = 0; j < n; j++)
            squares += (kl[j] - sum / n) * (kl[j] - sum / n);
        printf("{\"when\": \"%s\", \"held\": \"%s\", \"kl\": %.5f, \"within\": %.5f}\n", when,
               r->held[i].name, sum / n, 1.96 * sqrt(squares / n / (n - 1)));
        free(kl);
    }
    fflush(stdout);
}

// Of single layers the last step is told.
static bool is_told(const struct run *r, uint32_t step, uint32_t first)
{
    return step >= first || (step + 1) % (uint32_t)r->layer_steps == 0;
}

static void tune(const struct run *r)
{
    struct nb_error error = {""};
    const double start = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    const uint32_t first = (uint32_t)r->layer_steps * r->plan->n_layers;
    for (uint32_t i = 0; i < first + (uint32_t)r->steps; i++) {
        double loss;
        need_ok(nb_tune_step(r->tune, &loss, &error), error.text);
        if (is_told(r, i, first))
            fprintf(stderr, "{\"step\": %u, \"loss\": %.5f, \"s\": %.2f, \"cpu_s\": %.2f}\n", i + 1,
                    loss, seconds(CLOCK_MONOTONIC) - start,
                    seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu);
        if (first && i + 1 == first)
            measure(r, "layers");
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"tokens\": %.0f, \"s\": %.1f, \"cpu_s\": %.1f, \"peak_mb\": %.0f}\n",
           r->steps * r->batch * r->length, seconds(CLOCK_MONOTONIC) - start,
           seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu, (double)usage.ru_maxrss / 1024);
}

// The rates serve a model of 135M at 4 bits from searched scales; after error feedback much lower
// ones do (docs/numbers.md). With higher ones of codes KL rises in what a batch lacks.
int main(int argc, char **argv)
{
    struct run r = {.type = "Q4_0",
                    .embedding = "Q8_0",
                    .steps = 100,
                    .batch = 4,
                    .length = 256,
                    .windows = 400,
                    .held_windows = 8,
                    .code = 5e-4,
                    .scale = 2e-3,
                    .vector = 1e-3,
                    .layer_code = 5e-3,
                    .layer_scale = 2e-3,
                    .threads = 2,
                    .memory = 1e9};
    if (argc < 2) {
        fprintf(stderr, "usage: tune MODEL.gguf [KEY=VALUE]... train=FILE... held=FILE...\n");
        return 2;
    }
    for (int i = 2; i < argc; i++)
        take_argument(&r, argv[i]);
    open_model(&r, argv[1]);
    open_windows(&r);
    open_tune(&r);
    measure(&r, "before");
    if (r.steps + r.layer_steps > 0) {
        tune(&r);
        measure(&r, "after");
    }
    if (r.start && r.out)
        write_result(&r);
    close_tune(&r);
    if (r.start)
        nb_source_close(r.start);
    nb_tokenizer_destroy(r.tokenizer);
    nb_team_destroy(r.team);
    nb_plan_destroy(r.plan);
    nb_image_unmap(r.image);
    return 0;
}
