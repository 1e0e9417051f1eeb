// What a distillation reports: the student's shape, what it was before and after, and how it
// learnt.
#include <jansson.h>
#include <math.h>
#include <stdio.h>

#include "daemon/worker/jobs_distill.h"
#include "machine/clock.h"

static json_t *loss_json(const struct distilling *k, const struct nb_train_loss *loss, double by)
{
    const bool vectors = k->learns == NB_TRAIN_VECTORS;
    json_t *o = json_pack("{s:f}", vectors ? "relation" : "loss",
                          by * (vectors ? loss->relation : loss->hard));
    if (vectors && k->student.plan->hp.embedding == k->teacher->plan->hp.embedding)
        json_object_set_new(o, "cosine", json_real(by * loss->cosine));
    if (!vectors && (k->teacher->plan || k->lessons))
        json_object_set_new(o, "divergence", json_real(by * loss->soft));
    if (k->recipe.hidden > 0)
        json_object_set_new(o, "hidden", json_real(by * loss->hidden));
    if (k->recipe.attention > 0)
        json_object_set_new(o, "attention", json_real(by * loss->attention));
    return o;
}

static json_t *curve_json(const struct distilling *k)
{
    const uint32_t done = nb_train_done(k->train);
    json_t *curve = json_array();
    for (uint32_t i = 0, first = 0, end; first < done; i++, first = end) {
        for (end = first; end < done && nb_jobs_distill_point(k, end) == i;)
            end++;
        json_t *point = loss_json(k, &k->told.curve[i], 1.0 / (end - first));
        if (k->recipe.own >= 1) // no step has had a label
            json_object_del(point, "loss");
        json_object_set_new(point, "step", json_integer(end));
        json_object_set_new(point, "norm", json_real(k->told.curve[i].norm / (end - first)));
        json_array_append_new(curve, point);
    }
    return curve;
}

// What the student is made of: its layers by their numbers in the teacher, and how many it has of
// the rest.
static json_t *shape_json(const struct distilling *k)
{
    const struct nb_hparams *hp = &k->student.plan->hp;
    json_t *layers = json_array(), *o = json_object();
    for (uint32_t i = 0; i < k->pruned.kept.layers; i++)
        json_array_append_new(layers, json_integer(k->pruned.kept.layer[i]));
    json_object_set_new(o, "layers", layers);
    for (int cut = 0; cut < NB_CUTS; cut++)
        json_object_set_new(o, nb_cut_names[cut], json_integer(nb_cut_all(hp, (enum nb_cut)cut)));
    return o;
}

void nb_jobs_distill_tell(const struct distilling *k, uint32_t step,
                          const struct nb_train_loss *loss)
{
    const uint32_t all = k->options.steps;
    const double s = 1e-9 * (double)(nb_now_ns() - k->began_ns);
    const double speed = nb_jobs_distill_tokens(k, step + 1 - k->began_at) / s;
    char what[120];
    if (k->learns == NB_TRAIN_VECTORS)
        snprintf(what, sizeof(what), "training %u/%u, cosine %.4f, relation %.5f, %.0f tokens/s",
                 step + 1, all, 1 - loss->cosine, loss->relation, speed);
    else
        snprintf(what, sizeof(what),
                 "training %u/%u, loss %.3f, from the teacher %.3f, %.0f tokens/s", step + 1, all,
                 loss->hard, loss->soft, speed);
    k->work->figure = (float)(k->learns == NB_TRAIN_VECTORS ? loss->cosine
                              : k->recipe.own >= 1          ? loss->soft
                                                            : loss->hard);
    nb_jobs_tell(k->work, what, (uint64_t)(step + 1) * NB_DISTILL_TOLD,
                 ((uint64_t)all + 1) * NB_DISTILL_TOLD);
}

static uint64_t answers_of(const struct nb_windows *w)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < nb_windows_tokens(w); i++)
        n += w->answers[i];
    return n;
}

// Its name, and of a device what it is.
static json_t *device_json(const struct distilling *k)
{
    struct nb_device_info info;
    char what[sizeof(info.name) + sizeof(info.description) + sizeof(info.driver) + 8];
    if (!k->work->device)
        return json_string("cpu");
    k->work->device->ops->info(k->work->device, &info);
    snprintf(what, sizeof(what), "%s: %s, %s", info.name, info.description, info.driver);
    return json_string(what);
}

// Matrices whose rows are no whole blocks of the type.
static uint32_t count_others(const struct distilling *k)
{
    const struct nb_choice *choices = nb_compress_choices(k->compress);
    uint32_t n = 0;
    for (uint32_t i = 0; i < k->student.source->n_tensors && !k->adapter; i++)
        n += choices[i].type != choices[i].wanted;
    return n;
}

static json_t *warnings_json(const struct distilling *k)
{
    json_t *list = json_array();
    const uint32_t others = count_others(k);
    if (others)
        json_array_append_new(list,
                              json_sprintf("the rows of %u matrices are no whole blocks of %s: "
                                           "they are F16",
                                           others, k->recipe.to));
    const unsigned long long taken = (unsigned long long)k->learnt.n + k->held.n;
    if (k->learnt.left)
        json_array_append_new(
            list,
            json_sprintf("the text has %llu windows, of which %llu are taken, evenly over it: "
                         "with more tokens each they are fewer (--length)",
                         taken + (unsigned long long)k->learnt.left, taken));
    if (k->own_teacher.source && !k->own_teacher.plan)
        json_array_append_new(list, json_string("nothing was learnt from the teacher: with a "
                                                "\"hard\" of 1 labels alone are"));
    if (*k->stopped.text)
        json_array_append_new(list, json_string(k->stopped.text));
    return list;
}

int nb_jobs_distill_report(struct distilling *k)
{
    const uint32_t done = nb_train_done(k->train);
    json_t *root =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:{s:I, s:o, s:o}, s:o}", "type", k->recipe.to,
                  "bytes", (json_int_t)nb_compress_size(k->compress), "weights",
                  (json_int_t)nb_train_weights(k->train), "steps", (json_int_t)done, "tokens",
                  llround(nb_jobs_distill_tokens(k, done)), "windows", (json_int_t)k->learnt.n,
                  "held_out", "tokens", (json_int_t)nb_windows_tokens(&k->held), "before",
                  loss_json(k, &k->told.before, 1), "after", loss_json(k, &k->after, 1), "curve",
                  curve_json(k));
    json_object_update_new(root, shape_json(k));
    json_object_set_new(root, "device", device_json(k));
    json_object_set_new(root, "warnings", warnings_json(k));
    if (k->learnt.answers)
        json_object_set_new(root, "answers", json_integer((json_int_t)answers_of(&k->learnt)));
    if (k->n_tokens)
        json_object_set_new(root, "vocabulary",
                            json_pack("{s:i, s:i}", "tokens", (int)k->student.plan->hp.vocab, "of",
                                      (int)k->n_tokens));
    if (k->adapter)
        json_object_set_new(root, "adapter",
                            json_pack("{s:i, s:f, s:i, s:f}", "rank", (int)k->recipe.adapter.rank,
                                      "alpha", k->recipe.alpha, "matrices",
                                      (int)nb_train_count(k->train) / 2, "of",
                                      nb_jobs_distill_weights(k->student.source)));
    return nb_jobs_write_json(k->work->results[NB_DISTILL_REPORT], root, JSON_INDENT(1), k->error);
}
