// Answers by log-probability and by vectors.
//
// A continuation (a choice, the last words) follows its beginning (the question, the text) after
// one space, unless either has whitespace there. Its tokens are those of the whole that the
// beginning's own tokens do not share, as a tokenizer may join what meets at the seam.
#include "tools/cli/eval/answer.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NOT_FINITE 1

static int failed(const struct eval_task *t, const struct item *item, const char *what)
{
    return cli_error("%s:%zu: %s", t->file, item->line, what);
}

static const char *member(const struct item *item, const char *key)
{
    return json_string_value(json_object_get(item->object, key));
}

static char *join(const char *beginning, const char *continuation)
{
    size_t len = strlen(beginning);
    bool spaced =
        isspace((unsigned char)beginning[len - 1]) || isspace((unsigned char)continuation[0]);
    char *joined = NULL;
    if (asprintf(&joined, "%s%s%s", beginning, spaced ? "" : " ", continuation) < 0)
        exit(cli_error("out of memory"));
    return joined;
}

// The whole's ids; the continuation's are [shared, n).
struct sequence {
    int32_t *ids;
    size_t n, shared;
};

static int tokenize(const struct eval_task *t, const struct item *item, struct eval_model *m,
                    const char *beginning, const char *continuation, struct sequence *ret)
{
    int32_t *head = NULL, *ids = NULL;
    char *whole = join(beginning, continuation);
    int n_head = eval_tokenize(m, beginning, strlen(beginning), NIBBLE_TOKENIZE_BOS, &head);
    int n = n_head < 0 ? n_head : eval_tokenize(m, whole, strlen(whole), NIBBLE_TOKENIZE_BOS, &ids);
    struct sequence s = {.ids = ids, .n = n < 0 ? 0 : (size_t)n};
    while (s.shared + 1 < s.n && s.shared < (size_t)n_head && head[s.shared] == ids[s.shared])
        s.shared++;
    free(head);
    free(whole);
    int status = n < 0 ? CLI_FAILED : CLI_OK;
    if (status == CLI_OK && !s.shared)
        status = failed(t, item, "the beginning shares no token with the whole");
    if (status == CLI_OK)
        *ret = s;
    else
        free(ids);
    return status;
}

// Why nibble_score or nibble_logits has failed.
static int refused(const struct eval_task *t, const struct item *item, struct eval_model *m, int rc)
{
    return rc == NOT_FINITE ? cli_error("%s gives logits that are not finite", m->role)
                            : cli_error("%s:%zu: %s: %s", t->file, item->line, m->given,
                                        nibble_error(m->connection));
}

static int generates(const struct eval_task *t, const struct eval_model *m)
{
    if (!m->about.embeds_only)
        return CLI_OK;
    return cli_error("%s: %s gives vectors of texts and no probabilities: only similarity is a "
                     "task for it",
                     t->file, m->given);
}

// --- Multiple choice

static int score_choice(const struct eval_task *t, const struct item *item, struct eval_model *m,
                        const char *choice, double *ret)
{
    struct sequence s;
    int status = tokenize(t, item, m, member(item, "question"), choice, &s);
    if (status != CLI_OK)
        return status;
    float *each = cli_alloc(s.n - s.shared, sizeof(*each));
    int rc = nibble_score(m->session, s.ids, s.n, s.shared - 1, each);
    double sum = 0;
    for (size_t i = 0; i < s.n - s.shared; i++)
        sum += (double)each[i];
    if (rc == 0 && !isfinite(sum))
        rc = NOT_FINITE;
    free(each);
    free(s.ids);
    if (rc != 0)
        return refused(t, item, m, rc);
    *ret = sum;
    return CLI_OK;
}

static int choose(const struct eval_task *t, const struct item *item, struct eval_model *m,
                  size_t ret_best[2])
{
    double best[2] = {-INFINITY, -INFINITY};
    size_t i;
    json_t *choice;
    json_array_foreach(json_object_get(item->object, "choices"), i, choice) {
        double sum = 0;
        if (score_choice(t, item, m, json_string_value(choice), &sum) != CLI_OK)
            return CLI_FAILED;
        const double scores[2] = {sum, sum / (double)json_string_length(choice)};
        for (int how = 0; how < 2; how++) {
            if (scores[how] <= best[how])
                continue;
            best[how] = scores[how];
            ret_best[how] = i;
        }
    }
    return CLI_OK;
}

int answer_choice(const struct eval_task *t, struct eval_model *m, struct eval_answers *a)
{
    int status = generates(t, m);
    for (size_t i = 0; i < t->n && status == CLI_OK; i++) {
        const struct item *item = &t->items[i];
        size_t right = (size_t)json_integer_value(json_object_get(item->object, "answer"));
        size_t best[2] = {0, 0};
        status = choose(t, item, m, best);
        a->number[0][i] = best[0] == right;
        a->number[1][i] = best[1] == right;
        cli_progress(t->file, i + 1, t->n);
    }
    return status;
}

// --- Cloze

struct greedy {
    const struct sequence *sequence;
    double logprob;
    bool likeliest;
};

static int follow(void *user, size_t position, const float *logits, size_t vocab)
{
    struct greedy *g = user;
    if (position + 1 >= g->sequence->n)
        return 0; // what comes after the text
    size_t next = (size_t)g->sequence->ids[position + 1], top = 0;
    double norm = eval_log_sum_exp(logits, vocab, &top);
    g->logprob += (double)logits[next] - norm;
    g->likeliest = g->likeliest && top == next;
    return isfinite(norm) ? 0 : NOT_FINITE;
}

int answer_cloze(const struct eval_task *t, struct eval_model *m, struct eval_answers *a)
{
    int status = generates(t, m);
    for (size_t i = 0; i < t->n && status == CLI_OK; i++) {
        const struct item *item = &t->items[i];
        struct sequence s;
        status = tokenize(t, item, m, member(item, "text"), member(item, "last"), &s);
        if (status != CLI_OK)
            break;
        struct greedy g = {.sequence = &s, .likeliest = true};
        int rc = nibble_logits(m->session, s.ids, s.n, s.shared - 1, follow, &g);
        free(s.ids);
        if (rc != 0)
            status = refused(t, item, m, rc);
        a->number[0][i] = g.likeliest;
        a->number[1][i] = g.logprob;
        cli_progress(t->file, i + 1, t->n);
    }
    return status;
}

// --- Similarity

static int on_progress(void *user, size_t done, size_t n)
{
    cli_progress(user, done, n);
    return 0;
}

int answer_similarity(const struct eval_task *t, struct eval_model *m, struct eval_answers *a)
{
    size_t dims = m->about.embedding;
    struct nibble_text *texts = cli_alloc(2 * t->n, sizeof(*texts));
    float *vectors = cli_alloc(2 * t->n * dims, sizeof(*vectors));
    const struct nibble_embed_options options = {
        .size = sizeof(options), .progress = on_progress, .user = (void *)(uintptr_t)t->file};
    const struct nibble_place out = {.data = vectors};
    for (size_t i = 0; i < 2 * t->n; i++) {
        const char *text = member(&t->items[i / 2], i % 2 ? "b" : "a");
        texts[i] = (struct nibble_text){.text = text, .text_len = strlen(text)};
    }
    int rc = nibble_embed(m->session, texts, 2 * t->n, &options, &out, NULL);
    for (size_t i = 0; i < t->n && rc >= 0; i++) {
        const float *x = vectors + 2 * i * dims, *y = x + dims;
        for (size_t k = 0; k < dims; k++)
            a->number[0][i] += (double)x[k] * (double)y[k];
    }
    free(texts);
    free(vectors);
    return rc < 0 ? cli_error("%s: %s: %s (two texts a line)", t->file, m->given,
                              nibble_error(m->connection))
                  : CLI_OK;
}
