// Text to ids by WordPiece: see wordpiece.h.
#include <errno.h>
#include <string.h>

#include "engine/text/unicode.h"
#include "engine/text/wordpiece.h"

#define WORD_MAX 100            // characters; a longer word is unknown
#define MARK     "\xe2\x96\x81" // before a token that begins a word
#define MARK_LEN 3
#define HANGUL   0xac00

// ---- Characters

static enum nb_wordpiece_class class_of(uint32_t cpt)
{
    uint32_t key = cpt << 3 | 7, lo = 0, hi = nb_wordpiece_run_count;

    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (nb_wordpiece_runs[mid] <= key)
            lo = mid;
        else
            hi = mid;
    }
    return (enum nb_wordpiece_class)(nb_wordpiece_runs[lo] & 7);
}

// What a character becomes without its accents: itself, or one or two others.
static uint32_t base_of(uint32_t cpt, uint32_t *ret_second)
{
    uint64_t mask = 0x1fffff;
    uint32_t lo = 0, hi = nb_wordpiece_base_count;

    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (nb_wordpiece_bases[mid] >> 42 < cpt)
            lo = mid + 1;
        else
            hi = mid;
    }
    *ret_second = 0;
    if (lo == nb_wordpiece_base_count || nb_wordpiece_bases[lo] >> 42 != cpt)
        return cpt;
    *ret_second = (uint32_t)(nb_wordpiece_bases[lo] & mask);
    return (uint32_t)(nb_wordpiece_bases[lo] >> 21 & mask);
}

static uint32_t lower_of(uint32_t cpt)
{
    uint32_t lo = 0, hi = nb_wordpiece_lower_count;

    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (nb_wordpiece_lowers[mid].last < cpt)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == nb_wordpiece_lower_count)
        return cpt;
    const struct nb_wordpiece_lower *l = &nb_wordpiece_lowers[lo];
    bool upper = cpt >= l->first && (cpt - l->first) % l->step == 0;
    return upper ? (uint32_t)((int32_t)cpt + l->distance) : cpt;
}

// ---- Words

struct word {
    const struct nb_tokenizer *t;
    struct nb_tokens *out;
    char text[MARK_LEN + 4 * WORD_MAX]; // after the mark
    uint32_t end[WORD_MAX + 1];         // of the first i characters, in text
    uint32_t n;                         // characters, also of those past WORD_MAX
};

// The token of characters `from` to `to`, or NB_TOKEN_NONE.
static int32_t find(const struct word *w, uint32_t from, uint32_t to)
{
    const char *text = from == 0 ? w->text : w->text + w->end[from];
    size_t len = (size_t)(w->text + w->end[to] - text);

    if (len > w->t->max_token_bytes)
        return NB_TOKEN_NONE;
    // A mark inside of a word is the text's own, and no token that begins a word goes on with it.
    if (from > 0 && len > MARK_LEN && memcmp(text, MARK, MARK_LEN) == 0)
        return NB_TOKEN_NONE;
    return nb_tokenizer_find_plain(w->t, text, len);
}

static int push_unknown(const struct word *w)
{
    int32_t unknown = w->t->role[NB_ROLE_UNKNOWN];

    return unknown == NB_TOKEN_NONE ? -EILSEQ : nb_tokens_push(w->out, unknown);
}

static int push_pieces(const struct word *w)
{
    size_t before = w->out->n;
    int rc = 0;

    for (uint32_t from = 0, to; rc == 0 && from < w->n; from = to) {
        int32_t id = NB_TOKEN_NONE;
        for (to = w->n; to > from && (id = find(w, from, to)) == NB_TOKEN_NONE; to--)
            ;
        if (id == NB_TOKEN_NONE) {
            w->out->n = before;
            return push_unknown(w);
        }
        rc = nb_tokens_push(w->out, id);
    }
    return rc;
}

static int end_word(struct word *w)
{
    int rc = w->n == 0 ? 0 : w->n > WORD_MAX ? push_unknown(w) : push_pieces(w);

    w->n = 0;
    return rc;
}

static void append(struct word *w, uint32_t cpt)
{
    if (w->n < WORD_MAX)
        w->end[w->n + 1] = w->end[w->n] + (uint32_t)nb_unicode_encode(cpt, w->text + w->end[w->n]);
    w->n++;
}

static int append_alone(struct word *w, uint32_t cpt)
{
    int rc = end_word(w);

    append(w, cpt);
    return rc < 0 ? rc : end_word(w);
}

// ---- Text

static int add_final(struct word *w, uint32_t cpt)
{
    if (class_of(cpt) == NB_WORDPIECE_ALONE)
        return append_alone(w, cpt);
    append(w, cpt);
    return 0;
}

static int add_lower(struct word *w, uint32_t cpt)
{
    if (!w->t->lowercase)
        return add_final(w, cpt);
    int rc = add_final(w, lower_of(cpt));
    return rc == 0 && cpt == 0x130 ? add_final(w, 0x307) : rc; // the dot above
}

// A syllable is its consonant, its vowel, and perhaps a second consonant.
static int add_hangul(struct word *w, uint32_t syllable)
{
    int rc = add_lower(w, 0x1100 + syllable / 588);

    if (rc == 0)
        rc = add_lower(w, 0x1161 + syllable % 588 / 28);
    return rc == 0 && syllable % 28 ? add_lower(w, 0x11a7 + syllable % 28) : rc;
}

// Marks that are no accents stay in the order of the text.
static int add_stripped(struct word *w, uint32_t cpt)
{
    uint32_t second, first = base_of(cpt, &second);

    if (cpt >= HANGUL && cpt < HANGUL + 11172)
        return add_hangul(w, cpt - HANGUL);
    int rc = first == cpt ? add_lower(w, cpt) : add_stripped(w, first);
    return rc == 0 && second ? add_lower(w, second) : rc;
}

static int add_character(struct word *w, uint32_t cpt)
{
    enum nb_wordpiece_class class = class_of(cpt);

    if (class == NB_WORDPIECE_DROPPED || (class == NB_WORDPIECE_ACCENT && w->t->strip_accents))
        return 0;
    bool bounds = class == NB_WORDPIECE_SPACE || class == NB_WORDPIECE_IDEOGRAPH;
    int rc = bounds ? end_word(w) : 0;
    if (rc == 0 && class != NB_WORDPIECE_SPACE)
        rc = w->t->strip_accents ? add_stripped(w, cpt) : add_lower(w, cpt);
    return rc == 0 && bounds ? end_word(w) : rc;
}

int nb_wordpiece_encode(const struct nb_tokenizer *t, const char *text, size_t len,
                        struct nb_tokens *out)
{
    struct word w = {.t = t, .out = out, .text = MARK, .end = {MARK_LEN}};
    int rc = 0;

    for (size_t i = 0, used; rc == 0 && i < len; i += used)
        rc = add_character(&w, nb_unicode_decode(text + i, len - i, &used));
    return rc < 0 ? rc : end_word(&w);
}
