// The tables of filters, tests, methods and global functions, and how they get their arguments.
#pragma once

#include "engine/text/jinja/run.h"

#define NB_JPARAMS_MAX 8

// What a builtin is called with. v[0] is what a filter, test or method is applied to; the
// parameters follow, NB_J_ABSENT where none was given. With params NULL they come as the template
// gave them: n values, and kw.
struct nb_jcall {
    struct nb_jv *v;
    size_t n;
    const struct nb_jdict *kw; // or NULL
};

typedef struct nb_jv nb_jbuiltin_fn(struct nb_jrun *r, const struct nb_jcall *c);

struct nb_jbuiltin {
    const char *name;
    nb_jbuiltin_fn *fn;
    const char *params; // names with blanks between them; NULL: any
    uint8_t required;   // of them
};

struct nb_jfunction {
    struct nb_jbuiltin builtin;
};

struct nb_jbound {
    const struct nb_jbuiltin *method;
    struct nb_jv self;
};

// A table of them; ends with one without a name.
const struct nb_jbuiltin *nb_jbuiltin_in(const struct nb_jbuiltin *table,
                                         const struct nb_jstr *name);

const struct nb_jbuiltin *nb_jfilter_find(const struct nb_jstr *name);
const struct nb_jbuiltin *nb_jtest_find(const struct nb_jstr *name);
// Of a type's methods; NULL where it has none of this name. ret_refused: the sandbox forbids it.
const struct nb_jbuiltin *nb_jmethod_find(struct nb_jv self, const struct nb_jstr *name,
                                          bool *ret_refused);
const struct nb_jfunction *nb_jfunction_find(const struct nb_jstr *name);

extern const struct nb_jbuiltin nb_jfilters_text[], nb_jfilters_list[], nb_jfilters_select[],
    nb_jmethods_str[], nb_jmethods_str_more[];

// Binds arguments to parameters and calls.
struct nb_jv nb_jbuiltin_call(struct nb_jrun *r, const struct nb_jbuiltin *b,
                              const struct nb_jcall *c);

// Parameters as what they must be; `otherwise` where they are absent.
const struct nb_jstr *nb_jparam_str(struct nb_jrun *r, const struct nb_jcall *c, size_t i,
                                    const struct nb_jstr *otherwise);
int64_t nb_jparam_int(struct nb_jrun *r, const struct nb_jcall *c, size_t i, int64_t otherwise);
bool nb_jparam_true(const struct nb_jcall *c, size_t i, bool otherwise);

// Filters that others are made of.
const struct nb_jstr *nb_jescape(struct nb_jmem *m, struct nb_jv v);
void nb_jtojson(struct nb_jrun *r, struct nb_jbuild *b, const struct nb_jcall *c);
const struct nb_jstr *nb_jpercent(struct nb_jrun *r, const struct nb_jstr *format,
                                  struct nb_jv args);
struct nb_jv nb_jstr_format(struct nb_jrun *r, const struct nb_jstr *format,
                            const struct nb_jcall *c);
// One value by a format's specification (">10.3f").
void nb_jformat_value(struct nb_jrun *r, struct nb_jbuild *b, struct nb_jv v,
                      const struct nb_jstr *spec);
const struct nb_jstr *nb_jstr_case(struct nb_jmem *m, const struct nb_jstr *s, int to);
const struct nb_jstr *nb_jstr_trim(struct nb_jmem *m, const struct nb_jstr *s,
                                   const struct nb_jstr *chars, bool left, bool right);
const struct nb_jstr *nb_jstr_replace(struct nb_jmem *m, const struct nb_jstr *s,
                                      const struct nb_jstr *old, const struct nb_jstr *with,
                                      int64_t count);
struct nb_jlist *nb_jstr_lines(struct nb_jmem *m, const struct nb_jstr *s, bool keep_ends);
// The value that an attribute filter looks at ("a.b", 0), by Jinja's rules.
struct nb_jv nb_jattribute(struct nb_jrun *r, struct nb_jv v, struct nb_jv path);
