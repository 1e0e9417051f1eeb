// Encodes rows and matrices: checks what comes in, weighs each row, gives its blocks to the
// searches, and shares rows among threads. No search here (quant/fit.h).
#include "quant/encode.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "quant/fit.h"

// Importances are floored at this part of their mean: a group that nobody reads still gets scales
// of its own size.
#define LEAST_IMPORTANCE 1e-9

size_t nb_encoded_bytes(uint32_t type, uint64_t rows, uint64_t cols)
{
    const struct nb_type_info *info = nb_type_info(type);
    size_t row, bytes;
    if (!info || cols % info->block ||
        __builtin_mul_overflow(cols / info->block, info->bytes, &row) ||
        __builtin_mul_overflow(row, rows, &bytes))
        return 0;
    return bytes;
}

size_t nb_find_not_finite(const float *src, size_t n)
{
    size_t i = 0;
    while (i < n && isfinite(src[i]))
        i++;
    return i;
}

// What all rows of one call share.
struct job {
    const struct nb_encode *how;
    const struct nb_type_info *info;
    const struct nb_fit *fit;
    struct nb_shape shape; // of a type that can be searched; else zeros
    uint64_t cols;
    size_t row_bytes;
    float least, inverse_mean; // of importance
};

static int weigh_columns(struct job *j)
{
    double sum = 0;
    const float *importance = j->how->importance;
    j->least = j->inverse_mean = 1;
    if (!importance)
        return 0;
    for (uint64_t k = 0; k < j->cols; k++) {
        if (!(importance[k] >= 0) || isinf(importance[k]))
            return -EINVAL;
        sum += (double)importance[k];
    }
    double mean = sum / (double)j->cols;
    bool usable = mean > 1e-30; // else all columns are alike
    j->least = usable ? (float)(mean * LEAST_IMPORTANCE) : 1;
    j->inverse_mean = usable ? (float)(1 / mean) : 0;
    return 0;
}

// Narrows the codes to the scheme's bits.
static bool fit_scheme(struct job *j, const struct nb_scheme *s)
{
    float low, high;
    if (s->type != j->how->type || j->cols > NB_MAX_COLS)
        return false;
    nb_scheme_codes(s, &low, &high);
    if (!s->exact && j->info->block > 1 && high - low < j->shape.high - j->shape.low) {
        j->shape.low = low;
        j->shape.high = high;
    }
    return true;
}

static int start(struct job *j, const struct nb_encode *how, uint64_t cols)
{
    *j = (struct job){
        .how = how, .info = nb_type_info(how->type), .fit = nb_fit_best(), .cols = cols};
    if (!j->info || !j->fit || !cols || cols % j->info->block)
        return -EINVAL;
    j->row_bytes = nb_encoded_bytes(how->type, 1, cols);
    if (j->info->block > 1 && nb_shape_init(&j->shape, how->type) < 0 && !j->info->quantize)
        return -EINVAL;
    if (how->scheme && !fit_scheme(j, how->scheme))
        return -EINVAL;
    return weigh_columns(j);
}

static double mean_square(const float *x, uint64_t n)
{
    double sum[8] = {0};
    for (uint64_t k = 0; k < n; k++)
        sum[k % 8] += (double)x[k] * (double)x[k];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3]) + (sum[4] + sum[5]) + (sum[6] + sum[7])) /
           (double)n;
}

// The factors of `n` weights from column `first` on. Sizes count in units of the row's root mean
// square, so that the factors stay near 1.
static void weigh(const struct job *j, const float *x, uint64_t first, unsigned n, float inverse_s2,
                  float *ret)
{
    const float *importance = j->how->importance;
    for (unsigned i = 0; i < n; i++) {
        float w = importance ? importance[first + i] : 1;
        ret[i] = (w > j->least ? w : j->least) * j->inverse_mean;
    }
    if (importance && j->inverse_mean == 0)
        for (unsigned i = 0; i < n; i++)
            ret[i] = 1;
    if (j->how->by_size)
        for (unsigned i = 0; i < n; i++)
            ret[i] *= sqrtf(1 + x[i] * x[i] * inverse_s2);
}

static bool overflows(const struct nb_block *b)
{
    return (b->scale & 0x7c00) == 0x7c00 || (b->min & 0x7c00) == 0x7c00;
}

static int encode_blocks(const struct job *j, const float *x, uint8_t *dst)
{
    const struct nb_shape *shape = &j->shape;
    bool search = j->how->effort == NB_EFFORT_SEARCH;
    double s2 = search && j->how->by_size ? mean_square(x, j->cols) : 1;
    float w[NB_BLOCK_MAX], inverse_s2 = s2 > 1e-30 ? (float)(1 / s2) : 0;
    struct nb_block b;
    for (uint64_t k = 0; k < j->cols; k += shape->block, dst += shape->bytes) {
        if (search) {
            weigh(j, x + k, k, shape->block, inverse_s2, w);
            j->fit->search(shape, x + k, w, &b);
        } else {
            j->fit->reference(shape, x + k, &b);
        }
        if (overflows(&b))
            return -ERANGE;
        shape->codec->join(&b, dst);
    }
    return 0;
}

// ---- Schemes that a type holds

// The scale of one group of a row: w is a row's room for factors.
static void find_scale(const struct job *j, const float *x, uint64_t first, unsigned n, float *w,
                       float inverse_s2, uint16_t *ret_scale, uint16_t *ret_min)
{
    const struct nb_encode *how = j->how;
    *ret_min = 0;
    if (how->scheme->group == NB_GROUP_TENSOR) {
        *ret_scale = nb_f32_to_f16(fmaxf(-how->least, how->most) / j->shape.high);
        return;
    }
    if (w)
        weigh(j, x + first, first, n, inverse_s2, w);
    j->fit->scale(&j->shape, x + first, w, n, ret_scale, ret_min);
}

static int encode_group(const struct job *j, const float *x, unsigned n, uint16_t scale,
                        uint16_t min, uint8_t *dst)
{
    const struct nb_shape *shape = &j->shape;
    struct nb_block b = {.scale = scale, .min = min};
    if (overflows(&b))
        return -ERANGE;
    for (unsigned k = 0; k < n; k += shape->block, dst += shape->bytes) {
        j->fit->codes(shape, x + k, scale, min, &b);
        shape->codec->join(&b, dst);
    }
    return 0;
}

static int encode_groups(const struct job *j, const float *x, uint8_t *dst)
{
    const bool search = j->how->effort == NB_EFFORT_SEARCH;
    const uint64_t group = nb_scheme_group(j->how->scheme, 1, j->cols);
    const double s2 = search && j->how->by_size ? mean_square(x, j->cols) : 1;
    float *w = search ? malloc(group * sizeof(*w)) : NULL;
    int rc = search && !w ? -ENOMEM : 0;
    for (uint64_t k = 0; k < j->cols && rc == 0; k += group) {
        const unsigned n = (unsigned)(j->cols - k < group ? j->cols - k : group);
        uint16_t scale, min;
        find_scale(j, x, k, n, w, s2 > 1e-30 ? (float)(1 / s2) : 0, &scale, &min);
        rc = encode_group(j, x + k, n, scale, min,
                          dst + k / j->shape.block * (size_t)j->shape.bytes);
    }
    free(w);
    return rc;
}

// Codes of 8 bits with a zero point, as halves: scale * (code - zero). The range has 0 in it, so
// that 0 stays 0.
static void encode_with_zero(const struct job *j, const float *x, uint8_t *dst)
{
    float least = j->how->least, most = j->how->most;
    for (uint64_t k = 0; j->how->scheme->group == NB_GROUP_ROW && k < j->cols; k++) {
        least = k == 0 || x[k] < least ? x[k] : least;
        most = k == 0 || x[k] > most ? x[k] : most;
    }
    least = fminf(least, 0);
    const float scale = (fmaxf(most, 0) - least) / 255,
                zero = scale > 0 ? rintf(-least / scale) : 0;
    for (uint64_t k = 0; k < j->cols; k++) {
        float code = scale > 0 ? rintf(x[k] / scale) + zero : 0;
        code = fminf(fmaxf(code, 0), 255);
        nb_store16(dst + 2 * k, nb_f32_to_f16(scale * (code - zero)));
    }
}

// Past these the fp16 scale, or the number itself, overflows. A search must not start there.
static float largest(const struct job *j)
{
    if (j->shape.codec)
        return 65504 * (j->shape.high > 127 ? 127 : j->shape.high) * (float)j->shape.sub_high;
    return j->how->type == NB_TYPE_F16    ? 65519.996f
           : j->how->type == NB_TYPE_BF16 ? 0x1.fep127f
                                          : INFINITY;
}

static bool all_below(const float *x, uint64_t n, float most)
{
    bool all = true;
    for (uint64_t k = 0; k < n; k++)
        all &= fabsf(x[k]) <= most;
    return all;
}

static int encode_row(const struct job *j, const float *x, uint8_t *dst)
{
    // Never true of a NaN; an infinity is found by hand for F32.
    if (!all_below(x, j->cols, largest(j)) || !all_below(x, j->cols, 0x1.fffffep127f))
        return nb_find_not_finite(x, j->cols) < j->cols ? -EDOM : -ERANGE;
    if (j->how->scheme && !j->how->scheme->exact) {
        if (j->info->block > 1)
            return encode_groups(j, x, dst);
        encode_with_zero(j, x, dst);
        return 0;
    }
    // The plain encoders of tensor/ are every format's own.
    if (j->shape.codec && (j->how->effort == NB_EFFORT_SEARCH || !j->info->quantize))
        return encode_blocks(j, x, dst);
    j->info->quantize(x, dst, j->cols / j->info->block);
    return 0;
}

int nb_encode_rows(const struct nb_encode *how, const float *src, uint64_t rows, uint64_t cols,
                   void *dst)
{
    struct job j;
    int rc = start(&j, how, cols);
    for (uint64_t r = 0; rc == 0 && r < rows; r++)
        rc = encode_row(&j, src + r * cols, (uint8_t *)dst + r * j.row_bytes);
    return rc;
}

// A matrix on a team: threads take rows from one counter.
struct shared {
    struct job job;
    const float *src;
    uint8_t *dst;
    uint64_t rows;
    atomic_uint_fast64_t next;
    atomic_bool not_finite, too_large, no_memory;
};

#define ROWS_AT_ONCE 16

static void encode_shared(void *arg, uint32_t thread)
{
    struct shared *s = arg;
    uint64_t first;
    while ((first = atomic_fetch_add(&s->next, ROWS_AT_ONCE)) < s->rows)
        for (uint64_t r = first; r < first + ROWS_AT_ONCE && r < s->rows; r++) {
            int rc = encode_row(&s->job, s->src + r * s->job.cols, s->dst + r * s->job.row_bytes);
            if (rc < 0)
                atomic_store(rc == -EDOM     ? &s->not_finite
                             : rc == -ENOMEM ? &s->no_memory
                                             : &s->too_large,
                             true);
        }
}

int nb_encode_matrix(const struct nb_encode *how, struct nb_team *team, const float *src,
                     uint64_t rows, uint64_t cols, void *dst)
{
    struct shared s = {.src = src, .dst = dst, .rows = rows};
    int rc = start(&s.job, how, cols);
    if (rc < 0)
        return rc;
    nb_team_run(team, encode_shared, &s);
    return atomic_load(&s.not_finite)  ? -EDOM
           : atomic_load(&s.too_large) ? -ERANGE
           : atomic_load(&s.no_memory) ? -ENOMEM
                                       : 0;
}

static double row_error(const struct job *j, const float *x, const uint8_t *encoded)
{
    float decoded[NB_BLOCK_MAX];
    double sum = 0, s2 = mean_square(x, j->cols);
    for (uint64_t k = 0; k < j->cols; k += j->info->block) {
        j->info->dequantize(encoded + k / j->info->block * j->info->bytes, decoded, 1);
        for (uint64_t i = 0; i < j->info->block; i++) {
            double v = (double)x[k + i], r = v - (double)decoded[i];
            double w = j->how->importance ? (double)j->how->importance[k + i] : 1;
            sum += w * (j->how->by_size ? sqrt(s2 + v * v) : 1) * r * r;
        }
    }
    return sum;
}

int nb_encode_error(const struct nb_encode *how, const float *src, const void *encoded,
                    uint64_t rows, uint64_t cols, double *ret)
{
    struct job j;
    int rc = start(&j, how, cols);
    if (rc < 0)
        return rc;
    double sum = 0;
    for (uint64_t r = 0; r < rows; r++)
        sum += row_error(&j, src + r * cols, (const uint8_t *)encoded + r * j.row_bytes);
    *ret = sum;
    return 0;
}
