// Errors, connections, files and figures, as every verb needs them.
#include "tools/cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define READ_MAX (64u << 20) // bytes of a text; no context takes more

// Names and files' bytes come from outside: what they hold must not steer a terminal.
static void clean(char *text)
{
    for (unsigned char *at = (unsigned char *)text; *at; at++) {
        bool is_c1 = at[0] == 0xc2 && at[1] >= 0x80 && at[1] < 0xa0; // U+0080 to U+009F
        if (is_c1)
            at[0] = '?', at[1] = '?';
        else if (*at < 0x20 || *at == 0x7f)
            *at = '?';
    }
}

static void print_error(const char *format, va_list args)
{
    char *text = NULL;
    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    else
        clean(text);
    fprintf(stderr, "error: %s\n", text ? text : "out of memory");
    free(text);
}

int cli_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_error(format, args);
    va_end(args);
    return CLI_FAILED;
}

int cli_usage_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_error(format, args);
    va_end(args);
    return CLI_USAGE;
}

int cli_stayed(const nibble_session *session, const char *device)
{
    const struct nibble_model *m = nibble_session_model(session);
    if (!strcmp(m->device, device))
        return CLI_OK;
    return cli_error("%s has moved from %s to %s meanwhile, and figures of two devices are none: "
                     "`nibble devices` says why",
                     m->name, device, m->device);
}

const char *cli_template_lack(const struct nibble_model *model, char ret[CLI_LACK_SIZE])
{
    static const char broken[] = "chat template: ";
    const char *reason = model->template_reason;
    if (!strncmp(reason, broken, strlen(broken)))
        snprintf(ret, CLI_LACK_SIZE, "has a chat template that cannot be used (%s)",
                 reason + strlen(broken));
    else
        snprintf(ret, CLI_LACK_SIZE, "has no chat template%s%s", *reason ? ", because " : "",
                 reason);
    return ret;
}

int cli_generates(const struct nibble_model *model)
{
    if (!model->embeds_only)
        return CLI_OK;
    return cli_error("%s gives vectors of texts and generates none: `nibble embed %s TEXT...`",
                     model->name, model->name);
}

int cli_failed(nibble *connection, const char *what, int code)
{
    const char *sentence = connection ? nibble_error(connection) : "";
    return cli_error("%s: %s", what, *sentence ? sentence : nibble_strerror(code));
}

void *cli_alloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    if (!p)
        exit(cli_error("out of memory"));
    return p;
}

static nibble *connect_by(int (*connect)(const char *, nibble **), const struct common *common)
{
    nibble *connection = NULL;
    if (connect(common->socket, &connection) == 0)
        return connection;
    cli_error("%s", nibble_error(NULL));
    return NULL;
}

nibble *cli_connect(const struct common *common)
{
    return connect_by(nibble_connect, common);
}

nibble *cli_connect_admin(const struct common *common)
{
    return connect_by(nibble_connect_admin, common);
}

nibble_session *cli_session(nibble *connection, const char *model, const char *adapter,
                            uint64_t arena_bytes, enum nibble_drafts drafts)
{
    nibble_session *session = NULL;
    struct nibble_session_options options = {
        .size = sizeof(options), .arena_bytes = arena_bytes, .drafts = drafts, .adapter = adapter};
    int rc = nibble_session_open(connection, model, &options, &session);
    if (rc < 0)
        cli_failed(connection, model, rc);
    return session;
}

int cli_tokenize(nibble *connection, nibble_session *session, const char *what, const char *text,
                 size_t len, unsigned flags, int32_t **ret_ids)
{
    // Bytes that are no UTF-8 have up to three tokens each.
    size_t room = 0, wanted = len + 16;
    int32_t *ids = NULL;
    int n = 0;
    while (n >= 0 && wanted > room) {
        free(ids);
        room = wanted;
        ids = cli_alloc(room, sizeof(*ids));
        n = nibble_tokenize(session, text, len, flags, ids, room);
        wanted = n > 0 ? (size_t)n : 0;
    }
    if (n < 0) {
        free(ids);
        cli_failed(connection, what, n);
        return n;
    }
    *ret_ids = ids;
    return n;
}

uint64_t cli_room(uint64_t text_bytes)
{
    return text_bytes > (1 << 19) ? 8 * text_bytes : 0;
}

// A listing's functions differ in nothing but the row.
#define DEFINE_LIST(function, row, call)                                                           \
    struct row *function(nibble *connection, size_t *ret_n)                                        \
    {                                                                                              \
        size_t max = 64;                                                                           \
        for (struct row *rows = NULL;; max *= 2) {                                                 \
            struct row *grown = realloc(rows, max * sizeof(*rows));                                \
            int rc = grown ? call(connection, grown, max) : -ENOMEM;                               \
            if (rc < 0) {                                                                          \
                free(grown ? grown : rows);                                                        \
                cli_failed(connection, "listing", rc);                                             \
                return NULL;                                                                       \
            }                                                                                      \
            rows = grown;                                                                          \
            if ((size_t)rc <= max) {                                                               \
                *ret_n = (size_t)rc;                                                               \
                return rows;                                                                       \
            }                                                                                      \
        }                                                                                          \
    }
DEFINE_LIST(cli_models, nibble_model, nibble_models)
DEFINE_LIST(cli_devices, nibble_device, nibble_devices)
DEFINE_LIST(cli_holders, nibble_holder, nibble_holders)
DEFINE_LIST(cli_findings, nibble_finding, nibble_findings)
DEFINE_LIST(cli_jobs, nibble_jobs_row, nibble_jobs)

// The next bytes of a file or a stream, whichever way it was opened: 0 at its end.
static ssize_t read_some(int fd, char *to, size_t size)
{
    for (;;) {
        ssize_t n = read(fd, to, size);
        if (n >= 0)
            return n;
        if (errno == EAGAIN)
            poll(&(struct pollfd){fd, POLLIN, 0}, 1, -1);
        else if (errno != EINTR)
            return -errno;
    }
}

static int read_all(int fd, char **ret_data, size_t *ret_len)
{
    size_t len = 0, room = 1 << 16;
    char *data = cli_alloc(room, 1);
    ssize_t n;
    while ((n = read_some(fd, data + len, room - len - 1)) > 0 && len < READ_MAX) {
        len += (size_t)n;
        if (len + 1 < room)
            continue;
        char *grown = cli_alloc(room *= 2, 1);
        memcpy(grown, data, len);
        free(data);
        data = grown;
    }
    if (n != 0) {
        free(data);
        return n < 0 ? (int)n : -EFBIG;
    }
    data[len] = '\0';
    *ret_data = data;
    *ret_len = len;
    return 0;
}

char *cli_read_file(const char *path, size_t *ret_len)
{
    char *data = NULL;
    int fd = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    int rc = fd < 0 ? -errno : read_all(fd, &data, ret_len);
    if (fd > STDIN_FILENO)
        close(fd);
    const char *name = fd == STDIN_FILENO ? "standard input" : path;
    if (rc == -EFBIG)
        cli_error("%s has more than %u MiB, the most that a text may have", name, READ_MAX >> 20);
    else if (rc < 0)
        cli_error("%s: %s", name, strerror(-rc));
    return data;
}

int cli_print_json(json_t *value, size_t flags)
{
    int rc = value ? json_dumpf(value, stdout, flags) : -1;
    json_decref(value);
    putchar('\n');
    // Of a stream that takes no more, cli_streams_close tells.
    return rc < 0 && !ferror(stdout) ? cli_error("cannot print JSON: out of memory") : CLI_OK;
}

const char *cli_bytes(uint64_t bytes)
{
    static char ring[8][24];
    static unsigned next;
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    char *out = ring[next++ % 8];
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 999.95 && unit < 4) {
        value /= 1000;
        unit++;
    }
    snprintf(out, sizeof(ring[0]), unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return out;
}

double cli_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int cli_compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double cli_median(double *values, size_t n)
{
    qsort(values, n, sizeof(*values), cli_compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

void cli_progress(const char *what, uint64_t done, uint64_t total)
{
    if (!isatty(STDERR_FILENO) || !total)
        return;
    fprintf(stderr, "\r%s  %3.0f %%%s", what, 100.0 * (double)done / (double)total,
            done >= total ? "\n" : "");
    fflush(stderr);
}
