// The arena, and the way out of a template that fails.
#include "engine/text/jinja/memory.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHUNK_BYTES ((size_t)64 << 10)
#define LOOK_STEPS  (64ul << 10) // a few milliseconds
#define ALIGNMENT   _Alignof(max_align_t)

struct nb_jchunk {
    struct nb_jchunk *next;
    size_t used, size;
    _Alignas(max_align_t) char bytes[];
};

static struct nb_jchunk *add_chunk(struct nb_jmem *m, size_t n)
{
    size_t size = n > CHUNK_BYTES / 4 ? n : CHUNK_BYTES;

    if (n > m->limit || m->bytes > m->limit - n)
        nb_jfail(m, -E2BIG, "the template takes more than %zu MiB of memory", m->limit >> 20);
    struct nb_jchunk *c = calloc(1, sizeof(*c) + size);
    if (!c)
        nb_jfail(m, -ENOMEM, "no memory");
    c->size = size;
    m->bytes += size;
    // A large block has a chunk of its own, behind the one that small ones come from.
    if (size != CHUNK_BYTES && m->chunk) {
        c->next = m->chunk->next;
        m->chunk->next = c;
    } else {
        c->next = m->chunk;
        m->chunk = c;
    }
    return c;
}

void *nb_jalloc(struct nb_jmem *m, size_t n)
{
    struct nb_jchunk *c = m->chunk;

    if (n > SIZE_MAX / 2)
        nb_jfail(m, -E2BIG, "the template takes more than %zu MiB of memory", m->limit >> 20);
    n = (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (!c || c->size - c->used < n)
        c = add_chunk(m, n);
    void *p = c->bytes + c->used;
    c->used += n;
    return p;
}

void *nb_jarray(struct nb_jmem *m, size_t count, size_t size)
{
    size_t n;

    if (__builtin_mul_overflow(count, size, &n))
        n = SIZE_MAX;
    return nb_jalloc(m, n);
}

void *nb_jgrow(struct nb_jmem *m, const void *old, size_t n, size_t *capacity, size_t size)
{
    size_t more = *capacity ? *capacity * 2 : 4;
    void *grown = nb_jarray(m, more, size);

    if (n)
        memcpy(grown, old, n * size);
    *capacity = more;
    return grown;
}

static uint64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void look(struct nb_jmem *m)
{
    unsigned long next = m->steps + LOOK_STEPS;

    if (m->steps > NB_JINJA_STEPS_MAX)
        nb_jfail(m, -E2BIG, "the template takes more than %lu steps", NB_JINJA_STEPS_MAX);
    if (m->stop && atomic_load_explicit(m->stop, memory_order_relaxed))
        nb_jfail(m, -ECANCELED, "nobody waits for the rendering any more");
    if (cpu_ns() - m->started_ns > NB_JINJA_SECONDS_MAX * UINT64_C(1000000000))
        nb_jfail(m, -E2BIG, "the template takes more than %u seconds", NB_JINJA_SECONDS_MAX);
    m->look = next < NB_JINJA_STEPS_MAX ? next : NB_JINJA_STEPS_MAX;
}

void nb_jstep(struct nb_jmem *m, size_t n)
{
    m->steps += n;
    if (m->steps > m->look)
        look(m);
}

void nb_jdown(struct nb_jmem *m)
{
    if (++m->depth > NB_JINJA_DEPTH_MAX)
        nb_jfail(m, -E2BIG, "the template nests deeper than %u levels", NB_JINJA_DEPTH_MAX);
}

void nb_jmem_finish(struct nb_jmem *m)
{
    while (m->chunk) {
        struct nb_jchunk *next = m->chunk->next;
        free(m->chunk);
        m->chunk = next;
    }
}

int nb_jtry(struct nb_jmem *m, void (*fn)(struct nb_jmem *m, void *user), void *user)
{
    m->steps = m->look = m->depth = 0;
    m->started_ns = cpu_ns();
    if (setjmp(m->escape))
        return m->status;
    fn(m, user);
    return 0;
}

_Noreturn void nb_jfail(struct nb_jmem *m, int status, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(m->error, sizeof(m->error), format, args);
    va_end(args);
    for (char *p = m->error; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    m->status = status;
    longjmp(m->escape, 1);
}
