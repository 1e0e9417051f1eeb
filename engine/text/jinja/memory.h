// Where a template's parsing and rendering take their memory from and where their failures go: one
// arena with a limit, and one way out. What lives in the arena is never freed alone.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define NB_JINJA_ERROR       512 // bytes of a sentence at most
#define NB_JINJA_STEPS_MAX   50000000ul
#define NB_JINJA_SECONDS_MAX 2u   // of the thread's CPU time
#define NB_JINJA_DEPTH_MAX   800u // one level takes less than 2 KiB of stack

struct nb_jchunk;

struct nb_jmem {
    struct nb_jchunk *chunk; // the newest
    size_t bytes, limit;
    jmp_buf escape;          // set by nb_jtry; nb_jfail returns there
    int status;              // negative errno
    unsigned long steps;     // taken so far
    unsigned long look;      // with more steps than these, the clock and `stop` are looked at
    uint64_t started_ns;     // by the thread's CPU clock
    const atomic_bool *stop; // or NULL; once it is true nobody wants the result
    unsigned depth;          // of what nests just now
    unsigned line;           // of the template, where it is just now
    char error[NB_JINJA_ERROR];
};

// Zeroed and aligned for anything. Fails by nb_jfail.
void *nb_jalloc(struct nb_jmem *m, size_t n) __attribute__((returns_nonnull));
// An array of `count` elements; the product is checked.
void *nb_jarray(struct nb_jmem *m, size_t count, size_t size);
// The same array, grown to twice its capacity (4 at first). The old one stays where it is.
void *nb_jgrow(struct nb_jmem *m, const void *old, size_t n, size_t *capacity, size_t size);
// Counts work: one step is about one node evaluated, one item gone through, one character looked up
// or 16 bytes moved. What loops charges by itself (nb_jbuild_*, nb_jstr_*, nb_jv_*, nb_jlist_add,
// nb_jdict_*); only a loop over bare characters has to charge beside them. Now and then it also
// looks whether the time is over, which is the last resort, or the work is to stop (-ECANCELED).
void nb_jstep(struct nb_jmem *m, size_t n);
// Goes one level down, for whatever recurses; the caller takes the level off again.
void nb_jdown(struct nb_jmem *m);
void nb_jmem_finish(struct nb_jmem *m);

// Runs fn; 0, or the status that nb_jfail left with.
int nb_jtry(struct nb_jmem *m, void (*fn)(struct nb_jmem *m, void *user), void *user);
// Leaves by m->escape with a status and a sentence. Control characters become spaces.
_Noreturn void nb_jfail(struct nb_jmem *m, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
