// What the answers to a task are worth: the file's reading, and the rows of the report.
#include "tools/cli/eval/tasks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli/eval/answer.h"

#define ITEMS_MAX   100000
#define CHOICES_MAX 64

// --- Items: each check says what is wrong with a line, or returns NULL.

static bool is_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text && *text;
}

static const char *check_choice(const json_t *object)
{
    const json_t *choices = json_object_get(object, "choices");
    const json_t *answer = json_object_get(object, "answer");
    size_t n = json_array_size(choices), i;
    json_t *choice;
    if (!is_text(object, "question"))
        return "\"question\" must be a text";
    if (n < 2 || n > CHOICES_MAX)
        return "\"choices\" must be a list of 2 to 64 texts";
    json_array_foreach(choices, i, choice)
        if (!json_string_length(choice))
            return "\"choices\" must be a list of 2 to 64 texts";
    if (!json_is_integer(answer) || json_integer_value(answer) < 0 ||
        json_integer_value(answer) >= (json_int_t)n)
        return "\"answer\" must be the number of the right choice, counted from 0";
    return NULL;
}

static const char *check_cloze(const json_t *object)
{
    if (!is_text(object, "text"))
        return "\"text\" must be a text";
    return is_text(object, "last") ? NULL : "\"last\" must be a text, the words that end \"text\"";
}

static const char *check_similarity(const json_t *object)
{
    if (!is_text(object, "a") || !is_text(object, "b"))
        return "\"a\" and \"b\" must be texts";
    return json_is_number(json_object_get(object, "score")) ? NULL : "\"score\" must be a number";
}

// What a kind of task is known by, and what is measured of its answers.
enum spread { SHARE, MEAN, RANK };

struct measure {
    const char *key;
    enum spread spread;
    int answer; // which of the answers' two numbers
};

struct kind {
    const char *name, *member; // the member that only its items have
    const char *(*check)(const json_t *object);
    int (*run)(const struct eval_task *t, struct eval_model *m, struct eval_answers *a);
    struct measure measures[2];
};

static const struct kind kinds[] = {
    {"choice",
     "choices",
     check_choice,
     answer_choice,
     {{"accuracy", SHARE, 0}, {"accuracy_norm", SHARE, 1}}},
    {"cloze", "last", check_cloze, answer_cloze, {{"accuracy", SHARE, 0}, {"logprob", MEAN, 1}}},
    {"similarity", "score", check_similarity, answer_similarity, {{"spearman", RANK, 0}}},
};
#define N_KINDS (sizeof(kinds) / sizeof(kinds[0]))

static const struct kind *kind_of(const json_t *object)
{
    for (size_t i = 0; i < N_KINDS; i++)
        if (json_object_get(object, kinds[i].member))
            return &kinds[i];
    return NULL;
}

// --- Reading

// Takes the line's object; CLI_FAILED after saying what is wrong with it.
static int add_item(struct eval_task *t, size_t line, json_t *object)
{
    const struct kind *kind = kind_of(object);
    json_t **slot = &t->items[t->n].object;
    t->items[t->n].line = line;
    *slot = object;
    t->n++;
    if (!kind)
        return cli_error("%s:%zu: neither \"choices\" (multiple choice), \"last\" (cloze) nor "
                         "\"score\" (similarity) is there",
                         t->file, line);
    if (t->kind && kind != t->kind)
        return cli_error("%s:%zu: %s, while the lines before are %s: a file has one kind", t->file,
                         line, kind->name, t->kind->name);
    t->kind = kind;
    const char *wrong = kind->check(object);
    return wrong ? cli_error("%s:%zu: %s", t->file, line, wrong) : CLI_OK;
}

static int read_line(struct eval_task *t, size_t line, const char *text, size_t len)
{
    json_error_t error;
    if (strspn(text, " \t\r\n") >= len)
        return CLI_OK;
    if (t->n == ITEMS_MAX)
        return cli_error("%s:%zu: more than %d items: divide the file", t->file, line, ITEMS_MAX);
    json_t *object = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!object)
        return cli_error("%s:%zu: no JSON: %s", t->file, line, error.text);
    return add_item(t, line, object);
}

static size_t count_lines(const char *data, size_t len)
{
    size_t n = 1;
    for (size_t i = 0; i < len; i++)
        n += data[i] == '\n';
    return n < ITEMS_MAX ? n : ITEMS_MAX;
}

struct eval_task *eval_task_read(const char *file)
{
    size_t len = 0, line = 0;
    char *data = cli_read_file(file, &len);
    if (!data)
        return NULL;
    struct eval_task *t = cli_alloc(1, sizeof(*t));
    *t = (struct eval_task){.file = file,
                            .items = cli_alloc(count_lines(data, len), sizeof(*t->items))};
    int status = CLI_OK;
    for (const char *at = data, *end = data + len; at < end && status == CLI_OK;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline ? newline : end;
        status = read_line(t, ++line, at, (size_t)(stop - at));
        at = stop + 1;
    }
    free(data);
    if (status == CLI_OK && !t->n)
        status = cli_error("%s has no item", file);
    if (status == CLI_OK)
        return t;
    eval_task_destroy(t);
    return NULL;
}

void eval_task_destroy(struct eval_task *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++)
        json_decref(t->items[i].object);
    free(t->items);
    free(t);
}

// --- Running and describing

struct eval_answers *eval_task_run(const struct eval_task *t, struct eval_model *m)
{
    struct eval_answers *a = cli_alloc(1, sizeof(*a));
    a->number[0] = cli_alloc(t->n, sizeof(double));
    a->number[1] = cli_alloc(t->n, sizeof(double));
    if (t->kind->run(t, m, a) == CLI_OK)
        return a;
    eval_answers_destroy(a);
    return NULL;
}

void eval_answers_destroy(struct eval_answers *a)
{
    if (!a)
        return;
    free(a->number[0]);
    free(a->number[1]);
    free(a);
}

// The member PREFIXkeySUFFIX.
static void set(json_t *row, const char *prefix, const char *key, const char *suffix, json_t *value)
{
    char name[64];
    snprintf(name, sizeof(name), "%s%s%s", prefix, key, suffix);
    json_object_set_new(row, name, value);
}

static void describe_share(json_t *row, const char *key, const double *own, const double *theirs,
                           size_t n)
{
    size_t right = 0, gained = 0, lost = 0;
    for (size_t i = 0; i < n; i++) {
        right += own[i] > 0;
        gained += theirs && own[i] > 0 && theirs[i] <= 0;
        lost += theirs && own[i] <= 0 && theirs[i] > 0;
    }
    set(row, "", key, "", json_real((double)right / (double)n));
    set(row, "", key, "_ci", eval_interval(stats_wilson(right, n)));
    if (!theirs)
        return;
    set(row, "reference_", key, "",
        json_real(((double)right + (double)lost - (double)gained) / (double)n));
    set(row, "", key, "_difference", json_real(((double)gained - (double)lost) / (double)n));
    set(row, "", key, "_difference_ci", eval_interval(stats_of_paired(gained, lost, n)));
    set(row, "", key, "_mcnemar_p", json_real(stats_mcnemar(gained, lost)));
}

static void describe_mean(json_t *row, const char *key, const double *own, const double *theirs,
                          size_t n)
{
    double *pairs = cli_alloc(n, sizeof(*pairs));
    set(row, "", key, "", eval_number(stats_mean(own, n)));
    set(row, "", key, "_ci", eval_interval(stats_of_mean(own, n)));
    for (size_t i = 0; theirs && i < n; i++)
        pairs[i] = own[i] - theirs[i];
    if (theirs) {
        set(row, "reference_", key, "", eval_number(stats_mean(theirs, n)));
        set(row, "", key, "_difference", eval_number(stats_mean(pairs, n)));
        set(row, "", key, "_difference_ci", eval_interval(stats_of_mean(pairs, n)));
    }
    free(pairs);
}

struct correlation {
    struct stats_ranks *own, *theirs; // theirs: NULL for the model's alone
};

static double correlate(void *user, const uint32_t *weights)
{
    const struct correlation *c = user;
    return stats_spearman(c->own, weights) - (c->theirs ? stats_spearman(c->theirs, weights) : 0);
}

static void describe_rank(json_t *row, const char *key, const double *own, const double *theirs,
                          const double *right, size_t n, uint64_t seed)
{
    struct correlation c = {.own = stats_ranks_create(own, right, n)};
    struct stats_ranks *other = theirs ? stats_ranks_create(theirs, right, n) : NULL;
    if (!c.own || (theirs && !other))
        exit(cli_error("out of memory"));
    set(row, "", key, "", eval_number(correlate(&c, NULL)));
    set(row, "", key, "_ci", eval_interval(stats_bootstrap(n, seed, correlate, &c)));
    if ((c.theirs = other)) {
        set(row, "reference_", key, "", eval_number(stats_spearman(other, NULL)));
        set(row, "", key, "_difference", eval_number(correlate(&c, NULL)));
        set(row, "", key, "_difference_ci", eval_interval(stats_bootstrap(n, seed, correlate, &c)));
    }
    stats_ranks_destroy(c.own);
    stats_ranks_destroy(other);
}

json_t *eval_task_describe(const struct eval_task *t, const struct eval_answers *answers,
                           const struct eval_answers *reference, uint64_t seed)
{
    json_t *row = json_pack("{s:s, s:s, s:I}", "task", t->file, "kind", t->kind->name, "items",
                            (json_int_t)t->n);
    double *right = cli_alloc(t->n, sizeof(*right)); // the pairs' scores
    for (size_t i = 0; i < t->n; i++)
        right[i] = json_number_value(json_object_get(t->items[i].object, "score"));
    for (size_t i = 0; i < 2 && t->kind->measures[i].key; i++) {
        const struct measure *m = &t->kind->measures[i];
        const double *own = answers->number[m->answer];
        const double *theirs = reference ? reference->number[m->answer] : NULL;
        if (m->spread == SHARE)
            describe_share(row, m->key, own, theirs, t->n);
        else if (m->spread == MEAN)
            describe_mean(row, m->key, own, theirs, t->n);
        else
            describe_rank(row, m->key, own, theirs, right, t->n, seed);
    }
    free(right);
    return row;
}
