// Writing a source as GGUF: see convert.h.
#include "tensor/convert.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/damage.h"
#include "tensor/fail.h"
#include "tensor/gguf_write.h"
#include "tensor/image_private.h"
#include "tensor/type.h"

#define CHUNK  ((uint64_t)1 << 20) // bytes of floats at a time, at least one row
#define STR(s) (int)(s).len, (s).data

struct conversion {
    const struct nb_source *s;
    struct nb_convert_options options;
    struct nb_gguf_writer *w;
    uint32_t *types; // of each tensor in the file
    struct nb_converted done;
    uint64_t total;
    uint8_t *in, *out;
    float *floats;
    uint64_t room; // elements in each of them
    struct nb_error *ret_error;
};

#define FAIL(c, code, ...) nb_fail((c)->ret_error, code, __VA_ARGS__)

// ---- Types

bool nb_convert_is_single(const struct nb_source_tensor *t)
{
    static const char *const ends[] = {"_norm.weight", "ffn_gate_inp.weight",
                                       "position_embd.weight", "token_types.weight"};
    if (t->n_dims == 1)
        return true;
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        const size_t n = strlen(ends[i]);
        if (t->name.len >= n && !memcmp(t->name.data + t->name.len - n, ends[i], n))
            return true;
    }
    return false;
}

static uint32_t type_of(struct conversion *c, const struct nb_source_tensor *t)
{
    const uint32_t to = c->options.to;
    if (nb_convert_is_single(t))
        return NB_TYPE_F32;
    if (to == NB_CONVERT_KEEP || t->dims[0] % nb_type_info(to)->block == 0)
        return to == NB_CONVERT_KEEP ? t->type : to;
    if (!c->done.n_unfit++)
        snprintf(c->done.unfit, sizeof(c->done.unfit), "%.*s", STR(t->name));
    return NB_TYPE_F16;
}

// llama.cpp's numbers of file types; of k-quants those of its plain mixtures.
static const struct {
    uint32_t type, number;
} file_types[] = {
    {NB_TYPE_F32, 0},     {NB_TYPE_F16, 1},     {NB_TYPE_Q4_0, 2},  {NB_TYPE_Q4_1, 3},
    {NB_TYPE_Q8_0, 7},    {NB_TYPE_Q5_0, 8},    {NB_TYPE_Q5_1, 9},  {NB_TYPE_Q2_K, 10},
    {NB_TYPE_Q3_K, 12},   {NB_TYPE_Q4_K, 15},   {NB_TYPE_Q5_K, 17}, {NB_TYPE_Q6_K, 18},
    {NB_TYPE_IQ4_NL, 25}, {NB_TYPE_IQ4_XS, 30}, {NB_TYPE_BF16, 32}, {NB_TYPE_Q2_0, 41},
};

int nb_convert_put_type(struct nb_gguf_writer *w, uint32_t type)
{
    const uint32_t version = 2; // of the blocks' formats
    int rc = 0;
    for (size_t i = 0; i < sizeof(file_types) / sizeof(file_types[0]); i++)
        if (file_types[i].type == type)
            rc = nb_gguf_put(w, "general.file_type", NB_GGUF_U32, &file_types[i].number);
    if (rc == 0 && nb_type_info(type)->block > 1)
        rc = nb_gguf_put(w, "general.quantization_version", NB_GGUF_U32, &version);
    return rc;
}

int nb_convert_check_tensor(const struct nb_source_tensor *t, struct nb_error *ret_error)
{
    if (t->dims[0] > NB_IMAGE_MAX_VECTOR)
        return nb_fail(ret_error, -EFBIG, "tensor %.*s has rows of more than %" PRIu64 " elements",
                       STR(t->name), NB_IMAGE_MAX_VECTOR);
    if (!nb_type_info(t->type))
        return nb_fail(ret_error, -ENOTSUP,
                       "tensor %.*s is of type %s (%u), which Nibble does not read", STR(t->name),
                       nb_type_name(t->type), t->type);
    return 0;
}

static int add_tensor(struct conversion *c, uint32_t i)
{
    const struct nb_source_tensor *t = &c->s->tensors[i];
    char name[NB_SOURCE_NAME];
    int rc = nb_convert_check_tensor(t, c->ret_error);
    if (rc < 0)
        return rc;
    const struct nb_type_info *to = nb_type_info(c->types[i] = type_of(c, t));
    snprintf(name, sizeof(name), "%.*s", STR(t->name));
    if (nb_gguf_add_tensor(c->w, name, to->type, t->n_dims, t->dims) < 0)
        return FAIL(c, -EINVAL,
                    "tensor %s does not fit a GGUF file as %s: name another type (--to)", name,
                    to->name);
    c->total += nb_source_rows(t) * nb_type_row_bytes(to->type, t->dims[0]);
    return 0;
}

static int announce(struct conversion *c)
{
    int rc = c->options.to == NB_CONVERT_KEEP ? 0 : nb_convert_put_type(c->w, c->options.to);
    if (rc == 0)
        rc = nb_gguf_copy_metadata(c->w, c->s->metadata);
    if (rc < 0)
        return FAIL(c, rc, "no memory for the metadata");
    for (uint32_t i = 0; i < c->s->n_tensors && rc == 0; i++)
        rc = add_tensor(c, i);
    return rc;
}

// ---- Data

static int write_some(struct conversion *c, const void *data, uint64_t len)
{
    int rc = nb_gguf_write(c->w, data, len);
    if (rc < 0)
        return FAIL(c, rc, "cannot write: %s", strerror(-rc));
    c->done.bytes += len;
    rc = c->options.progress ? c->options.progress(c->options.user, c->done.bytes, c->total) : 0;
    return rc < 0 ? FAIL(c, rc, "cancelled") : 0;
}

static int reserve(struct conversion *c, uint64_t elements)
{
    if (elements <= c->room)
        return 0;
    free(c->in);
    free(c->out);
    free(c->floats);
    // No type has more than 4 bytes an element.
    c->in = malloc(elements * 4);
    c->out = malloc(elements * 4);
    c->floats = malloc(elements * 4);
    c->room = c->in && c->out && c->floats ? elements : 0;
    return c->room ? 0 : FAIL(c, -ENOMEM, "no memory for a part of a tensor");
}

int nb_convert_check_numbers(const struct nb_source *s, const struct nb_source_tensor *t,
                             const float *x, uint64_t first, uint64_t rows,
                             struct nb_error *ret_error)
{
    struct nb_no_number n;
    char prefix[NB_SOURCE_NAME + 2];
    if (!nb_vector_no_number(x, rows * t->dims[0], &n))
        return 0;
    const uint64_t row = first + n.block / t->dims[0];
    return nb_fail(ret_error, -EINVAL,
                   "%stensor %.*s has %s (row %" PRIu64 ", element %" PRIu64
                   "): the file is damaged, fetch it again",
                   nb_source_prefix(s, nb_source_piece(t, row), prefix), STR(t->name), n.what, row,
                   n.block % t->dims[0]);
}

// n rows from `first` on. Their numbers are looked at in any case.
static int convert_rows(struct conversion *c, const struct nb_source_tensor *t, uint32_t type,
                        uint64_t first, uint64_t n)
{
    const struct nb_type_info *from = nb_type_info(t->type), *to = nb_type_info(type);
    const uint64_t elements = n * t->dims[0];
    int rc = nb_source_read(c->s, t, first, n, c->in, c->ret_error);
    if (rc < 0)
        return rc;
    from->dequantize(c->in, c->floats, elements / from->block);
    rc = nb_convert_check_numbers(c->s, t, c->floats, first, n, c->ret_error);
    if (rc < 0)
        return rc;
    if (from == to)
        return write_some(c, c->in, elements / to->block * to->bytes);
    to->quantize(c->floats, c->out, elements / to->block);
    return write_some(c, c->out, elements / to->block * to->bytes);
}

static int convert_tensor(struct conversion *c, uint32_t i)
{
    const struct nb_source_tensor *t = &c->s->tensors[i];
    const uint64_t rows = nb_source_rows(t), in_chunk = CHUNK / 4 / t->dims[0];
    const uint64_t step = in_chunk < 1 ? 1 : in_chunk < rows ? in_chunk : rows;
    int rc = reserve(c, step * t->dims[0]);
    for (uint64_t row = 0; row < rows && rc == 0; row += step)
        rc = convert_rows(c, t, c->types[i], row, rows - row < step ? rows - row : step);
    return rc;
}

int nb_convert_check_ends(const struct nb_source *s, struct nb_error *ret_error)
{
    const struct nb_piece *zero = NULL;
    char prefix[NB_SOURCE_NAME + 2];
    int rc = nb_find_zeros(s, &zero);
    if (rc < 0)
        return nb_fail(ret_error, rc, "cannot read a file's end: %s", strerror(-rc));
    if (!zero)
        return 0;
    return nb_fail(ret_error, -EINVAL,
                   "%sthe file is zero from tensor %.*s to its end, as after an interrupted "
                   "download: fetch it again",
                   nb_source_prefix(s, zero, prefix), STR(zero->name));
}

static int run(struct conversion *c, int fd)
{
    int rc = announce(c);
    if (rc == 0)
        rc = nb_convert_check_ends(c->s, c->ret_error);
    if (rc < 0)
        return rc;
    rc = nb_gguf_begin(c->w, fd);
    if (rc < 0)
        return FAIL(c, rc, "cannot write: %s", strerror(-rc));
    for (uint32_t i = 0; i < c->s->n_tensors && rc == 0; i++)
        rc = convert_tensor(c, i);
    c->done.n_tensors = c->s->n_tensors;
    return rc < 0 ? rc : nb_gguf_end(c->w);
}

int nb_convert(const struct nb_source *s, const struct nb_convert_options *options, int fd,
               struct nb_converted *ret, struct nb_error *ret_error)
{
    struct conversion c = {.s = s, .options = *options};
    c.ret_error = ret_error;
    c.types = calloc(s->n_tensors + 1, sizeof(*c.types));
    int rc = c.types ? nb_gguf_writer_create(&c.w) : -ENOMEM;
    rc = rc < 0 ? FAIL(&c, rc, "no memory for the list of tensors") : run(&c, fd);
    if (rc == 0)
        *ret = c.done;
    nb_gguf_writer_destroy(c.w);
    free(c.types);
    free(c.in);
    free(c.out);
    free(c.floats);
    return rc;
}
