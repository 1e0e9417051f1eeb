// What a family's tensors are by their names, from its rows of ops.
#include <string.h>

#include "engine/arch.h"

uint32_t nb_arch_layer(struct nb_str name, struct nb_str *ret_rest)
{
    static const char prefix[] = "blk.";
    const size_t begin = sizeof(prefix) - 1;
    uint32_t layer = 0;
    size_t at = begin;
    *ret_rest = name;
    if (name.len <= begin || memcmp(name.data, prefix, begin) != 0)
        return NB_NO_LAYER;
    for (; at < name.len && name.data[at] >= '0' && name.data[at] <= '9'; at++)
        if (layer < NB_NO_LAYER / 10 - 1)
            layer = layer * 10 + (uint32_t)(name.data[at] - '0');
    if (at == begin || at == name.len || name.data[at] != '.')
        return NB_NO_LAYER;
    *ret_rest = (struct nb_str){name.data + at + 1, name.len - at - 1};
    return layer;
}

static bool is_named(struct nb_str name, const char *tensor, const char *ending)
{
    const size_t n = tensor ? strlen(tensor) : 0, end = strlen(ending);
    return n && name.len == n + end && !memcmp(name.data, tensor, n) &&
           !memcmp(name.data + n, ending, end);
}

// A bias is as long as the rows that its op writes, and so is a norm's weight.
static bool dims_of(const struct nb_op_row *row, struct nb_str name, enum nb_dim *ret_rows,
                    enum nb_dim *ret_cols)
{
    const bool matrix = row->kind == NB_OP_LINEAR || row->kind == NB_OP_EMBED;
    const bool bias = is_named(name, row->weight, ".bias");
    if (!bias && !is_named(name, row->weight, ".weight"))
        return false;
    *ret_rows = matrix && !bias ? row->rows : NB_DIM_NONE;
    if (matrix)
        *ret_cols = bias ? row->rows : row->cols;
    else
        *ret_cols = row->heads ? NB_DIM_HEAD : nb_value_dims[row->out ? row->out : row->in];
    return true;
}

static bool find(const struct nb_op_rows *pieces, struct nb_str name, enum nb_dim *ret_rows,
                 enum nb_dim *ret_cols)
{
    for (const struct nb_op_rows *p = pieces; p->n; p++)
        for (uint32_t i = 0; i < p->n; i++)
            if (dims_of(&p->rows[i], name, ret_rows, ret_cols))
                return true;
    return false;
}

bool nb_arch_dims(const struct nb_arch *arch, struct nb_str name, enum nb_dim *ret_rows,
                  enum nb_dim *ret_cols)
{
    struct nb_str rest;
    if (nb_arch_layer(name, &rest) != NB_NO_LAYER)
        return find(arch->layer, rest, ret_rows, ret_cols);
    return find(arch->begin, name, ret_rows, ret_cols) || find(arch->end, name, ret_rows, ret_cols);
}
