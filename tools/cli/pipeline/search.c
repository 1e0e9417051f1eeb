// The shape of a student that is to fit: for each number of layers the inner rows that the size
// leaves room for, cut and rounded as the chain will end, so that size and time are known before
// anything is trained. Those that meet the targets learn for a while, the better half for twice as
// long, and so on: successive halving (Jamieson and Talwalkar, arXiv 1502.07943). They are compared
// by the text that the jobs hold out, not by what the pipeline is judged on.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli/pipeline/pipeline.h"

#define TRIALS   "trials"
#define OUTCOME  ".shapes.json"
#define FITTINGS 3 // inner rows come in blocks, so what is cut may be a little too large

struct shape {
    uint32_t layers;   // 0: as the weights leave room for
    double weights;    // 0: not said
    double divergence; // after the last trial
    json_t *row;       // of what was tried
    char name[PIPELINE_FILE + 32], rounded[PIPELINE_FILE + 48];
};

struct search {
    struct pipeline *p;
    const struct pipeline_step *step;
    json_t *rounding; // how the chain ends, to nearest
    bool fit;         // the size says how many weights
    const char *name, *from;
    double size, weights, bytes, bits; // wanted; of all of `from`, and a layer's bits a weight
    uint32_t layers;                   // of `from`
    struct shape shapes[PIPELINE_SHAPES];
    size_t n; // that are left
};

// How the last step rounds, without what takes time.
static json_t *rounding_of(const struct pipeline_step *last)
{
    static const char *const keys[] = {"to", "else", "embedding", "output", "tensors"};
    json_t *recipe = json_object();
    for (size_t i = 0; i < (last->trains ? 1 : sizeof(keys) / sizeof(keys[0])); i++)
        if (json_object_get(last->recipe, keys[i]))
            json_object_set(recipe, keys[i], json_object_get(last->recipe, keys[i]));
    if (!json_object_size(recipe))
        json_object_set_new(recipe, "to", json_string("F16"));
    return recipe;
}

static int round_file(const struct search *s, const char *name, const char *from, json_t **ret)
{
    static const struct option_list none = {.n = 0};
    struct pipeline_job job = {.name = name, .from = from, .recipe = s->rounding, .texts = &none};
    return pipeline_make(s->p, &job, ret);
}

// With what is in it beside tensors.
static double file_bytes(const struct search *s, const char *name)
{
    char *path = pipeline_path(s->p, name, ".gguf");
    json_t *stamp = pipeline_stamp(path);
    const double bytes = json_number_value(json_object_get(stamp, "bytes"));
    json_decref(stamp);
    free(path);
    return bytes;
}

// What the whole model has, rounded: from that follows what a part of it may have.
static int measure_whole(struct search *s)
{
    char name[PIPELINE_FILE + 32];
    json_t *story, *tensor;
    size_t i;
    double inside = 0, inside_bytes = 0;
    snprintf(name, sizeof(name), TRIALS "/%s.whole", s->name);
    int status = round_file(s, name, s->from, &story);
    const json_t *report = json_object_get(story, "report");
    s->bytes = file_bytes(s, name);
    json_array_foreach(json_object_get(report, "tensors"), i, tensor) {
        const char *called = json_string_value(json_object_get(tensor, "name"));
        const double n = json_number_value(json_object_get(tensor, "rows")) *
                         json_number_value(json_object_get(tensor, "columns"));
        unsigned layer;
        s->weights += n;
        if (!called || sscanf(called, "blk.%u.", &layer) != 1)
            continue;
        s->layers = layer + 1 > s->layers ? layer + 1 : s->layers;
        inside += n;
        inside_bytes += json_number_value(json_object_get(tensor, "bytes"));
    }
    s->bits = inside > 0 ? 8 * inside_bytes / inside : 0;
    json_decref(story);
    if (status == CLI_OK && (!s->layers || !(s->bits > 0)))
        status = cli_error("%s: no layers are in it that could be cut", s->from);
    return status;
}

static void say(struct shape *shape, const char *why)
{
    json_object_set_new(shape->row, "left_out", json_string(why));
}

// Cuts a shape and rounds what is left: *ret_fits is whether that meets size and time.
static int try_cut(struct search *s, struct shape *shape, const json_t *recipe, bool *ret_fits,
                   double *ret_bytes)
{
    json_t *cut = json_deep_copy(recipe), *story = NULL, *rounded = NULL;
    char *path = pipeline_path(s->p, shape->name, ".gguf"), why[320];
    double ms = 0;
    const double wanted_ms = json_number_value(json_object_get(s->p->targets, "token_ms"));
    json_object_set_new(cut, "tokens", json_integer(0));
    if (json_object_get(cut, "to"))
        json_object_set_new(cut, "to", json_string("F16")); // as it is without
    json_object_del(cut, "qat");
    struct pipeline_job job = {.name = shape->name,
                               .from = s->from,
                               .trains = true,
                               .recipe = cut,
                               .texts = &s->step->texts,
                               .may_fail = true};
    int status = pipeline_make(s->p, &job, &story);
    *ret_fits = status == CLI_OK && story;
    if (status == CLI_OK && !story)
        say(shape, job.why);
    if (*ret_fits)
        status = round_file(s, shape->rounded, path, &rounded);
    *ret_bytes = *ret_fits ? file_bytes(s, shape->rounded) : 0;
    if (status == CLI_OK && *ret_fits && wanted_ms > 0)
        status = pipeline_time(s->p, shape->rounded, rounded, &ms);
    json_object_set_new(shape->row, "bytes", json_integer((json_int_t)*ret_bytes));
    if (*ret_fits)
        json_object_set(shape->row, "weights",
                        json_object_get(json_object_get(story, "report"), "weights"));
    if (ms > 0)
        json_object_set_new(shape->row, "token_ms", json_real(ms));
    if (*ret_fits && ms > wanted_ms) {
        snprintf(why, sizeof(why), "a token takes %.3g ms, and %.3g were wanted", ms, wanted_ms);
        say(shape, why);
        *ret_fits = false;
    }
    json_decref(rounded);
    json_decref(story);
    json_decref(cut);
    free(path);
    return status;
}

static void put_shape(const struct shape *shape, json_t *recipe)
{
    if (shape->layers)
        json_object_set_new(recipe, "layers", json_integer(shape->layers));
    json_object_del(recipe, "weights");
    if (shape->weights > 0)
        json_object_set_new(recipe, "weights", json_real(shape->weights));
    else if (!shape->layers)
        json_object_del(recipe, "layers_by"); // nothing is to be chosen
}

// Lowers the weights until what is cut fits.
static int fit_shape(struct search *s, struct shape *shape, bool *ret_fits)
{
    int status = CLI_OK;
    double bytes = 0;
    *ret_fits = false;
    for (int i = 0; i < FITTINGS && status == CLI_OK; i++) {
        json_t *recipe = json_deep_copy(s->step->recipe);
        put_shape(shape, recipe);
        status = try_cut(s, shape, recipe, ret_fits, &bytes);
        json_decref(recipe);
        if (!*ret_fits || !(s->size > 0) || bytes <= s->size)
            return status;
        *ret_fits = false;
        if (!s->fit)
            break;
        shape->weights -= 8 * (bytes - s->size) / s->bits;
    }
    if (status == CLI_OK)
        say(shape, "it is larger than wanted");
    return status;
}

// `layers`: so many, below 1 that part of them, 0 as it comes.
static struct shape make_shape(const struct search *s, double layers)
{
    struct shape shape = {.row = json_object()};
    shape.layers = (uint32_t)(layers >= 1 ? layers : ceil(layers * s->layers));
    if (s->fit && s->bytes > s->size)
        shape.weights = s->weights - 8 * (s->bytes - s->size) / s->bits;
    snprintf(shape.name, sizeof(shape.name), TRIALS "/%s.layers-%u", s->name, shape.layers);
    snprintf(shape.rounded, sizeof(shape.rounded), "%s.rounded", shape.name);
    return shape;
}

static int add_candidate(struct search *s, struct shape shape, json_t *rows)
{
    bool fits = false;
    int status = CLI_OK;
    json_array_append_new(rows, shape.row);
    if (s->fit && s->bytes > s->size && !(shape.weights > 0))
        say(&shape, "what is outside of layers is larger than wanted");
    else
        status = fit_shape(s, &shape, &fits);
    if (shape.layers)
        json_object_set_new(shape.row, "layers", json_integer(shape.layers));
    if (fits)
        s->shapes[s->n++] = shape;
    return status;
}

// Two parts of the layers may be as many.
static int choose_candidates(struct search *s, json_t *rows)
{
    uint32_t tried[PIPELINE_SHAPES];
    size_t n = 0;
    int status = s->step->layers ? CLI_OK : add_candidate(s, make_shape(s, 0), rows);
    for (size_t i = 0; i < json_array_size(s->step->layers) && status == CLI_OK; i++) {
        struct shape shape = make_shape(s, json_number_value(json_array_get(s->step->layers, i)));
        bool again = false;
        for (size_t k = 0; k < n; k++)
            again = again || tried[k] == shape.layers;
        if (again) {
            json_decref(shape.row);
            continue;
        }
        tried[n++] = shape.layers;
        status = add_candidate(s, shape, rows);
    }
    return status;
}

// --- Trials

static int try_shape(const struct search *s, struct shape *shape, uint64_t tokens)
{
    char name[PIPELINE_FILE + 64];
    json_t *recipe = json_deep_copy(s->step->recipe), *story = NULL;
    char *path = pipeline_path(s->p, shape->name, ".gguf");
    static const char *const cuts[] = {"layers", "layers_by",    "weights", "size",
                                       "heads",  "feed_forward", "width",   "cut_by"};
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++)
        json_object_del(recipe, cuts[i]);
    json_object_set_new(recipe, "tokens", json_integer((json_int_t)tokens));
    snprintf(name, sizeof(name), "%s.%llu", shape->name, (unsigned long long)tokens);
    struct pipeline_job job = {
        .name = name, .from = path, .trains = true, .recipe = recipe, .texts = &s->step->texts};
    int status = pipeline_make(s->p, &job, &story);
    const json_t *after =
        json_object_get(json_object_get(json_object_get(story, "report"), "held_out"), "after");
    // Of an encoder 1 - cosine; without a teacher the labels' loss.
    static const char *const kinds[] = {"divergence", "cosine", "loss"};
    const json_t *loss = NULL;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && !loss; i++)
        loss = json_object_get(after, kinds[i]);
    shape->divergence = json_is_number(loss) ? json_number_value(loss) : INFINITY;
    json_object_set_new(shape->row, "tokens", json_integer((json_int_t)tokens));
    json_object_set_new(shape->row, "divergence", eval_number(shape->divergence));
    json_decref(story);
    json_decref(recipe);
    free(path);
    return status;
}

static int compare_shapes(const void *a, const void *b)
{
    const struct shape *x = a, *y = b;
    return x->divergence > y->divergence ? 1 : x->divergence < y->divergence ? -1 : 0;
}

static int halve(struct search *s)
{
    int status = CLI_OK;
    for (uint64_t tokens = s->step->tokens; s->n > 1 && status == CLI_OK; tokens *= 2) {
        for (size_t i = 0; i < s->n && status == CLI_OK; i++)
            status = try_shape(s, &s->shapes[i], tokens);
        if (status == CLI_OK)
            qsort(s->shapes, s->n, sizeof(s->shapes[0]), compare_shapes);
        s->n = (s->n + 1) / 2;
    }
    return status;
}

// All that the outcome depends on.
static json_t *describe(const struct search *s)
{
    return json_pack("{s:O, s:O?, s:I, s:O, s:O, s:o, s:o, s:o}", "recipe", s->step->recipe,
                     "layers", s->step->layers, "tokens", (json_int_t)s->step->tokens, "rounding",
                     s->rounding, "targets", s->p->targets, "texts",
                     pipeline_stamps(&s->step->texts), "from", pipeline_stamp(s->from), "model",
                     pipeline_stamp(s->p->model));
}

static void end_trials(const struct search *s)
{
    char begin[PIPELINE_FILE + 1];
    snprintf(begin, sizeof(begin), "%s.", s->name);
    pipeline_remove_folder(s->p, TRIALS, begin);
}

static int search(struct search *s, json_t *outcome)
{
    json_t *rows = json_object_get(outcome, "shapes"), *put = json_object_get(outcome, "put");
    int status = pipeline_open_folder(s->p, TRIALS);
    if (status == CLI_OK)
        status = measure_whole(s);
    if (status == CLI_OK)
        status = choose_candidates(s, rows);
    if (status == CLI_OK)
        status = halve(s);
    if (status == CLI_OK && s->n) {
        put_shape(&s->shapes[0], put);
        json_object_set_new(s->shapes[0].row, "chosen", json_true());
    }
    // Where the step trains nothing its file is there, and is found again as any other.
    const json_t *tokens = json_object_get(s->step->recipe, "tokens");
    const bool trains = !tokens || json_number_value(tokens) > 0;
    if (status == CLI_OK && s->n && !trains)
        pipeline_rename(s->p, s->shapes[0].name, s->name);
    if (status == CLI_OK)
        status = pipeline_keep(s->p, s->name, OUTCOME, outcome);
    if (status == CLI_OK)
        end_trials(s); // with the outcome they have done their work
    return status;
}

int pipeline_search(struct pipeline *p, const struct pipeline_chain *chain, size_t at,
                    const char *name, const char *from, json_t *recipe, json_t *missed,
                    json_t **ret_shapes)
{
    struct search s = {.p = p,
                       .step = &p->steps[chain->step[at]],
                       .name = name,
                       .from = from,
                       .size = json_number_value(json_object_get(p->targets, "size"))};
    s.rounding = rounding_of(&p->steps[chain->step[chain->n - 1]]);
    s.fit = pipeline_fits(s.step->recipe, "weights");
    json_t *asked = describe(&s), *outcome = pipeline_recall(p, name, OUTCOME);
    int status = CLI_OK;
    if (!json_equal(json_object_get(outcome, "asked"), asked)) {
        json_decref(outcome);
        outcome = json_pack("{s:O, s:[], s:{}}", "asked", asked, "shapes", "put");
        status = search(&s, outcome);
    }
    json_t *shapes = json_object_get(outcome, "shapes"), *put = json_object_get(outcome, "put");
    if (status == CLI_OK && !json_object_size(put))
        json_array_append_new(missed, json_sprintf("no shape meets the targets; the first: %s",
                                                   json_string_value(json_object_get(
                                                       json_array_get(shapes, 0), "left_out"))));
    if (json_object_size(put))
        json_object_del(recipe, "weights");
    json_object_update(recipe, put);
    *ret_shapes = json_incref(shapes);
    json_decref(outcome);
    json_decref(asked);
    json_decref(s.rounding);
    return status;
}
