// A rendering in progress: scopes, output, and the evaluator's halves.
#pragma once

#include <time.h>

#include "engine/text/jinja/ast.h"

struct nb_jvariable {
    const struct nb_jstr *name; // interned
    struct nb_jv value;
};

struct nb_jscope {
    struct nb_jscope *parent;
    struct nb_jvariable *variable;
    size_t n, capacity;
    bool kept; // a macro was defined in it, or in a scope inside
};

struct nb_jrun {
    struct nb_jmem *m;
    struct nb_jdict *context; // variables from outside
    struct nb_jscope *scope;
    struct nb_jbuild *out;
    struct nb_jv captured; // of the block whose filters run
    time_t now;            // of strftime_now
};

// What `loop` is.
struct nb_jloop {
    const struct nb_jlist *items;
    size_t at; // of the next item, after those that the test leaves out
    const struct nb_jnode *node;
    struct nb_jscope *scope, *test_scope; // around the loop; of the test
    int64_t index0;
    unsigned depth;
    struct nb_jv before, current, changed;
};

// Statements; false when a break or a continue leaves them.
enum nb_jflow { NB_JFLOW_ON, NB_JFLOW_BREAK, NB_JFLOW_CONTINUE };
enum nb_jflow nb_jexec(struct nb_jrun *r, const struct nb_jnode *list);
struct nb_jv nb_jeval(struct nb_jrun *r, const struct nb_jnode *n);
// Statements in a scope of its own, whose output is returned.
const struct nb_jstr *nb_jcapture(struct nb_jrun *r, const struct nb_jnode *list);

void nb_jscope_push(struct nb_jrun *r, struct nb_jscope *parent);
void nb_jscope_set(struct nb_jrun *r, const struct nb_jstr *name, struct nb_jv v);
struct nb_jv nb_jscope_get(struct nb_jrun *r, const struct nb_jstr *name);

struct nb_jcall;
// Any value that a template may call.
struct nb_jv nb_jcall_value(struct nb_jrun *r, struct nb_jv f, const struct nb_jcall *c);
// Arguments of a node, after `first` (or NB_J_ABSENT: none).
struct nb_jcall nb_jcall_args(struct nb_jrun *r, const struct nb_jargs *args, struct nb_jv first,
                              bool with_first);
struct nb_jv nb_jmacro_call(struct nb_jrun *r, const struct nb_jmacro *macro,
                            const struct nb_jcall *c);
struct nb_jv nb_jloop_call(struct nb_jrun *r, struct nb_jloop *loop, const struct nb_jcall *c);
struct nb_jv nb_jloop_attr(struct nb_jrun *r, struct nb_jloop *loop, const struct nb_jstr *name);

// v.name and v[key] by Jinja's rules: an attribute or else an item, and the other way about.
struct nb_jv nb_jattr(struct nb_jrun *r, struct nb_jv v, const struct nb_jstr *name);
struct nb_jv nb_jitem(struct nb_jrun *r, struct nb_jv v, struct nb_jv key);
// v[start:stop:step]; NB_J_NONE or NB_J_ABSENT where a bound is not given.
struct nb_jv nb_jslice(struct nb_jrun *r, struct nb_jv v, const struct nb_jv bound[3]);

struct nb_jv nb_jbinary(struct nb_jrun *r, unsigned op, struct nb_jv a, struct nb_jv b);
struct nb_jv nb_junary(struct nb_jrun *r, unsigned op, struct nb_jv a);
