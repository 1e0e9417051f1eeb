// `nibble compress`: a model in smaller types, as a job of the service. Attached, it waits and
// writes the file; detached, it leaves the job to `nibble jobs`, `wait` and `result`.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/cli/folder.h"
#include "tools/cli/jobs.h"

struct compress {
    struct common common;
    const char *path, *out, *to, *otherwise, *method, *fold, *recipe, *imatrix, *save_imatrix,
        *format, *activations, *range, *sparse, *sparse_by;
    float spread; // below 0: not said
    struct option_list calibration, types, adapters;
    const char *effort;
    uint64_t target_size, fit; // 0: not said
    float target_bits, max_kld;
    uint32_t context;
    uint32_t samples, length; // 0: not said
    uint32_t layer;           // UINT32_MAX: not said
    const char *kind;         // of the job; NULL: by its other options
    bool learns;              // from text, as its recipe has it
    bool detach, force;
};

// "awq,permute" as a list.
static void put_fold(const struct compress *c, json_t *recipe)
{
    json_t *list = json_array();
    for (const char *at = c->fold; *at;) {
        const size_t n = strcspn(at, ",");
        json_array_append_new(list, json_stringn(at, n));
        at += n + (at[n] == ',');
    }
    json_object_set_new(recipe, "fold", list);
}

static void put_sampling(const struct compress *c, json_t *recipe)
{
    json_t *calibration = json_object_get(recipe, "calibration");
    if (!c->samples && !c->length)
        return;
    if (!calibration)
        json_object_set_new(recipe, "calibration", calibration = json_object());
    if (c->samples)
        json_object_set_new(calibration, "samples", json_integer(c->samples));
    if (c->length)
        json_object_set_new(calibration, "length", json_integer(c->length));
}

static void put_target(const struct compress *c, json_t *recipe)
{
    json_t *target = json_object(), *types = json_array();
    if (c->target_size)
        json_object_set_new(target, "size", json_integer((json_int_t)c->target_size));
    if (c->fit)
        json_object_set_new(target, "fit", json_integer((json_int_t)c->fit));
    if (c->target_bits > 0)
        json_object_set_new(target, "bits", json_real((double)c->target_bits));
    if (c->max_kld > 0)
        json_object_set_new(target, "max_kld", json_real((double)c->max_kld));
    if (c->context)
        json_object_set_new(target, "context", json_integer(c->context));
    for (size_t i = 0; i < c->types.n; i++)
        json_array_append_new(types, json_string(c->types.items[i]));
    if (json_object_size(target))
        json_object_set(recipe, "target", target);
    if (c->types.n)
        json_object_set(recipe, "types", types);
    if (c->effort)
        json_object_set_new(recipe, "effort", json_string(c->effort));
    json_decref(target);
    json_decref(types);
}

static bool is_folder(const struct compress *c)
{
    return c->kind && !strcmp(c->kind, "folder");
}

static bool is_graph(const struct compress *c)
{
    return c->format && !strcmp(c->format, "onnx");
}

static void put_activations(const struct compress *c, json_t *recipe)
{
    json_t *activations = json_object();
    char *end = NULL;
    const double percent = c->range ? strtod(c->range, &end) : 0;
    if (c->activations)
        json_object_set_new(activations, "scheme", json_string(c->activations));
    if (c->range && *end) {
        json_object_set_new(activations, "range", json_string(c->range));
    } else if (c->range) {
        json_object_set_new(activations, "range", json_string("percentile"));
        json_object_set_new(activations, "percentile", json_real(percent));
    }
    if (c->spread >= 0)
        json_object_set_new(activations, "spread", json_real((double)c->spread));
    if (c->activations)
        json_object_set(recipe, "activations",
                        is_graph(c) ? json_object_get(activations, "scheme") : activations);
    json_decref(activations);
}

// "0.5" or "2:4", in the place of the recipe's.
static void put_sparse(const struct compress *c, json_t *recipe)
{
    json_t *sparse = json_object_get(recipe, "sparse");
    char *end = NULL;
    const double share = c->sparse ? strtod(c->sparse, &end) : 0;
    if (!c->sparse && !c->sparse_by)
        return;
    if (!json_is_object(sparse))
        json_object_set_new(recipe, "sparse", sparse = json_object());
    if (c->sparse) {
        json_object_del(sparse, "share");
        json_object_del(sparse, "pattern");
    }
    if (c->sparse && *end)
        json_object_set_new(sparse, "pattern", json_string(c->sparse));
    else if (c->sparse)
        json_object_set_new(sparse, "share", json_real(share));
    if (c->sparse_by)
        json_object_set_new(sparse, "by", json_string(c->sparse_by));
}

// The recipe's text, malloc'ed: the file's, with what the command's options say.
static int make_recipe(struct compress *c, char **ret)
{
    json_t *recipe = NULL;
    int status = jobs_read_recipe(c->recipe, &recipe);
    if (status != CLI_OK)
        return status;
    if (c->to)
        json_object_set_new(recipe, "to", json_string(c->to));
    if (c->otherwise)
        json_object_set_new(recipe, "else", json_string(c->otherwise));
    if (c->method)
        json_object_set_new(recipe, "method", json_string(c->method));
    if (c->layer != UINT32_MAX)
        json_object_set_new(recipe, "layer", json_integer(c->layer));
    if (c->fold)
        put_fold(c, recipe);
    put_sampling(c, recipe);
    put_target(c, recipe);
    put_activations(c, recipe);
    put_sparse(c, recipe);
    c->learns = !is_graph(c) && jobs_learns(recipe);
    *ret = json_dumps(recipe, JSON_COMPACT);
    json_decref(recipe);
    return *ret ? CLI_OK : cli_error("--to, --else, --method, --fold and --recipe are UTF-8");
}

// Whether the ranges of inputs are fixed for good.
static bool fixes_ranges(const struct compress *c)
{
    return c->activations && !strcmp(c->activations, "static");
}

static int targets(const struct compress *c)
{
    return (c->target_size > 0) + (c->fit > 0) + (c->target_bits > 0) + (c->max_kld > 0);
}

// On its user's text, or, where the recipe asks for what learns, on text of the model's own.
static bool calibrates(const struct compress *c)
{
    return c->calibration.n || (c->learns && !c->imatrix);
}

// The kind of job that another format than GGUF is, and what goes with it.
static int check_format(struct compress *c)
{
    const bool graph = is_graph(c);
    const bool learns = c->method || c->calibration.n || c->imatrix || c->recipe;
    const bool more = !c->to || c->otherwise || c->fold || c->range || c->spread >= 0 ||
                      targets(c) || c->sparse || c->sparse_by;
    bool folder = false;
    int status = graph ? CLI_OK : folder_wanted(c->format, c->to, c->out, &folder);
    if (status == CLI_OK && folder && (more || c->activations || c->save_imatrix))
        return cli_usage_error(
            "a folder is of --to F32, F16, BF16, INT8 or NF4; NF4 takes --method "
            "search or gptq, --calibration and --imatrix too");
    if (graph && (more || learns))
        return cli_usage_error("a graph takes --to INT8 or F32, --layer and --activations alone");
    if (!graph && c->layer != UINT32_MAX)
        return cli_usage_error("--layer is of --format onnx");
    c->kind = graph ? "onnx" : folder ? "folder" : NULL;
    return status;
}

static int check(const struct compress *c)
{
    if (!c->to && !c->recipe && !targets(c))
        return cli_usage_error("compress needs --to TYPE, a target (--target-size SIZE, "
                               "--target-bits B, --max-kld X, --fit SIZE) or --recipe FILE");
    if (targets(c) > 1 || (targets(c) && c->to))
        return cli_usage_error("one of --to, --target-size, --target-bits, --max-kld and --fit");
    if (c->context && !c->fit)
        return cli_usage_error("--context is of --fit");
    if (!jobs_has_place("compress", c->out, c->detach))
        return CLI_USAGE;
    if ((c->range || c->spread >= 0) && !fixes_ranges(c))
        return cli_usage_error("--range and --spread are of --activations static");
    if (c->imatrix && c->calibration.n)
        return cli_usage_error("either --calibration or --imatrix");
    if (!calibrates(c) && (c->samples || c->length))
        return cli_usage_error("--samples and --length are of --calibration FILE, --method M or "
                               "a target");
    if (c->save_imatrix && (!calibrates(c) || c->detach))
        return cli_usage_error(
            "--save-imatrix keeps what --calibration FILE or --method M, and -o, "
            "measure");
    if (c->save_imatrix && !strcmp(c->save_imatrix, c->out))
        return cli_usage_error("-o and --save-imatrix name one file");
    int status = c->save_imatrix ? cli_output_check(c->save_imatrix, c->force) : CLI_OK;
    if (status != CLI_OK || !c->out)
        return status;
    return is_folder(c) ? folder_check(c->out) : cli_output_check(c->out, c->force);
}

static int fetch(const struct compress *c, nibble *connection, uint64_t job)
{
    int status = jobs_wait(connection, job, c->path);
    if (status == CLI_OK && c->save_imatrix)
        status = jobs_save(connection, job, JOBS_IMATRIX, c->save_imatrix, c->force);
    return status == CLI_OK ? jobs_deliver(connection, job, c->out, c->force, c->common.json)
                            : status;
}

static int compress(const struct compress *c, nibble *connection, const char *recipe)
{
    const struct nibble_compress_options options = {.size = sizeof(options),
                                                    .detached = c->detach,
                                                    .recipe = recipe,
                                                    .kind = c->kind,
                                                    .calibration = c->calibration.items,
                                                    .n_calibration = c->calibration.n,
                                                    .imatrix = c->imatrix,
                                                    .adapters = c->adapters.items,
                                                    .n_adapters = c->adapters.n};
    uint64_t job = 0;
    int rc = nibble_compress(connection, c->path, &options, &job);
    if (rc < 0)
        return cli_failed(connection, c->path, rc);
    return c->detach ? jobs_started(job, c->common.json) : fetch(c, connection, job);
}

int verb_compress(const struct verb *verb, int argc, char **argv)
{
    struct compress c = {.layer = UINT32_MAX, .spread = -1};
    const struct option_spec specs[] = {
        {"output", 'o', OPTION_STRING, &c.out, "F.gguf", "the file to write (or --detach)"},
        {"to", 0, OPTION_STRING, &c.to, "T",
         "the type of its matrices, as Q8_0, or a scheme, as int8-channel or int4-g128-min"},
        {"else", 0, OPTION_STRING, &c.otherwise, "T",
         "the type of those whose rows are no whole blocks of it, as F16"},
        {"adapter", 0, OPTION_LIST(OPTION_LIST_MAX), &c.adapters, "F.gguf[:SCALE]",
         "a LoRA adapter that is merged into the model before all else (each its own option)"},
        {"target-size", 0, OPTION_SIZE, &c.target_size, "SIZE",
         "choose each tensor's type for a file of at most SIZE bytes, as 92M"},
        {"target-bits", 0, OPTION_FLOAT(1, 32), &c.target_bits, "B", "or for B bits a weight"},
        {"max-kld", 0, OPTION_FLOAT(1e-6, 100), &c.max_kld, "X",
         "or for the smallest file whose divergence is X at most"},
        {"fit", 0, OPTION_SIZE, &c.fit, "SIZE",
         "or for what serves in SIZE: weights and one context's KV memory"},
        {"context", 0, OPTION_UINT(1, 1 << 30), &c.context, "N", "tokens of it (the model's)"},
        {"type", 0, OPTION_LIST(OPTION_LIST_MAX), &c.types, "T",
         "choose among these types alone (each its own option)"},
        {"effort", 0, OPTION_STRING, &c.effort, "E",
         "fast, normal or best: how long is searched, and from how much text"},
        {"recipe", 0, OPTION_STRING, &c.recipe, "F.json",
         "which tensors get which types; --to and --else go before its own"},
        {"method", 0, OPTION_STRING, &c.method, "M",
         "search (of scales), gptq (error feedback), tune (and descent), or auto (what gains); "
         "alone on text of its own"},
        {"fold", 0, OPTION_STRING, &c.fold, "LIST",
         "before all else, as awq,permute: awq or smooth (scales), permute, rotate or "
         "rotate-values"},
        {"sparse", 0, OPTION_STRING, &c.sparse, "S",
         "make zeros in the layers' matrices: a share of them, as 0.5, or a pattern, as 2:4; "
         "they save no bytes in a GGUF"},
        {"sparse-by", 0, OPTION_STRING, &c.sparse_by, "M",
         "choose them by magnitude (default), wanda, or sparsegpt (with --method gptq)"},
        {"calibration", 0, OPTION_LIST(OPTION_LIST_MAX), &c.calibration, "FILE",
         "text, or JSON lines with \"text\", or a folder of these: its model's inputs weigh the "
         "errors"},
        {"samples", 0, OPTION_UINT(1, 65536), &c.samples, "N",
         "windows of that text (128; 512 at effort best)"},
        {"length", 0, OPTION_UINT(8, 8192), &c.length, "L", "tokens of a window (256)"},
        {"activations", 0, OPTION_STRING, &c.activations, "S",
         "inputs as int8 codes under one scale for a row (dynamic) or for good (static); of a "
         "graph also float (its default), and static has the ranges of the model's file"},
        {"range", 0, OPTION_STRING, &c.range, "R",
         "of static ones: mse (default), minmax, or so many per cent of the magnitudes, as 99.99"},
        {"spread", 0, OPTION_FLOAT(0, 1e9), &c.spread, "N",
         "inputs N times larger than most stay dynamic (6; 0: none do)"},
        {"imatrix", 0, OPTION_STRING, &c.imatrix, "F.gguf",
         "llama-imatrix's file in the place of --calibration"},
        {"save-imatrix", 0, OPTION_STRING, &c.save_imatrix, "F.gguf",
         "write such a file, which llama-quantize reads, too"},
        {"format", 0, OPTION_STRING, &c.format, "F",
         "gguf, safetensors (a Hugging Face folder), or onnx; default: gguf, safetensors of NF4 "
         "and "
         "INT8"},
        {"layer", 0, OPTION_UINT(0, 1u << 20), &c.layer, "N",
         "with onnx: the layer of a decoder; an encoder is written whole"},
        {"detach", 0, OPTION_FLAG, &c.detach, NULL, "start the job and leave it to itself"},
        {"force", 'f', OPTION_FLAG, &c.force, NULL, "replace a file that is there"},
        {0},
    };
    char **args, *recipe = NULL;
    int n = cli_parse(verb, specs, &c.common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    c.path = args[0];
    int status = check_format(&c);
    if (status == CLI_OK)
        status = make_recipe(&c, &recipe);
    if (status == CLI_OK)
        status = check(&c);
    if (status == CLI_OK && !c.kind && calibrates(&c))
        c.kind = "weighted";
    nibble *connection = status == CLI_OK ? cli_connect(&c.common) : NULL;
    if (status == CLI_OK)
        status = connection ? compress(&c, connection, recipe) : CLI_FAILED;
    nibble_close(connection);
    free(recipe);
    return status;
}
