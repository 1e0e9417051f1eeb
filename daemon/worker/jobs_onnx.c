// The kind "onnx": an encoder, or a layer of a decoder, as an ONNX graph. It is made at once, so
// one that is killed begins again.
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/worker/jobs.h"
#include "quant/onnx/export.h"
#include "tensor/hf/folder.h"
#include "tensor/image.h"

enum { MODEL, REPORT }; // results

static bool is(const json_t *value, const char *text)
{
    return json_is_string(value) && !strcmp(json_string_value(value), text);
}

// False: there is no such word.
static bool read_scale(const json_t *word, enum nb_input_scale *ret)
{
    static const char *const words[] = {
        [NB_INPUT_BLOCK] = "float", [NB_INPUT_ROW] = "dynamic", [NB_INPUT_FIXED] = "static"};
    for (unsigned i = 0; word && i < sizeof(words) / sizeof(words[0]); i++)
        if (is(word, words[i])) {
            *ret = (enum nb_input_scale)i;
            return true;
        }
    return !word;
}

static int read_recipe(const char *text, size_t len, struct nb_onnx_options *ret,
                       struct nb_error *e)
{
    json_error_t error;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    const json_t *to = json_object_get(root, "to"), *layer = json_object_get(root, "layer");
    const json_t *inputs = json_object_get(root, "activations");
    const bool whole = !layer || (json_is_integer(layer) && json_integer_value(layer) >= 0 &&
                                  json_integer_value(layer) < NB_ONNX_ENCODER);
    const bool fits = json_object_size(root) == 1 + (inputs != NULL) + (size_t)(layer != NULL) &&
                      (is(to, "INT8") || is(to, "F32")) && whole && read_scale(inputs, &ret->scale);
    if (fits) {
        ret->layer = layer ? (uint32_t)json_integer_value(layer) : NB_ONNX_ENCODER;
        ret->int8 = is(to, "INT8");
    }
    json_decref(root);
    return fits ? 0
                : nb_fail(e, -EINVAL,
                          "a graph's recipe has \"to\" (INT8 or F32), and perhaps \"layer\" and "
                          "\"activations\" (dynamic, static or float)");
}

int nb_jobs_onnx_check(const char *recipe, size_t len, struct nb_error *e)
{
    struct nb_onnx_options options = {0};
    return read_recipe(recipe, len, &options, e);
}

static int open_image(const struct nb_work *work, struct nb_image **ret, struct nb_error *e)
{
    struct nb_source *source = NULL;
    uint64_t bytes;
    int fd = memfd_create("nibble-onnx", MFD_CLOEXEC);
    int rc = fd < 0 ? nb_fail(e, -errno, "no memory for the model: %s", strerror(errno))
                    : nb_source_open(work->files, work->n_files, &source, e);
    if (rc == 0)
        rc = nb_image_pack(source, fd, NULL, &bytes, e);
    if (rc >= 0)
        rc = nb_image_map(fd, 0, ret, e);
    nb_source_close(source);
    if (fd >= 0)
        close(fd);
    return rc < 0 ? rc : 0;
}

// The ranges that static inputs have in the model's file.
static int find_ranges(const struct nb_plan *plan, const struct nb_image *image,
                       struct nb_onnx_options *options, struct nb_error *e)
{
    if (options->scale != NB_INPUT_FIXED)
        return 0;
    int rc = nb_inputs_read(nb_image_metadata(image), plan->n_matrices, &options->inputs, e);
    if (rc == 0 && options->inputs.scale != NB_INPUT_FIXED)
        rc = nb_fail(e, -EINVAL,
                     "the model has no ranges of inputs: compress it first with --to int8-channel "
                     "--activations static, and write the graph of the result");
    return rc;
}

static int write_all(int fd, const char *data, size_t len, struct nb_error *e)
{
    int rc = nb_jobs_need(len + 4096);
    if (rc < 0)
        return nb_fail(e, rc, "the daemon did not answer");
    for (size_t at = 0; at < len && rc == 0;) {
        ssize_t n = pwrite(fd, data + at, len - at, (off_t)at);
        if (n < 0 && errno != EINTR)
            rc = -errno;
        at += n > 0 ? (size_t)n : 0;
    }
    if (rc == 0 && (ftruncate(fd, (off_t)len) < 0 || fdatasync(fd) < 0))
        rc = -errno;
    return rc < 0 ? nb_fail(e, rc, "the result cannot be written: %s", strerror(-rc)) : 0;
}

static int write_report(const struct nb_work *work, const struct nb_onnx_options *options,
                        size_t bytes, struct nb_error *e)
{
    json_t *root =
        json_pack("{s:s, s:I, s:f, s:[], s:[]}", "type", options->int8 ? "INT8" : "F32", "bytes",
                  (json_int_t)bytes, "bits", options->int8 ? 8.0 : 32.0, "warnings", "tensors");
    return nb_jobs_write_json(work->results[REPORT], root, JSON_COMPACT, e);
}

int nb_jobs_onnx(struct nb_work *work, struct nb_error *e)
{
    const struct nb_plan_options exact = {.precision = NB_PRECISION_EXACT, .kv_type = NB_KV_F32};
    struct nb_onnx_options options = {0};
    struct nb_image *image = NULL;
    struct nb_plan *plan = NULL;
    void *data = NULL;
    size_t len = 0;
    int rc = read_recipe(work->recipe, work->recipe_len, &options, e);
    if (rc == 0)
        rc = open_image(work, &image, e);
    if (rc == 0)
        rc = nb_plan_create(image, &exact, &plan, e);
    if (rc == 0)
        rc = find_ranges(plan, image, &options, e);
    if (rc == 0)
        rc = nb_onnx_export(plan, &options, &data, &len, e);
    if (rc == 0)
        rc = write_all(work->results[MODEL], data, len, e);
    if (rc == 0)
        rc = write_report(work, &options, len, e);
    nb_jobs_tell(work, "graph", len, len);
    free(data);
    nb_plan_destroy(plan);
    nb_image_unmap(image);
    return rc;
}
