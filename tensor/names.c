// A sorted index of names: see names.h.
#include "tensor/names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int nb_names_init(struct nb_names *names, uint32_t n)
{
    struct nb_name *items = calloc(n ? n : 1, sizeof(*items));
    if (!items)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        items[i].index = i;
    *names = (struct nb_names){items, n};
    return 0;
}

void nb_names_finish(struct nb_names *names)
{
    free(names->items);
    *names = (struct nb_names){0};
}

static int compare_str(struct nb_str a, struct nb_str b)
{
    int order = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static int compare_names(const void *a, const void *b)
{
    const struct nb_name *x = a, *y = b;
    return compare_str(x->str, y->str);
}

int nb_names_sort(struct nb_names *names, struct nb_str *ret_duplicate)
{
    qsort(names->items, names->n, sizeof(*names->items), compare_names);
    for (uint32_t i = 1; i < names->n; i++)
        if (compare_names(&names->items[i - 1], &names->items[i]) == 0) {
            *ret_duplicate = names->items[i].str;
            return -EEXIST;
        }
    return 0;
}

int64_t nb_names_find(const struct nb_names *names, const char *name)
{
    struct nb_name wanted = {.str = {name, strlen(name)}};
    const struct nb_name *found =
        bsearch(&wanted, names->items, names->n, sizeof(*names->items), compare_names);
    return found ? (int64_t)found->index : -1;
}

int nb_name_ok(struct nb_str s)
{
    for (size_t i = 0; i < s.len; i++)
        if ((unsigned char)s.data[i] < 0x20 || s.data[i] == 0x7f)
            return 0;
    return s.len > 0;
}
