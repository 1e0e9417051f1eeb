// Tuning's state as bytes: a head, all numbers that steps move, and a hash over both.
#include <errno.h>
#include <string.h>

#include <xxhash.h>

#include "quant/tune_room.h"

#define PIECE (UINT64_C(1) << 24) // bytes that are given to `io` at once, at most

struct head {
    uint8_t magic[8];
    uint64_t key;
    uint32_t done, unused;
};

struct stream {
    nb_tune_io io;
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

static int pass_numbers(const struct nb_tune *t, struct stream *s)
{
    int rc = 0;
    for (uint32_t i = 0; i < t->n_matrices && rc == 0; i++) {
        size_t n;
        if (!t->matrices[i].latent)
            continue;
        float *x = nb_latent_state(t->matrices[i].latent, &n);
        rc = pass(s, x, n * sizeof(*x));
    }
    for (uint32_t i = 0; i < t->n_vectors && rc == 0; i++)
        rc = pass(s, t->vectors[i].x, 3 * t->vectors[i].floats * sizeof(float));
    return rc;
}

static struct head head_of(const struct nb_tune *t)
{
    struct head h = {.magic = "nbtune1", .key = t->key, .done = t->done};
    return h;
}

static int check_head(const struct nb_tune *t, const struct head *h)
{
    const struct head ours = head_of(t);
    if (memcmp(h->magic, ours.magic, sizeof(ours.magic)) != 0 || h->key != ours.key)
        return -ESTALE;
    return h->done > nb_tune_layer_steps(t) + t->options.steps || h->unused ? -EBADMSG : 0;
}

static int run(const struct nb_tune *t, struct stream *s, struct head *h)
{
    uint64_t ours, theirs;
    s->hash = XXH3_createState();
    if (!s->hash)
        return -ENOMEM;
    XXH3_64bits_reset(s->hash);
    int rc = pass(s, h, sizeof(*h));
    if (rc == 0 && s->reads)
        rc = check_head(t, h);
    if (rc == 0)
        rc = pass_numbers(t, s);
    ours = theirs = XXH3_64bits_digest(s->hash);
    XXH3_freeState(s->hash);
    if (rc == 0)
        rc = s->io(s->user, &theirs, sizeof(theirs));
    return rc == 0 && ours != theirs ? -EBADMSG : rc;
}

int nb_tune_store(const struct nb_tune *t, nb_tune_io write, void *user)
{
    struct stream s = {.io = write, .user = user};
    struct head h = head_of(t);
    return run(t, &s, &h);
}

int nb_tune_restore(struct nb_tune *t, nb_tune_io read, void *user)
{
    struct stream s = {.io = read, .user = user, .reads = true};
    struct head h;
    int rc = run(t, &s, &h);
    if (rc == 0) {
        t->done = h.done;
        t->entered = NB_TUNE_OUTSIDE;
    }
    return rc;
}

uint64_t nb_tune_stored_bytes(const struct nb_tune *t)
{
    uint64_t bytes = sizeof(struct head) + sizeof(uint64_t);
    for (uint32_t i = 0; i < t->n_matrices; i++) {
        size_t n = 0;
        if (t->matrices[i].latent)
            (void)nb_latent_state(t->matrices[i].latent, &n);
        bytes += n * sizeof(float);
    }
    for (uint32_t i = 0; i < t->n_vectors; i++)
        bytes += 3 * t->vectors[i].floats * sizeof(float);
    return bytes;
}
