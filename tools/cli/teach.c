// `nibble teach`: what a loaded model makes of a text, as lessons for students (tensor/lessons.h).
// To the service it is a client like any other, so the teacher may be on any device.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/lessons.h"
#include "tools/cli/cli.h"

#define ARENA (32u << 20) // rows of logits

struct teach {
    struct common common;
    const char *out;
    struct option_list texts;
    uint32_t length, windows, keep;
    float temperature;
    bool force;
    // The model
    const char *name;
    nibble *connection;
    nibble_session *session;
    struct nibble_model about;
    // The text
    char *text[OPTION_LIST_MAX];
    size_t text_bytes[OPTION_LIST_MAX];
    char sample[NB_LESSONS_SAMPLE];
    size_t sample_bytes;
    int32_t *tokens; // of all texts, one behind the other
    size_t n;
    // The window under way: rows as in the file
    uint8_t *rows;
    struct nb_kept_logit *kept; // the likeliest so far, the least likely first: a heap
};

// --- The text

static int tokenize(struct teach *t, const char *text, size_t len, unsigned flags, int32_t **ret)
{
    return cli_tokenize(t->connection, t->session, t->name, text, len, flags, ret);
}

// As many of the first bytes as there is room for, in whole characters.
static void take_sample(struct teach *t, const char *text, size_t len)
{
    size_t n = len < sizeof(t->sample) ? len : sizeof(t->sample);
    while (n < len && n && ((unsigned char)text[n] & 0xc0) == 0x80)
        n--;
    memcpy(t->sample, text, n);
    t->sample_bytes = n;
}

static int add(struct teach *t, const char *text, size_t len)
{
    int32_t *ids = NULL;
    const int n = tokenize(t, text, len, 0, &ids);
    if (n < 0)
        return CLI_FAILED;
    if (!t->n)
        take_sample(t, text, len);
    int32_t *all = realloc(t->tokens, (t->n + (size_t)n + 1) * sizeof(*all));
    if (!all)
        exit(cli_error("out of memory"));
    memcpy(all + t->n, ids, (size_t)n * sizeof(*ids));
    t->tokens = all;
    t->n += (size_t)n;
    free(ids);
    return CLI_OK;
}

static const char *end_of_line(const char *at, const char *end)
{
    const char *found = memchr(at, '\n', (size_t)(end - at));
    return found ? found : end;
}

static json_t *parse_line(const char *at, const char *end)
{
    return json_loadb(at, (size_t)(end - at), JSON_REJECT_DUPLICATES, NULL);
}

// By the name, or by the first line, as `nibble distill` has it (quant/texts.h).
static bool are_lines(const char *name, const char *text, size_t len)
{
    const char *dot = strrchr(name, '.');
    if (dot && (!strcmp(dot, ".jsonl") || !strcmp(dot, ".ndjson")))
        return true;
    json_t *first = *text == '{' ? parse_line(text, end_of_line(text, text + len)) : NULL;
    const bool are = json_is_string(json_object_get(first, "text")) ||
                     json_is_array(json_object_get(first, "messages"));
    json_decref(first);
    return are;
}

// The "text" of each.
static int add_lines(struct teach *t, const char *name, const char *text, size_t len)
{
    const char *end = text + len, *stop;
    size_t line = 0;
    int status = CLI_OK;
    for (const char *at = text; status == CLI_OK && at < end; at = stop + 1) {
        stop = end_of_line(at, end);
        line++;
        if (at + strspn(at, " \t\r") >= stop)
            continue;
        json_t *object = parse_line(at, stop);
        const json_t *of = json_object_get(object, "text");
        status = json_is_string(of)
                     ? add(t, json_string_value(of), json_string_length(of))
                     : cli_error("%s:%zu is no JSON object with a \"text\"%s", name, line,
                                 json_object_get(object, "messages")
                                     ? ": conversations are learnt with the teacher itself "
                                       "(nibble distill --teacher)"
                                     : "");
        json_decref(object);
    }
    return status;
}

static int read_texts(struct teach *t)
{
    for (size_t i = 0; i < t->texts.n; i++)
        if (!(t->text[i] = cli_read_file(t->texts.items[i], &t->text_bytes[i])))
            return CLI_FAILED;
    return CLI_OK;
}

static int take_texts(struct teach *t)
{
    int status = CLI_OK;
    for (size_t i = 0; i < t->texts.n && status == CLI_OK; i++) {
        const char *name = t->texts.items[i], *text = t->text[i];
        const size_t len = t->text_bytes[i];
        status = are_lines(name, text, len) ? add_lines(t, name, text, len) : add(t, text, len);
    }
    return status;
}

// [windows][length], evenly over the text's tokens, each with what the model wants at a text's
// begin: those that a student would learn from the text itself.
static int cut(struct teach *t, int32_t **ret)
{
    int32_t *begin = NULL;
    int n = tokenize(t, "", 0, NIBBLE_TOKENIZE_BOS, &begin);
    if (n < 0)
        return CLI_FAILED;
    const size_t body = t->length - (size_t)n, most = t->n / body;
    if (!t->windows || t->windows > most)
        t->windows = most < NB_LESSONS_WINDOWS ? (uint32_t)most : NB_LESSONS_WINDOWS;
    int32_t *windows = cli_alloc((size_t)t->windows * t->length + 1, sizeof(*windows));
    for (size_t i = 0; i < t->windows; i++) {
        const size_t first = t->windows > 1 ? i * (t->n - body) / (t->windows - 1) : 0;
        memcpy(windows + i * t->length, begin, (size_t)n * sizeof(*begin));
        memcpy(windows + i * t->length + n, t->tokens + first, body * sizeof(*begin));
    }
    free(begin);
    *ret = windows;
    return t->windows ? CLI_OK
                      : cli_error("the text has %zu tokens, less than one window of %u (--length)",
                                  t->n, t->length);
}

// --- A row

static void sift_down(struct nb_kept_logit *heap, uint32_t n)
{
    for (uint32_t i = 0, child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1].logit < heap[child].logit)
            child++;
        if (heap[i].logit <= heap[child].logit)
            return;
        const struct nb_kept_logit parent = heap[i];
        heap[i] = heap[child];
        heap[child] = parent;
    }
}

static int by_id(const void *a, const void *b)
{
    const struct nb_kept_logit *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

// The likeliest, ids ascending; of equal ones the first. The largest logit.
static float keep_likeliest(struct teach *t, const float *logits, size_t vocab)
{
    const struct nb_kept_logit none = {0, -INFINITY};
    float most = -INFINITY;
    for (uint32_t i = 0; i < t->keep; i++)
        t->kept[i] = none;
    for (size_t i = 0; i < vocab; i++) {
        most = logits[i] > most ? logits[i] : most;
        if (!(logits[i] > t->kept[0].logit))
            continue;
        t->kept[0] = (struct nb_kept_logit){(uint32_t)i, logits[i]};
        sift_down(t->kept, t->keep);
    }
    qsort(t->kept, t->keep, sizeof(*t->kept), by_id);
    return most;
}

static float log_sum(const float *logits, size_t vocab, float most, float by)
{
    double sum = 0;
    for (size_t i = 0; i < vocab; i++) {
        const float away = by * (logits[i] - most);
        if (away > -25) // what is less adds nothing that counts
            sum += (double)expf(away);
    }
    return sum > 0 ? (float)((double)(by * most) + log(sum)) : NAN;
}

static size_t bytes_of_row(const struct teach *t)
{
    return sizeof(struct nb_lesson) + t->keep * sizeof(*t->kept);
}

static size_t bytes_of_window(const struct teach *t)
{
    return t->length * bytes_of_row(t);
}

#define NOT_FINITE 1

static int take_row(void *user, size_t position, const float *logits, size_t vocab)
{
    struct teach *t = user;
    const float most = keep_likeliest(t, logits, vocab);
    const struct nb_lesson sums = {log_sum(logits, vocab, most, 1),
                                   log_sum(logits, vocab, most, 1 / t->temperature)};
    uint8_t *row = t->rows + position * bytes_of_row(t);
    memcpy(row, &sums, sizeof(sums));
    memcpy(row + sizeof(sums), t->kept, t->keep * sizeof(*t->kept));
    return isfinite(sums.log_sum) && isfinite(t->kept[0].logit) ? 0 : NOT_FINITE;
}

// --- The file

static int put(const struct teach *t, int fd, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    for (ssize_t n; bytes; at += n, bytes -= (size_t)n)
        if ((n = write(fd, at, bytes)) < 0)
            return cli_error("%s.part cannot be written: %m", t->out);
    return CLI_OK;
}

// All before the rows.
static int front_of(struct teach *t, const int32_t *windows, uint8_t **ret, size_t *ret_bytes)
{
    int32_t *ids = NULL;
    const int n = tokenize(t, t->sample, t->sample_bytes, 0, &ids);
    if (n < 0)
        return CLI_FAILED;
    struct nb_lessons_header h = {.version = 1,
                                  .vocab = t->about.vocab,
                                  .length = t->length,
                                  .windows = t->windows,
                                  .kept = t->keep,
                                  .temperature = t->temperature,
                                  .sample_bytes = (uint32_t)t->sample_bytes,
                                  .sample_tokens = (uint32_t)n};
    memcpy(h.magic, NB_LESSONS_MAGIC, sizeof(h.magic));
    const struct {
        const void *data;
        size_t bytes;
    } parts[] = {{&h, sizeof(h)},
                 {t->sample, (t->sample_bytes + 3) / 4 * 4},
                 {ids, (size_t)n * sizeof(*ids)},
                 {windows, (size_t)t->windows * t->length * sizeof(*windows)}};
    size_t bytes = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        bytes += parts[i].bytes;
    uint8_t *front = cli_alloc(bytes, 1), *at = front;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); at += parts[i].bytes, i++)
        memcpy(at, parts[i].data, parts[i].bytes);
    free(ids);
    *ret = front;
    *ret_bytes = bytes;
    return CLI_OK;
}

static bool has(int fd, size_t at, const void *data, size_t bytes)
{
    uint8_t *there = cli_alloc(bytes, 1);
    const bool same =
        pread(fd, there, bytes, (off_t)at) == (ssize_t)bytes && memcmp(there, data, bytes) == 0;
    free(there);
    return same;
}

// Puts the front, or finds it there. ret_done: the whole windows behind it.
static int begin(struct teach *t, int fd, const uint8_t *front, size_t bytes, uint32_t *ret_done)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return cli_error("%s.part: %m", t->out);
    const bool here = (size_t)st.st_size >= bytes && has(fd, 0, front, bytes);
    size_t done = here ? ((size_t)st.st_size - bytes) / bytes_of_window(t) : 0;
    done = done < t->windows ? done : t->windows;
    if (st.st_size && !here && !t->force)
        return cli_error("%s.part is what was interrupted of other lessons: remove it, or begin "
                         "anew with --force",
                         t->out);
    const off_t end = here ? (off_t)(bytes + done * bytes_of_window(t)) : 0;
    if (ftruncate(fd, end) < 0 || lseek(fd, end, SEEK_SET) < 0)
        return cli_error("%s.part: %m", t->out);
    *ret_done = (uint32_t)done;
    return here ? CLI_OK : put(t, fd, front, bytes);
}

static int teach_window(struct teach *t, const int32_t *windows, uint32_t i)
{
    const int rc =
        nibble_logits(t->session, windows + (size_t)i * t->length, t->length, 0, take_row, t);
    return rc == NOT_FINITE ? cli_error("%s gives logits that are not finite", t->name)
           : rc != 0        ? cli_failed(t->connection, t->name, rc)
                            : CLI_OK;
}

// The same model at the same precision gives the same bytes: one window shows it.
static int check_teacher(struct teach *t, int fd, const int32_t *windows, size_t front,
                         uint32_t done)
{
    int status = teach_window(t, windows, done - 1);
    if (status != CLI_OK)
        return status;
    if (!has(fd, front + (done - 1) * bytes_of_window(t), t->rows, bytes_of_window(t)))
        return cli_error("%s.part was begun by another teacher than %s as it is loaded now: remove "
                         "it to begin anew",
                         t->out, t->name);
    fprintf(stderr, "%s.part has %u of %u windows already\n", t->out, done, t->windows);
    return CLI_OK;
}

static int put_rows(struct teach *t, int fd, const int32_t *windows, uint32_t done)
{
    int status = CLI_OK;
    for (uint32_t i = done; i < t->windows && status == CLI_OK; i++) {
        status = teach_window(t, windows, i);
        if (status == CLI_OK)
            status = put(t, fd, t->rows, bytes_of_window(t));
        cli_progress("teaching", i + 1, t->windows);
    }
    return status;
}

static int write_lessons(struct teach *t, const int32_t *windows)
{
    uint8_t *front = NULL;
    size_t bytes;
    uint32_t done = 0;
    int fd, status = cli_output_resume(t->out, t->force, &fd);
    if (status != CLI_OK)
        return status;
    t->rows = cli_alloc(bytes_of_window(t), 1);
    t->kept = cli_alloc(t->keep, sizeof(*t->kept));
    status = front_of(t, windows, &front, &bytes);
    if (status == CLI_OK)
        status = begin(t, fd, front, bytes, &done);
    if (status == CLI_OK && done)
        status = check_teacher(t, fd, windows, bytes, done);
    if (status == CLI_OK)
        status = put_rows(t, fd, windows, done);
    free(front);
    free(t->rows);
    free(t->kept);
    return cli_output_close(t->out, t->force, fd, status);
}

// --- All of it

static int check(const struct teach *t)
{
    int status = cli_generates(&t->about);
    if (status == CLI_OK && t->length > t->about.context)
        status =
            cli_usage_error("--length %u: the model's context is %u", t->length, t->about.context);
    if (status == CLI_OK && t->keep > t->about.vocab)
        status = cli_usage_error("--keep %u: the model has %u tokens", t->keep, t->about.vocab);
    return status;
}

static int report(const struct teach *t, double seconds)
{
    const size_t tokens = (size_t)t->windows * t->length;
    if (t->common.json)
        return cli_print_json(
            json_pack("{s:s, s:s, s:i, s:i, s:i, s:f, s:I, s:f}", "file", t->out, "model", t->name,
                      "windows", t->windows, "length", t->length, "kept", t->keep, "temperature",
                      (double)t->temperature, "tokens", (json_int_t)tokens, "seconds", seconds),
            JSON_INDENT(2));
    printf("%s: %u windows of %u tokens, the %u likeliest of each; %.0f tokens a second\n", t->out,
           t->windows, t->length, t->keep, (double)tokens / seconds);
    return CLI_OK;
}

// Room for rows of logits, and for the longest text with its tokens.
static uint64_t arena_bytes(const struct teach *t)
{
    uint64_t most = ARENA;
    for (size_t i = 0; i < t->texts.n; i++)
        most = cli_room(t->text_bytes[i]) > most ? cli_room(t->text_bytes[i]) : most;
    return most;
}

static int teach(struct teach *t)
{
    int32_t *windows = NULL;
    const double began = cli_now();
    int status = read_texts(t);
    if (status != CLI_OK)
        return status;
    if (!(t->connection = cli_connect(&t->common)) ||
        !(t->session =
              cli_session(t->connection, t->name, NULL, arena_bytes(t), NIBBLE_DRAFTS_OFF)))
        return CLI_FAILED;
    t->about = *nibble_session_model(t->session);
    status = check(t);
    if (status == CLI_OK)
        status = take_texts(t);
    if (status == CLI_OK)
        status = cut(t, &windows);
    if (status == CLI_OK)
        status = write_lessons(t, windows);
    free(windows);
    return status == CLI_OK ? report(t, cli_now() - began) : status;
}

int verb_teach(const struct verb *verb, int argc, char **argv)
{
    struct teach t = {.length = 256, .keep = 64, .temperature = 1};
    const struct option_spec specs[] = {
        {"text", 't', OPTION_LIST(OPTION_LIST_MAX), &t.texts, "F", "what it makes lessons of"},
        {"output", 'o', OPTION_STRING, &t.out, "F.lessons", "where they go"},
        {"length", 0, OPTION_UINT(NB_LESSONS_LEAST, NB_LESSONS_LENGTH), &t.length, "N",
         "tokens of a window (256)"},
        {"windows", 0, OPTION_UINT(1, NB_LESSONS_WINDOWS), &t.windows, "N",
         "so many at most (all of the text)"},
        {"keep", 0, OPTION_UINT(1, NB_LESSONS_KEPT), &t.keep, "K",
         "of each token's next ones so many, the likeliest (64)"},
        {"temperature", 0, OPTION_FLOAT(0.01, 100), &t.temperature, "T",
         "that students will be trained at (1)"},
        {"force", 'f', OPTION_FLAG, &t.force, NULL, "replace a file that is there"},
        {0},
    };
    char **args, name[CLI_NAME_SIZE];
    int n = cli_parse(verb, specs, &t.common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if (!t.texts.n || !t.out)
        return cli_usage_error("give a text (--text) and where the lessons go (-o)");
    int status = cli_name(args[0], name);
    t.name = name;
    if (status == CLI_OK)
        status = teach(&t);
    for (size_t i = 0; i < t.texts.n; i++)
        free(t.text[i]);
    free(t.tokens);
    nibble_session_close(t.session);
    nibble_close(t.connection);
    return status;
}
