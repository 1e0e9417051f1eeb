// The data of a folder's tensors: rows as floats, as int8, as NF4. See write.h.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/block.h"
#include "tensor/convert.h"
#include "tensor/hf/write_private.h"

#define CHUNK     ((uint64_t)1 << 18) // elements at a time, at least one row
#define STATE     256                 // bytes of NF4's state, filled with spaces
#define EXPONENTS 7                   // of the nested map
#define STR(s)    (int)(s).len, (s).data

enum { CODES, SCALES };                                       // parts of INT8
enum { ABSMAX = 1, VALUES, NESTED_ABSMAX, NESTED_MAP, INFO }; // of NF4, behind its codes

struct writing {
    const struct nb_hf_writer *w;
    const struct nb_hf_out *out;
    int fd;
    uint8_t *in, *coded;
    float *floats, *scales; // scales: of the whole tensor
    uint64_t step;          // rows at a time
    struct nb_error *ret_error;
};

#define FAIL(p, code, ...) nb_fail((p)->ret_error, code, __VA_ARGS__)

// ---- Parts

static void put_part(struct nb_hf_out *out, const char *suffix, const char *dtype, uint32_t size,
                     uint64_t rows, uint64_t cols)
{
    struct nb_hf_part part = {.suffix = suffix,
                              .dtype = dtype,
                              .n_dims = cols ? 2 : 1,
                              .size = size,
                              .shape = {rows, cols},
                              .bytes = rows * (cols ? cols : 1) * size};
    out->parts[out->n_parts++] = part;
}

void nb_hf_write_parts(struct nb_hf_out *out)
{
    const uint64_t cols = out->t->dims[0], n = out->rows * cols;
    const uint64_t blocks = n / NB_HF_NF4_EACH;
    if (out->type == NB_TYPE_INT8) {
        put_part(out, "", "I8", 1, out->rows, cols);
        put_part(out, "_scale", "F32", 4, out->rows, 1);
    } else if (out->type == NB_TYPE_NF4) {
        put_part(out, "", "U8", 1, n / 2, 1);
        put_part(out, ".absmax", "U8", 1, blocks, 0);
        put_part(out, ".quant_map", "F32", 4, 16, 0);
        put_part(out, ".nested_absmax", "F32", 4, (blocks - 1) / NB_HF_NF4_OUTER + 1, 0);
        put_part(out, ".nested_quant_map", "F32", 4, 256, 0);
        put_part(out, ".quant_state.bitsandbytes__nf4", "U8", 1, STATE, 0);
    } else {
        const struct nb_type_info *info = nb_type_info(out->type);
        if (out->t->n_dims == 1)
            put_part(out, "", info->name, info->bytes, cols, 0);
        else
            put_part(out, "", info->name, info->bytes, out->rows, cols);
    }
}

// Bytes of a part from `at` on.
static int put(const struct writing *p, uint32_t part, uint64_t at, const void *data, uint64_t len)
{
    const uint8_t *from = data;
    at += p->w->header_len + p->out->parts[part].offset;
    while (len) {
        ssize_t n = pwrite(p->fd, from, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return FAIL(p, n < 0 ? -errno : -EIO, "cannot write: %s",
                        strerror(n < 0 ? errno : EIO));
        from += n;
        at += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}

// ---- Rows

// Where the source has row i of the folder's, of heads of that length: its rotary pairs are
// neighbours.
static uint64_t paired(uint64_t head, uint64_t i)
{
    const uint64_t in_head = i % head, half = head / 2;
    return i - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

static int read_rows(const struct writing *p, uint64_t first, uint64_t n)
{
    const struct nb_hf_out *out = p->out;
    const uint64_t bytes = nb_source_row_bytes(out->t);
    if (!out->heads || out->t->n_dims == 1)
        return nb_source_read(p->w->s, out->t, out->first + first, n, p->in, p->ret_error);
    int rc = 0;
    for (uint64_t i = 0; i < n && rc == 0; i++)
        rc = nb_source_read(p->w->s, out->t, out->first + paired(out->rows / out->heads, first + i),
                            1, p->in + i * bytes, p->ret_error);
    return rc;
}

// A vector's elements are its rows.
static int order_vector(const struct writing *p)
{
    const uint64_t n = p->out->t->dims[0];
    float *copy = malloc(n * sizeof(*copy));
    if (!copy)
        return FAIL(p, -ENOMEM, "no memory for a vector");
    memcpy(copy, p->floats, n * sizeof(*copy));
    for (uint64_t i = 0; i < n; i++)
        p->floats[i] = copy[paired(n / p->out->heads, i)];
    free(copy);
    return 0;
}

static int load(const struct writing *p, uint64_t first, uint64_t n)
{
    const struct nb_source_tensor *t = p->out->t;
    const struct nb_type_info *from = nb_type_info(t->type);
    int rc = read_rows(p, first, n);
    if (rc < 0)
        return rc;
    from->dequantize(p->in, p->floats, n * t->dims[0] / from->block);
    rc = nb_convert_check_numbers(p->w->s, t, p->floats, p->out->first + first, n, p->ret_error);
    if (rc == 0 && p->out->heads && t->n_dims == 1)
        rc = order_vector(p);
    for (uint64_t i = 0; rc == 0 && p->out->add != 0 && i < n * t->dims[0]; i++)
        p->floats[i] -= p->out->add;
    return rc;
}

// ---- Floats

static int check_range(const struct writing *p, uint64_t first, uint64_t n)
{
    const uint64_t cols = p->out->t->dims[0];
    for (uint64_t i = 0; p->out->type == NB_TYPE_F16 && i < n * cols; i++)
        if (fabsf(p->floats[i]) >= 65520)
            return FAIL(p, -ERANGE,
                        "tensor %.*s has a number in row %" PRIu64
                        " that is too large for F16: write BF16 or F32",
                        STR(p->out->t->name), p->out->first + first + i / cols);
    return 0;
}

static int write_floats(const struct writing *p, uint64_t first, uint64_t n)
{
    const struct nb_type_info *to = nb_type_info(p->out->type);
    const uint64_t elements = n * p->out->t->dims[0];
    int rc = check_range(p, first, n);
    if (rc < 0)
        return rc;
    to->quantize(p->floats, p->coded, elements);
    return put(p, CODES, first * p->out->t->dims[0] * to->bytes, p->coded, elements * to->bytes);
}

// ---- INT8

static int write_int8(const struct writing *p, uint64_t first, uint64_t n)
{
    const uint64_t cols = p->out->t->dims[0];
    for (uint64_t r = 0; r < n; r++) {
        const float *x = p->floats + r * cols;
        float most = 0;
        for (uint64_t i = 0; i < cols; i++)
            most = fmaxf(most, fabsf(x[i]));
        const float scale = most / 127, inverse = scale > 0 ? 127 / most : 0;
        p->scales[first + r] = scale;
        for (uint64_t i = 0; i < cols; i++)
            p->coded[r * cols + i] = (uint8_t)(int8_t)rintf(x[i] * inverse);
    }
    return put(p, CODES, first * cols, p->coded, n * cols);
}

static int end_int8(const struct writing *p)
{
    return put(p, SCALES, 0, p->scales, p->out->rows * sizeof(float));
}

// ---- NF4

static int write_nf4(const struct writing *p, uint64_t first, uint64_t n)
{
    const struct nb_type_info *nf4 = nb_type_info(NB_TYPE_NF4);
    const uint64_t cols = p->out->t->dims[0], blocks = n * cols / nf4->block;
    const uint64_t half = nf4->block / 2;
    if (p->out->t->type == NB_TYPE_NF4) // its codes are kept
        memcpy(p->coded, p->in, blocks * nf4->bytes);
    else
        nf4->quantize(p->floats, p->coded, blocks);
    for (uint64_t b = 0; b < blocks; b++) { // to the front, over what is done
        const uint8_t *block = p->coded + b * nf4->bytes;
        memcpy(&p->scales[first * cols / nf4->block + b], block, sizeof(float));
        memmove(p->coded + b * half, block + sizeof(float), half);
    }
    return put(p, CODES, first * cols / 2, p->coded, n * cols / 2);
}

static int compare_floats(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// bitsandbytes' create_dynamic_map: for each of seven powers of ten, twice as many fractions as for
// the one below it, of both signs; 0; 1.
static void make_map(float map[256])
{
    float power = 1e-6f;
    uint32_t n = 0;
    for (uint32_t e = 0; e < EXPONENTS; e++, power *= 10) {
        const uint32_t fractions = 1u << e;
        for (uint32_t i = 0; i < fractions; i++) {
            const double step = 0.9 / fractions;
            const float value = (float)(0.1 + step * (i + 0.5)) * power;
            map[n++] = value;
            map[n++] = -value;
        }
    }
    map[n++] = 0;
    map[n++] = 1;
    qsort(map, n, sizeof(*map), compare_floats);
}

static uint8_t nearest(const float map[256], float x)
{
    uint32_t low = 0, high = 255;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (x > (map[middle] + map[middle + 1]) / 2)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)low;
}

// The scales as bytes, in blocks with a scale of their own, after their mean is taken off.
static int nest(const struct writing *p, const float map[256], float shift)
{
    const uint64_t n = p->out->parts[ABSMAX].bytes;
    uint8_t code[NB_HF_NF4_OUTER];
    int rc = 0;
    for (uint64_t b = 0; b < n && rc == 0; b += NB_HF_NF4_OUTER) {
        const uint64_t some = n - b < NB_HF_NF4_OUTER ? n - b : NB_HF_NF4_OUTER;
        float most = 0;
        for (uint64_t i = b; i < b + some; i++)
            most = fmaxf(most, fabsf(p->scales[i] - shift));
        const float inverse = most > 0 ? 1 / most : 0;
        for (uint64_t i = 0; i < some; i++)
            code[i] = nearest(map, (p->scales[b + i] - shift) * inverse);
        rc = put(p, NESTED_ABSMAX, b / NB_HF_NF4_OUTER * sizeof(most), &most, sizeof(most));
        rc = rc < 0 ? rc : put(p, ABSMAX, b, code, some);
    }
    return rc;
}

static int write_state(const struct writing *p, float shift)
{
    const char *dtype = p->out->t->type == NB_TYPE_F32    ? "float32"
                        : p->out->t->type == NB_TYPE_BF16 ? "bfloat16"
                                                          : "float16";
    char text[STATE + 1];
    int n = snprintf(text, sizeof(text),
                     "{\"quant_type\": \"nf4\", \"blocksize\": %d, \"dtype\": \"%s\", "
                     "\"shape\": [%" PRIu64 ", %" PRIu64 "], \"nested_blocksize\": %d, "
                     "\"nested_dtype\": \"float32\", \"nested_offset\": %.17g}",
                     NB_HF_NF4_EACH, dtype, p->out->rows, p->out->t->dims[0], NB_HF_NF4_OUTER,
                     (double)shift);
    memset(text + n, ' ', (size_t)(STATE - n));
    return put(p, INFO, 0, text, STATE);
}

static int end_nf4(const struct writing *p)
{
    const uint64_t n = p->out->parts[ABSMAX].bytes;
    float map[256];
    double sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += (double)p->scales[i];
    const float shift = (float)(sum / (double)n);
    make_map(map);
    int rc = nest(p, map, shift);
    if (rc == 0)
        rc = put(p, VALUES, 0, nb_nf4_values, sizeof(nb_nf4_values));
    if (rc == 0)
        rc = put(p, NESTED_MAP, 0, map, sizeof(map));
    return rc == 0 ? write_state(p, shift) : rc;
}

// ---- A tensor

static int reserve(struct writing *p)
{
    const struct nb_hf_out *out = p->out;
    const uint64_t cols = out->t->dims[0], some = CHUNK / cols;
    p->step = some < 1 ? 1 : some < out->rows ? some : out->rows;
    const uint64_t elements = p->step * cols, n = out->rows * cols;
    p->in = malloc(elements * 4); // no type has more bytes an element
    p->coded = malloc(elements * 4);
    p->floats = malloc(elements * sizeof(float));
    p->scales = malloc((out->type == NB_TYPE_NF4    ? n / NB_HF_NF4_EACH
                        : out->type == NB_TYPE_INT8 ? out->rows
                                                    : 1) *
                       sizeof(float));
    if (p->in && p->coded && p->floats && p->scales)
        return 0;
    return FAIL(p, -ENOMEM, "no memory for a part of a tensor");
}

static int write_some(const struct writing *p, uint64_t first, uint64_t n)
{
    int rc = load(p, first, n);
    if (rc < 0)
        return rc;
    return p->out->type == NB_TYPE_NF4    ? write_nf4(p, first, n)
           : p->out->type == NB_TYPE_INT8 ? write_int8(p, first, n)
                                          : write_floats(p, first, n);
}

int nb_hf_write_data(const struct nb_hf_writer *w, const struct nb_hf_out *out, int fd,
                     struct nb_error *ret_error)
{
    struct writing p = {.w = w, .out = out, .fd = fd};
    p.ret_error = ret_error;
    int rc = reserve(&p);
    for (uint64_t row = 0; row < out->rows && rc == 0; row += p.step)
        rc = write_some(&p, row, out->rows - row < p.step ? out->rows - row : p.step);
    if (rc == 0 && out->type == NB_TYPE_NF4)
        rc = end_nf4(&p);
    if (rc == 0 && out->type == NB_TYPE_INT8)
        rc = end_int8(&p);
    free(p.in);
    free(p.coded);
    free(p.floats);
    free(p.scales);
    return rc;
}
