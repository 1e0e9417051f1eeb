// See params.h.
#include "daemon/params.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_SIZE sizeof(((struct nb_load_params *)0)->precision)
#define FIRST     4 // that every text has

// A member: a number, or one of the choices of a text.
struct param {
    size_t offset, size;
    const char *choices[4]; // none: a number
    const char *sentence;   // of the choices
};

#define MEMBER(name)                                                                               \
    offsetof(struct nb_load_params, name), sizeof(((struct nb_load_params *)0)->name)

// In the order of the store's texts: what is new comes last.
static const struct param params_of_a_load[] = {
    {MEMBER(context), {NULL}, NULL},
    {MEMBER(kv_bytes), {NULL}, NULL},
    {MEMBER(precision), {"fast", "balanced", "exact"}, "precision is fast, balanced or exact"},
    {MEMBER(kv_type), {"f16", "q8_0", "f32"}, "the KV cache's type is f16, q8_0 or f32"},
};
#define N_PARAMS (sizeof(params_of_a_load) / sizeof(*params_of_a_load))

static const void *value_of(const struct nb_load_params *params, const struct param *p)
{
    return (const char *)params + p->offset;
}

static int is_choice(const struct param *p, const char *text)
{
    for (int i = 0; i < 4 && p->choices[i]; i++)
        if (!strncmp(text, p->choices[i], TEXT_SIZE))
            return 1;
    return 0;
}

int nb_params_check(const struct nb_load_params *params, struct nb_refusal *refusal)
{
    for (size_t i = 0; i < N_PARAMS; i++) {
        const struct param *p = &params_of_a_load[i];
        const char *text = value_of(params, p);
        if (p->sentence && *text && !is_choice(p, text))
            return nb_refuse(refusal, -EINVAL, "%s", p->sentence);
    }
    return 0;
}

void nb_params_settle(struct nb_load_params *params)
{
    if (!*params->precision)
        snprintf(params->precision, TEXT_SIZE, "balanced");
    // At `exact` nothing is rounded that need not be.
    if (!*params->kv_type)
        snprintf(params->kv_type, TEXT_SIZE, strcmp(params->precision, "exact") ? "f16" : "f32");
}

static uint64_t number_of(const struct nb_load_params *params, const struct param *p)
{
    uint64_t wide;
    uint32_t narrow;
    memcpy(&wide, value_of(params, p), p->size == sizeof(wide) ? sizeof(wide) : 0);
    memcpy(&narrow, value_of(params, p), sizeof(narrow));
    return p->size == sizeof(wide) ? wide : narrow;
}

void nb_params_write(const struct nb_load_params *params, char ret[NB_PARAMS_TEXT])
{
    size_t n = 0;
    for (size_t i = 0; i < N_PARAMS && n < NB_PARAMS_TEXT; i++) {
        const struct param *p = &params_of_a_load[i];
        size_t room = NB_PARAMS_TEXT - n;
        n += (size_t)(p->sentence
                          ? snprintf(ret + n, room, "+%.15s", (const char *)value_of(params, p))
                          : snprintf(ret + n, room, "+%" PRIu64, number_of(params, p)));
    }
}

static int read_one(const struct param *p, const char *text, struct nb_load_params *ret)
{
    char *to = (char *)ret + p->offset, *end;
    if (p->sentence) {
        if (!is_choice(p, text))
            return -EINVAL;
        snprintf(to, TEXT_SIZE, "%s", text);
        return 0;
    }
    uint64_t wide = strtoull(text, &end, 10);
    uint32_t narrow = (uint32_t)wide;
    if (*text < '0' || *text > '9' || *end || (p->size == sizeof(narrow) && wide != narrow))
        return -EINVAL;
    memcpy(to, p->size == sizeof(wide) ? (const void *)&wide : &narrow, p->size);
    return 0;
}

int nb_params_read(const char *text, struct nb_load_params *ret)
{
    char copy[NB_PARAMS_TEXT], *rest = copy, *one;
    struct nb_load_params params = {.context = 0};
    size_t n = 0;
    if (*text != '+' || strlen(text) >= sizeof(copy))
        return -EINVAL;
    snprintf(copy, sizeof(copy), "%s", text + 1);
    while ((one = strsep(&rest, "+")))
        if (n == N_PARAMS || read_one(&params_of_a_load[n++], one, &params) < 0)
            return -EINVAL;
    if (n < FIRST)
        return -EINVAL;
    *ret = params;
    return 0;
}
