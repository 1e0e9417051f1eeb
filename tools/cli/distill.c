// `nibble distill`: a smaller model that is taught by a larger one, or an adapter, as a job of the
// service.
// Attached, it waits and writes the file; detached, it leaves the job to `nibble jobs`, `wait` and
// `result`.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/cli/jobs.h"

struct distill {
    struct common common;
    const char *path, *teacher, *out, *recipe, *to, *layers, *layers_by, *weights, *cut_by, *start,
        *schedule, *precision, *moments, *device, *activations, *scales, *vocabulary;
    struct option_list texts;
    uint64_t tokens;                                 // UINT64_MAX: not said
    uint64_t size;                                   // 0: not said
    uint32_t heads, feed_forward, width;             // 0: not said
    uint32_t length, batch, held_out;                // 0: not said
    uint32_t states;                                 // 0: not said
    uint32_t seed;                                   // UINT32_MAX: not said
    float rate, temperature, mix, own, hard, hidden; // NAN: not said
    float attention;                                 // NAN: not said
    float cosine, relation;                          // NAN: not said
    uint32_t rank;                                   // 0: not said
    float alpha;                                     // NAN: not said
    const char *matrices, *draft_for;
    bool qat, detach, force;
};

// "6", or "0,5,11" as a list.
static int put_layers(const struct distill *d, json_t *recipe)
{
    json_t *list = json_array();
    const char *at = d->layers;
    char *end = NULL;
    do {
        const long layer = strtol(at, &end, 10);
        if (end == at || *at == '-' || (*end && *end != ',')) {
            json_decref(list);
            return cli_usage_error("--layers %s: a number, or the teacher's layers, as 0,5,11",
                                   d->layers);
        }
        json_array_append_new(list, json_integer(layer));
        at = end + 1;
    } while (*end);
    json_object_set(recipe, "layers", strchr(d->layers, ',') ? list : json_array_get(list, 0));
    json_decref(list);
    return CLI_OK;
}

// "80M", "123456", or a part of the teacher's as "1/2".
static int put_part(const char *key, const char *text, json_t *recipe)
{
    static const struct {
        char unit;
        double by;
    } units[] = {{0, 1}, {'K', 1e3}, {'M', 1e6}, {'G', 1e9}, {'B', 1e9}};
    char *end;
    double n = strtod(text, &end);
    if (*end == '/')
        n /= strtod(end + 1, &end);
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]) && n > 0 && isfinite(n); i++)
        if (end > text && *end == units[i].unit && (!*end || !end[1])) {
            json_object_set_new(recipe, key, json_real(n * units[i].by));
            return CLI_OK;
        }
    return cli_usage_error("--%s %s: a number as 80M, or a part of the teacher's as 1/2", key,
                           text);
}

// What is said of an adapter, as the recipe's object.
static void put_adapter(const struct distill *d, json_t *recipe)
{
    json_t *adapter = json_object_get(recipe, "adapter");
    char *roles = d->matrices ? strdup(d->matrices) : NULL, *at = NULL;
    if (!d->rank && isnan(d->alpha) && !d->matrices)
        return;
    if (!json_is_object(adapter))
        json_object_set_new(recipe, "adapter", adapter = json_object());
    if (d->rank)
        json_object_set_new(adapter, "rank", json_integer(d->rank));
    if (!isnan(d->alpha))
        json_object_set_new(adapter, "alpha", json_real((double)d->alpha));
    if (roles) {
        json_t *list = json_array();
        for (char *role = strtok_r(roles, ",", &at); role; role = strtok_r(NULL, ",", &at))
            json_array_append_new(list, json_string(role));
        json_object_set_new(adapter, "matrices", list);
    }
    free(roles);
}

// A drafter is small and fast, and is to choose what its model chooses.
static void put_drafter(json_t *recipe)
{
    static const char *const shape[] = {"layers", "weights",      "size",
                                        "heads",  "feed_forward", "width"};
    bool shaped = false;
    for (size_t i = 0; i < sizeof(shape) / sizeof(shape[0]); i++)
        shaped |= json_object_get(recipe, shape[i]) != NULL;
    json_t *usual = json_pack("{s:f, s:s}", "hard", 0.0, "to", "Q8_0");
    if (!shaped)
        json_object_set_new(usual, "weights", json_real(1.0 / 3));
    json_object_update_missing(recipe, usual);
    json_decref(usual);
}

// What the command's options say goes before the recipe's own.
static int put_options(const struct distill *d, json_t *recipe)
{
    const struct {
        const char *key;
        double value;
        bool said, whole;
    } numbers[] = {{"heads", d->heads, d->heads > 0, true},
                   {"feed_forward", d->feed_forward, d->feed_forward > 0, true},
                   {"width", d->width, d->width > 0, true},
                   {"size", (double)d->size, d->size > 0, true},
                   {"tokens", (double)d->tokens, d->tokens != UINT64_MAX, true},
                   {"length", d->length, d->length > 0, true},
                   {"batch", d->batch, d->batch > 0, true},
                   {"held_out", d->held_out, d->held_out > 0, true},
                   {"seed", d->seed, d->seed != UINT32_MAX, true},
                   {"states", d->states, d->states > 0, true},
                   {"rate", (double)d->rate, !isnan(d->rate), false},
                   {"temperature", (double)d->temperature, !isnan(d->temperature), false},
                   {"mix", (double)d->mix, !isnan(d->mix), false},
                   {"own", (double)d->own, !isnan(d->own), false},
                   {"hard", (double)d->hard, !isnan(d->hard), false},
                   {"hidden", (double)d->hidden, !isnan(d->hidden), false},
                   {"attention", (double)d->attention, !isnan(d->attention), false},
                   {"cosine", (double)d->cosine, !isnan(d->cosine), false},
                   {"relation", (double)d->relation, !isnan(d->relation), false}};
    const struct {
        const char *key, *value;
    } words[] = {{"to", d->to},
                 {"start", d->start},
                 {"schedule", d->schedule},
                 {"precision", d->precision},
                 {"moments", d->moments},
                 {"device", d->device},
                 {"scales", d->scales},
                 {"activations", d->activations},
                 {"layers_by", d->layers_by},
                 {"cut_by", d->cut_by}};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (numbers[i].said)
            json_object_set_new(recipe, numbers[i].key,
                                numbers[i].whole ? json_integer((json_int_t)numbers[i].value)
                                                 : json_real(numbers[i].value));
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (words[i].value)
            json_object_set_new(recipe, words[i].key, json_string(words[i].value));
    int status = d->layers ? put_layers(d, recipe) : CLI_OK;
    if (d->qat)
        json_object_set_new(recipe, "qat", json_true());
    put_adapter(d, recipe);
    if (status == CLI_OK && d->weights)
        status = put_part("weights", d->weights, recipe);
    return status == CLI_OK && d->vocabulary ? put_part("vocabulary", d->vocabulary, recipe)
                                             : status;
}

static int make_recipe(const struct distill *d, char **ret)
{
    json_t *recipe = NULL;
    int status = jobs_read_recipe(d->recipe, &recipe);
    if (status == CLI_OK)
        status = put_options(d, recipe);
    if (status == CLI_OK && d->draft_for)
        put_drafter(recipe);
    *ret = status == CLI_OK ? json_dumps(recipe, JSON_COMPACT) : NULL;
    json_decref(recipe);
    return status == CLI_OK && !*ret ? cli_error("the options are UTF-8") : status;
}

static int check(const struct distill *d)
{
    if (!d->texts.n)
        return cli_usage_error("distill needs --text FILE, what the student learns from");
    if (!jobs_has_place("distill", d->out, d->detach))
        return CLI_USAGE;
    if (d->draft_for && (d->detach || d->rank))
        return cli_usage_error("--draft-for loads a student when it is done: %s",
                               d->detach ? "--detach cannot, nibble load --draft-for does"
                                         : "an adapter is none");
    return d->out ? cli_output_check(d->out, d->force) : CLI_OK;
}

// `drafter`: the name that it will have.
static int check_for_drafter(nibble *admin, const char *name, const char *drafter)
{
    const struct nibble_model model = cli_find_model(admin, name);
    size_t n = 0;
    if (!*model.name)
        return cli_error("no model \"%s\" is loaded to draft for: nibble load it first", name);
    if (*model.base)
        return cli_error("%s is %s of %s, and drafts are for a model of its own", name,
                         model.is_drafter ? "the drafter" : "an adapter", model.base);
    if (*cli_find_model(admin, drafter).name)
        return cli_error("a model \"%s\" is loaded: give the drafter's file another name", drafter);
    struct nibble_model *all = cli_models(admin, &n);
    int status = all ? CLI_OK : CLI_FAILED;
    for (size_t i = 0; i < n && status == CLI_OK; i++)
        if (all[i].is_drafter && !strcmp(all[i].base, name))
            status = cli_error("%s has a drafter, %s: unload that first", name, all[i].name);
    free(all);
    return status;
}

// Before hours of training, whoever cannot load what comes of them hears it.
static int check_drafted(const struct distill *d)
{
    char name[CLI_NAME_SIZE], drafter[CLI_NAME_SIZE];
    int status = cli_name(d->draft_for, name);
    if (status == CLI_OK)
        status = cli_name_of_file(d->out, drafter);
    if (status != CLI_OK)
        return status;
    nibble *admin = cli_connect_admin(&d->common);
    if (!admin)
        return CLI_FAILED;
    status = check_for_drafter(admin, name, drafter);
    nibble_close(admin);
    return status;
}

static int load_drafter(const struct distill *d)
{
    char name[CLI_NAME_SIZE], drafted[CLI_NAME_SIZE];
    struct nibble_load_options options = {.name = name, .draft_for = drafted};
    nibble *admin = NULL;
    int status = cli_name_of_file(d->out, name);
    if (status == CLI_OK)
        status = cli_name(d->draft_for, drafted);
    if (status == CLI_OK)
        status = cli_load(&d->common, d->out, &options, &admin);
    nibble_close(admin);
    if (status == CLI_OK)
        fprintf(stderr, "%s proposes tokens for %s from now on\n", name, drafted);
    return status;
}

static int distill(const struct distill *d, nibble *connection, const char *recipe)
{
    const struct nibble_compress_options options = {.size = sizeof(options),
                                                    .detached = d->detach,
                                                    .recipe = recipe,
                                                    .kind = "distill",
                                                    .calibration = d->texts.items,
                                                    .n_calibration = d->texts.n,
                                                    .teacher = d->teacher};
    uint64_t job = 0;
    int rc = nibble_compress(connection, d->path, &options, &job);
    if (rc < 0)
        return cli_failed(connection, d->path, rc);
    if (d->detach)
        return jobs_started(job, d->common.json);
    int status = jobs_wait(connection, job, d->path);
    if (status == CLI_OK)
        status = jobs_deliver(connection, job, d->out, d->force, d->common.json);
    return status == CLI_OK && d->draft_for ? load_drafter(d) : status;
}

int verb_distill(const struct verb *verb, int argc, char **argv)
{
    struct distill d = {.tokens = UINT64_MAX,
                        .seed = UINT32_MAX,
                        .rate = NAN,
                        .temperature = NAN,
                        .mix = NAN,
                        .own = NAN,
                        .hard = NAN,
                        .hidden = NAN,
                        .attention = NAN,
                        .cosine = NAN,
                        .relation = NAN,
                        .alpha = NAN};
    const struct option_spec specs[] = {
        {"output", 'o', OPTION_STRING, &d.out, "F.gguf", "the file to write (or --detach)"},
        {"teacher", 0, OPTION_STRING, &d.teacher, "F.gguf",
         "another model that teaches, of the same tokenizer (the model itself)"},
        {"layers", 0, OPTION_STRING, &d.layers, "N|LIST",
         "the student's layers: how many of the model's, or which, as 0,5,11"},
        {"layers-by", 0, OPTION_STRING, &d.layers_by, "S",
         "which: influence (the usual), those that change most of what goes through, or evenly"},
        {"weights", 0, OPTION_STRING, &d.weights, "N|1/N",
         "at most so many (80M), or that part of the teacher's: layers and inner rows are cut"},
        {"size", 0, OPTION_SIZE, &d.size, "SIZE",
         "the file's, at most, as 72M, with its matrices as --to: likewise"},
        {"heads", 0, OPTION_UINT(1, 1024), &d.heads, "N",
         "key-value heads of each layer, each with the queries that share it"},
        {"feed-forward", 0, OPTION_UINT(1, 1 << 20), &d.feed_forward, "N",
         "inner rows of each feed-forward"},
        {"width", 0, OPTION_UINT(1, 1 << 16), &d.width, "N", "channels of the residual stream"},
        {"cut-by", 0, OPTION_STRING, &d.cut_by, "S",
         "what is cut away: what the loss needs least, by gradient (the usual) or activation"},
        {"vocabulary", 0, OPTION_STRING, &d.vocabulary, "N|1/N",
         "at most so many tokens, or that part of the teacher's: those that the text uses most, "
         "and "
         "all that any text needs"},
        {"text", 't', OPTION_LIST(OPTION_LIST_MAX), &d.texts, "FILE",
         "text, or JSON lines with \"text\" or \"messages\", or a folder of these, to learn from "
         "(each its own option); an encoder takes each line as a text"},
        {"tokens", 0, OPTION_U64, &d.tokens, "N",
         "to train on (1000000); 0: it is cut, and not trained"},
        {"length", 0, OPTION_UINT(8, 8192), &d.length, "L", "tokens of a window (256)"},
        {"batch", 0, OPTION_UINT(8, 1 << 20), &d.batch, "N",
         "tokens of a step (1024; of an encoder 4096)"},
        {"rate", 0, OPTION_FLOAT(0, 1), &d.rate, "X",
         "the highest rate of AdamW (0.001; of an encoder 0.0005)"},
        {"schedule", 0, OPTION_STRING, &d.schedule, "S", "cosine, linear or constant"},
        {"temperature", 0, OPTION_FLOAT(0.01, 100), &d.temperature, "T",
         "of the teacher's probabilities and the student's (1)"},
        {"mix", 0, OPTION_FLOAT(0, 1), &d.mix, "B",
         "which divergence from the teacher: 0 KL (the usual), 1 reverse KL, between: "
         "Jensen-Shannon"},
        {"own", 0, OPTION_FLOAT(0, 1), &d.own, "A",
         "the share of windows that the student writes itself, behind their first quarter: the "
         "teacher judges them (0)"},
        {"hard", 0, OPTION_FLOAT(0, 1), &d.hard, "A",
         "the text's share of the loss; the rest is the teacher's (0.1; 1: no teacher)"},
        {"hidden", 0, OPTION_FLOAT(0, 1000), &d.hidden, "B",
         "weight of the last hidden states' cosine (0)"},
        {"attention", 0, OPTION_FLOAT(0, 1000), &d.attention, "B",
         "weight of the relations among tokens in the last attention, by queries, keys and values "
         "(0)"},
        {"cosine", 0, OPTION_FLOAT(0, 1000), &d.cosine, "B",
         "of an encoder: weight of the cosine between its vectors and the teacher's (1)"},
        {"relation", 0, OPTION_FLOAT(0, 1000), &d.relation, "B",
         "and of the differences in cosines among the texts of a batch (1)"},
        {"adapter-rank", 0, OPTION_UINT(1, 65536), &d.rank, "N",
         "train an adapter of this rank beside the model, which stays as it is in its type (LoRA, "
         "QLoRA); it learns from the text alone unless --hard says otherwise"},
        {"adapter-alpha", 0, OPTION_FLOAT(0.001, 1000000), &d.alpha, "X",
         "the adapter's factor is alpha / rank (16)"},
        {"adapter-matrices", 0, OPTION_STRING, &d.matrices, "LIST",
         "whom it adapts, as attn_q,attn_v (all matrices of the layers)"},
        {"start", 0, OPTION_STRING, &d.start, "S",
         "of the student's weights: teacher (its layers'), or random"},
        {"held-out", 0, OPTION_UINT(1, 4096), &d.held_out, "N",
         "windows of the text that it does not learn, but is judged on (32)"},
        {"to", 0, OPTION_STRING, &d.to, "T",
         "the type of the student's matrices (F16), or of an adapter (F32)"},
        {"precision", 0, OPTION_STRING, &d.precision, "P",
         "of products' operands: fp32 (the usual), or bf16: sums and weights stay in fp32"},
        {"moments", 0, OPTION_STRING, &d.moments, "M",
         "of AdamW, two a weight: fp32 (the usual), or int8, a quarter of their memory; codes that "
         "learn keep fp32"},
        {"device", 0, OPTION_STRING, &d.device, "D",
         "where passes forward and back run: cpu (the usual), or one as vulkan0 (nibble devices)"},
        {"qat", 0, OPTION_FLAG, &d.qat, NULL,
         "train the matrices as --to rounds them, and inputs as --activations "
         "(quantization-aware)"},
        {"scales", 0, OPTION_STRING, &d.scales, "S",
         "with --qat: learned (the usual), as codes are, or spanned, by each group's weights"},
        {"activations", 0, OPTION_STRING, &d.activations, "S",
         "how the file has inputs become int8 codes: block (the usual), or dynamic, a scale for "
         "each token's; with --qat it is trained so"},
        {"seed", 0, OPTION_UINT(0, UINT32_MAX - 1), &d.seed, "N", "of the windows' order (1)"},
        {"states", 0, OPTION_UINT(2, 16), &d.states, "K",
         "that the job keeps of its training: a damaged one costs the steps since the one before "
         "(2)"},
        {"recipe", 0, OPTION_STRING, &d.recipe, "F.json", "all of this by its keys"},
        {"draft-for", 0, OPTION_STRING, &d.draft_for, "MODEL",
         "a drafter of that loaded model: a third of the weights, in Q8_0, unless it is said, by "
         "the teacher's choices alone; loaded beside it when it is done"},
        {"detach", 0, OPTION_FLAG, &d.detach, NULL, "start the job and leave it to itself"},
        {"force", 'f', OPTION_FLAG, &d.force, NULL, "replace a file that is there"},
        {0},
    };
    char **args, *recipe = NULL;
    int n = cli_parse(verb, specs, &d.common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    d.path = args[0];
    int status = check(&d);
    if (status == CLI_OK)
        status = make_recipe(&d, &recipe);
    if (status == CLI_OK && d.draft_for)
        status = check_drafted(&d);
    nibble *connection = status == CLI_OK ? cli_connect(&d.common) : NULL;
    if (status == CLI_OK)
        status = connection ? distill(&d, connection, recipe) : CLI_FAILED;
    nibble_close(connection);
    free(recipe);
    return status;
}
