// What a template computes with: Python's values, as far as templates see them. Immutable but for
// namespaces, iterators and loops. All lies in the arena of one rendering, or of the parsed
// template.
#pragma once

#include "engine/text/jinja/text.h"

enum nb_jkind {
    NB_J_ABSENT, // an argument that was not given
    NB_J_UNDEFINED,
    NB_J_NONE,
    NB_J_BOOL,
    NB_J_INT,
    NB_J_FLOAT,
    NB_J_STR,
    NB_J_LIST,
    NB_J_TUPLE,
    NB_J_DICT,
    NB_J_VIEW, // dict.keys(), .values(), .items()
    NB_J_RANGE,
    NB_J_ITERATOR, // can be gone through once
    NB_J_NAMESPACE,
    NB_J_MACRO,
    NB_J_FUNCTION,
    NB_J_METHOD,
    NB_J_LOOP,
    NB_J_CYCLER,
    NB_J_JOINER,
};

struct nb_jv {
    uint8_t kind;
    bool client; // a number, truth value or None of the client's
    union {
        bool b;
        int64_t i;
        double f;
        const struct nb_jstr *s;
        const struct nb_jlist *list;
        struct nb_jdict *dict; // also a namespace's
        const struct nb_jundefined *undefined;
        const struct nb_jview *view;
        const struct nb_jrange *range;
        struct nb_jiterator *iterator;
        const struct nb_jmacro *macro;
        const struct nb_jfunction *function;
        const struct nb_jbound *method;
        struct nb_jloop *loop;
        struct nb_jcycler *cycler;
        struct nb_jjoiner *joiner;
    };
};

struct nb_jlist {
    struct nb_jv *v;
    size_t n, capacity;
    const char *const *names; // of a tuple's items, or NULL
};

// In order of insertion.
struct nb_jdict {
    struct nb_jv *key, *value;
    size_t n, capacity;
    uint32_t *slot; // by hash: index + 1; NULL while it is small
    size_t n_slots; // a power of two
};

// The object (or NB_J_ABSENT) and the name that it lacks, or the whole sentence.
struct nb_jundefined {
    const char *hint;
    struct nb_jv object, name;
};

enum nb_jview_kind { NB_JVIEW_KEYS, NB_JVIEW_VALUES, NB_JVIEW_ITEMS };

struct nb_jview {
    const struct nb_jdict *dict;
    enum nb_jview_kind kind;
};

struct nb_jrange {
    int64_t start, stop, step;
    size_t n;
};

struct nb_jiterator {
    const struct nb_jlist *items;
    size_t at;
    const char *type; // as Python calls it
};

struct nb_jcycler {
    const struct nb_jlist *items;
    size_t at;
};

struct nb_jjoiner {
    const struct nb_jstr *separator;
    bool used;
};

static inline struct nb_jv nb_jv_none(void)
{
    return (struct nb_jv){.kind = NB_J_NONE};
}
static inline struct nb_jv nb_jv_bool(bool b)
{
    return (struct nb_jv){.kind = NB_J_BOOL, .b = b};
}
static inline struct nb_jv nb_jv_int(int64_t i)
{
    return (struct nb_jv){.kind = NB_J_INT, .i = i};
}
static inline struct nb_jv nb_jv_float(double f)
{
    return (struct nb_jv){.kind = NB_J_FLOAT, .f = f};
}
static inline struct nb_jv nb_jv_str(const struct nb_jstr *s)
{
    return (struct nb_jv){.kind = NB_J_STR, .s = s};
}
static inline struct nb_jv nb_jv_list(const struct nb_jlist *list)
{
    return (struct nb_jv){.kind = NB_J_LIST, .list = list};
}
static inline struct nb_jv nb_jv_tuple(const struct nb_jlist *list)
{
    return (struct nb_jv){.kind = NB_J_TUPLE, .list = list};
}
static inline struct nb_jv nb_jv_dict(struct nb_jdict *dict)
{
    return (struct nb_jv){.kind = NB_J_DICT, .dict = dict};
}
struct nb_jv nb_jv_pair(struct nb_jmem *m, struct nb_jv a, struct nb_jv b);
struct nb_jv nb_jv_iterator(struct nb_jmem *m, const struct nb_jlist *items, const char *type);
// An undefined value that says `hint` (which must live) when it is used, or names what lacks.
struct nb_jv nb_jv_undefined(struct nb_jmem *m, const char *hint);
struct nb_jv nb_jv_missing(struct nb_jmem *m, struct nb_jv object, struct nb_jv name);
_Noreturn void nb_jv_fail_undefined(struct nb_jmem *m, struct nb_jv v);

struct nb_jlist *nb_jlist_new(struct nb_jmem *m);
void nb_jlist_add(struct nb_jmem *m, struct nb_jlist *l, struct nb_jv v);

struct nb_jdict *nb_jdict_new(struct nb_jmem *m);
// Sets or replaces. Fails for a key that Python cannot hash.
void nb_jdict_set(struct nb_jmem *m, struct nb_jdict *d, struct nb_jv key, struct nb_jv value);
struct nb_jv *nb_jdict_get(struct nb_jmem *m, const struct nb_jdict *d, struct nb_jv key);
struct nb_jv *nb_jdict_find(struct nb_jmem *m, const struct nb_jdict *d, const char *key);
bool nb_jv_hashable(struct nb_jmem *m, struct nb_jv v);

// Python's name of a value's type.
const char *nb_jv_type(struct nb_jv v);
bool nb_jv_true(struct nb_jv v);
static inline bool nb_jv_is_number(struct nb_jv v)
{
    return v.kind == NB_J_BOOL || v.kind == NB_J_INT || v.kind == NB_J_FLOAT;
}
static inline bool nb_jv_is_int(struct nb_jv v) // as Python sees it
{
    return v.kind == NB_J_BOOL || v.kind == NB_J_INT;
}
static inline int64_t nb_jv_as_int(struct nb_jv v)
{
    return v.kind == NB_J_BOOL ? v.b : v.i;
}
double nb_jv_as_float(struct nb_jv v);
bool nb_jv_eq(struct nb_jmem *m, struct nb_jv a, struct nb_jv b);
// -1, 0, 1. Fails for types that have no order.
int nb_jv_cmp(struct nb_jmem *m, struct nb_jv a, struct nb_jv b, const char *op);
bool nb_jv_in(struct nb_jmem *m, struct nb_jv item, struct nb_jv all);
// len(), or SIZE_MAX where Python has none.
size_t nb_jv_length(struct nb_jmem *m, struct nb_jv v);
// All items as a list, each a step; an iterator is used up. Fails for what cannot be gone through.
const struct nb_jlist *nb_jv_items(struct nb_jmem *m, struct nb_jv v);
bool nb_jv_iterable(struct nb_jv v);

// str() and repr(), and a float as Python writes it.
const struct nb_jstr *nb_jv_text(struct nb_jmem *m, struct nb_jv v);
void nb_jv_repr(struct nb_jbuild *b, struct nb_jv v);
const char *nb_jv_repr_c(struct nb_jmem *m, struct nb_jv v); // at most 100 bytes, for sentences
void nb_jfloat_repr(struct nb_jmem *m, double f, char out[40]);
