// See report.h. docs/rooms/quant.md has the keys.
#include "quant/report.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <unistd.h>

#include "tensor/type.h"

#define TWO_BITS 3.0 // fewer are about two
#define FEW_BITS 6.0 // a matrix of so few bits a weight has lost much already

static uint64_t bytes_of(const struct nb_source_tensor *t, uint32_t type)
{
    return nb_source_rows(t) * nb_type_row_bytes(type, t->dims[0]);
}

static json_t *tensor_json(const struct nb_source_tensor *t, const struct nb_choice *c)
{
    json_t *object =
        json_pack("{s:s%, s:I, s:I, s:s, s:s, s:f, s:I}", "name", t->name.data, (size_t)t->name.len,
                  "rows", (json_int_t)nb_source_rows(t), "columns", (json_int_t)t->dims[0], "from",
                  nb_type_name(t->stored), "type", nb_type_name(c->type), "bits",
                  nb_type_bits(c->type), "bytes", (json_int_t)bytes_of(t, c->type));
    if (object && !nb_choice_scheme(c)->exact) {
        json_object_set_new(object, "scheme", json_string(nb_choice_scheme(c)->name));
        json_object_set_new(
            object, "scheme_bits",
            json_real(nb_scheme_bits(nb_choice_scheme(c), nb_source_rows(t), t->dims[0])));
    }
    if (object && c->wanted != c->type)
        json_object_set_new(object, "instead_of", json_string(nb_type_name(c->wanted)));
    return object;
}

// Of static activations: the range of the inputs, or that they are dynamic.
static void put_range(const struct nb_source_tensor *t, const struct nb_activations *how,
                      const struct nb_ranges *ranges, json_t *tensor)
{
    const struct nb_input_range *r = ranges ? nb_ranges_find(ranges, t->name) : NULL;
    if (how->scale != NB_INPUT_FIXED || !r)
        return;
    const float range = nb_input_range_choose(r, how);
    json_object_set_new(tensor, "inputs",
                        range > 0 ? json_real((double)range) : json_string(NB_ACTIVATIONS_DYNAMIC));
}

// Most of a source's weights in few bits: what they lost does not come back.
static void warn_of_source(const struct nb_source *s, json_t *warnings)
{
    uint64_t few = 0, all = 0;
    uint32_t type = 0;
    for (uint32_t i = 0; i < s->n_tensors; i++) {
        const struct nb_source_tensor *t = &s->tensors[i];
        const uint64_t n = nb_source_rows(t) * t->dims[0];
        all += n;
        few += nb_type_bits(t->stored) <= FEW_BITS ? n : 0;
        type = nb_type_bits(t->stored) <= FEW_BITS ? t->stored : type;
    }
    if (few > all / 2)
        json_array_append_new(
            warnings, json_sprintf("the source is quantized already (%s, %.2f bits a weight): what "
                                   "that lost stays lost, and this adds to it; compress the "
                                   "original (F16, BF16 or F32) where you have it",
                                   nb_type_name(type), nb_type_bits(type)));
}

static void warn_of_rules(const struct nb_recipe *recipe, json_t *warnings)
{
    const char *text;
    uint32_t at = 0;
    while ((text = nb_recipe_idle(recipe, &at)))
        json_array_append_new(
            warnings, json_sprintf("the recipe's \"match\": \"%s\" matches no matrix", text));
}

// What is known to fail: each of so few codes stands for a quarter of the weights, and without
// knowing which inputs matter the errors fall where they hurt.
static void warn_of_types(const struct nb_report *r, json_t *warnings)
{
    uint64_t few = 0, all = 0;
    for (uint32_t i = 0; i < r->source->n_tensors; i++) {
        const struct nb_source_tensor *t = &r->source->tensors[i];
        const uint64_t n = nb_source_rows(t) * t->dims[0];
        all += n;
        few +=
            nb_type_bits(r->choices[i].type) < TWO_BITS && r->choices[i].type != t->stored ? n : 0;
    }
    if (!r->text && few > all / 20)
        json_array_append_new(warnings,
                              json_sprintf("%.0f %% of the weights have about 2 bits, and without "
                                           "calibration such a model is of little use: give text "
                                           "(--calibration FILE), or more bits",
                                           100.0 * (double)few / (double)all));
}

static double share_of(uint64_t n, uint64_t of)
{
    return of ? (double)n / (double)of : 0;
}

// What was asked for, and how many zeros there are among all weights, and among those of the
// matrices that were made sparse.
static json_t *sparse_json(const struct nb_report *r, json_t *warnings)
{
    const struct nb_sparsity *s = nb_recipe_sparsity(r->recipe);
    uint64_t all = 0, zeros = 0, some = 0, some_zeros = 0;
    for (uint32_t i = 0; i < r->source->n_tensors; i++) {
        const struct nb_source_tensor *t = &r->source->tensors[i];
        const uint64_t n = nb_source_rows(t) * t->dims[0];
        const bool sparse = nb_sparsity_any(&r->choices[i].sparse);
        all += n;
        zeros += r->zeros[i];
        some += sparse ? n : 0;
        some_zeros += sparse ? r->zeros[i] : 0;
    }
    json_array_append_new(
        warnings,
        json_sprintf(
            "%.1f %% of the weights are zeros, and GGUF stores a zero like any number: the "
            "file is no smaller for them and runs no faster here; they are for runtimes "
            "with kernels for them (2:4 on some GPUs), or for a step that comes after",
            100 * share_of(zeros, all)));
    json_t *object = json_pack("{s:s, s:f, s:f}", "by", nb_sparse_names[s->by], "zeros",
                               share_of(zeros, all), "in_matrices", share_of(some_zeros, some));
    if (object && s->of)
        json_object_set_new(object, "pattern", json_sprintf("%u:%u", s->keep, s->of));
    else if (object)
        json_object_set_new(object, "share", json_real(s->share));
    return object;
}

static json_t *allocation_json(const struct nb_report *r)
{
    return json_pack("{s:f, s:f, s:f, s:I, s:I, s:f, s:f}", "predicted", r->allocated->predicted,
                     "searched", r->allocated->measured, "before_search", r->allocated->first,
                     "measurements", (json_int_t)r->allocated->n_measurements, "tokens",
                     (json_int_t)r->divergence->tokens, "measured", r->divergence->mean, "error",
                     r->divergence->error);
}

static json_t *joint_json(const struct nb_joint *j)
{
    json_t *object = json_pack("{s:s}", "joint", nb_joint_names[j->kind]);
    if (object && j->layer != NB_FOLD_OUTSIDE)
        json_object_set_new(object, "layer", json_integer(j->layer));
    if (object && j->gain.searched)
        json_object_update_new(object, json_pack("{s:f, s:f}", "error", (double)j->gain.after,
                                                 "error_without", (double)j->gain.before));
    if (object && j->scale)
        json_object_set_new(object, "exponent", json_real((double)j->gain.exponent));
    if (object && j->order)
        json_object_set_new(object, "order", json_true());
    if (object && j->rotation)
        json_object_set_new(object, "rotation", json_true());
    return object;
}

// The joints that were folded or searched, and why others are none.
static json_t *fold_json(const struct nb_fold *f)
{
    json_t *joints = json_array(), *notes = json_array();
    uint32_t n, places;
    const struct nb_joint *j = nb_fold_joints(f, &n);
    const char *note;
    for (uint32_t i = 0; i < n; i++)
        if (j[i].gain.searched || j[i].rotation)
            json_array_append_new(joints, joint_json(&j[i]));
    for (uint32_t i = 0; (note = nb_fold_note(f, i, &places)); i++)
        json_array_append_new(notes, json_sprintf("%s (%u)", note, places));
    return json_pack("{s:o, s:o}", "joints", joints, "left_out", notes);
}

static json_t *tuned_json(const struct nb_tuned *t)
{
    return json_pack("{s:I, s:f, s:f, s:f, s:b}", "steps", (json_int_t)t->steps, "before",
                     t->gain.before, "after", t->gain.after, "error", t->gain.error, "kept",
                     t->gain.kept != 0);
}

static json_t *gain_json(const char *method, const struct nb_gain *g)
{
    return json_pack("{s:s, s:f, s:f, s:f, s:b}", "method", method, "divergence", g->after, "gain",
                     g->before - g->after, "error", g->error, "kept", g->kept != 0);
}

// What the method auto has tried, in turn: each beside what was kept before.
static json_t *tried_json(const struct nb_report *r)
{
    json_t *tried = json_array();
    json_array_append_new(tried, json_pack("{s:s, s:f, s:b}", "method", "search", "divergence",
                                           r->feedback->before, "kept", 1));
    json_array_append_new(tried, gain_json("gptq", r->feedback));
    if (r->tuned)
        json_array_append_new(tried, gain_json("tune", &r->tuned->gain));
    return tried;
}

json_t *nb_report_calibration(const struct nb_recipe *recipe, const char *text)
{
    const struct nb_sampling_plan plan = nb_recipe_calibration(recipe);
    return json_pack("{s:s, s:I, s:I}", "text", text, "samples", (json_int_t)plan.samples, "length",
                     (json_int_t)plan.length);
}

static json_t *whole_json(const struct nb_report *r)
{
    json_t *tensors = json_array(), *warnings = json_array();
    uint64_t bytes = 0, elements = 0;
    double scheme_bits = 0;
    const struct nb_activations activations = nb_recipe_activations(r->recipe);
    for (uint32_t i = 0; i < r->source->n_tensors; i++) {
        const struct nb_source_tensor *t = &r->source->tensors[i];
        const struct nb_scheme *scheme = nb_choice_scheme(&r->choices[i]);
        const uint64_t n = nb_source_rows(t) * t->dims[0];
        json_t *tensor = tensor_json(t, &r->choices[i]);
        bytes += bytes_of(t, r->choices[i].type);
        elements += n;
        scheme_bits += (double)n * nb_scheme_bits(scheme, nb_source_rows(t), t->dims[0]);
        put_range(t, &activations, r->ranges, tensor);
        if (r->zeros)
            json_object_set_new(tensor, "zeros", json_real(share_of(r->zeros[i], n)));
        json_array_append_new(tensors, tensor);
    }
    warn_of_source(r->source, warnings);
    warn_of_rules(r->recipe, warnings);
    warn_of_types(r, warnings);
    static const char *const scales[] = {"block", NB_ACTIVATIONS_DYNAMIC, NB_ACTIVATIONS_STATIC};
    json_t *whole =
        json_pack("{s:s, s:I, s:f, s:f, s:s, s:o, s:o}", "type", nb_type_name(r->type), "bytes",
                  (json_int_t)bytes, "bits", 8.0 * (double)bytes / (double)elements, "scheme_bits",
                  scheme_bits / (double)elements, "activations", scales[activations.scale],
                  "warnings", warnings, "tensors", tensors);
    if (whole && r->text)
        json_object_set_new(whole, "calibration", nb_report_calibration(r->recipe, r->text));
    if (whole && r->zeros)
        json_object_set_new(whole, "sparse", sparse_json(r, warnings));
    if (whole && r->allocated)
        json_object_set_new(whole, "allocation", allocation_json(r));
    if (whole && r->fold)
        json_object_set_new(whole, "fold", fold_json(r->fold));
    if (whole && r->feedback)
        json_object_set_new(whole, "tried", tried_json(r));
    if (whole && r->tuned)
        json_object_set_new(whole, "tuning", tuned_json(r->tuned));
    return whole;
}

int nb_report_write(const struct nb_report *report, int fd)
{
    json_t *json = whole_json(report);
    if (!json)
        return -ENOMEM;
    errno = 0;
    int rc = ftruncate(fd, 0) < 0 || lseek(fd, 0, SEEK_SET) < 0 ? -errno : 0;
    if (rc == 0 && json_dumpfd(json, fd, JSON_INDENT(1) | JSON_REAL_PRECISION(5)) < 0)
        rc = errno ? -errno : -EIO;
    json_decref(json);
    return rc;
}
