// Matrices that clients name, packed where they are not yet, and work on them cut into slices.
#include "engine/operand.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/model.h"
#include "tensor/image.h"

#define SLICE_MACS   (1u << 27) // multiplications of a slice, about
#define SLICE_VALUES (1u << 21) // weights that a slice packs or unpacks, about
#define PART_BYTES   (4u << 20) // of a part that is packed for one slice
#define PAGE         4096

struct nb_operand {
    struct nb_model *model;
    uint64_t cols;           // of which packed.cols may be more
    struct nb_packed packed; // data: in the image, or `kept`; NULL for one that each slice packs
    struct nb_device_matrix *matrix; // of all that, at its first use
    // A groupwise one
    struct nb_layout layout;
    struct nb_groupwise given;
    void *kept;
    uint32_t kept_groups; // that are packed
};

static uint32_t groups_of(const struct nb_packed *w)
{
    return (w->rows + NB_GROUP_ROWS - 1) / NB_GROUP_ROWS;
}

static size_t whole_pages(size_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

// --- Which matrix

static int find_matrix(const struct nb_model *m, uint32_t index, const struct nb_image_tensor **ret)
{
    if (index >= nb_image_n_tensors(m->image))
        return -ENOENT;
    *ret = nb_image_tensor(m->image, index);
    return (*ret)->n_dims == 2 ? 0 : -EINVAL;
}

int nb_operand_find(const struct nb_model *m, const char *name, struct nb_tensor_info *ret)
{
    const struct nb_image_tensor *t = nb_image_find(m->image, name);
    if (!t)
        return -ENOENT;
    uint32_t index = (uint32_t)(t - nb_image_tensor(m->image, 0));
    int rc = find_matrix(m, index, &t);
    if (rc < 0)
        return rc;
    *ret = (struct nb_tensor_info){index, nb_type_name(t->type), t->packed.rows, t->packed.cols};
    return 0;
}

static int create(struct nb_model *m, struct nb_operand **ret)
{
    if (!m->device->ops->gemm)
        return -EOPNOTSUPP;
    struct nb_operand *o = calloc(1, sizeof(*o));
    if (!o)
        return -ENOMEM;
    o->model = m;
    *ret = o;
    return 0;
}

int nb_operand_tensor(struct nb_model *m, uint32_t index, struct nb_operand **ret)
{
    const struct nb_image_tensor *t;
    struct nb_operand *o;
    int rc = find_matrix(m, index, &t);
    if (rc < 0 || (rc = create(m, &o)) < 0)
        return rc;
    o->packed = t->packed;
    o->cols = t->packed.cols;
    *ret = o;
    return 0;
}

int nb_operand_groupwise(struct nb_model *m, const struct nb_groupwise *g, bool keep,
                         struct nb_operand **ret)
{
    struct nb_operand *o;
    struct nb_groupwise_bytes bytes;
    int rc = create(m, &o);
    if (rc < 0)
        return rc;
    o->given = *g;
    o->cols = g->shape.cols;
    rc = nb_groupwise_init(&g->shape, &o->layout, &o->packed, &bytes);
    if (rc == 0 && keep) {
        o->kept = mmap(NULL, whole_pages(nb_packed_bytes(&o->packed)), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (o->kept == MAP_FAILED) {
            o->kept = NULL;
            rc = -ENOMEM;
        }
        o->packed.data = o->kept;
    }
    if (rc < 0) {
        nb_operand_destroy(o);
        return rc;
    }
    *ret = o;
    return 0;
}

void nb_operand_destroy(struct nb_operand *o)
{
    if (!o)
        return;
    if (o->matrix)
        o->model->device->ops->matrix_close(o->matrix);
    if (o->kept)
        munmap(o->kept, whole_pages(nb_packed_bytes(&o->packed)));
    free(o);
}

uint64_t nb_operand_packed_bytes(const struct nb_operand *o)
{
    return o->kept ? whole_pages(nb_packed_bytes(&o->packed)) : 0;
}

void nb_operand_shape(const struct nb_operand *o, uint64_t *ret_rows, uint64_t *ret_cols)
{
    *ret_rows = o->packed.rows;
    *ret_cols = o->cols;
}

bool nb_operand_has_gemm(const struct nb_operand *o)
{
    const struct nb_device *d = o->model->device;
    return !d->ops->widest || o->packed.cols <= d->ops->widest(d, &o->packed);
}

// --- Having it packed

static uint32_t groups_within(const struct nb_operand *o, uint64_t values, uint64_t values_each)
{
    uint64_t n = values / (values_each * NB_GROUP_ROWS), all = groups_of(&o->packed);
    return n < 1 ? 1 : n < all ? (uint32_t)n : (uint32_t)all;
}

// A matrix that is kept is packed to its end first. 1: a slice was spent on that.
static int pack_kept(struct nb_operand *o)
{
    uint32_t left = groups_of(&o->packed) - o->kept_groups;
    uint32_t n = groups_within(o, SLICE_VALUES, o->packed.cols);
    n = n < left ? n : left;
    if (!o->kept || !n)
        return 0;
    nb_groupwise_pack(&o->given, &o->packed, (uint8_t *)o->kept + o->kept_groups * o->packed.stride,
                      o->kept_groups, n);
    o->kept_groups += n;
    return 1;
}

// Row groups of the matrix as a device sees them: all, or a part packed for this slice.
struct part {
    struct nb_device_matrix *matrix;
    struct nb_packed packed;
    uint32_t group0; // the first that is wanted, in `matrix`
    uint32_t row0;   // of the operand, that the matrix begins with
    bool own;
};

static int reserve_part(struct nb_model *m, size_t bytes)
{
    if (bytes <= m->part_bytes)
        return 0;
    void *p = NULL;
    if (posix_memalign(&p, PAGE, whole_pages(bytes)))
        return -ENOMEM;
    free(m->part);
    m->part = p;
    m->part_bytes = whole_pages(bytes);
    return 0;
}

static int open_part(struct nb_operand *o, uint32_t group, uint32_t n, struct part *ret)
{
    struct nb_model *m = o->model;
    const struct nb_device_ops *ops = m->device->ops;
    *ret = (struct part){.group0 = group};
    if (o->packed.data) {
        int rc = o->matrix
                     ? 0
                     : ops->matrix_open(m->device, o->kept ? NULL : m->dm, &o->packed, &o->matrix);
        ret->matrix = o->matrix;
        return rc;
    }
    int rc = reserve_part(m, n * o->packed.stride);
    if (rc < 0)
        return rc;
    uint32_t done = group * NB_GROUP_ROWS, left = o->packed.rows - done;
    nb_groupwise_pack(&o->given, &o->packed, m->part, group, n);
    ret->own = true;
    ret->group0 = 0;
    ret->row0 = done;
    ret->packed = o->packed;
    ret->packed.data = m->part;
    ret->packed.rows = left < n * NB_GROUP_ROWS ? left : n * NB_GROUP_ROWS;
    return ops->matrix_open(m->device, NULL, &ret->packed, &ret->matrix);
}

static void close_part(const struct nb_operand *o, const struct part *p)
{
    if (p->own)
        o->model->device->ops->matrix_close(p->matrix);
}

// Row groups of a slice that wants `n` from `group` on.
static uint32_t clamp_groups(const struct nb_operand *o, uint32_t group, uint32_t n)
{
    uint32_t left = groups_of(&o->packed) - group;
    size_t fit = PART_BYTES / o->packed.stride;
    if (!o->packed.data && n > fit)
        n = fit ? (uint32_t)fit : 1;
    return n < left ? n : left;
}

// --- Turns

static uint32_t rows_at_once(const struct nb_operand *o, uint32_t n)
{
    uint64_t fit = NB_PRODUCT_VALUES / o->packed.cols;
    fit = fit < 1 ? 1 : fit < NB_PRODUCT_ROWS ? fit : NB_PRODUCT_ROWS;
    return n > 0 && n < fit ? n : (uint32_t)fit;
}

int nb_gemm_slice(struct nb_gemm_job *job)
{
    struct nb_operand *o = job->w;
    int rc = pack_kept(o);
    if (rc != 0)
        return rc;
    // The same groups for each tile of x: the choice depends on the job alone.
    uint32_t all = rows_at_once(o, job->n), left = job->n - job->row;
    uint32_t groups = groups_within(o, SLICE_MACS / all, o->packed.cols);
    groups = clamp_groups(o, job->group, groups);
    struct part part;
    rc = open_part(o, job->group, groups, &part);
    if (rc < 0)
        return rc;
    const struct nb_product p = {.x = job->x + (size_t)job->row * o->cols,
                                 .n = left < all ? left : all,
                                 .cols = (uint32_t)o->cols,
                                 .terms = job->terms,
                                 .group0 = part.group0,
                                 .groups = groups,
                                 .y = job->y + (size_t)job->row * o->packed.rows + part.row0,
                                 .ldy = o->packed.rows};
    rc = o->model->device->ops->gemm(part.matrix, &p);
    close_part(o, &part);
    if (rc < 0)
        return rc;
    job->row += p.n;
    if (job->row == job->n) {
        job->row = 0;
        job->group += groups;
    }
    return job->group < groups_of(&o->packed);
}

int nb_dequantize_slice(struct nb_dequantize_job *job)
{
    static const uint32_t size[] = {[NB_NUMBER_F32] = 4, [NB_NUMBER_F16] = 2, [NB_NUMBER_INT8] = 1};
    struct nb_operand *o = job->w;
    int rc = pack_kept(o);
    if (rc != 0)
        return rc;
    uint32_t group = (uint32_t)(job->row / NB_GROUP_ROWS);
    uint32_t groups = clamp_groups(o, group, groups_within(o, SLICE_VALUES, o->packed.cols));
    uint64_t end = ((uint64_t)group + groups) * NB_GROUP_ROWS;
    end = end < job->end ? end : job->end;
    struct part part;
    rc = open_part(o, group, groups, &part);
    if (rc < 0)
        return rc;
    const struct nb_dequantize p = {.row0 = part.group0 * NB_GROUP_ROWS +
                                            (uint32_t)(job->row % NB_GROUP_ROWS),
                                    .rows = (uint32_t)(end - job->row),
                                    .cols = (uint32_t)o->cols,
                                    .to = job->to,
                                    .out = job->out,
                                    .scales = job->scales};
    rc = o->model->device->ops->dequantize(part.matrix, &p);
    close_part(o, &part);
    if (rc < 0)
        return rc;
    job->row = end;
    job->out += p.rows * o->cols * size[job->to];
    job->scales += job->scales ? p.rows : 0;
    return job->row < job->end;
}
