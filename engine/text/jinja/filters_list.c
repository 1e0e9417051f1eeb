// Filters of sequences: taking, ordering, grouping.
#include <errno.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/chars.h"

static struct nb_jv f_length(struct nb_jrun *r, const struct nb_jcall *c)
{
    size_t n = nb_jv_length(r->m, c->v[0]);

    if (c->v[0].kind == NB_J_LOOP) {
        static const struct nb_jstr name = NB_JSTR_INIT("length");
        return nb_jloop_attr(r, c->v[0].loop, &name);
    }
    if (n == SIZE_MAX)
        nb_jfail(r->m, -EINVAL, "object of type '%s' has no len()", nb_jv_type(c->v[0]));
    return nb_jv_int((int64_t)n);
}

static struct nb_jv f_first(struct nb_jrun *r, const struct nb_jcall *c)
{
    if (c->v[0].kind == NB_J_STR && c->v[0].s->len)
        return nb_jv_str(nb_jstr_part(r->m, c->v[0].s, 0, nb_jstr_step(c->v[0].s, 0)));
    if (c->v[0].kind == NB_J_ITERATOR) {
        struct nb_jiterator *it = c->v[0].iterator;
        if (it->at < it->items->n)
            return it->items->v[it->at++];
    }
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    return l->n ? l->v[0] : nb_jv_undefined(r->m, "No first item, sequence was empty.");
}

static struct nb_jv f_last(struct nb_jrun *r, const struct nb_jcall *c)
{
    if (c->v[0].kind == NB_J_ITERATOR || c->v[0].kind == NB_J_UNDEFINED)
        nb_jfail(r->m, -EINVAL, "'%s' object is not reversible", nb_jv_type(c->v[0]));
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    return l->n ? l->v[l->n - 1] : nb_jv_undefined(r->m, "No last item, sequence was empty.");
}

static struct nb_jlist *copied(struct nb_jrun *r, struct nb_jv v)
{
    const struct nb_jlist *l = nb_jv_items(r->m, v);
    struct nb_jlist *copy = nb_jlist_new(r->m);

    copy->v = nb_jarray(r->m, l->n + 1, sizeof(*copy->v));
    copy->n = l->n;
    copy->capacity = l->n + 1;
    if (l->n)
        memcpy(copy->v, l->v, l->n * sizeof(*l->v));
    return copy;
}

static struct nb_jv f_list(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_list(copied(r, c->v[0]));
}

static struct nb_jv f_reverse(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jlist *l = copied(r, c->v[0]);
    struct nb_jbuild b;

    for (size_t i = 0; i < l->n / 2; i++) {
        struct nb_jv v = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = v;
    }
    if (c->v[0].kind != NB_J_STR) // what cannot be gone through backwards becomes a list
        return c->v[0].kind == NB_J_ITERATOR || c->v[0].kind == NB_J_UNDEFINED
                   ? nb_jv_list(l)
                   : nb_jv_iterator(r->m, l, "list_reverseiterator");
    nb_jbuild_init(&b, r->m);
    for (size_t i = 0; i < l->n; i++)
        nb_jbuild_str(&b, l->v[i].s);
    return nb_jv_str(nb_jstr_markup(r->m, nb_jbuild_end(&b), c->v[0].s->markup));
}

static struct nb_jv f_items(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jview *view = nb_jalloc(r->m, sizeof(*view));

    if (c->v[0].kind == NB_J_UNDEFINED)
        return nb_jv_iterator(r->m, nb_jlist_new(r->m), "generator");
    if (c->v[0].kind != NB_J_DICT)
        nb_jfail(r->m, -EINVAL, "Can only get item pairs from a mapping.");
    *view = (struct nb_jview){c->v[0].dict, NB_JVIEW_ITEMS};
    const struct nb_jlist *l = nb_jv_items(r->m, (struct nb_jv){.kind = NB_J_VIEW, .view = view});
    return nb_jv_iterator(r->m, l, "generator");
}

static struct nb_jv f_join(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    const struct nb_jstr *separator =
        c->v[1].kind == NB_J_ABSENT ? &nb_jstr_empty : nb_jv_text(r->m, c->v[1]);
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    for (size_t i = 0; i < l->n; i++) {
        struct nb_jv v = l->v[i];
        if (c->v[2].kind != NB_J_ABSENT && c->v[2].kind != NB_J_NONE)
            v = nb_jattribute(r, v, c->v[2]);
        const struct nb_jstr *s = nb_jv_text(r->m, v);
        if (i)
            nb_jbuild_str(&b, separator);
        nb_jbuild_str(&b, s);
    }
    return nb_jv_str(nb_jbuild_end(&b));
}

static struct nb_jv f_batch(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    int64_t size = nb_jparam_int(r, c, 1, 0);
    struct nb_jlist *all = nb_jlist_new(r->m), *row = NULL;
    bool fill = c->v[2].kind != NB_J_ABSENT && c->v[2].kind != NB_J_NONE;

    for (size_t i = 0; i < l->n; i++) {
        if (!row || (int64_t)row->n == size) {
            row = nb_jlist_new(r->m);
            nb_jlist_add(r->m, all, nb_jv_list(row));
        }
        nb_jlist_add(r->m, row, l->v[i]);
    }
    while (row && fill && (int64_t)row->n < size)
        nb_jlist_add(r->m, row, c->v[2]);
    return nb_jv_iterator(r->m, all, "generator");
}

static struct nb_jv f_slice(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    int64_t slices = nb_jparam_int(r, c, 1, 0);
    struct nb_jlist *all = nb_jlist_new(r->m);
    bool fill = c->v[2].kind != NB_J_ABSENT && c->v[2].kind != NB_J_NONE;
    size_t at = 0;

    if (slices == 0)
        nb_jfail(r->m, -EINVAL, "integer division or modulo by zero");
    for (int64_t i = 0; i < slices; i++) {
        bool longer = (size_t)i < l->n % (size_t)slices;
        struct nb_jlist *row = nb_jlist_new(r->m);
        nb_jlist_add(r->m, all, nb_jv_list(row));
        for (size_t n = l->n / (size_t)slices + longer; n > 0; n--)
            nb_jlist_add(r->m, row, l->v[at++]);
        if (fill && !longer)
            nb_jlist_add(r->m, row, c->v[2]);
    }
    return nb_jv_iterator(r->m, all, "generator");
}

// --- Order.

// A value as it is compared: strings without case, unless that counts.
static struct nb_jv folded(struct nb_jrun *r, struct nb_jv v, bool case_sensitive)
{
    return v.kind == NB_J_STR && !case_sensitive
               ? nb_jv_str(nb_jstr_case(r->m, v.s, NB_JCASE_LOWER))
               : v;
}

static bool has_attribute(struct nb_jv path)
{
    return path.kind != NB_J_ABSENT && path.kind != NB_J_NONE;
}

static struct nb_jv key_of(struct nb_jrun *r, struct nb_jv v, struct nb_jv path,
                           bool case_sensitive)
{
    return folded(r, has_attribute(path) ? nb_jattribute(r, v, path) : v, case_sensitive);
}

// Several attributes with commas between them are compared in turn.
static struct nb_jv sort_key(struct nb_jrun *r, struct nb_jv v, struct nb_jv path,
                             bool case_sensitive)
{
    const struct nb_jstr comma = NB_JSTR_INIT(",");
    struct nb_jlist *keys = nb_jlist_new(r->m);

    if (path.kind != NB_J_STR || nb_jstr_find(r->m, path.s, &comma, 0, path.s->len) == SIZE_MAX)
        return key_of(r, v, path, case_sensitive);
    for (size_t at = 0, end; at <= path.s->len; at = end + 1) {
        end = nb_jstr_find(r->m, path.s, &comma, at, path.s->len);
        end = end == SIZE_MAX ? path.s->len : end;
        struct nb_jv part = nb_jv_str(nb_jstr_part(r->m, path.s, at, end - at));
        nb_jlist_add(r->m, keys, key_of(r, v, part, case_sensitive));
    }
    return nb_jv_list(keys);
}

struct keyed {
    struct nb_jv key, value;
};

// Merges, stable; from `a` to `b` and back.
static void merge_sort(struct nb_jrun *r, struct keyed *a, struct keyed *b, size_t n, bool reverse)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t lo = 0; lo < n; lo += 2 * width) {
            size_t mid = lo + width < n ? lo + width : n, hi = mid + width < n ? mid + width : n;
            size_t i = lo, j = mid;
            for (size_t k = lo; k < hi; k++) {
                nb_jstep(r->m, 1);
                bool right = i == mid;
                if (!right && j < hi) {
                    int order = nb_jv_cmp(r->m, a[j].key, a[i].key, "<");
                    right = reverse ? order == 1 : order == -1;
                }
                b[k] = right ? a[j++] : a[i++];
            }
        }
        memcpy(a, b, n * sizeof(*a));
    }
}

static struct keyed *sorted(struct nb_jrun *r, const struct nb_jlist *l, struct nb_jv path,
                            bool case_sensitive, bool reverse)
{
    struct keyed *a = nb_jarray(r->m, l->n + 1, sizeof(*a)),
                 *b = nb_jarray(r->m, l->n + 1, sizeof(*b));

    for (size_t i = 0; i < l->n; i++)
        a[i] = (struct keyed){sort_key(r, l->v[i], path, case_sensitive), l->v[i]};
    merge_sort(r, a, b, l->n, reverse);
    return a;
}

static struct nb_jv values_of(struct nb_jrun *r, const struct keyed *k, size_t n)
{
    struct nb_jlist *l = nb_jlist_new(r->m);

    for (size_t i = 0; i < n; i++)
        nb_jlist_add(r->m, l, k[i].value);
    return nb_jv_list(l);
}

static struct nb_jv f_sort(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);

    return values_of(
        r, sorted(r, l, c->v[3], nb_jparam_true(c, 2, false), nb_jparam_true(c, 1, false)), l->n);
}

static struct nb_jv f_dictsort(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jview view = {c->v[0].dict, NB_JVIEW_ITEMS};
    bool by_value = c->v[2].kind == NB_J_STR && nb_jstr_is(c->v[2].s, "value");

    if (c->v[0].kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, c->v[0]);
    if (c->v[0].kind != NB_J_DICT)
        nb_jfail(r->m, -EINVAL, "'%s' object has no attribute 'items'", nb_jv_type(c->v[0]));
    if (!by_value && c->v[2].kind != NB_J_ABSENT &&
        !(c->v[2].kind == NB_J_STR && nb_jstr_is(c->v[2].s, "key")))
        nb_jfail(r->m, -EINVAL, "You can only sort by either \"key\" or \"value\"");
    const struct nb_jlist *l = nb_jv_items(r->m, (struct nb_jv){.kind = NB_J_VIEW, .view = &view});
    return values_of(
        r,
        sorted(r, l, nb_jv_int(by_value), nb_jparam_true(c, 1, false), nb_jparam_true(c, 3, false)),
        l->n);
}

static struct nb_jv f_unique(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    struct nb_jdict *seen = nb_jdict_new(r->m);
    struct nb_jlist *all = nb_jlist_new(r->m);

    for (size_t i = 0; i < l->n; i++) {
        struct nb_jv key = key_of(r, l->v[i], c->v[2], nb_jparam_true(c, 1, false));
        if (nb_jv_hashable(r->m, key) && nb_jdict_get(r->m, seen, key))
            continue;
        nb_jdict_set(r->m, seen, key, nb_jv_none());
        nb_jlist_add(r->m, all, l->v[i]);
    }
    return nb_jv_iterator(r->m, all, "generator");
}

static struct nb_jv extreme(struct nb_jrun *r, const struct nb_jcall *c, int wanted, const char *op)
{
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    bool case_sensitive = nb_jparam_true(c, 1, false);
    struct nb_jv best, key;

    if (l->n == 0)
        return nb_jv_undefined(r->m, "No aggregated item, sequence was empty.");
    best = l->v[0];
    key = key_of(r, best, c->v[2], case_sensitive);
    for (size_t i = 1; i < l->n; i++) {
        struct nb_jv other = key_of(r, l->v[i], c->v[2], case_sensitive);
        if (nb_jv_cmp(r->m, other, key, op) != wanted)
            continue;
        best = l->v[i];
        key = other;
    }
    return best;
}

static struct nb_jv f_min(struct nb_jrun *r, const struct nb_jcall *c)
{
    return extreme(r, c, -1, "<");
}

static struct nb_jv f_max(struct nb_jrun *r, const struct nb_jcall *c)
{
    return extreme(r, c, 1, ">");
}

static struct nb_jv attribute_or(struct nb_jrun *r, struct nb_jv v, struct nb_jv path,
                                 struct nb_jv otherwise)
{
    v = nb_jattribute(r, v, path);
    return v.kind == NB_J_UNDEFINED && otherwise.kind != NB_J_ABSENT && otherwise.kind != NB_J_NONE
               ? otherwise
               : v;
}

// Parameters: attribute, default, case_sensitive.
static struct nb_jv f_groupby(struct nb_jrun *r, const struct nb_jcall *c)
{
    static const char *const names[] = {"grouper", "list"};
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    bool case_sensitive = nb_jparam_true(c, 3, false);
    struct keyed *a = nb_jarray(r->m, l->n + 1, sizeof(*a)),
                 *b = nb_jarray(r->m, l->n + 1, sizeof(*b));
    struct nb_jlist *groups = nb_jlist_new(r->m), *group = NULL;

    for (size_t i = 0; i < l->n; i++)
        a[i] = (struct keyed){folded(r, attribute_or(r, l->v[i], c->v[1], c->v[2]), case_sensitive),
                              l->v[i]};
    merge_sort(r, a, b, l->n, false);
    for (size_t i = 0; i < l->n; i++) {
        if (i == 0 || !nb_jv_eq(r->m, a[i].key, a[i - 1].key)) {
            group = nb_jlist_new(r->m);
            struct nb_jv pair =
                nb_jv_pair(r->m, attribute_or(r, a[i].value, c->v[1], c->v[2]), nb_jv_list(group));
            ((struct nb_jlist *)pair.list)->names = names;
            nb_jlist_add(r->m, groups, pair);
        }
        nb_jlist_add(r->m, group, a[i].value);
    }
    return nb_jv_list(groups);
}

static struct nb_jv f_sum(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    struct nb_jv sum = c->v[2].kind == NB_J_ABSENT ? nb_jv_int(0) : c->v[2];

    if (sum.kind == NB_J_STR)
        nb_jfail(r->m, -EINVAL, "sum() can't sum strings [use ''.join(seq) instead]");
    for (size_t i = 0; i < l->n; i++)
        sum = nb_jbinary(r, '+', sum,
                         has_attribute(c->v[1]) ? nb_jattribute(r, l->v[i], c->v[1]) : l->v[i]);
    return sum;
}

static struct nb_jv f_random(struct nb_jrun *r, const struct nb_jcall *c)
{
    nb_jfail(r->m, -EINVAL, "random is not known: a conversation has one rendering");
}

const struct nb_jbuiltin nb_jfilters_list[] = {
    {"batch", f_batch, "linecount fill_with", 1},
    {"count", f_length, "", 0},
    {"dictsort", f_dictsort, "case_sensitive by reverse", 0},
    {"first", f_first, "", 0},
    {"groupby", f_groupby, "attribute default case_sensitive", 1},
    {"items", f_items, "", 0},
    {"join", f_join, "d attribute", 0},
    {"last", f_last, "", 0},
    {"length", f_length, "", 0},
    {"list", f_list, "", 0},
    {"max", f_max, "case_sensitive attribute", 0},
    {"min", f_min, "case_sensitive attribute", 0},
    {"random", f_random, "", 0},
    {"reverse", f_reverse, "", 0},
    {"slice", f_slice, "slices fill_with", 1},
    {"sort", f_sort, "reverse case_sensitive attribute", 0},
    {"sum", f_sum, "attribute start", 0},
    {"unique", f_unique, "case_sensitive attribute", 0},
    {0},
};
