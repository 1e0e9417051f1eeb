// Strings that know whose their bytes are.
#include "engine/text/jinja/text.h"

#include <errno.h>
#include <string.h>

#include "engine/text/unicode.h"

const struct nb_jstr nb_jstr_empty = NB_JSTR_INIT("");

// --- Growing.

void nb_jbuild_init(struct nb_jbuild *b, struct nb_jmem *m)
{
    *b = (struct nb_jbuild){.mem = m};
}

static void reserve(struct nb_jbuild *b, size_t more)
{
    size_t need = b->len + more;

    if (b->limit && need > b->limit)
        nb_jfail(b->mem, -E2BIG, "the rendering is longer than %zu MiB", b->limit >> 20);
    if (need <= b->capacity)
        return;
    // The first block is exact: most strings are never added to.
    size_t capacity = b->capacity ? need + need / 2 : need;
    char *data = nb_jalloc(b->mem, capacity);
    if (b->len)
        memcpy(data, b->data, b->len);
    b->data = data;
    if (b->from) {
        uint8_t *from = nb_jalloc(b->mem, capacity);
        memcpy(from, b->from, b->len);
        b->from = from;
    }
    b->capacity = capacity;
}

// Begins to mark each byte, all those before alike.
static void mark_each(struct nb_jbuild *b)
{
    if (b->from)
        return;
    b->from = nb_jalloc(b->mem, b->capacity);
    memset(b->from, b->client, b->len);
}

void nb_jbuild_bytes(struct nb_jbuild *b, const char *data, size_t len, bool client)
{
    if (len == 0)
        return;
    nb_jstep(b->mem, 1 + len / 16);
    reserve(b, len);
    if (b->len == 0 && !b->from)
        b->client = client;
    if (b->from || client != b->client) {
        mark_each(b);
        memset(b->from + b->len, client, len);
    }
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

void nb_jbuild_part(struct nb_jbuild *b, const struct nb_jstr *s, size_t at, size_t len)
{
    if (!s->from || len == 0) {
        nb_jbuild_bytes(b, s->data + at, len, s->client);
        return;
    }
    nb_jstep(b->mem, 1 + len / 16);
    reserve(b, len);
    mark_each(b);
    memcpy(b->data + b->len, s->data + at, len);
    memcpy(b->from + b->len, s->from + at, len);
    b->len += len;
}

void nb_jbuild_str(struct nb_jbuild *b, const struct nb_jstr *s)
{
    nb_jbuild_part(b, s, 0, s->len);
}

void nb_jbuild_fill(struct nb_jbuild *b, const struct nb_jstr *s, size_t times)
{
    size_t n;

    if (__builtin_mul_overflow(s->len, times, &n) || n > b->mem->limit)
        nb_jfail(b->mem, -E2BIG, "the template takes more than %zu MiB of memory",
                 b->mem->limit >> 20);
    reserve(b, n);
    for (size_t i = 0; s->len && i < times; i++)
        nb_jbuild_str(b, s);
}

void nb_jbuild_c(struct nb_jbuild *b, const char *text, bool client)
{
    nb_jbuild_bytes(b, text, strlen(text), client);
}

const struct nb_jstr *nb_jbuild_end(struct nb_jbuild *b)
{
    struct nb_jstr *s = nb_jalloc(b->mem, sizeof(*s));

    *s = (struct nb_jstr){.data = b->len ? b->data : "",
                          .len = b->len,
                          .from = b->from,
                          .chars = SIZE_MAX,
                          .client = b->client};
    return s;
}

// --- Making.

const struct nb_jstr *nb_jstr_view(struct nb_jmem *m, const char *data, size_t len, bool client)
{
    struct nb_jstr *s = nb_jalloc(m, sizeof(*s));

    *s = (struct nb_jstr){.data = data, .len = len, .chars = SIZE_MAX, .client = client};
    return s;
}

const struct nb_jstr *nb_jstr_copy(struct nb_jmem *m, const char *data, size_t len, bool client)
{
    nb_jstep(m, 1 + len / 16);
    char *copy = nb_jalloc(m, len + 1);

    if (len)
        memcpy(copy, data, len);
    return nb_jstr_view(m, copy, len, client);
}

const struct nb_jstr *nb_jstr_part(struct nb_jmem *m, const struct nb_jstr *s, size_t at,
                                   size_t len)
{
    if (at == 0 && len == s->len)
        return s;
    struct nb_jstr *part = nb_jalloc(m, sizeof(*part));
    *part = (struct nb_jstr){.data = s->data + at,
                             .len = len,
                             .from = s->from ? s->from + at : NULL,
                             .chars = s->chars == s->len ? len : SIZE_MAX,
                             .client = s->client,
                             .markup = s->markup};
    return part;
}

const struct nb_jstr *nb_jstr_concat(struct nb_jmem *m, const struct nb_jstr *a,
                                     const struct nb_jstr *b)
{
    struct nb_jbuild *t = a->tail;

    if (b->len == 0 || a->len == 0)
        return b->len == 0 ? a : b;
    if (!t || t->len != a->len || t->data != a->data) {
        t = nb_jalloc(m, sizeof(*t));
        nb_jbuild_init(t, m);
        reserve(t, a->len + b->len);
        nb_jbuild_str(t, a);
    }
    nb_jbuild_str(t, b);
    struct nb_jstr *s = (struct nb_jstr *)nb_jbuild_end(t);
    s->tail = t;
    return s;
}

const struct nb_jstr *nb_jstr_markup(struct nb_jmem *m, const struct nb_jstr *s, bool markup)
{
    if (s->markup == markup)
        return s;
    struct nb_jstr *other = nb_jalloc(m, sizeof(*other));
    *other = *s;
    other->markup = markup;
    return other;
}

// --- Asking.

size_t nb_jstr_step(const struct nb_jstr *s, size_t at)
{
    size_t used;

    if ((unsigned char)s->data[at] < 0x80)
        return 1;
    nb_unicode_decode(s->data + at, s->len - at, &used);
    return used;
}

size_t nb_jstr_chars(struct nb_jmem *m, const struct nb_jstr *s)
{
    size_t n = 0;

    if (s->chars != SIZE_MAX)
        return s->chars;
    nb_jstep(m, 1 + s->len / 8);
    for (size_t at = 0; at < s->len; at += nb_jstr_step(s, at))
        n++;
    return n;
}

size_t nb_jstr_offset(struct nb_jmem *m, const struct nb_jstr *s, size_t i)
{
    size_t at = 0;

    if (s->chars == s->len)
        return i < s->len ? i : s->len;
    for (; i > 0 && at < s->len; i--)
        at += nb_jstr_step(s, at);
    nb_jstep(m, 1 + at / 8);
    return at;
}

bool nb_jstr_client(const struct nb_jstr *s, size_t at)
{
    return s->from ? s->from[at] : s->client;
}

bool nb_jstr_any_client(const struct nb_jstr *s)
{
    return s->len && (s->from ? memchr(s->from, 1, s->len) != NULL : s->client);
}

bool nb_jstr_eq(const struct nb_jstr *a, const struct nb_jstr *b)
{
    return a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}

bool nb_jstr_is(const struct nb_jstr *s, const char *text)
{
    return s->len == strlen(text) && (s->len == 0 || memcmp(s->data, text, s->len) == 0);
}

// UTF-8 sorts as code points do.
int nb_jstr_cmp(const struct nb_jstr *a, const struct nb_jstr *b)
{
    size_t n = a->len < b->len ? a->len : b->len;
    int rc = n ? memcmp(a->data, b->data, n) : 0;

    return rc ? rc : (a->len > b->len) - (a->len < b->len);
}

size_t nb_jstr_find(struct nb_jmem *m, const struct nb_jstr *s, const struct nb_jstr *what,
                    size_t from, size_t to)
{
    if (from > to || to > s->len || what->len > to - from)
        return SIZE_MAX;
    if (what->len == 0)
        return from;
    const char *found = memmem(s->data + from, to - from, what->data, what->len);
    size_t at = found ? (size_t)(found - s->data) : SIZE_MAX;
    nb_jstep(m, 1 + ((found ? at : to) - from + what->len) / 16);
    return at;
}

size_t nb_jstr_rfind(struct nb_jmem *m, const struct nb_jstr *s, const struct nb_jstr *what,
                     size_t from, size_t to)
{
    if (from > to || to > s->len || what->len > to - from)
        return SIZE_MAX;
    if (what->len == 0)
        return to;
    nb_jstep(m, 1);
    for (size_t at = to - what->len + 1; at-- > from;) {
        if (s->data[at] != what->data[0]) {
            nb_jstep(m, at % 16 == 0);
            continue;
        }
        nb_jstep(m, 1 + what->len / 64);
        if (memcmp(s->data + at, what->data, what->len) == 0)
            return at;
    }
    return SIZE_MAX;
}
