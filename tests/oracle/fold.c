// fold MODEL.gguf SEED [scale] [order] [values] [stream]: the model's tensors as floats, in the
// file's order, to stdout, after the folds that are named, with random numbers: scales of 1/4 to 4,
// any order, rotations of v or of the residual stream. To stderr goes JSON: how many joints of each
// kind there are, how many of them scale, and notes. All is stored and restored before, and what a
// folded source gives may not differ.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/sampler.h"
#include "quant/fold_source.h"
#include "tensor/image.h"
#include "tensor/type.h"
#include "tests/support/pack.h"

struct model {
    struct nb_source *source;
    struct nb_image *image;
    struct nb_plan *plan;
};

static void need(bool well, const char *what)
{
    if (well)
        return;
    fprintf(stderr, "fold: %s\n", what);
    exit(1);
}

static bool has(int argc, char **argv, const char *word)
{
    for (int i = 3; i < argc; i++)
        if (!strcmp(argv[i], word))
            return true;
    return false;
}

static void open_model(const char *path, struct model *m)
{
    struct nb_error e = {""};
    uint64_t bytes;
    const struct nb_plan_options options = {.precision = NB_PRECISION_EXACT, .kv_type = NB_KV_F32};
    int fd = open(path, O_RDONLY | O_CLOEXEC), image = memfd_create("fold", MFD_CLOEXEC);
    need(fd >= 0 && image >= 0, "no such file");
    need(test_open_source(fd, &m->source, &e) == 0, e.text);
    need(nb_image_pack(m->source, image, NULL, &bytes, &e) >= 0, e.text);
    need(nb_image_map(image, 0, &m->image, &e) >= 0, e.text);
    need(nb_plan_create(m->image, &options, &m->plan, &e) == 0, e.text);
}

// ---- Choosing

static void set_scale(struct nb_fold *f, uint32_t joint, const struct nb_joint *j, uint64_t seed)
{
    float *scale = calloc(j->n, sizeof(*scale));
    need(scale, "out of memory");
    for (uint32_t e = 0; e < j->experts; e++) {
        for (uint32_t i = 0; i < j->n; i++)
            scale[i] = exp2f((float)(nb_random(seed, (uint64_t)e * j->n + i) % 4097) / 1024 - 2);
        need(nb_fold_scale(f, joint, e, scale) == 0, "a scale is refused");
    }
    free(scale);
}

static void set_order(struct nb_fold *f, uint32_t joint, const struct nb_joint *j, uint64_t seed)
{
    uint32_t *order = calloc(j->n, sizeof(*order));
    need(order, "out of memory");
    for (uint32_t e = 0; e < j->experts; e++) {
        for (uint32_t i = 0; i < j->n; i++) {
            const uint32_t k = (uint32_t)(nb_random(seed, (uint64_t)e * j->n + i) % (i + 1));
            order[i] = order[k];
            order[k] = i;
        }
        need(nb_fold_order(f, joint, e, order) == 0, "an order is refused");
    }
    free(order);
}

static void choose(struct nb_fold *f, uint64_t seed, int argc, char **argv)
{
    uint32_t n;
    const struct nb_joint *j = nb_fold_joints(f, &n);
    for (uint32_t i = n; i > 0; i--) { // the stream is the last, and goes before the norms
        const struct nb_joint *one = &j[i - 1];
        const uint64_t own = seed * 1000003 + i;
        const bool stream = one->kind == NB_JOINT_STREAM;
        const bool turned =
            (one->kind == NB_JOINT_VALUES && has(argc, argv, "values")) ||
            (one->kind == NB_JOINT_NORM && j[n - 1].rotation && j[n - 1].kind == NB_JOINT_STREAM);
        if (one->rotates && has(argc, argv, stream ? "stream" : "values"))
            need(nb_fold_rotate(f, i - 1, own) == 0, "a rotation is refused");
        if (one->scales && !turned && has(argc, argv, "scale"))
            set_scale(f, i - 1, one, own);
        if (one->permutes && has(argc, argv, "order"))
            set_order(f, i - 1, one, own);
    }
}

static struct nb_fold *store_and_restore(const struct nb_plan *plan, struct nb_fold *f)
{
    struct nb_fold *again = NULL;
    void *data[2] = {NULL, NULL};
    size_t n[2] = {0, 0};
    struct nb_error e = {""};
    need(nb_fold_store(f, &data[0], &n[0]) == 0, "a fold is not stored");
    need(nb_fold_create(plan, &again, &e) == 0, e.text);
    need(nb_fold_restore(again, data[0], n[0] - 1) == -EINVAL, "half a fold is restored");
    nb_fold_destroy(again);
    need(nb_fold_create(plan, &again, &e) == 0, e.text);
    need(nb_fold_restore(again, data[0], n[0]) == 0, "a fold is not restored");
    need(nb_fold_store(again, &data[1], &n[1]) == 0, "a fold is not stored");
    need(n[0] == n[1] && !memcmp(data[0], data[1], n[0]), "a fold is restored as another");
    free(data[0]);
    free(data[1]);
    nb_fold_destroy(f);
    return again;
}

// ---- Writing

static float *read_tensor(const struct nb_source *s, const struct nb_source_tensor *t,
                          uint64_t *ret_n)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    const uint64_t rows = nb_source_rows(t), n = rows * t->dims[0];
    void *raw = malloc(rows * nb_source_row_bytes(t));
    float *x = malloc(n * sizeof(*x));
    need(raw && x && nb_source_read(s, t, 0, rows, raw, NULL) == 0, "a tensor is not read");
    info->dequantize(raw, x, n / info->block);
    free(raw);
    *ret_n = n;
    return x;
}

// All of it at once by three threads; a few rows at a time through a folded source.
static void write_tensor(const struct nb_fold *f, struct nb_source *s, uint32_t i,
                         struct nb_team *team)
{
    uint64_t n;
    struct nb_fold_source *folded = NULL;
    const struct nb_source_tensor *t = &s->tensors[i];
    const uint64_t rows = nb_source_rows(t);
    float *x = read_tensor(s, t, &n), *y = read_tensor(s, t, &n);
    need(nb_fold_tensor(f, team, t->name, 0, n, x) == 0, "a tensor is not folded");
    need(nb_fold_source_create(f, s, &folded, NULL) == 0, "a source is not folded");
    need(t->type == NB_TYPE_F32 || !nb_fold_unit(f, t->name), "a folded tensor is not of F32");
    for (uint64_t row = 0, some; row < rows && t->type == NB_TYPE_F32; row += some) {
        some = rows - row < 7 ? rows - row : 7;
        need(nb_source_read(s, t, row, some, y + row * t->dims[0], NULL) == 0, "no rows");
    }
    nb_fold_source_destroy(folded);
    need(!memcmp(x, y, n * sizeof(*x)), "threads or pieces make a difference");
    need(fwrite(x, sizeof(*x), n, stdout) == n, "the result is not written");
    free(x);
    free(y);
}

static void tell(const struct nb_fold *f)
{
    uint32_t n, places, counts[NB_JOINT_KINDS] = {0}, scales = 0;
    const struct nb_joint *j = nb_fold_joints(f, &n);
    const char *note;
    for (uint32_t i = 0; i < n; i++) {
        counts[j[i].kind]++;
        scales += j[i].scales;
    }
    fprintf(stderr, "{\"scales\": %u", scales);
    for (uint32_t i = 0; i < NB_JOINT_KINDS; i++)
        fprintf(stderr, ", \"%s\": %u", nb_joint_names[i], counts[i]);
    fprintf(stderr, ", \"notes\": [");
    for (uint32_t i = 0; (note = nb_fold_note(f, i, &places)); i++)
        fprintf(stderr, "%s\"%s (%u)\"", i ? ", " : "", note, places);
    fprintf(stderr, "]}\n");
}

int main(int argc, char **argv)
{
    struct model m = {0};
    struct nb_fold *f = NULL;
    struct nb_team *team = NULL;
    struct nb_error e = {""};
    need(argc > 2, "usage: fold MODEL.gguf SEED [scale] [order] [values] [stream]");
    open_model(argv[1], &m);
    need(nb_fold_create(m.plan, &f, &e) == 0, e.text);
    choose(f, strtoull(argv[2], NULL, 10), argc, argv);
    f = store_and_restore(m.plan, f);
    tell(f);
    need(nb_team_create(3, &team) == 0, "no threads");
    for (uint32_t i = 0; i < m.source->n_tensors; i++)
        write_tensor(f, m.source, i, team);
    nb_fold_destroy(f);
    nb_team_destroy(team);
    nb_plan_destroy(m.plan);
    nb_image_unmap(m.image);
    nb_source_close(m.source);
    return fflush(stdout) != 0;
}
