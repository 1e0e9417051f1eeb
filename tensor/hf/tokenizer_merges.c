// A BPE model's merges, as they are or as the scores of a SentencePiece vocabulary.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/hf/tokenizer_private.h"

// Trying every way to join a token takes the square of its length.
#define JOINED_BYTES_MAX 256

struct merge {
    struct nb_str left, right;
    int64_t result; // id of the two joined
};

// ---- Reading

// "left right", or since a left or right may hold a space, ["left", "right"].
static bool split_merge(const json_t *item, struct merge *m)
{
    const json_t *left = json_array_get(item, 0), *right = json_array_get(item, 1);
    const char *text = json_string_value(item), *space = text ? strchr(text, ' ') : NULL;

    if (space && !strchr(space + 1, ' ')) {
        m->left = (struct nb_str){text, (size_t)(space - text)};
        m->right = (struct nb_str){space + 1, strlen(space + 1)};
    } else if (json_array_size(item) == 2 && json_is_string(left) && json_is_string(right)) {
        m->left = (struct nb_str){json_string_value(left), json_string_length(left)};
        m->right = (struct nb_str){json_string_value(right), json_string_length(right)};
    } else {
        return false;
    }
    return m->left.len > 0 && m->right.len > 0;
}

static int read_merge(const struct nb_hf_tokens *t, const json_t *item, size_t i, struct merge *m)
{
    char joined[2 * NB_HF_TOKEN_BYTES_MAX];

    if (!split_merge(item, m))
        return NB_HF_FAIL(t, -EINVAL, "tokenizer.json: merge %zu is no pair of tokens", i);
    if (nb_hf_vocab_id(t, m->left) < 0 || nb_hf_vocab_id(t, m->right) < 0)
        return NB_HF_FAIL(t, -EINVAL, "tokenizer.json: merge %zu names a token that is missing", i);
    // Both are tokens, so neither is longer than one.
    memcpy(joined, m->left.data, m->left.len);
    memcpy(joined + m->left.len, m->right.data, m->right.len);
    m->result = nb_hf_vocab_id(t, (struct nb_str){joined, m->left.len + m->right.len});
    if (m->result < 0)
        return NB_HF_FAIL(t, -EINVAL, "tokenizer.json: merge %zu makes a token that is missing", i);
    return 0;
}

static int find_merges(const struct nb_hf_tokens *t, const json_t **ret)
{
    *ret = json_object_get(t->model, "merges");
    if (json_is_array(*ret))
        return 0;
    return NB_HF_FAIL(t, -EINVAL, "tokenizer.json: its BPE model has no merges");
}

// ---- As they are

// A GGUF writes a merge with a space between, so neither side may have one.
static int write_merge(const struct nb_hf_tokens *t, const struct merge *m, size_t i, char *out)
{
    if (memchr(m->left.data, ' ', m->left.len) || memchr(m->right.data, ' ', m->right.len))
        return NB_HF_FAIL(t, -ENOTSUP,
                          "tokenizer.json: merge %zu has a space inside, which no GGUF says", i);
    memcpy(out, m->left.data, m->left.len);
    out[m->left.len] = ' ';
    memcpy(out + m->left.len + 1, m->right.data, m->right.len);
    return 0;
}

static int write_merges(const struct nb_hf_tokens *t, const json_t *merges, struct nb_str *text,
                        char *bytes)
{
    const json_t *item;
    size_t i, used = 0;

    json_array_foreach(merges, i, item) {
        struct merge m;
        int rc = read_merge(t, item, i, &m);
        if (rc == 0)
            rc = write_merge(t, &m, i, bytes + used);
        if (rc < 0)
            return rc;
        text[i] = (struct nb_str){bytes + used, m.left.len + m.right.len + 1};
        used += text[i].len;
    }
    return 0;
}

int nb_hf_put_merges(struct nb_hf_tokens *t)
{
    const json_t *merges;
    int rc = find_merges(t, &merges);

    if (rc < 0)
        return rc;
    // What stands between the two in JSON is no shorter than the space.
    struct nb_str *text = calloc(json_array_size(merges) + 1, sizeof(*text));
    char *bytes = malloc(t->texts->tokenizer.len);
    rc = text && bytes ? write_merges(t, merges, text, bytes)
                       : NB_HF_FAIL(t, -ENOMEM, "no memory for the merges of tokenizer.json");
    if (rc == 0 &&
        nb_gguf_kvs_put_strs(t->kvs, "tokenizer.ggml.merges", text, json_array_size(merges)) < 0)
        rc = NB_HF_FAIL(t, -ENOMEM, "no memory for the merges of tokenizer.json");
    free(text);
    free(bytes);
    return rc;
}

// ---- As scores
//
// SentencePiece joins two neighbours whenever the result is a token, the best score first, and the
// leftmost of equals. That is what merges say where each way to join a token is a merge, all of
// them next to each other. Runs of one character (spaces, line ends) share one score, so their
// merges lie between each other; the leftmost grows all the same. The tokenizer.json of a
// SentencePiece model was made so. One that was trained as BPE has one merge a token, and is
// refused.

struct ranks {
    uint32_t first, last, n; // the merges that make a token
    uint32_t group;          // the first merge of all that lie between each other
};

static int collect_ranks(const struct nb_hf_tokens *t, const json_t *merges, struct ranks *ranks,
                         uint32_t *made)
{
    const json_t *item;
    size_t i;

    json_array_foreach(merges, i, item) {
        struct merge m;
        int rc = read_merge(t, item, i, &m);
        if (rc < 0)
            return rc;
        struct ranks *k = &ranks[m.result];
        made[i] = (uint32_t)m.result;
        k->first = k->n ? k->first : (uint32_t)i;
        k->last = (uint32_t)i;
        k->n++;
    }
    return 0;
}

static void group_ranks(struct ranks *ranks, const uint32_t *made, size_t n)
{
    uint32_t group = 0, end = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct ranks *k = &ranks[made[i]];
        group = i > end ? i : group;
        end = k->last > end ? k->last : end;
        k->group = group;
    }
}

static bool is_one_character(struct nb_str s)
{
    for (size_t i = 1; i < s.len; i++)
        if (((uint8_t)s.data[i] & 0xc0) != 0x80)
            return false;
    return s.len > 0;
}

// What stands in a text before it is joined: tokens, and characters that are none.
static bool may_stand(const struct nb_hf_tokens *t, struct nb_str s)
{
    return nb_hf_vocab_id(t, s) >= 0 || is_one_character(s);
}

static uint32_t count_joins(const struct nb_hf_tokens *t, struct nb_str s)
{
    uint32_t n = 0;

    for (size_t i = 1; i < s.len; i++)
        if (((uint8_t)s.data[i] & 0xc0) != 0x80 && may_stand(t, (struct nb_str){s.data, i}) &&
            may_stand(t, (struct nb_str){s.data + i, s.len - i}))
            n++;
    return n;
}

static bool is_run(struct nb_str s)
{
    size_t one = 1;

    while (one < s.len && ((uint8_t)s.data[one] & 0xc0) == 0x80)
        one++;
    return s.len % one == 0 && memcmp(s.data, s.data + one, s.len - one) == 0;
}

// No merge of another token lies between those of this one, nor these between another's.
static bool stands_alone(const struct ranks *k)
{
    return k->n == 0 || (k->group == k->first && k->last - k->first + 1 == k->n);
}

static int check_ranks(const struct nb_hf_tokens *t, const struct ranks *ranks)
{
    for (uint32_t i = 0; i < t->n; i++) {
        struct nb_str text = t->text[i];
        if (t->type[i] != NB_HF_NORMAL)
            continue;
        if (text.len > JOINED_BYTES_MAX)
            return NB_HF_FAIL(
                t, -EFBIG,
                "tokenizer.json: token %u has %zu bytes; the limit is %d for BPE with "
                "byte_fallback",
                i, text.len, JOINED_BYTES_MAX);
        if (count_joins(t, text) != ranks[i].n || !(stands_alone(&ranks[i]) || is_run(text)))
            return NB_HF_FAIL(t, -ENOTSUP,
                              "tokenizer.json: its merges make token %u in an order that no scores "
                              "of a SentencePiece model give; BPE with byte_fallback is converted "
                              "where it was made from such a model",
                              i);
    }
    return 0;
}

static float score(enum nb_hf_type type, const struct ranks *k)
{
    static const float of_type[] = {[NB_HF_UNKNOWN] = -1000,
                                    [NB_HF_CONTROL] = -1000,
                                    [NB_HF_USER_DEFINED] = -1000,
                                    [NB_HF_UNUSED] = -10000,
                                    [NB_HF_BYTE] = 0};

    return type == NB_HF_NORMAL ? -(float)k->group : of_type[type];
}

static int rank_tokens(const struct nb_hf_tokens *t, const json_t *merges, struct ranks *ranks)
{
    uint32_t *made = calloc(json_array_size(merges) + 1, sizeof(*made));
    int rc = made ? collect_ranks(t, merges, ranks, made)
                  : NB_HF_FAIL(t, -ENOMEM, "no memory for the merges of tokenizer.json");

    if (rc == 0)
        group_ranks(ranks, made, json_array_size(merges));
    free(made);
    return rc;
}

static int make_scores(const struct nb_hf_tokens *t, struct ranks *ranks, float *scores)
{
    const json_t *merges;
    int rc = find_merges(t, &merges);

    if (rc == 0)
        rc = rank_tokens(t, merges, ranks);
    if (rc == 0)
        rc = check_ranks(t, ranks);
    for (uint32_t i = 0; rc == 0 && i < t->n; i++)
        scores[i] = score((enum nb_hf_type)t->type[i], &ranks[i]);
    return rc;
}

int nb_hf_put_scores(struct nb_hf_tokens *t)
{
    struct ranks *ranks = calloc(t->n, sizeof(*ranks));
    float *scores = malloc(t->n * sizeof(*scores));
    int rc = ranks && scores ? make_scores(t, ranks, scores)
                             : NB_HF_FAIL(t, -ENOMEM, "no memory for the scores of tokenizer.json");

    if (rc == 0 &&
        nb_gguf_kvs_put_array(t->kvs, "tokenizer.ggml.scores", NB_GGUF_F32, scores, t->n) < 0)
        rc = NB_HF_FAIL(t, -ENOMEM, "no memory for the scores of tokenizer.json");
    free(ranks);
    free(scores);
    return rc;
}
