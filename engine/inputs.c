// See inputs.h.
#include "engine/inputs.h"

#include <errno.h>
#include <string.h>

static bool is(struct nb_str s, const char *text)
{
    return s.len == strlen(text) && !memcmp(s.data, text, s.len);
}

static int read_range(const struct nb_inputs *in, uint64_t i, float *ret)
{
    double value;
    int rc = nb_gguf_array_f64(in->g, NB_KEY_ACTIVATIONS_RANGES, i, &value);
    if (rc < 0 || (value != 0 && !(value >= (double)NB_INPUT_RANGE_LEAST &&
                                   value <= (double)NB_INPUT_RANGE_MOST)))
        return -EINVAL;
    *ret = (float)value;
    return 0;
}

static int check_ranges(const struct nb_inputs *in, struct nb_error *e)
{
    float range;
    for (uint64_t i = 0; i < in->n; i++)
        if (read_range(in, i, &range) < 0)
            return nb_fail(e, -EINVAL, "%s: element %llu is neither 0 nor a number from %g to %g",
                           NB_KEY_ACTIVATIONS_RANGES, (unsigned long long)i,
                           (double)NB_INPUT_RANGE_LEAST, (double)NB_INPUT_RANGE_MOST);
    return 0;
}

static int read_lists(struct nb_inputs *in, uint64_t most, struct nb_error *e)
{
    enum nb_gguf_type names, ranges;
    uint64_t n_ranges = 0;
    if (nb_gguf_array(in->g, NB_KEY_ACTIVATIONS_MATRICES, &names, &in->n) < 0 ||
        nb_gguf_array(in->g, NB_KEY_ACTIVATIONS_RANGES, &ranges, &n_ranges) < 0 ||
        names != NB_GGUF_STRING || in->n != n_ranges || in->n > most)
        return nb_fail(e, -EINVAL,
                       "%s and %s are lists of one length, of strings and numbers, with no more "
                       "matrices than the model has",
                       NB_KEY_ACTIVATIONS_MATRICES, NB_KEY_ACTIVATIONS_RANGES);
    return check_ranges(in, e);
}

int nb_inputs_read(const struct nb_gguf *g, uint64_t most, struct nb_inputs *ret,
                   struct nb_error *ret_error)
{
    struct nb_inputs in = {.g = g};
    struct nb_str scheme;
    int rc = nb_gguf_str(g, NB_KEY_ACTIVATIONS, &scheme);
    if (rc == 0 && is(scheme, NB_ACTIVATIONS_DYNAMIC)) {
        in.scale = NB_INPUT_ROW;
    } else if (rc == 0 && is(scheme, NB_ACTIVATIONS_STATIC)) {
        in.scale = NB_INPUT_FIXED;
        rc = read_lists(&in, most, ret_error);
    } else if (rc != -ENOENT) {
        rc = nb_fail(ret_error, -EINVAL,
                     "%s is neither \"%s\" nor \"%s\": this release computes no other",
                     NB_KEY_ACTIVATIONS, NB_ACTIVATIONS_DYNAMIC, NB_ACTIVATIONS_STATIC);
    }
    if (rc < 0 && rc != -ENOENT)
        return rc;
    *ret = in;
    return 0;
}

int nb_inputs_range(const struct nb_inputs *inputs, struct nb_str matrix, float *ret)
{
    struct nb_str name;
    for (uint64_t i = 0; i < inputs->n; i++)
        if (nb_gguf_array_str(inputs->g, NB_KEY_ACTIVATIONS_MATRICES, i, &name) == 0 &&
            name.len == matrix.len && !memcmp(name.data, matrix.data, name.len))
            return read_range(inputs, i, ret);
    return -ENOENT;
}
