// Looking for damage in a model's data. Says what is there and where; what to do about it is
// packing's affair.
#include "tensor/damage.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tensor/block.h"

#define CHUNK     ((size_t)1 << 16) // bytes read at a time, from the end backwards
#define BY_CHANCE 4096 // bytes of zeros at the end of a tensor that tell nothing: a page

// ---- Numbers that are none

// A plane of floats: a NaN or an infinity has all bits of `exponent`.
struct plane {
    const uint8_t *data;
    size_t n;
    uint32_t exponent;
    unsigned width; // bytes
};

static uint32_t bits_at(const struct plane *p, size_t i)
{
    return p->width == 4 ? nb_load32(p->data + 4 * i) : nb_load16(p->data + 2 * i);
}

// The compiler makes vectors of these loops: they see every weight or scale of a model that loads.
static bool any(const struct plane *p)
{
    const uint8_t *data = p->data;
    const size_t n = p->n;
    if (p->width == 4) {
        const uint32_t e = p->exponent;
        uint32_t found = 0;
        for (size_t i = 0; i < n; i++)
            found |= (nb_load32(data + 4 * i) & e) == e;
        return found;
    }
    const uint16_t e = (uint16_t)p->exponent;
    uint16_t found = 0;
    for (size_t i = 0; i < n; i++)
        found |= (nb_load16(data + 2 * i) & e) == e;
    return found;
}

// The first one, as the plane has them, and whether it is a NaN: an infinity has no other bits.
static size_t find(const struct plane *p, bool *ret_nan)
{
    size_t i = 0;
    while ((bits_at(p, i) & p->exponent) != p->exponent)
        i++;
    const uint32_t sign = 1u << (8 * p->width - 1);
    *ret_nan = (bits_at(p, i) & ~sign) != p->exponent;
    return i;
}

// A row group's plane of weights, or of scales with the minima behind them.
static struct plane plane_of(const struct nb_packed *p, const uint8_t *group)
{
    const struct nb_layout *l = p->layout;
    if (!l->scale_block)
        return (struct plane){group, (size_t)p->cols * NB_GROUP_ROWS,
                              l->planes == NB_PLANES_F32    ? 0x7f800000
                              : l->planes == NB_PLANES_BF16 ? 0x7f80
                                                            : 0x7c00,
                              l->planes == NB_PLANES_F32 ? 4 : 2};
    const size_t scales = p->cols / l->scale_block * NB_GROUP_ROWS;
    if (l->sub == NB_SUB_F32)
        return (struct plane){group + p->scale, scales, 0x7f800000, 4};
    return (struct plane){group + p->scale, scales * (l->has_min ? 2 : 1), 0x7c00, 2};
}

bool nb_packed_no_number(const struct nb_packed *p, const uint8_t *groups, uint32_t n_groups,
                         struct nb_no_number *ret)
{
    static const char *const texts[3][2] = {
        {"a weight that is infinite", "a weight that is NaN"},
        {"a scale that is infinite", "a scale that is NaN"},
        {"a minimum that is infinite", "a minimum that is NaN"}};
    const uint32_t block = p->layout->scale_block;
    for (uint32_t g = 0; g < n_groups; g++) {
        const struct plane plane = plane_of(p, groups + g * p->stride);
        if (!any(&plane))
            continue;
        bool nan;
        const size_t at = find(&plane, &nan), k = at / NB_GROUP_ROWS;
        const uint32_t blocks = block ? p->cols / block : p->cols;
        ret->what = texts[block ? 1 + k / blocks : 0][nan];
        ret->row = g * NB_GROUP_ROWS + (uint32_t)(at % NB_GROUP_ROWS);
        ret->block = (uint32_t)(k % blocks);
        return true;
    }
    return false;
}

bool nb_vector_no_number(const float *x, size_t n, struct nb_no_number *ret)
{
    const struct plane plane = {(const uint8_t *)x, n, 0x7f800000, 4};
    if (!any(&plane))
        return false;
    bool nan;
    *ret = (struct nb_no_number){.block = (uint32_t)find(&plane, &nan)};
    ret->what = nan ? "a number that is NaN" : "a number that is infinite";
    return true;
}

// ---- Zeros to the end

// How many of these bytes come before the zeros at their end.
static size_t until_zeros(const uint8_t *p, size_t n)
{
    while (n && !p[n - 1])
        n--;
    return n;
}

// Where the zeros at the end of the first `end` bytes of the file begin.
static int find_last(int fd, uint64_t end, uint64_t *ret)
{
    uint8_t chunk[CHUNK];
    size_t found = 0;
    while (end && !found) {
        size_t n = end < CHUNK ? end : CHUNK;
        ssize_t r = pread(fd, chunk, n, (off_t)(end - n));
        if (r < 0 && errno == EINTR)
            continue;
        if (r < (ssize_t)n)
            return r < 0 ? -errno : -EINVAL;
        found = until_zeros(chunk, n);
        end -= n - found;
    }
    *ret = end;
    return 0;
}

static bool is_bias(const struct nb_source_tensor *t, const struct nb_piece *p)
{
    return t->n_dims == 1 && p->name.len > 5 && !memcmp(p->name.data + p->name.len - 5, ".bias", 5);
}

// Bytes in the file.
static uint64_t piece_bytes(const struct nb_source_tensor *t)
{
    return nb_type_info(t->stored) ? nb_source_rows(t) / t->n_pieces * nb_source_stored_bytes(t)
                                   : 0;
}

// Whether rows end where the zeros begin, which a cut hits by chance alone, and most of them are
// there.
static bool is_padded(const struct nb_source_tensor *t, uint64_t kept)
{
    const struct nb_type_info *info = nb_type_info(t->stored);
    uint64_t row = nb_source_stored_bytes(t), into = kept % row;
    return t->n_dims > 1 && kept > piece_bytes(t) / 2 && (!into || into > row - info->bytes);
}

// `end`: where the file's zeros begin.
static bool is_cut(const struct nb_source_tensor *t, const struct nb_piece *p, uint64_t end)
{
    uint64_t kept = end > p->offset ? end - p->offset : 0, bytes = piece_bytes(t);
    if (kept >= bytes || is_bias(t, p))
        return false;
    return !kept || (bytes - kept >= BY_CHANCE && !is_padded(t, kept));
}

static int find_in_file(const struct nb_source *s, uint32_t file, const struct nb_piece **ret)
{
    const struct nb_piece *first = NULL;
    uint64_t end = 0;
    for (uint32_t i = 0; i < s->n_pieces; i++) {
        const struct nb_piece *p = &s->pieces[i];
        uint64_t its_end = p->offset + piece_bytes(&s->tensors[p->tensor]);
        if (!p->data && p->file == file && its_end > end)
            end = its_end;
    }
    int rc = find_last(s->files[file].fd, end, &end);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < s->n_pieces; i++) {
        const struct nb_piece *p = &s->pieces[i];
        if (!p->data && p->file == file && is_cut(&s->tensors[p->tensor], p, end) &&
            (!first || p->offset < first->offset))
            first = p;
    }
    *ret = first;
    return 0;
}

int nb_find_zeros(const struct nb_source *s, const struct nb_piece **ret)
{
    const struct nb_piece *found = NULL;
    int rc = 0;
    for (uint32_t i = 0; i < s->n_files && rc == 0 && !found; i++)
        rc = find_in_file(s, i, &found);
    *ret = found;
    return rc;
}
