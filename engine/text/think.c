// Think marks: a table, and a state. It knows nothing of tokens.
#include "engine/text/think.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/pattern.h"

#define CLOSES_MAX 2
#define TEMPLATES  "tokenizer.chat_template"

// Pairs as published templates write them. `known_by` stands in the template of a model that uses
// the pair: for most that is the closing mark, because templates cut what came before it off older
// turns, while some leave the opening one to the model.
static const struct pair {
    const char *known_by, *open, *close[CLOSES_MAX];
} pairs[] = {
    {"</think>", "<think>", {"</think>"}},
    {"[/THINK]", "[THINK]", {"[/THINK]"}},
    {"<|END_THINKING|>", "<|START_THINKING|>", {"<|END_THINKING|>"}},
    {"</seed:think>", "<seed:think>", {"</seed:think>"}},
    {"</mm:think>", "<mm:think>", {"</mm:think>"}},
    {"</thinking>", "<thinking>", {"</thinking>"}},
    {"</thought>", "<thought>", {"</thought>"}},
    {"</reasoning>", "<reasoning>", {"</reasoning>"}},
    {"\u25c1/think\u25b7", "\u25c1think\u25b7", {"\u25c1/think\u25b7"}},
    {"[BEGIN FINAL RESPONSE]", "Here are my reasoning steps:", {"[BEGIN FINAL RESPONSE]"}},
    // Gemma 4
    {"<|channel>thought", "<|channel>thought\n", {"<channel|>"}},
    // Solar Open: what begins the answer's message belongs to the mark
    {"assistant<|think|>", "<|think|>", {"<|content|>"}},
    // Harmony (gpt-oss): messages of several channels, of which the last is the answer
    {"<|channel|>analysis<|message|>",
     "<|channel|>analysis<|message|>",
     {"<|channel|>final<|message|>", "<|channel|>commentary"}},
};
#define N_PAIRS (sizeof(pairs) / sizeof(*pairs))
_Static_assert(N_PAIRS <= 32, "a bit each");

struct nb_think {
    const struct pair *inside; // of which pair; NULL: outside
    size_t n;
    const struct pair *pair[N_PAIRS];
    struct nb_pattern open[N_PAIRS], close[CLOSES_MAX];
};

static struct nb_str str(const char *text)
{
    return (struct nb_str){text, strlen(text)};
}

uint32_t nb_think_pairs(const struct nb_gguf *meta)
{
    uint32_t found = 0;

    for (uint64_t k = 0; k < nb_gguf_n_keys(meta); k++) {
        enum nb_gguf_type type;
        struct nb_str key = nb_gguf_key(meta, k, &type);
        if (key.len < strlen(TEMPLATES) || memcmp(key.data, TEMPLATES, strlen(TEMPLATES)) != 0)
            continue;
        struct nb_str bytes = nb_gguf_pair_bytes(meta, k);
        for (size_t i = 0; i < N_PAIRS; i++)
            if (memmem(bytes.data, bytes.len, pairs[i].known_by, strlen(pairs[i].known_by)))
                found |= 1u << i;
    }
    return found;
}

// Looks for nothing but the pair's end from here on.
static void enter(struct nb_think *t, const struct pair *pair)
{
    t->inside = pair;
    for (size_t i = 0; i < CLOSES_MAX && pair->close[i]; i++)
        nb_pattern_init(&t->close[i], str(pair->close[i]));
}

static void leave(struct nb_think *t)
{
    t->inside = NULL;
    for (size_t i = 0; i < t->n; i++)
        nb_pattern_init(&t->open[i], str(t->pair[i]->open));
}

static struct nb_str trimmed(struct nb_str s)
{
    while (s.len && strchr(" \t\r\n", s.data[s.len - 1]) && s.data[s.len - 1])
        s.len--;
    return s;
}

static bool ends_with(struct nb_str text, struct nb_str end)
{
    return text.len >= end.len && !memcmp(text.data + text.len - end.len, end.data, end.len);
}

int nb_think_create(uint32_t which, struct nb_str tail, struct nb_think **ret)
{
    struct nb_think *t = calloc(1, sizeof(*t));

    if (!t)
        return -ENOMEM;
    for (size_t i = 0; i < N_PAIRS; i++)
        if (which >> i & 1)
            t->pair[t->n++] = &pairs[i];
    leave(t);
    tail = trimmed(tail);
    for (size_t i = 0; i < t->n && !t->inside; i++)
        if (ends_with(tail, trimmed(str(t->pair[i]->open))))
            enter(t, t->pair[i]);
    *ret = t;
    return 0;
}

void nb_think_destroy(struct nb_think *t)
{
    free(t);
}

bool nb_think_inside(const struct nb_think *t)
{
    return t->inside;
}

size_t nb_think_undecided(const struct nb_think *t)
{
    size_t longest = 0;

    for (size_t i = 0; i < t->n && !t->inside; i++)
        if (t->open[i].matched > longest)
            longest = t->open[i].matched;
    return longest;
}

static size_t push_outside(struct nb_think *t, char byte)
{
    const struct nb_pattern *whole = NULL;

    for (size_t i = 0; i < t->n; i++)
        if (nb_pattern_push(&t->open[i], byte) && (!whole || t->open[i].len > whole->len))
            whole = &t->open[i];
    if (whole)
        enter(t, t->pair[whole - t->open]);
    return whole ? whole->len : 0;
}

size_t nb_think_push(struct nb_think *t, char byte)
{
    bool closed = false;

    if (!t->inside)
        return push_outside(t, byte);
    for (size_t i = 0; i < CLOSES_MAX && t->inside->close[i]; i++)
        closed |= nb_pattern_push(&t->close[i], byte);
    if (closed)
        leave(t);
    return 0;
}
