// Tokens to text. It posts nothing: what to do with the text is the caller's.
#include "daemon/worker/stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/stop.h"
#include "engine/tokenizer.h"
#include "engine/utf8.h"
#include "libclient/ring.h"

#define PIECE_MAX NB_TOKEN_TEXT_MAX / 4 // bytes of a token that are looked at

struct nb_stream {
    const struct nb_tokenizer *tokenizer;
    struct nb_utf8 utf8;
    struct nb_stop *stop;
    uint64_t skip;
    char whole[NB_UTF8_OUT(PIECE_MAX)];
    char certain[NB_STOP_OUT(NB_UTF8_OUT(PIECE_MAX))];
};

// A stop string that is no UTF-8 could cut a character in two.
static bool is_utf8(struct nb_str s)
{
    struct nb_utf8 u = {0};
    char out[NB_UTF8_OUT(NB_STOP_LEN_MAX)];
    size_t n = nb_utf8_push(&u, s.data, s.len, out);
    return n == s.len && !memcmp(out, s.data, n);
}

static int parse_stops(const char *stops, uint64_t len, uint32_t n, struct nb_str *ret)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t size;
        if (len - at < sizeof(size))
            return -EINVAL;
        memcpy(&size, stops + at, sizeof(size));
        at += sizeof(size);
        if (!size || size > NB_STOP_LEN_MAX || size > len - at)
            return -EINVAL;
        ret[i] = (struct nb_str){stops + at, size};
        if (!is_utf8(ret[i]))
            return -EINVAL;
        at += size;
    }
    return at == len ? 0 : -EINVAL;
}

int nb_stream_create(const struct nb_tokenizer *tokenizer, const char *stops, uint64_t stops_len,
                     uint32_t n_stops, uint64_t skip, struct nb_stream **ret)
{
    struct nb_str strings[NB_STOP_MAX];
    if (n_stops > NB_STOP_MAX || parse_stops(stops, stops_len, n_stops, strings) < 0)
        return -EINVAL;
    struct nb_stream *s = malloc(sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->tokenizer = tokenizer;
    s->utf8 = (struct nb_utf8){0};
    s->skip = skip;
    int r = nb_stop_create(strings, n_stops, &s->stop);
    if (r < 0) {
        free(s);
        return r;
    }
    *ret = s;
    return 0;
}

void nb_stream_destroy(struct nb_stream *s)
{
    if (!s)
        return;
    nb_stop_destroy(s->stop);
    free(s);
}

// What the client has not had yet of the first `n` certain bytes.
static struct nb_str new_text(struct nb_stream *s, size_t n)
{
    size_t skipped = s->skip < n ? (size_t)s->skip : n;
    s->skip -= skipped;
    return (struct nb_str){s->certain + skipped, n - skipped};
}

bool nb_stream_token(struct nb_stream *s, int32_t token, struct nb_str *ret_text)
{
    struct nb_str piece = nb_tokenizer_piece(s->tokenizer, token, false);
    size_t len = piece.len < PIECE_MAX ? piece.len : PIECE_MAX, certain;
    size_t whole = nb_utf8_push(&s->utf8, piece.data, len, s->whole);
    bool stopped = nb_stop_push(s->stop, s->whole, whole, s->certain, &certain);
    *ret_text = new_text(s, certain);
    return stopped;
}

struct nb_str nb_stream_end(struct nb_stream *s)
{
    size_t certain;
    size_t whole = nb_utf8_finish(&s->utf8, s->whole);
    if (!nb_stop_push(s->stop, s->whole, whole, s->certain, &certain))
        certain += nb_stop_finish(s->stop, s->certain + certain);
    return new_text(s, certain);
}
