// The verbs about jobs of the service: jobs, wait, result, pause, resume, cancel.
#include "tools/cli/jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/table.h"

#define JSON_MAX (256u << 20)
#define SOME     (UINT64_C(64) << 20)

// ---- Figures

static void write_progress(const struct nibble_jobs_row *row, char *ret, size_t size)
{
    if (row->total)
        snprintf(ret, size, "%.0f %%", 100.0 * (double)row->done / (double)row->total);
    else
        snprintf(ret, size, "-");
}

static void write_eta(const struct nibble_jobs_row *row, char *ret, size_t size)
{
    const double s = (double)row->eta_ms / 1000;
    if (row->eta_ms == UINT64_MAX || strcmp(row->state, "running") != 0)
        snprintf(ret, size, "-");
    else if (s < 100)
        snprintf(ret, size, "%.0f s", s);
    else if (s < 6000)
        snprintf(ret, size, "%.0f min", s / 60);
    else
        snprintf(ret, size, "%.1f h", s / 3600);
}

// ---- Waiting

struct line {
    const char *what;
    bool shown;
};

static int on_progress(void *user, const struct nibble_jobs_row *row)
{
    struct line *line = user;
    char progress[16], eta[32], curve[TABLE_CURVE];
    if (!isatty(STDERR_FILENO))
        return 0;
    write_progress(row, progress, sizeof(progress));
    write_eta(row, eta, sizeof(eta));
    table_curve(row->curve, curve);
    fprintf(stderr, "\r%.40s  %s  %s", line->what, row->state, progress);
    if (*eta != '-')
        fprintf(stderr, "  %s left", eta);
    fprintf(stderr, "%s%s  %.60s\033[K", *curve ? "  " : "", curve, row->text);
    fflush(stderr);
    line->shown = true;
    return 0;
}

int jobs_await(nibble *connection, uint64_t job, const char *what)
{
    struct line line = {.what = what};
    const struct nibble_jobs_wait_options options = {
        .size = sizeof(options), .progress = on_progress, .user = &line};
    int rc = nibble_jobs_wait(connection, job, &options);
    if (line.shown)
        fprintf(stderr, "\r\033[K");
    return rc;
}

int jobs_wait(nibble *connection, uint64_t job, const char *what)
{
    int rc = jobs_await(connection, job, what);
    if (rc >= 0)
        return CLI_OK;
    int status = cli_failed(connection, what, rc);
    if (rc == NIBBLE_E_CLOSED)
        fprintf(stderr,
                "job %" PRIu64 " goes on by itself when the daemon is back: `nibble wait %" PRIu64
                "`, then `nibble result %" PRIu64 " -o FILE`\n",
                job, job, job);
    return status;
}

// ---- Results

// The whole of a file to another, from its start: by the kernel where it can. -errno.
static int copy_bytes(int from, int to, uint64_t bytes)
{
    loff_t at = 0;
    static char some[1 << 16];
    while ((uint64_t)at < bytes) {
        const uint64_t left = bytes - (uint64_t)at;
        ssize_t n = copy_file_range(from, &at, to, NULL, left < SOME ? left : SOME, 0);
        if (n > 0)
            continue;
        if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
            return -errno;
        n = pread(from, some, left < sizeof(some) ? left : sizeof(some), at);
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        errno = 0; // of a write that ends short, which is where the space does
        if (write(to, some, (size_t)n) != n)
            return errno ? -errno : -ENOSPC;
        at += n;
    }
    return 0;
}

int jobs_copy(nibble *connection, uint64_t job, enum jobs_result which, const char *name, int to)
{
    struct nibble_jobs_result info;
    int from;
    int rc = nibble_jobs_result(connection, job, which, &from, &info);
    if (rc < 0)
        return cli_failed(connection, "result", rc);
    rc = copy_bytes(from, to, info.bytes);
    close(from);
    return rc < 0 ? cli_error("%s: %s", name, strerror(-rc)) : CLI_OK;
}

int jobs_save(nibble *connection, uint64_t job, enum jobs_result which, const char *out, bool force)
{
    int to;
    int status = cli_output_open(out, force, &to);
    if (status == CLI_OK)
        status = cli_output_close(out, force, to, jobs_copy(connection, job, which, out, to));
    return status;
}

json_t *jobs_json(nibble *connection, uint64_t job, enum jobs_result which)
{
    static const uint64_t most[] = {[JOBS_REPORT] = 16u << 20, [JOBS_TEXTS] = 256u << 20};
    struct nibble_jobs_result info;
    json_t *json = NULL;
    int fd;
    if (nibble_jobs_result(connection, job, which, &fd, &info) < 0)
        return NULL;
    if (info.bytes <= most[which]) {
        char *text = cli_alloc(info.bytes + 1, 1);
        if (pread(fd, text, info.bytes, 0) == (ssize_t)info.bytes)
            json = json_loadb(text, info.bytes, 0, NULL);
        free(text);
    }
    close(fd);
    return json;
}

struct tensor_line {
    char name[64], shape[32], type[64], bits[24];
    uint64_t bytes;
};

static const char *string_at(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static void write_tensor(const json_t *tensor, struct tensor_line *ret)
{
    const char *instead_of = string_at(tensor, "instead_of");
    snprintf(ret->name, sizeof(ret->name), "%s", string_at(tensor, "name"));
    snprintf(ret->shape, sizeof(ret->shape), "%lld x %lld",
             (long long)json_integer_value(json_object_get(tensor, "rows")),
             (long long)json_integer_value(json_object_get(tensor, "columns")));
    const char *scheme = string_at(tensor, "scheme");
    const double bits = json_number_value(json_object_get(tensor, "bits"));
    snprintf(ret->type, sizeof(ret->type),
             *instead_of ? "%s (for %s)"
             : *scheme   ? "%s, %s"
                         : "%s%s",
             string_at(tensor, "type"), *instead_of ? instead_of : scheme);
    snprintf(ret->bits, sizeof(ret->bits), *scheme ? "%.2f (%.2f)" : "%.2f", bits,
             json_number_value(json_object_get(tensor, "scheme_bits")));
    ret->bytes = (uint64_t)json_integer_value(json_object_get(tensor, "bytes"));
}

#define AT(member) offsetof(struct tensor_line, member)
static const struct column tensor_columns[] = {
    {"name", "TENSOR", COLUMN_TEXT, AT(name)},   {"shape", "SHAPE", COLUMN_TEXT, AT(shape)},
    {"type", "TYPE", COLUMN_TEXT, AT(type)},     {"bits", "BITS", COLUMN_TEXT, AT(bits)},
    {"bytes", "BYTES", COLUMN_BYTES, AT(bytes)}, {0},
};
#undef AT

static double number_at(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static void print_allocation(const json_t *report)
{
    const json_t *allocation = json_object_get(report, "allocation");
    if (allocation)
        printf("divergence on held-out text: %.4f +- %.4f (predicted %.4f, %.4f after %.0f "
               "measurements)\n",
               number_at(allocation, "measured"), number_at(allocation, "error"),
               number_at(allocation, "predicted"), number_at(allocation, "searched"),
               number_at(allocation, "measurements"));
}

static void print_tried(const json_t *report)
{
    const json_t *tried = json_object_get(report, "tried");
    for (size_t i = 0; i < json_array_size(tried); i++) {
        const json_t *t = json_array_get(tried, i);
        printf("tried %-6s  divergence on held-out text: %.4f", string_at(t, "method"),
               number_at(t, "divergence"));
        if (json_object_get(t, "gain") && json_is_true(json_object_get(t, "kept")))
            printf(", gains %.4f +- %.4f", number_at(t, "gain"), 2 * number_at(t, "error"));
        else if (json_object_get(t, "gain"))
            printf(", no gain: not kept");
        printf("\n");
    }
}

void jobs_warn(const json_t *report)
{
    const json_t *warnings = json_object_get(report, "warnings");
    for (size_t i = 0; i < json_array_size(warnings); i++)
        fprintf(stderr, "warning: %s\n", json_string_value(json_array_get(warnings, i)));
}

static int print_report(const char *out, const json_t *report)
{
    const json_t *tensors = json_object_get(report, "tensors");
    const size_t n = json_array_size(tensors);
    struct tensor_line *lines = cli_alloc(n ? n : 1, sizeof(*lines));
    for (size_t i = 0; i < n; i++)
        write_tensor(json_array_get(tensors, i), &lines[i]);
    int status = table_print("tensors", tensor_columns, lines, n, sizeof(*lines), false);
    free(lines);
    printf("wrote %s: %zu tensors, %s, %.2f bits a weight\n", out, n,
           cli_bytes((uint64_t)json_integer_value(json_object_get(report, "bytes"))),
           json_number_value(json_object_get(report, "bits")));
    print_allocation(report);
    print_tried(report);
    return status;
}

static void print_student(const char *out, const json_t *report)
{
    const json_t *held = json_object_get(report, "held_out"),
                 *layers = json_object_get(report, "layers");
    const json_t *before = json_object_get(held, "before"), *after = json_object_get(held, "after");
    const json_t *adapter = json_object_get(report, "adapter");
    char what[96];
    if (adapter)
        snprintf(what, sizeof(what),
                 "adapter of rank %.0f of %.0f matrices, %.2f %% of the weights",
                 number_at(adapter, "rank"), number_at(adapter, "matrices"),
                 100 * number_at(report, "weights") / number_at(adapter, "of"));
    else
        snprintf(what, sizeof(what), "%zu layers", json_array_size(layers));
    printf("wrote %s: %s, %.1f million weights, %s, %s\n", out, what,
           1e-6 * number_at(report, "weights"), string_at(report, "type"),
           cli_bytes((uint64_t)number_at(report, "bytes")));
    printf("%.0f steps on %.0f tokens, on %s; on held-out text:\n", number_at(report, "steps"),
           number_at(report, "tokens"), string_at(report, "device"));
    if (json_object_get(after, "loss"))
        printf("  loss                     %.4f -> %.4f (perplexity %.2f -> %.2f)\n",
               number_at(before, "loss"), number_at(after, "loss"), exp(number_at(before, "loss")),
               exp(number_at(after, "loss")));
    if (json_object_get(after, "divergence"))
        printf("  divergence from teacher  %.4f -> %.4f\n", number_at(before, "divergence"),
               number_at(after, "divergence"));
    if (json_object_get(after, "cosine"))
        printf("  cosine to teacher's      %.4f -> %.4f\n", 1 - number_at(before, "cosine"),
               1 - number_at(after, "cosine"));
    if (json_object_get(after, "relation"))
        printf("  cosines among texts off  %.4f -> %.4f\n", sqrt(number_at(before, "relation")),
               sqrt(number_at(after, "relation")));
}

int jobs_read_recipe(const char *path, json_t **ret)
{
    json_error_t e = {.text = ""};
    size_t len = 0;
    char *text = path ? cli_read_file(path, &len) : NULL;
    if (path && !text)
        return CLI_FAILED;
    json_t *recipe = text ? json_loadb(text, len, JSON_REJECT_DUPLICATES, &e) : json_object();
    free(text);
    if (json_is_object(recipe)) {
        *ret = recipe;
        return CLI_OK;
    }
    json_decref(recipe);
    return cli_error("%s: it is no JSON object%s%s", path, *e.text ? ": " : "", e.text);
}

bool jobs_learns(const json_t *recipe)
{
    const json_t *sparse = json_object_get(recipe, "sparse");
    const json_t *activations = json_object_get(recipe, "activations");
    const char *by = json_string_value(json_object_get(sparse, "by"));
    const char *scheme = json_string_value(json_object_get(activations, "scheme"));
    return json_object_get(recipe, "method") || json_object_get(recipe, "fold") ||
           json_object_get(recipe, "target") || (by && strcmp(by, "magnitude") != 0) ||
           (scheme && !strcmp(scheme, "static"));
}

bool jobs_has_place(const char *verb, const char *out, bool detach)
{
    if (detach && out)
        cli_usage_error("--detach writes no file: `nibble result ID -o %s` does, later", out);
    else if (!detach && !out)
        cli_usage_error("%s needs -o F.gguf, the file to write, or --detach", verb);
    return detach ? !out : out != NULL;
}

int jobs_started(uint64_t job, bool json)
{
    if (json)
        return cli_print_json(json_pack("{s:I}", "id", (json_int_t)job), 0);
    printf("job %" PRIu64 " is started: `nibble wait %" PRIu64 "`, then `nibble result %" PRIu64
           " -o F.gguf`\n",
           job, job, job);
    return CLI_OK;
}

int jobs_deliver(nibble *connection, uint64_t job, const char *out, bool force, bool json)
{
    int status = jobs_fetch(connection, job, out, force, false, json);
    if (status != CLI_OK)
        fprintf(stderr, "the daemon has the result still: `nibble result %" PRIu64 " -o FILE`\n",
                job);
    return status;
}

int jobs_fetch(nibble *connection, uint64_t job, const char *out, bool force, bool keep, bool json)
{
    int status = jobs_is_folder(connection, job)
                     ? jobs_save_folder(connection, job, out)
                     : jobs_save(connection, job, JOBS_MODEL, out, force);
    if (status != CLI_OK)
        return status;
    json_t *report = jobs_json(connection, job, JOBS_REPORT);
    if (!report)
        status = cli_error("job %" PRIu64 " has no report that can be read", job);
    if (status == CLI_OK && json) {
        json_object_set_new(report, "file", json_string(out));
        status = cli_print_json(json_incref(report), JSON_INDENT(1) | JSON_REAL_PRECISION(5));
    } else if (status == CLI_OK) {
        jobs_warn(report);
        if (json_object_get(report, "layers"))
            print_student(out, report);
        else
            status = print_report(out, report);
    }
    json_decref(report);
    if (!keep)
        (void)nibble_jobs_control(connection, job, NIBBLE_JOBS_CANCEL);
    return status;
}

// ---- The verbs

static int parse_id(const char *text, uint64_t *ret)
{
    char *end;
    errno = 0;
    *ret = strtoull(text, &end, 10);
    if (errno || *end || end == text || *text == '-' || !*ret)
        return cli_usage_error("'%s' is no job's number; `nibble jobs` lists them", text);
    return CLI_OK;
}

static nibble *connect_as(const struct common *common, bool admin)
{
    return admin ? cli_connect_admin(common) : cli_connect(common);
}

struct job_line {
    struct nibble_jobs_row row;
    char progress[16], eta[32];
};

#define AT(member) offsetof(struct job_line, member)
static const struct column job_columns[] = {
    {"id", "ID", COLUMN_U64, AT(row.id)},
    {"kind", "KIND", COLUMN_TEXT, AT(row.kind)},
    {"name", "NAME", COLUMN_TEXT, AT(row.name)},
    {"uid", "UID", COLUMN_U32, AT(row.uid)},
    {"state", "STATE", COLUMN_TEXT, AT(row.state)},
    {"progress", "DONE", COLUMN_TEXT, AT(progress)},
    {"eta", "LEFT", COLUMN_TEXT, AT(eta)},
    {"disk_bytes", "DISK", COLUMN_BYTES, AT(row.disk_bytes)},
    {"curve", "CURVE", COLUMN_CURVE, AT(row.curve)},
    {"text", "AT", COLUMN_TEXT, AT(row.text)},
    {"done", NULL, COLUMN_U64, AT(row.done)},
    {"total", NULL, COLUMN_U64, AT(row.total)},
    {"started_s", NULL, COLUMN_U64, AT(row.started_s)},
    {"results", NULL, COLUMN_U32, AT(row.n_results)},
    {"restarts", NULL, COLUMN_U32, AT(row.restarts)},
    {0},
};
#undef AT

static int print_jobs(nibble *connection, bool json)
{
    size_t n = 0;
    struct nibble_jobs_row *rows = cli_jobs(connection, &n);
    if (!rows)
        return CLI_FAILED;
    struct job_line *lines = cli_alloc(n ? n : 1, sizeof(*lines));
    for (size_t i = 0; i < n; i++) {
        lines[i].row = rows[i];
        write_progress(&rows[i], lines[i].progress, sizeof(lines[i].progress));
        write_eta(&rows[i], lines[i].eta, sizeof(lines[i].eta));
    }
    int status = table_print("jobs", job_columns, lines, n, sizeof(*lines), json);
    free(lines);
    free(rows);
    return status;
}

#define ADMIN_HELP "over the admin socket: the jobs of all users"

// Until it is interrupted.
static int watch_jobs(nibble *connection)
{
    int status = CLI_OK;
    while (status == CLI_OK) {
        printf("\033[H\033[J");
        status = print_jobs(connection, false);
        fflush(stdout);
        sleep(1);
    }
    return status;
}

int verb_jobs(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    bool admin = false, watch = false;
    const struct option_spec specs[] = {
        {"admin", 0, OPTION_FLAG, &admin, NULL, ADMIN_HELP},
        {"watch", 'w', OPTION_FLAG, &watch, NULL, "on a terminal: again every second"},
        {0}};
    char **args;
    int n = cli_parse(verb, specs, &common, argc, argv, 0, 0, &args);
    if (n >= 0 && watch && (common.json || !isatty(STDOUT_FILENO)))
        return cli_usage_error("--watch is for a terminal, and without --json");
    nibble *connection = n < 0 ? NULL : connect_as(&common, admin);
    if (!connection)
        return n < 0 ? CLI_EXIT(n) : CLI_FAILED;
    int status = watch ? watch_jobs(connection) : print_jobs(connection, common.json);
    nibble_close(connection);
    return status;
}

// What a verb with one job's number was given.
struct one {
    struct common common;
    bool admin;
    uint64_t id;
    nibble *connection;
};

static int begin(const struct verb *verb, int argc, char **argv, struct one *ret)
{
    const struct option_spec specs[] = {{"admin", 0, OPTION_FLAG, &ret->admin, NULL, ADMIN_HELP},
                                        {0}};
    char **args;
    int n = cli_parse(verb, specs, &ret->common, argc, argv, 1, 1, &args);
    int status = n < 0 ? CLI_EXIT(n) : parse_id(args[0], &ret->id);
    if (n < 0 || status != CLI_OK)
        return n < 0 ? n : -1 - status;
    ret->connection = connect_as(&ret->common, ret->admin);
    return ret->connection ? 0 : -1 - CLI_FAILED;
}

static int print_done(const struct one *one, const char *done)
{
    if (one->common.json)
        return cli_print_json(json_pack("{s:I, s:s}", "id", (json_int_t)one->id, "is", done), 0);
    printf("job %" PRIu64 " is %s\n", one->id, done);
    return CLI_OK;
}

static int control(const struct verb *verb, int argc, char **argv, enum nibble_jobs_what what,
                   const char *done)
{
    struct one one = {0};
    int n = begin(verb, argc, argv, &one);
    if (n < 0)
        return CLI_EXIT(n);
    int rc = nibble_jobs_control(one.connection, one.id, what);
    int status = rc < 0 ? cli_failed(one.connection, verb->name, rc) : print_done(&one, done);
    nibble_close(one.connection);
    return status;
}

int verb_cancel(const struct verb *verb, int argc, char **argv)
{
    return control(verb, argc, argv, NIBBLE_JOBS_CANCEL, "cancelled");
}

int verb_pause(const struct verb *verb, int argc, char **argv)
{
    return control(verb, argc, argv, NIBBLE_JOBS_PAUSE, "paused");
}

int verb_resume(const struct verb *verb, int argc, char **argv)
{
    return control(verb, argc, argv, NIBBLE_JOBS_RESUME, "resumed");
}

int verb_wait(const struct verb *verb, int argc, char **argv)
{
    struct one one = {0};
    char what[32];
    int n = begin(verb, argc, argv, &one);
    if (n < 0)
        return CLI_EXIT(n);
    snprintf(what, sizeof(what), "job %" PRIu64, one.id);
    int status = jobs_wait(one.connection, one.id, what);
    if (status == CLI_OK)
        status = print_done(&one, "finished");
    nibble_close(one.connection);
    return status;
}

int verb_result(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    const char *out = NULL;
    bool force = false, keep = false, admin = false;
    const struct option_spec specs[] = {
        {"output", 'o', OPTION_STRING, &out, "F.gguf", "the file to write (required)"},
        {"force", 'f', OPTION_FLAG, &force, NULL, "replace a file that is there"},
        {"keep", 0, OPTION_FLAG, &keep, NULL, "leave the result with the daemon, too"},
        {"admin", 0, OPTION_FLAG, &admin, NULL, ADMIN_HELP},
        {0},
    };
    char **args;
    uint64_t id;
    int n = cli_parse(verb, specs, &common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if (parse_id(args[0], &id) != CLI_OK)
        return CLI_USAGE;
    if (!out)
        return cli_usage_error("result needs -o F.gguf, the file to write");
    nibble *connection = connect_as(&common, admin);
    if (!connection)
        return CLI_FAILED;
    int status = jobs_fetch(connection, id, out, force, keep, common.json);
    nibble_close(connection);
    return status;
}
