// Errors, connections, files and figures, as every verb needs them.
#include "tools/cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void print_error(const char *format, va_list args)
{
    fputs("error: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
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

nibble_session *cli_session(nibble *connection, const char *model, uint64_t arena_bytes)
{
    nibble_session *session = NULL;
    struct nibble_session_options options = {.arena_bytes = arena_bytes};
    int r = nibble_session_open(connection, model, &options, &session);
    if (r < 0)
        cli_failed(connection, model, r);
    return session;
}

// A listing's three functions differ in nothing but the row.
#define DEFINE_LIST(function, row, call)                                                           \
    struct row *function(nibble *connection, size_t *ret_n)                                        \
    {                                                                                              \
        size_t max = 64;                                                                           \
        for (struct row *rows = NULL;; max *= 2) {                                                 \
            struct row *grown = realloc(rows, max * sizeof *rows);                                 \
            int r = grown ? call(connection, grown, max) : -ENOMEM;                                \
            if (r < 0) {                                                                           \
                free(grown ? grown : rows);                                                        \
                cli_failed(connection, "listing", r);                                              \
                return NULL;                                                                       \
            }                                                                                      \
            rows = grown;                                                                          \
            if ((size_t)r <= max) {                                                                \
                *ret_n = (size_t)r;                                                                \
                return rows;                                                                       \
            }                                                                                      \
        }                                                                                          \
    }
DEFINE_LIST(cli_models, nibble_model, nibble_models)
DEFINE_LIST(cli_devices, nibble_device, nibble_devices)
DEFINE_LIST(cli_holders, nibble_holder, nibble_holders)

static int read_all(int fd, char **ret_data, size_t *ret_len)
{
    size_t len = 0, room = 1 << 16;
    char *data = malloc(room);
    for (;;) {
        if (data && len + 1 == room) {
            char *grown = realloc(data, room *= 2);
            if (!grown)
                free(data);
            data = grown;
        }
        if (!data)
            return -ENOMEM;
        ssize_t n = read(fd, data + len, room - len - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int error = n < 0 ? -errno : 0;
            data[len] = '\0';
            *ret_data = data;
            *ret_len = len;
            return error;
        }
        len += (size_t)n;
    }
}

char *cli_read_file(const char *path, size_t *ret_len)
{
    char *data = NULL;
    int fd = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    int r = fd < 0 ? -errno : read_all(fd, &data, ret_len);
    if (fd > STDIN_FILENO)
        close(fd);
    if (r == 0)
        return data;
    cli_error("%s: %s", path, strerror(-r));
    free(data);
    return NULL;
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
    snprintf(out, sizeof ring[0], unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
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
    qsort(values, n, sizeof *values, cli_compare_doubles);
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
