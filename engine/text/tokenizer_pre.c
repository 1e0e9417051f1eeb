// Cutting text into pieces by a family's patterns. The text becomes one class byte for each code
// point, so that PCRE2 works on plain bytes: fast, and independent of the Unicode version that it
// was built with.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/tokenizer_pre.h"
#include "engine/text/unicode.h"

// Far above what any text needs under the patterns of the table; they bound time and memory all the
// same.
#define MATCH_LIMIT    20000000
#define HEAP_LIMIT_KIB 65536
#define JIT_STACK_MAX  (4 << 20)

struct nb_splitter {
    const struct nb_pre *pre;
    pcre2_code *code[NB_PRE_STEPS];
};

int nb_splitter_create(const struct nb_pre *pre, struct nb_splitter **ret)
{
    struct nb_splitter *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    s->pre = pre;
    for (size_t i = 0; i < NB_PRE_STEPS && pre->steps[i]; i++) {
        int error;
        PCRE2_SIZE at;
        s->code[i] = pcre2_compile((PCRE2_SPTR)pre->steps[i]->pattern, PCRE2_ZERO_TERMINATED, 0,
                                   &error, &at, NULL);
        if (!s->code[i]) {
            nb_splitter_destroy(s);
            return error == PCRE2_ERROR_HEAP_FAILED ? -ENOMEM : -EINVAL;
        }
        // Where no executable memory may be made (a sandbox), the interpreter matches the same.
        (void)pcre2_jit_compile(s->code[i], PCRE2_JIT_COMPLETE);
    }
    *ret = s;
    return 0;
}

void nb_splitter_destroy(struct nb_splitter *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < NB_PRE_STEPS; i++)
        pcre2_code_free(s->code[i]);
    free(s);
}

static void free_text(struct nb_split *w)
{
    free(w->text);
    free(w->offset);
    free(w->class);
    free(w->end);
    free(w->next_end);
}

void nb_split_finish(struct nb_split *w)
{
    free_text(w);
    pcre2_match_data_free(w->match_data);
    pcre2_match_context_free(w->match_context);
    pcre2_jit_stack_free(w->jit_stack);
    *w = (struct nb_split){0};
}

static int split_init(struct nb_split *w)
{
    w->match_data = pcre2_match_data_create(1, NULL);
    w->match_context = pcre2_match_context_create(NULL);
    w->jit_stack = pcre2_jit_stack_create(32 << 10, JIT_STACK_MAX, NULL);
    if (!w->match_data || !w->match_context || !w->jit_stack) {
        nb_split_finish(w);
        return -ENOMEM;
    }
    pcre2_set_match_limit(w->match_context, MATCH_LIMIT);
    pcre2_set_heap_limit(w->match_context, HEAP_LIMIT_KIB);
    pcre2_jit_stack_assign(w->match_context, NULL, w->jit_stack);
    return 0;
}

// Room for `len` bytes of input: as many code points, three bytes each when all are invalid, and a
// piece each.
static int split_reserve(struct nb_split *w, size_t len)
{
    if (len < w->capacity)
        return 0;
    free_text(w);
    w->capacity = 0;
    w->text = malloc((len + 1) * 3);
    w->offset = malloc((len + 1) * sizeof(*w->offset));
    w->class = malloc(len + 1);
    w->end = malloc((len + 1) * sizeof(*w->end));
    w->next_end = malloc((len + 1) * sizeof(*w->next_end));
    if (!w->text || !w->offset || !w->class || !w->end || !w->next_end)
        return -ENOMEM;
    w->capacity = (uint32_t)len + 1;
    return 0;
}

static void canonicalise(struct nb_split *w, const char *text, size_t len)
{
    size_t out = 0;

    w->n_code = 0;
    for (size_t i = 0, used; i < len; i += used) {
        uint32_t cpt = nb_unicode_decode(text + i, len - i, &used);
        w->offset[w->n_code++] = (uint32_t)out;
        out += nb_unicode_encode(cpt, w->text + out);
    }
    w->offset[w->n_code] = (uint32_t)out;
}

static bool in_set(const struct nb_code_range *set, uint32_t cpt)
{
    for (; set->last; set++)
        if (cpt >= set->first && cpt <= set->last)
            return true;
    return false;
}

static uint8_t class_byte(const struct nb_pre_step *step, uint32_t cpt)
{
    if (cpt < 0x80)
        return (uint8_t)cpt;
    enum nb_unicode_class class = nb_unicode_class(cpt);
    if (class == NB_UNICODE_SPACE)
        return '\v';
    for (uint8_t i = 0; i < 2 && step->sets[i]; i++)
        if (in_set(step->sets[i], cpt))
            return (uint8_t)(0x90 + i);
    return (uint8_t)(0x80 + class);
}

static void classify(struct nb_split *w, const struct nb_pre_step *step)
{
    for (uint32_t i = 0; i < w->n_code; i++) {
        size_t used;
        uint32_t cpt =
            nb_unicode_decode(w->text + w->offset[i], w->offset[i + 1] - w->offset[i], &used);
        w->class[i] = class_byte(step, cpt);
    }
}

// Matches, and what lies between them, of one piece [start, stop) become pieces of their own.
static int split_piece(const pcre2_code *code, struct nb_split *w, uint32_t start, uint32_t stop,
                       uint32_t *n)
{
    const PCRE2_SIZE *match = pcre2_get_ovector_pointer(w->match_data);
    PCRE2_SIZE at = 0, len = stop - start;

    while (at < len) {
        int rc = pcre2_match(code, w->class + start, len, at, PCRE2_NOTEMPTY, w->match_data,
                             w->match_context);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return rc == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -EOVERFLOW;
        if (match[0] > at)
            w->next_end[(*n)++] = start + (uint32_t)match[0];
        w->next_end[(*n)++] = start + (uint32_t)match[1];
        at = match[1];
    }
    if (at < len)
        w->next_end[(*n)++] = stop;
    return 0;
}

static int split_all(const pcre2_code *code, struct nb_split *w)
{
    uint32_t n = 0, start = 0;

    for (uint32_t i = 0; i < w->n_pieces; start = w->end[i++]) {
        int rc = split_piece(code, w, start, w->end[i], &n);
        if (rc < 0)
            return rc;
    }
    uint32_t *swap = w->end;
    w->end = w->next_end;
    w->next_end = swap;
    w->n_pieces = n;
    return 0;
}

int nb_splitter_run(const struct nb_splitter *s, struct nb_split *w, const char *text, size_t len)
{
    int rc = w->jit_stack ? 0 : split_init(w);

    if (rc == 0)
        rc = split_reserve(w, len);
    if (rc < 0)
        return rc;
    canonicalise(w, text, len);
    w->n_pieces = w->n_code > 0;
    w->end[0] = w->n_code;
    for (size_t i = 0; i < NB_PRE_STEPS && s->code[i]; i++) {
        const struct nb_pre_step *before = i ? s->pre->steps[i - 1] : NULL;
        if (!before || before->sets[0] != s->pre->steps[i]->sets[0])
            classify(w, s->pre->steps[i]);
        rc = split_all(s->code[i], w);
        if (rc < 0)
            return rc;
    }
    return 0;
}
