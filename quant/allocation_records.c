// What an allocation's records say, taken into its state: by the process that wrote them, and by
// one that goes on with them.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "quant/allocation_room.h"
#include "tensor/type.h"

static int restore_batch(struct nb_allocation *a, const uint8_t *data, uint32_t bytes)
{
    const uint32_t n = (bytes - sizeof(a->tokens)) / sizeof(double);
    if (bytes < sizeof(a->tokens) || bytes != sizeof(a->tokens) + n * sizeof(double) ||
        (a->sums && n != a->n_matrices))
        return 1;
    if (!a->sums && !(a->sums = calloc(n + 1, sizeof(*a->sums))))
        return -ENOMEM;
    memcpy(&a->tokens, data, sizeof(a->tokens));
    memcpy(a->sums, data + sizeof(a->tokens), n * sizeof(double));
    a->n_matrices = n;
    a->batches++;
    return 0;
}

static int restore_tensor(struct nb_allocation *a, const uint8_t *data, uint32_t bytes)
{
    if (bytes != a->target.n_types * sizeof(double) || a->n_errors == a->source->n_tensors)
        return 1;
    memcpy(a->errors[a->n_errors++], data, bytes);
    return 0;
}

static int restore_measurement(struct nb_allocation *a, const uint8_t *data, uint32_t bytes)
{
    struct nb_measurement m;
    if (bytes != sizeof(m))
        return 1;
    struct nb_measurement *grown =
        reallocarray(a->measurements, a->n_measurements + 1, sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    memcpy(&m, data, sizeof(m));
    a->measurements = grown;
    a->measurements[a->n_measurements++] = m;
    return 0;
}

static int restore_result(struct nb_allocation *a, const uint8_t *data, uint32_t bytes)
{
    const uint32_t n = a->source->n_tensors;
    if (bytes != sizeof(a->result) + n * sizeof(*a->types) || a->types)
        return 1;
    uint32_t *types = calloc(n + 1, sizeof(*types));
    if (!types)
        return -ENOMEM;
    memcpy(&a->result, data, sizeof(a->result));
    memcpy(types, data + sizeof(a->result), n * sizeof(*types));
    for (uint32_t i = 0; i < n; i++)
        if (!nb_type_info(types[i])) {
            free(types);
            return 1;
        }
    a->types = types;
    return 0;
}

int nb_allocation_restore(struct nb_allocation *a, enum nb_allocation_record kind, const void *data,
                          uint32_t bytes)
{
    static int (*const restore[])(struct nb_allocation * a, const uint8_t *data, uint32_t bytes) = {
        [NB_ALLOCATION_BATCH] = restore_batch,
        [NB_ALLOCATION_TENSOR] = restore_tensor,
        [NB_ALLOCATION_MEASUREMENT] = restore_measurement,
        [NB_ALLOCATION_RESULT] = restore_result,
    };
    return kind < NB_ALLOCATION_RECORDS ? restore[kind](a, data, bytes) : 1;
}
