// See state.h.
#include "quant/state.h"

#include <errno.h>
#include <string.h>
#include <xxhash.h>

#define PIECE (UINT64_C(1) << 24) // bytes that are given to `io` at once, at most

struct head {
    uint8_t magic[8];
    uint64_t key;
    uint32_t done, unused;
};

struct stream {
    nb_state_io io;
    void *user;
    XXH3_state_t *hash;
    bool reads;
};

// Bytes of memory, out or in, through the hash.
static int pass(struct stream *s, void *data, uint64_t bytes)
{
    uint8_t *at = data;
    for (uint64_t n; bytes; at += n, bytes -= n) {
        n = bytes < PIECE ? bytes : PIECE;
        int rc = s->io(s->user, at, n);
        if (rc < 0)
            return rc;
        XXH3_64bits_update(s->hash, at, n);
    }
    return 0;
}

static struct head head_of(const struct nb_state *s)
{
    struct head h = {.key = s->key, .done = *s->done};
    memcpy(h.magic, s->magic, sizeof(h.magic));
    return h;
}

static int check_head(const struct nb_state *s, const struct head *h)
{
    const struct head ours = head_of(s);
    if (memcmp(h->magic, ours.magic, sizeof(ours.magic)) != 0 || h->key != ours.key)
        return -ESTALE;
    return h->done > s->all || h->unused ? -EBADMSG : 0;
}

static int run(const struct nb_state *s, struct stream *stream, struct head *h)
{
    uint64_t ours, theirs;
    stream->hash = XXH3_createState();
    if (!stream->hash)
        return -ENOMEM;
    XXH3_64bits_reset(stream->hash);
    int rc = pass(stream, h, sizeof(*h));
    if (rc == 0 && stream->reads)
        rc = check_head(s, h);
    for (uint32_t i = 0; i < s->n_parts && rc == 0; i++)
        rc = pass(stream, s->parts[i].data, s->parts[i].bytes);
    ours = theirs = XXH3_64bits_digest(stream->hash);
    XXH3_freeState(stream->hash);
    if (rc == 0)
        rc = stream->io(stream->user, &theirs, sizeof(theirs));
    return rc == 0 && ours != theirs ? -EBADMSG : rc;
}

int nb_state_write(const struct nb_state *s, nb_state_io write, void *user)
{
    struct stream stream = {.io = write, .user = user};
    struct head h = head_of(s);
    return run(s, &stream, &h);
}

int nb_state_read(const struct nb_state *s, nb_state_io read, void *user)
{
    struct stream stream = {.io = read, .user = user, .reads = true};
    struct head h;
    int rc = run(s, &stream, &h);
    if (rc == 0)
        *s->done = h.done;
    return rc;
}

uint64_t nb_state_bytes(const struct nb_state *s)
{
    uint64_t bytes = sizeof(struct head) + sizeof(uint64_t);
    for (uint32_t i = 0; i < s->n_parts; i++)
        bytes += s->parts[i].bytes;
    return bytes;
}
