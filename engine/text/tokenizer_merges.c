// The rest of a vocabulary: byte-level BPE's merges and alphabet, and the bytes that each token
// stands for.
#include "engine/text/tokenizer_vocab.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/unicode.h"
#include "tensor/fail.h"

#define MERGES     "tokenizer.ggml.merges"
#define MERGES_MAX (1u << 24)
#define SPACE_MARK "\xe2\x96\x81" // SentencePiece's space, U+2581

static int fail(int error, struct nb_error *ret_error, const char *what)
{
    return nb_fail(ret_error, error, "tokenizer: %s", what);
}

// Bytes that print stand for themselves; the others, in order, for the code points from U+0100.
static bool prints(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

static void make_alphabet(uint16_t alphabet[256])
{
    uint16_t next = 0x100;

    for (uint16_t b = 0; b < 256; b++)
        alphabet[b] = prints(b) ? b : next++;
}

size_t nb_byte_alphabet(uint8_t byte, char out[4])
{
    uint16_t alphabet[256];

    make_alphabet(alphabet);
    return nb_unicode_encode(alphabet[byte], out);
}

static uint32_t merge_slot(const struct nb_tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) ^ t->symbols.seed;

    h *= 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32) & t->merge_mask;
}

static struct nb_merge *find_slot(const struct nb_tokenizer *t, uint32_t left, uint32_t right)
{
    uint32_t i = merge_slot(t, left, right);

    while (t->merge[i].left != NB_SYMBOL_NONE &&
           (t->merge[i].left != left || t->merge[i].right != right))
        i = (i + 1) & t->merge_mask;
    return &t->merge[i];
}

const struct nb_merge *nb_tokenizer_find_merge(const struct nb_tokenizer *t, uint32_t left,
                                               uint32_t right)
{
    const struct nb_merge *m = find_slot(t, left, right);

    return m->left == NB_SYMBOL_NONE ? NULL : m;
}

static int make_merge_table(struct nb_tokenizer *t, uint32_t n)
{
    uint32_t n_slots = 4;

    while (n_slots < 2 * n)
        n_slots *= 2;
    t->merge = malloc(n_slots * sizeof(*t->merge));
    if (!t->merge)
        return -ENOMEM;
    memset(t->merge, 0xff, n_slots * sizeof(*t->merge));
    t->merge_mask = n_slots - 1;
    return 0;
}

// The symbol of two strings in a row.
static int add_joined(struct nb_symbols *s, struct nb_str a, struct nb_str b, uint32_t *ret)
{
    char small[256], *joined = a.len + b.len <= sizeof(small) ? small : malloc(a.len + b.len);

    if (!joined)
        return -ENOMEM;
    memcpy(joined, a.data, a.len);
    memcpy(joined + a.len, b.data, b.len);
    int rc = nb_symbols_add(s, joined, a.len + b.len, ret);
    if (joined != small)
        free(joined);
    return rc;
}

// "left right", where left may begin with the space. Of a pair that comes twice, the first counts.
static int add_merge(struct nb_tokenizer *t, struct nb_str text, uint32_t rank)
{
    const char *space = text.len > 1 ? memchr(text.data + 1, ' ', text.len - 1) : NULL;
    uint32_t left = 0, right = 0, result = 0;

    if (!space)
        return 0;
    struct nb_str a = {text.data, (size_t)(space - text.data)};
    struct nb_str b = {space + 1, text.len - a.len - 1};
    int rc = nb_symbols_add(&t->symbols, a.data, a.len, &left);
    if (rc == 0)
        rc = nb_symbols_add(&t->symbols, b.data, b.len, &right);
    if (rc == 0)
        rc = add_joined(&t->symbols, a, b, &result);
    if (rc < 0)
        return rc;
    struct nb_merge *m = find_slot(t, left, right);
    bool control = result < t->n_vocab && !nb_token_is_plain(t, result);
    if (m->left == NB_SYMBOL_NONE && !control)
        *m = (struct nb_merge){.left = left, .right = right, .rank = rank, .result = result};
    return 0;
}

static int add_alphabet(struct nb_tokenizer *t)
{
    uint16_t alphabet[256];

    make_alphabet(alphabet);
    for (int b = 0; b < 256; b++) {
        char text[4], byte = (char)b;
        int rc = nb_symbols_add(&t->symbols, text, nb_unicode_encode(alphabet[b], text),
                                &t->byte_symbol[b]);
        if (rc < 0)
            return rc;
        t->byte_token[b] = nb_tokenizer_find_plain(t, &byte, 1);
    }
    return 0;
}

int nb_vocab_load_merges(struct nb_tokenizer *t, const struct nb_gguf *meta,
                         struct nb_error *ret_error)
{
    enum nb_gguf_type type;
    uint64_t n;

    if (nb_gguf_array(meta, MERGES, &type, &n) < 0 || type != NB_GGUF_STRING)
        return fail(-EINVAL, ret_error, MERGES " is missing or is no list of strings");
    if (n > MERGES_MAX)
        return fail(-EFBIG, ret_error, MERGES " has more than 2^24 entries");
    int rc = make_merge_table(t, (uint32_t)n);
    if (rc == 0)
        rc = add_alphabet(t);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        struct nb_str text;
        rc = nb_gguf_array_str(meta, MERGES, i, &text);
        if (rc == 0)
            rc = add_merge(t, text, i);
    }
    return rc < 0 ? fail(rc, ret_error, "cannot take in " MERGES) : 0;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

// The byte of "<0xHH>", or -1.
static int byte_of_token(struct nb_str text)
{
    if (text.len != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>')
        return -1;
    int hi = hex_digit(text.data[3]), lo = hex_digit(text.data[4]);
    return hi < 0 || lo < 0 ? -1 : hi << 4 | lo;
}

static size_t spaces_from_marks(struct nb_str text, char *out)
{
    size_t n = 0;

    for (size_t i = 0; i < text.len; n++) {
        bool mark = text.len - i >= 3 && memcmp(text.data + i, SPACE_MARK, 3) == 0;
        out[n] = text.data[i];
        if (mark)
            out[n] = ' ';
        i += mark ? 3 : 1;
    }
    return n;
}

// Characters outside of the alphabet stand for themselves.
static size_t bytes_from_alphabet(struct nb_str text, const uint8_t *byte_of, char *out)
{
    size_t n = 0;

    for (size_t i = 0, used; i < text.len; i += used) {
        uint32_t cpt = nb_unicode_decode(text.data + i, text.len - i, &used);
        bool known = cpt < 512 && (byte_of[cpt] || cpt == 0x100);
        if (known) {
            out[n++] = (char)byte_of[cpt];
        } else {
            memcpy(out + n, text.data + i, used);
            n += used;
        }
    }
    return n;
}

static int make_piece(const struct nb_tokenizer *t, uint32_t id, const uint8_t *byte_of, char *out)
{
    struct nb_str text = nb_symbols_text(&t->symbols, id);
    uint8_t attr = t->attr[id];

    if (attr & (NB_TOKEN_UNKNOWN | NB_TOKEN_CONTROL | NB_TOKEN_USER_DEFINED)) {
        memcpy(out, text.data, text.len);
        return (int)text.len;
    }
    if (attr & NB_TOKEN_BYTE) {
        int byte = byte_of_token(text);
        *out = (char)byte;
        return byte < 0 ? -EINVAL : 1;
    }
    if (!(attr & NB_TOKEN_NORMAL))
        return 0;
    return (int)(t->kind == NB_TOKENIZER_BPE ? bytes_from_alphabet(text, byte_of, out)
                                             : spaces_from_marks(text, out));
}

int nb_vocab_make_pieces(struct nb_tokenizer *t, struct nb_error *ret_error)
{
    uint16_t alphabet[256];
    uint8_t byte_of[512] = {0};
    uint32_t n = 0;

    make_alphabet(alphabet);
    for (int b = 0; b < 256; b++)
        byte_of[alphabet[b]] = (uint8_t)b;
    // No piece is longer than its token's text.
    t->pieces = malloc(t->symbols.start[t->n_vocab] + 1);
    t->piece_start = malloc(((size_t)t->n_vocab + 1) * sizeof(*t->piece_start));
    if (!t->pieces || !t->piece_start)
        return fail(-ENOMEM, ret_error, "no memory for the tokens' pieces");
    for (uint32_t i = 0; i < t->n_vocab; i++) {
        t->piece_start[i] = n;
        int len = make_piece(t, i, byte_of, t->pieces + n);
        if (len < 0) {
            return nb_fail(ret_error, len,
                           "tokenizer: token %u is a byte but is not spelled <0xHH>", i);
        }
        n += (uint32_t)len;
    }
    t->piece_start[t->n_vocab] = n;
    return 0;
}
