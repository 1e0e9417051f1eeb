// Tokens to text. It posts nothing: what to do with the text is the caller's.
#include "daemon/worker/stream.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/stop.h"
#include "engine/text/think.h"
#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"
#include "libclient/ring.h"
#include "libclient/sentence.h"
#include "tensor/fail.h"

#define PIECE_MAX  (NB_TOKEN_TEXT_MAX / 4) // bytes of a token that are looked at
#define BYTES_BACK NB_THINK_MARK_MAX
#define TEXT_MAX   (NB_STOP_OUT(NB_UTF8_OUT(PIECE_MAX)) + NB_UTF8_OUT(NB_THINK_MARK_MAX))

struct nb_stream {
    const struct nb_tokenizer *tokenizer;
    uint32_t think_pairs;
    struct nb_utf8 utf8;
    struct nb_stop *stop;
    struct nb_think *think;
    uint64_t skip;
    bool reasons;
    // Where the text of each of the last bytes begins, a control token's too, which has none
    uint64_t n_bytes, begins[BYTES_BACK];
    // Whole UTF-8 that has not been told; positions count from the stream's first byte of text
    uint64_t told;
    size_t n_text, n_kinds; // certain bytes; kinds of these and of those that `stop` holds
    size_t limit, handed;   // of the certain ones, that may be told, and that were just now
    char text[TEXT_MAX];
    bool reasoning[TEXT_MAX];
};

static int parse_stops(const char *stops, uint64_t len, uint32_t n, struct nb_str *ret,
                       struct nb_error *error)
{
    uint64_t at = 0;
    nb_fail(error, 0, "the list of %u stop strings does not end where stop_len says", n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t size;
        if (len - at < sizeof(size))
            return -EINVAL;
        memcpy(&size, stops + at, sizeof(size));
        at += sizeof(size);
        if (!size || size > NB_STOP_LEN_MAX) {
            return nb_fail(error, -EINVAL, "stop string %u has %u bytes: 1 to %u", i + 1, size,
                           NB_STOP_LEN_MAX);
        }
        if (size > len - at)
            return -EINVAL;
        ret[i] = (struct nb_str){stops + at, size};
        if (nb_utf8_valid(ret[i].data, size) < size) { // it could cut a character in two
            return nb_fail(error, -EINVAL, "stop string %u is not UTF-8", i + 1);
        }
        at += size;
    }
    return at == len ? 0 : -EINVAL;
}

int nb_stream_create(const struct nb_tokenizer *tokenizer, const struct nb_stream_options *options,
                     struct nb_stream **ret, struct nb_error *ret_error)
{
    struct nb_str strings[NB_STOP_MAX];
    if (parse_stops(options->stops, options->stops_len, options->n_stops, strings, ret_error) < 0)
        return -EINVAL;
    struct nb_stream *s = malloc(sizeof(*s));
    if (!s)
        return -ENOMEM;
    memset(s, 0, offsetof(struct nb_stream, text));
    s->tokenizer = tokenizer;
    s->think_pairs = options->think_pairs;
    s->skip = options->skip;
    int rc = nb_stop_create(strings, options->n_stops, &s->stop);
    if (rc == 0)
        rc = nb_stream_begin(s, NULL, 0);
    if (rc < 0) {
        nb_stream_destroy(s);
        return rc;
    }
    *ret = s;
    return 0;
}

void nb_stream_destroy(struct nb_stream *s)
{
    if (!s)
        return;
    nb_stop_destroy(s->stop);
    nb_think_destroy(s->think);
    free(s);
}

// The last bytes of the prompt, control tokens written out.
static size_t write_tail(const struct nb_stream *s, const int32_t *prompt, size_t n,
                         char tail[NB_THINK_TAIL])
{
    size_t len = 0;
    while (n && len < NB_THINK_TAIL) {
        struct nb_str piece = nb_tokenizer_piece(s->tokenizer, prompt[--n], true);
        size_t room = NB_THINK_TAIL - len, most = piece.len < room ? piece.len : room;
        len += most;
        if (most)
            memcpy(tail + NB_THINK_TAIL - len, piece.data + piece.len - most, most);
    }
    return len;
}

int nb_stream_begin(struct nb_stream *s, const int32_t *prompt, size_t n)
{
    char tail[NB_THINK_TAIL];
    size_t len = write_tail(s, prompt, n, tail);
    struct nb_think *think;
    int rc =
        nb_think_create(s->think_pairs, (struct nb_str){tail + NB_THINK_TAIL - len, len}, &think);
    if (rc < 0)
        return rc;
    nb_think_destroy(s->think);
    s->think = think;
    return 0;
}

// Whole UTF-8 joins the text, as far as it cannot be a stop string's.
static bool add_whole(struct nb_stream *s, const char *whole, size_t n)
{
    size_t certain;
    memset(s->reasoning + s->n_kinds, nb_think_inside(s->think), n * sizeof(*s->reasoning));
    s->n_kinds += n;
    bool stopped = nb_stop_push(s->stop, whole, n, s->text + s->n_text, &certain);
    s->n_text += certain;
    return stopped;
}

// A byte that is shown, or one of a control token, which only marks are made of. True: stopped.
static bool add_byte(struct nb_stream *s, char byte, bool shown)
{
    char whole[NB_UTF8_OUT(1)];
    size_t n = shown ? nb_utf8_push(&s->utf8, &byte, 1, whole) : 0;
    uint64_t begins = s->told + s->n_kinds + n - (n && (unsigned char)byte < 0x80);
    bool stopped = add_whole(s, whole, n);
    s->begins[s->n_bytes++ % BYTES_BACK] = begins;
    size_t mark = nb_think_push(s->think, byte);
    if (mark) { // what came of it before it was whole
        size_t from = s->begins[(s->n_bytes - mark) % BYTES_BACK] - s->told;
        memset(s->reasoning + from, true, (s->n_kinds - from) * sizeof(*s->reasoning));
    }
    return stopped;
}

static void drop_told(struct nb_stream *s, size_t n)
{
    s->told += n;
    s->n_text -= n;
    s->n_kinds -= n;
    s->limit -= n;
    s->handed = 0;
    memmove(s->text, s->text + n, s->n_text);
    memmove(s->reasoning, s->reasoning + n, s->n_kinds * sizeof(*s->reasoning));
}

bool nb_stream_token(struct nb_stream *s, int32_t token)
{
    struct nb_str piece = nb_tokenizer_piece(s->tokenizer, token, false);
    bool shown = piece.len, stopped = false;
    if (!shown)
        piece = nb_tokenizer_piece(s->tokenizer, token, true);
    size_t len = piece.len < PIECE_MAX ? piece.len : PIECE_MAX;
    drop_told(s, s->limit);
    s->reasons = nb_think_inside(s->think);
    for (size_t i = 0; i < len && !stopped; i++) {
        stopped = add_byte(s, piece.data[i], shown);
        s->reasons |= nb_think_inside(s->think);
    }
    size_t undecided = nb_think_undecided(s->think);
    s->limit = s->n_text;
    if (undecided && !stopped) {
        size_t decided = s->begins[(s->n_bytes - undecided) % BYTES_BACK] - s->told;
        s->limit = decided < s->limit ? decided : s->limit;
    }
    return stopped;
}

void nb_stream_end(struct nb_stream *s)
{
    char whole[NB_UTF8_OUT(1)];
    drop_told(s, s->limit);
    if (!add_whole(s, whole, nb_utf8_finish(&s->utf8, whole)))
        s->n_text += nb_stop_finish(s->stop, s->text + s->n_text);
    s->limit = s->n_text;
}

// The piece that was handed out stays where it is until the next call.
bool nb_stream_next(struct nb_stream *s, struct nb_str *ret_text, bool *ret_reasoning)
{
    drop_told(s, s->handed);
    size_t skipped = s->skip < s->limit ? (size_t)s->skip : s->limit, n = 0;
    drop_told(s, skipped);
    s->skip -= skipped;
    while (n < s->limit && s->reasoning[n] == s->reasoning[0])
        n++;
    s->handed = n;
    *ret_text = (struct nb_str){s->text, n};
    *ret_reasoning = n && s->reasoning[0];
    return n > 0;
}

bool nb_stream_reasons(const struct nb_stream *s)
{
    return s->reasons;
}
