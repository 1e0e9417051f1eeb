// Cosines and recall@10, by brute force in float.
#include "tools/cli/eval/vectors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NEAREST 10
#define TILE    256 // passages whose scores are in the cache at a time

struct passages {
    struct nibble_text *texts;
    size_t n;
};

// A passage for each line that has any text.
static struct passages divide(const struct eval_input *in)
{
    size_t lines = 1;
    for (size_t i = 0; i < in->len; i++)
        lines += in->data[i] == '\n';
    struct passages p = {.texts = cli_alloc(lines, sizeof(*p.texts))};
    for (const char *at = in->data, *end = at + in->len; at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline ? newline : end;
        size_t n = (size_t)(stop - at);
        n -= n && at[n - 1] == '\r';
        if (n)
            p.texts[p.n++] = (struct nibble_text){.text = at, .text_len = n};
        at = stop + 1;
    }
    return p;
}

static int on_progress(void *user, size_t done, size_t n)
{
    cli_progress(user, done, n);
    return 0;
}

// Sets m->vectors, [n][dims], of length 1, unless it is set: a reference is asked once for all
// models.
static int embed(const struct eval *e, struct eval_model *m, const struct passages *p)
{
    if (m->vectors)
        return CLI_OK;
    float *vectors = cli_alloc(p->n * m->about.embedding, sizeof(*vectors));
    const struct nibble_place out = {.data = vectors};
    const struct nibble_embed_options options = {.size = sizeof(options),
                                                 .truncate = 1,
                                                 .progress = on_progress,
                                                 .user = (void *)(uintptr_t)e->passages.name};
    int rc = nibble_embed(m->session, p->texts, p->n, &options, &out, NULL);
    m->vectors = vectors;
    return rc < 0 ? cli_failed(m->connection, m->given, rc) : CLI_OK;
}

// --- The ten nearest

struct nearest {
    float score[NEAREST];
    uint32_t passage[NEAREST];
    unsigned n;
};

// Passages come in their order, so that of equal ones the first stays before the others.
static void offer(struct nearest *found, float score, uint32_t passage)
{
    unsigned at = found->n < NEAREST ? found->n++ : NEAREST;
    if (at == NEAREST && score <= found->score[NEAREST - 1])
        return;
    at = at == NEAREST ? NEAREST - 1 : at;
    for (; at && found->score[at - 1] < score; at--) {
        found->score[at] = found->score[at - 1];
        found->passage[at] = found->passage[at - 1];
    }
    found->score[at] = score;
    found->passage[at] = passage;
}

// [tile][dims] to [dims][TILE], so that the scores' loop runs over passages and needs no sum
// across.
static void transpose(const float *vectors, size_t n, size_t dims, float *ret)
{
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < dims; k++)
            ret[k * TILE + i] = vectors[i * dims + k];
}

static void score_tile(const float *query, const float *tile, size_t dims, float *restrict ret)
{
    memset(ret, 0, TILE * sizeof(*ret));
    for (size_t k = 0; k < dims; k++)
        for (size_t i = 0; i < TILE; i++)
            ret[i] += query[k] * tile[k * TILE + i];
}

// The nearest of each query, itself left out; query i is passage i * n / queries.
static struct nearest *search(const float *vectors, size_t n, size_t dims, size_t queries)
{
    struct nearest *found = cli_alloc(queries, sizeof(*found));
    float *tile = cli_alloc(dims * TILE, sizeof(*tile)), scores[TILE];
    for (size_t first = 0; first < n; first += TILE) {
        size_t here = n - first < TILE ? n - first : TILE;
        transpose(vectors + first * dims, here, dims, tile);
        for (size_t q = 0; q < queries; q++) {
            size_t own = q * n / queries;
            score_tile(vectors + own * dims, tile, dims, scores);
            for (size_t i = 0; i < here; i++)
                if (first + i != own)
                    offer(&found[q], scores[i], (uint32_t)(first + i));
        }
        cli_progress("searching", first + here, n);
    }
    free(tile);
    return found;
}

static double shared(const struct nearest *a, const struct nearest *b)
{
    size_t both = 0;
    for (unsigned i = 0; i < a->n; i++)
        for (unsigned k = 0; k < b->n; k++)
            both += a->passage[i] == b->passage[k];
    return (double)both / a->n;
}

// --- Results

static void set_recall(const struct eval *e, const float *own, size_t own_dims, const float *theirs,
                       size_t their_dims, size_t n, json_t *row)
{
    size_t queries = e->queries && e->queries < n ? e->queries : n;
    double *each = cli_alloc(queries, sizeof(*each));
    struct nearest *a = search(own, n, own_dims, queries);
    struct nearest *b = search(theirs, n, their_dims, queries);
    for (size_t i = 0; i < queries; i++)
        each[i] = shared(&b[i], &a[i]);
    json_object_set_new(row, "queries", json_integer((json_int_t)queries));
    json_object_set_new(row, "recall10", eval_number(stats_mean(each, queries)));
    json_object_set_new(row, "recall10_ci",
                        eval_interval(stats_cut(stats_of_mean(each, queries), 0, 1)));
    free(a);
    free(b);
    free(each);
}

static void set_cosine(const float *own, const float *theirs, size_t n, size_t dims, json_t *row)
{
    double *each = cli_alloc(n, sizeof(*each)), least = 1;
    for (size_t i = 0; i < n; i++) {
        double ab = 0, aa = 0, bb = 0;
        for (size_t k = i * dims; k < (i + 1) * dims; k++) {
            ab += (double)own[k] * (double)theirs[k];
            aa += (double)own[k] * (double)own[k];
            bb += (double)theirs[k] * (double)theirs[k];
        }
        each[i] = ab / sqrt(aa * bb);
        least = fmin(least, each[i]);
    }
    json_object_set_new(row, "cosine", eval_number(stats_mean(each, n)));
    json_object_set_new(row, "cosine_ci", eval_interval(stats_cut(stats_of_mean(each, n), -1, 1)));
    json_object_set_new(row, "cosine_min", eval_number(least));
    free(each);
}

int eval_vectors(const struct eval *e, struct eval_model *m, struct eval_model *reference,
                 json_t *result)
{
    struct passages p = divide(&e->passages);
    size_t own_dims = m->about.embedding, their_dims = reference->about.embedding;
    int status = p.n > NEAREST ? CLI_OK
                               : cli_error("%s has %zu passages; recall@%d needs more than %d",
                                           e->passages.name, p.n, NEAREST, NEAREST);
    if (status == CLI_OK)
        status = embed(e, m, &p);
    if (status == CLI_OK)
        status = embed(e, reference, &p);
    if (status == CLI_OK) {
        json_t *row =
            json_pack("{s:s, s:I}", "passages_file", e->passages.name, "passages", (json_int_t)p.n);
        if (own_dims == their_dims)
            set_cosine(m->vectors, reference->vectors, p.n, own_dims, row);
        set_recall(e, m->vectors, own_dims, reference->vectors, their_dims, p.n, row);
        json_object_set_new(result, "vectors", row);
    }
    free(p.texts);
    return status;
}
