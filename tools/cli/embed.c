// `nibble embed`: the vectors of texts, given as arguments or as the lines of a file.
#include <endian.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include "tools/cli/cli.h"

#define BLOCK     16384 // texts whose vectors are in memory at a time
#define TABLE_MAX 12    // texts that are compared with one another, for people
#define SHOWN     6     // numbers of a vector that people see
#define LABEL     32    // columns of a text beside the table

struct embed {
    struct common common;
    const char *file;
    bool raw;
    struct nibble_embed_options options;
    struct nibble_text *texts;
    size_t n, first; // of all, and of the block under way
    uint32_t dims;
    uint32_t *tokens; // of all
};

// --- output: begin, each block, end

static double dot(const float *a, const float *b, uint32_t dims)
{
    double sum = 0;
    for (uint32_t i = 0; i < dims; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static double cosine(const float *a, const float *b, uint32_t dims)
{
    return dot(a, b, dims) / sqrt(dot(a, a, dims) * dot(b, b, dims));
}

// The beginning of a text in a column of its own, without what could steer a terminal.
static void print_label(const struct nibble_text *t)
{
    mbstate_t state = {0};
    int columns = 0, width = 1;
    for (size_t i = 0, n; i < t->text_len; i += n, columns += width) {
        wchar_t wide;
        n = mbrtowc(&wide, t->text + i, t->text_len - i, &state);
        const bool sound = n && n <= t->text_len - i && wcwidth(wide) >= 0;
        width = sound ? wcwidth(wide) : 1;
        n = sound ? n : 1;
        if (columns + width > LABEL)
            break;
        fwrite(sound ? t->text + i : "?", n, 1, stdout);
        if (!sound)
            memset(&state, 0, sizeof(state));
    }
    printf("%*s", LABEL - columns, "");
}

static void print_cosines(const struct embed *e, const float *vectors)
{
    printf("%*s", LABEL + 4, "");
    for (size_t j = 0; j < e->n; j++)
        printf("%8zu", j + 1);
    putchar('\n');
    for (size_t i = 0; i < e->n; i++) {
        printf("%2zu  ", i + 1);
        print_label(&e->texts[i]);
        for (size_t j = 0; j < e->n; j++)
            printf("%8.4f", cosine(vectors + i * e->dims, vectors + j * e->dims, e->dims));
        putchar('\n');
    }
}

static void print_numbers(const struct embed *e, const float *vectors, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const float *x = vectors + i * e->dims;
        printf("%zu  %" PRIu32 " tokens, %" PRIu32 " numbers:", e->first + i + 1,
               e->tokens[e->first + i], e->dims);
        for (uint32_t j = 0; j < e->dims && j < SHOWN; j++)
            printf(" %.6g", (double)x[j]);
        printf("%s\n", e->dims > SHOWN ? " ..." : "");
    }
}

static void print_text(const struct embed *e, const float *vectors, size_t n)
{
    if (e->n > 1 && e->n <= TABLE_MAX)
        print_cosines(e, vectors);
    else
        print_numbers(e, vectors, n);
}

static void print_raw(const float *vectors, size_t numbers)
{
    for (size_t i = 0; i < numbers; i++) {
        uint32_t bits;
        memcpy(&bits, &vectors[i], sizeof(bits));
        bits = htole32(bits);
        fwrite(&bits, sizeof(bits), 1, stdout);
    }
}

static int print_json_rows(const struct embed *e, const float *vectors, size_t n)
{
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        json_t *row = json_array();
        for (uint32_t j = 0; j < e->dims; j++)
            json_array_append_new(row, json_real((double)vectors[i * e->dims + j]));
        fputs(e->first + i ? "," : "", stdout);
        rc = json_array_size(row) == e->dims
                 ? json_dumpf(row, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9))
                 : -1;
        json_decref(row);
    }
    return rc < 0 && !ferror(stdout) ? cli_error("cannot print JSON: out of memory") : CLI_OK;
}

static int print_block(const struct embed *e, const char *model, const float *vectors, size_t n)
{
    if (e->raw) {
        print_raw(vectors, n * e->dims);
    } else if (e->common.json) {
        json_t *name = json_string(model);
        if (!e->first) {
            fputs("{\"model\":", stdout);
            json_dumpf(name, stdout, JSON_ENCODE_ANY);
            printf(",\"n\":%zu,\"dims\":%" PRIu32 ",\"vectors\":[", e->n, e->dims);
        }
        json_decref(name);
        return print_json_rows(e, vectors, n);
    } else {
        print_text(e, vectors, n);
    }
    return CLI_OK;
}

static void print_end(const struct embed *e)
{
    if (!e->common.json)
        return;
    fputs("],\"tokens\":[", stdout);
    for (size_t i = 0; i < e->n; i++)
        printf("%s%" PRIu32, i ? "," : "", e->tokens[i]);
    puts("]}");
}

// --- input

// A text for each line of the file; what follows the last newline is one, unless it is empty.
static void take_lines(struct embed *e, const char *data, size_t len)
{
    size_t lines = len && data[len - 1] != '\n';
    for (size_t i = 0; i < len; i++)
        lines += data[i] == '\n';
    e->texts = cli_alloc(lines, sizeof(*e->texts));
    for (const char *at = data, *end = data + len; at < end; e->n++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((newline ? newline : end) - at);
        e->texts[e->n] = (struct nibble_text){.text = at, .text_len = n};
        n -= n && newline && at[n - 1] == '\r';
        e->texts[e->n].text_len = n;
        at = newline ? newline + 1 : end;
    }
}

static void take_arguments(struct embed *e, char **args, size_t n)
{
    e->texts = cli_alloc(n, sizeof(*e->texts));
    for (e->n = 0; e->n < n; e->n++)
        e->texts[e->n] = (struct nibble_text){.text = args[e->n], .text_len = strlen(args[e->n])};
}

// --- the work

static int on_progress(void *user, size_t done, size_t n)
{
    const struct embed *e = user;
    (void)n;
    if (e->file)
        cli_progress(e->file, e->first + done, e->n);
    return 0;
}

static int embed_blocks(struct embed *e, nibble *connection, nibble_session *session,
                        const char *model)
{
    const size_t most = e->n < BLOCK ? e->n : BLOCK;
    float *vectors = cli_alloc(most * e->dims, sizeof(*vectors));
    int status = CLI_OK;
    for (; e->first < e->n && status == CLI_OK; e->first += most) {
        const size_t n = e->n - e->first < most ? e->n - e->first : most;
        const struct nibble_place out = {.data = vectors};
        int rc =
            nibble_embed(session, e->texts + e->first, n, &e->options, &out, e->tokens + e->first);
        status = rc < 0 ? cli_failed(connection, model, rc) : print_block(e, model, vectors, n);
    }
    free(vectors);
    if (status == CLI_OK)
        print_end(e);
    return status;
}

static int embed(struct embed *e, const char *model)
{
    size_t longest = 0;
    for (size_t i = 0; i < e->n; i++)
        longest = e->texts[i].text_len > longest ? e->texts[i].text_len : longest;
    nibble *connection = cli_connect(&e->common);
    nibble_session *session =
        connection ? cli_session(connection, model, NULL, cli_room(longest), NIBBLE_DRAFTS_OFF)
                   : NULL;
    int status = CLI_FAILED;
    if (session) {
        e->dims = nibble_session_model(session)->embedding;
        e->tokens = cli_alloc(e->n, sizeof(*e->tokens));
        status = embed_blocks(e, connection, session, model);
        free(e->tokens);
    }
    nibble_session_close(session);
    nibble_close(connection);
    return status;
}

int verb_embed(const struct verb *verb, int argc, char **argv)
{
    struct embed e = {.options = {.size = sizeof(e.options), .progress = on_progress, .user = &e}};
    bool no_normalise = false, truncate = false;
    const struct option_spec specs[] = {
        {"file", 'f', OPTION_STRING, &e.file, "FILE", "a text a line (-: standard input)"},
        {"raw", 0, OPTION_FLAG, &e.raw, NULL,
         "the vectors alone, as fp32, little-endian, one after the other"},
        {"no-normalise", 0, OPTION_FLAG, &no_normalise, NULL,
         "vectors as the model gives them (default: of length 1)"},
        {"truncate", 0, OPTION_FLAG, &truncate, NULL,
         "cut texts that are longer than the model embeds at once"},
        {0},
    };
    char **args, name[CLI_NAME_SIZE], *data = NULL;
    int n = cli_parse(verb, specs, &e.common, argc, argv, 1, INT32_MAX, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if ((n > 1) == (e.file != NULL))
        return cli_usage_error("give the texts either as TEXT... or by --file");
    if (e.raw && e.common.json)
        return cli_usage_error("--raw and --json are two ways of output: choose one");
    e.options.no_normalise = no_normalise;
    e.options.truncate = truncate;
    int status = cli_name(args[0], name);
    size_t len = 0;
    if (status == CLI_OK && e.file && !(data = cli_read_file(e.file, &len)))
        status = CLI_FAILED;
    if (status != CLI_OK)
        return status;
    if (data)
        take_lines(&e, data, len);
    else
        take_arguments(&e, args + 1, (size_t)n - 1);
    status = e.n ? embed(&e, name) : cli_error("%s has no text", e.file);
    free(e.texts);
    free(data);
    return status;
}
