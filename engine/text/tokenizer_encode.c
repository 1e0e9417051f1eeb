// Text to ids: special tokens are cut out first, then each stretch of text between them becomes
// symbols that merge, the best pair first, by a heap: n log n for any text.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/wordpiece.h"

// A stretch of the text, or the special token that stood there.
struct fragment {
    size_t start, len;
    int32_t token; // NB_TOKEN_NONE for text
};

struct fragments {
    struct fragment *item;
    size_t n, capacity;
};

// A symbol of the text on its way; its neighbours by index, UINT32_MAX past an end. Dead ones have
// length 0.
struct node {
    uint32_t start, len, previous, next;
    uint32_t symbol;
};

// A pair that may merge; void when one of its two has changed since.
struct pair {
    uint64_t key; // rank, then place
    uint32_t right, len;
    uint32_t result;
};

struct encoder {
    const struct nb_tokenizer *t;
    char *text;
    uint8_t *literal; // of each byte of text
    size_t len;
    struct fragments now, next;
    struct nb_split split;
    struct node *node;
    size_t node_capacity;
    struct pair *heap;
    size_t n_heap, heap_capacity;
    char *word; // a fragment or piece in the vocabulary's spelling
    size_t word_capacity;
};

// The array with room for n items, perhaps moved; NULL (and the array as it was) without memory.
static void *with_room(void *array, size_t *capacity, size_t n, size_t size)
{
    if (n <= *capacity && array)
        return array;
    size_t want = n + n / 2 + 16;
    void *p = realloc(array, want * size);
    if (p)
        *capacity = want;
    return p;
}

// --- Special tokens.

static int push_fragment(struct fragments *f, size_t start, size_t len, int32_t token)
{
    struct fragment *item = with_room(f->item, &f->capacity, f->n + 1, sizeof(*item));

    if (!item)
        return -ENOMEM;
    f->item = item;
    f->item[f->n++] = (struct fragment){start, len, token};
    return 0;
}

static bool is_c_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

// The first place at or after `from` where the token may stand, or SIZE_MAX.
static size_t find_special(const struct encoder *e, struct nb_str text, bool anywhere, size_t from,
                           size_t stop)
{
    while (stop - from >= text.len) {
        const char *p = memmem(e->text + from, stop - from, text.data, text.len);
        if (!p)
            break;
        size_t at = (size_t)(p - e->text);
        if (anywhere || !memchr(e->literal + at, 0, text.len))
            return at;
        from = at + 1;
    }
    return SIZE_MAX;
}

// Cuts one token out of one stretch of text.
static int cut_fragment(struct encoder *e, uint32_t token, size_t start, size_t stop)
{
    struct nb_str text = nb_symbols_text(&e->t->symbols, token);
    uint8_t attr = e->t->attr[token];
    bool anywhere = !(attr & (NB_TOKEN_CONTROL | NB_TOKEN_UNKNOWN));
    size_t at;
    int rc = 0;

    while (rc == 0 && (at = find_special(e, text, anywhere, start, stop)) != SIZE_MAX) {
        if (at > start)
            rc = push_fragment(&e->next, start, at - start, NB_TOKEN_NONE);
        if (rc == 0)
            rc = push_fragment(&e->next, at, 0, (int32_t)token);
        start = at + text.len;
        while ((attr & NB_TOKEN_STRIP_RIGHT) && start < stop && is_c_space(e->text[start]))
            start++;
    }
    if (rc == 0 && start < stop)
        rc = push_fragment(&e->next, start, stop - start, NB_TOKEN_NONE);
    return rc;
}

static int cut_special(struct encoder *e, uint32_t token)
{
    e->next.n = 0;
    for (size_t i = 0; i < e->now.n; i++) {
        struct fragment f = e->now.item[i];
        int rc = f.token == NB_TOKEN_NONE ? cut_fragment(e, token, f.start, f.start + f.len)
                                          : push_fragment(&e->next, f.start, f.len, f.token);
        if (rc < 0)
            return rc;
    }
    struct fragments swap = e->now;
    e->now = e->next;
    e->next = swap;
    return 0;
}

static int cut_specials(struct encoder *e)
{
    bool any_literal = memchr(e->literal, 1, e->len) != NULL, has_first[256] = {false};
    int rc = e->len ? push_fragment(&e->now, 0, e->len, NB_TOKEN_NONE) : 0;

    for (size_t i = 0; i < e->len; i++)
        has_first[(uint8_t)e->text[i]] = true;
    for (uint32_t i = 0; rc == 0 && i < e->t->n_special; i++) {
        uint32_t token = e->t->special[i];
        bool anywhere = !(e->t->attr[token] & (NB_TOKEN_CONTROL | NB_TOKEN_UNKNOWN));
        if ((anywhere || any_literal) &&
            has_first[(uint8_t)nb_symbols_text(&e->t->symbols, token).data[0]])
            rc = cut_special(e, token);
    }
    return rc;
}

// --- Room.

static int reserve_nodes(struct encoder *e, size_t n)
{
    struct node *node = with_room(e->node, &e->node_capacity, n, sizeof(*node));

    if (!node)
        return -ENOMEM;
    e->node = node;
    return 0;
}

static int reserve_word(struct encoder *e, size_t n)
{
    char *word = with_room(e->word, &e->word_capacity, n, 1);

    if (!word)
        return -ENOMEM;
    e->word = word;
    return 0;
}

// --- Merging.

static void heap_up(struct pair *h, size_t i, struct pair p)
{
    // NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): below i all are set
    for (; i > 0 && h[(i - 1) / 2].key > p.key; i = (i - 1) / 2)
        h[i] = h[(i - 1) / 2];
    h[i] = p;
}

static int heap_push(struct encoder *e, struct pair p)
{
    struct pair *heap = with_room(e->heap, &e->heap_capacity, e->n_heap + 1, sizeof(*heap));

    if (!heap)
        return -ENOMEM;
    e->heap = heap;
    heap_up(e->heap, e->n_heap++, p);
    return 0;
}

static struct pair heap_pop(struct encoder *e)
{
    struct pair *h = e->heap, top = h[0], last = h[--e->n_heap];
    size_t i = 0, n = e->n_heap;

    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && h[child + 1].key < h[child].key)
            child++;
        if (h[child].key >= last.key)
            break;
        h[i] = h[child];
    }
    h[i] = last;
    return top;
}

static int consider(struct encoder *e, const char *text, uint32_t left, uint32_t right)
{
    uint32_t rank, result;

    if (left == UINT32_MAX || right == UINT32_MAX)
        return 0;
    const struct node *a = &e->node[left], *b = &e->node[right];
    const struct nb_str both = {text + a->start, a->len + b->len};
    if (!nb_tokenizer_joins(e->t, a->symbol, b->symbol, both, &rank, &result))
        return 0;
    return heap_push(e,
                     (struct pair){(uint64_t)rank << 32 | left, right, (uint32_t)both.len, result});
}

static int merge(struct encoder *e, const char *text, uint32_t n)
{
    struct node *node = e->node;
    int rc = 0;

    e->n_heap = 0;
    for (uint32_t i = 1; rc == 0 && i < n; i++)
        rc = consider(e, text, i - 1, i);
    while (rc == 0 && e->n_heap > 0) {
        struct pair p = heap_pop(e);
        struct node *left = &node[(uint32_t)p.key], *right = &node[p.right];
        if (left->len == 0 || right->len == 0 || left->len + right->len != p.len)
            continue;
        left->len = p.len;
        left->symbol = p.result;
        left->next = right->next;
        right->len = 0;
        if (left->next != UINT32_MAX)
            node[left->next].previous = (uint32_t)p.key;
        rc = consider(e, text, left->previous, (uint32_t)p.key);
        if (rc == 0)
            rc = consider(e, text, (uint32_t)p.key, left->next);
    }
    return rc;
}

static void set_node(struct encoder *e, uint32_t i, uint32_t start, uint32_t len, uint32_t symbol)
{
    e->node[i] = (struct node){start, len, i - 1, i + 1, symbol}; // i - 1 of 0 is UINT32_MAX
}

// The bytes of a symbol that is no token, one by one. Byte-level BPE drops those that its
// vocabulary lacks.
static int push_bytes(const struct encoder *e, struct nb_str bytes, struct nb_tokens *out)
{
    for (size_t i = 0; i < bytes.len; i++) {
        int32_t id = e->t->byte_token[(uint8_t)bytes.data[i]];
        if (id == NB_TOKEN_NONE && e->t->kind == NB_TOKENIZER_SENTENCEPIECE)
            return -EILSEQ;
        int rc = id == NB_TOKEN_NONE ? 0 : nb_tokens_push(out, id);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int push_nodes(const struct encoder *e, const char *text, uint32_t n, struct nb_tokens *out)
{
    for (uint32_t i = n ? 0 : UINT32_MAX; i != UINT32_MAX; i = e->node[i].next) {
        const struct node *s = &e->node[i];
        int rc;
        if (nb_token_is_plain(e->t, s->symbol))
            rc = nb_tokens_push(out, (int32_t)s->symbol);
        else if (e->t->kind == NB_TOKENIZER_SENTENCEPIECE)
            rc = push_bytes(e, (struct nb_str){text + s->start, s->len}, out);
        else
            rc = push_bytes(e, nb_symbols_text(&e->t->symbols, s->symbol), out);
        if (rc < 0)
            return rc;
    }
    return 0;
}

// Merges the first n nodes and appends what they became.
static int finish_nodes(struct encoder *e, const char *text, uint32_t n, struct nb_tokens *out)
{
    if (n == 0)
        return 0;
    e->node[n - 1].next = UINT32_MAX;
    int rc = merge(e, text, n);
    return rc < 0 ? rc : push_nodes(e, text, n, out);
}

// --- Byte-level BPE.

// The whole piece as a token, where the model wants that before any merge.
static int32_t whole_token(struct encoder *e, const char *piece, size_t len)
{
    size_t n = 0;

    if (!e->t->ignore_merges || len > e->t->max_token_bytes)
        return NB_TOKEN_NONE;
    for (size_t i = 0; i < len; i++) {
        struct nb_str c = nb_symbols_text(&e->t->symbols, e->t->byte_symbol[(uint8_t)piece[i]]);
        memcpy(e->word + n, c.data, c.len);
        n += c.len;
    }
    uint32_t symbol = nb_symbols_find(&e->t->symbols, e->word, n);
    return nb_token_is_plain(e->t, symbol) ? (int32_t)symbol : NB_TOKEN_NONE;
}

static int encode_piece(struct encoder *e, const char *piece, uint32_t len, struct nb_tokens *out)
{
    int32_t token = whole_token(e, piece, len);

    if (token != NB_TOKEN_NONE)
        return nb_tokens_push(out, token);
    int rc = reserve_nodes(e, len);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < len; i++)
        set_node(e, i, i, 1, e->t->byte_symbol[(uint8_t)piece[i]]);
    return finish_nodes(e, piece, len, out);
}

static int encode_bpe(struct encoder *e, const char *text, size_t len, struct nb_tokens *out)
{
    struct nb_split *w = &e->split;
    int rc = reserve_word(e, (size_t)e->t->max_token_bytes * 2);

    if (rc == 0)
        rc = nb_splitter_run(e->t->splitter, w, text, len);
    for (uint32_t i = 0, start = 0; rc == 0 && i < w->n_pieces; start = w->end[i++])
        rc = encode_piece(e, w->text + w->offset[start], w->offset[w->end[i]] - w->offset[start],
                          out);
    return rc;
}

// --- SentencePiece.

static size_t mark_spaces(char *out, const char *text, size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        bool space = text[i] == ' ';
        memcpy(out + n, space ? "\xe2\x96\x81" : text + i, space ? 3 : 1);
        n += space ? 3 : 1;
    }
    return n;
}

// By the lead byte alone: broken sequences are taken as they come.
static uint32_t character_length(uint8_t lead)
{
    return lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

static int encode_sentencepiece(struct encoder *e, const char *text, size_t len, bool prefix,
                                struct nb_tokens *out)
{
    int rc = reserve_word(e, 3 * (len + 1));
    uint32_t n = 0;

    if (rc < 0)
        return rc;
    size_t n_bytes = prefix ? mark_spaces(e->word, " ", 1) : 0;
    n_bytes += mark_spaces(e->word + n_bytes, text, len);
    rc = reserve_nodes(e, n_bytes);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0, used; i < n_bytes; i += used, n++) {
        used = character_length((uint8_t)e->word[i]);
        if (used > n_bytes - i)
            used = (uint32_t)n_bytes - i;
        uint32_t symbol = nb_symbols_find(&e->t->symbols, e->word + i, used);
        set_node(e, n, i, used, nb_token_is_plain(e->t, symbol) ? symbol : NB_SYMBOL_NONE);
    }
    return finish_nodes(e, e->word, n, out); // NOLINT(clang-analyzer-unix.Malloc): e owns it
}

// --- The whole.

static int encode_text(struct encoder *e, const struct fragment *f, bool after_special,
                       struct nb_tokens *out)
{
    const char *text = e->text + f->start;

    if (e->t->kind == NB_TOKENIZER_WORDPIECE)
        return nb_wordpiece_encode(e->t, text, f->len, out);
    if (e->t->kind == NB_TOKENIZER_SENTENCEPIECE)
        return encode_sentencepiece(e, text, f->len, e->t->space_prefix && after_special, out);
    return encode_bpe(e, text, f->len, out); // NOLINT(clang-analyzer-*)
}

static int encode_fragments(struct encoder *e, struct nb_tokens *out)
{
    bool after_special = true;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < e->now.n; i++) {
        const struct fragment *f = &e->now.item[i];
        rc = f->token == NB_TOKEN_NONE ? encode_text(e, f, after_special, out)
                                       : nb_tokens_push(out, f->token);
        after_special = f->token != NB_TOKEN_NONE;
    }
    return rc;
}

static int encoder_init(struct encoder *e, const struct nb_tokenizer *t,
                        const struct nb_text_part *parts, size_t n_parts)
{
    e->t = t;
    for (size_t i = 0; i < n_parts; i++) {
        if (parts[i].len > NB_TOKENIZE_BYTES_MAX - e->len)
            return -E2BIG;
        e->len += parts[i].len;
    }
    e->text = malloc(e->len + 1);
    e->literal = malloc(e->len + 1);
    if (!e->text || !e->literal)
        return -ENOMEM;
    for (size_t i = 0, at = 0; i < n_parts; at += parts[i++].len) {
        if (parts[i].len == 0)
            continue;
        memcpy(e->text + at, parts[i].text, parts[i].len);
        memset(e->literal + at, parts[i].literal, parts[i].len);
    }
    return 0;
}

static void encoder_finish(struct encoder *e)
{
    free(e->text);
    free(e->literal);
    free(e->now.item);
    free(e->next.item);
    nb_split_finish(&e->split);
    free(e->node);
    free(e->heap);
    free(e->word);
}

int nb_tokenizer_encode_parts(const struct nb_tokenizer *t, const struct nb_text_part *parts,
                              size_t n_parts, bool add_special, struct nb_tokens *out)
{
    struct encoder e = {0};
    size_t n_before = out->n;
    int rc = encoder_init(&e, t, parts, n_parts);

    if (rc == 0)
        rc = cut_specials(&e);
    if (rc == 0 && add_special && t->add_bos)
        rc = nb_tokens_push(out, t->role[NB_ROLE_BOS]);
    if (rc == 0)
        rc = encode_fragments(&e, out);
    if (rc == 0 && add_special && t->add_eos)
        rc = nb_tokens_push(out, t->role[t->last]);
    encoder_finish(&e);
    if (rc < 0)
        out->n = n_before;
    return rc;
}

int nb_tokenizer_encode(const struct nb_tokenizer *t, const char *text, size_t len, bool literal,
                        bool add_special, struct nb_tokens *out)
{
    struct nb_text_part part = {text, len, literal};

    return nb_tokenizer_encode_parts(t, &part, 1, add_special, out);
}
