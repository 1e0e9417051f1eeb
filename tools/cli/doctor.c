// `nibble doctor`: what a user or administrator would look at first when something does not work.
// What the caller's own eyes tell is little (kernel, socket); the rest is what the daemon sees.
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "tools/cli/cli.h"

enum verdict { GOOD, NOTE, BAD };
static const char *const verdicts[] = {"ok", "note", "problem"};

struct report {
    struct common common;
    json_t *checks;
    int problems;
};

static enum verdict verdict_of(const char *name)
{
    enum verdict v = GOOD;
    while (v < BAD && strcmp(verdicts[v], name) != 0)
        v++;
    return v;
}

static void add(struct report *r, enum verdict verdict, const char *what, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void add(struct report *r, enum verdict verdict, const char *what, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    r->problems += verdict == BAD;
    json_array_append_new(r->checks, json_pack("{s:s, s:s, s:s}", "check", what, "verdict",
                                               verdicts[verdict], "text", text));
    if (!r->common.json)
        printf("%-8s %-12s %s\n", verdicts[verdict], what, text);
}

static void check_kernel(struct report *r)
{
    struct utsname u;
    int fd = memfd_create("nibble-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    uname(&u);
    if (fd < 0 || ftruncate(fd, 4096) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        add(r, BAD, "kernel",
            "%s %s cannot seal a memfd (%s): Nibble shares weights by sealed memory", u.sysname,
            u.release, strerror(errno));
    else
        add(r, GOOD, "kernel", "%s %s, sealed shared memory works", u.sysname, u.release);
    if (fd >= 0)
        close(fd);
}

// The bracketed word of a sysfs choice, as in "always [madvise] never".
static void check_huge_pages(struct report *r)
{
    const char *path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    char text[128] = "", *open_bracket, *close_bracket;
    FILE *f = fopen(path, "re");
    if (f && !fgets(text, sizeof(text), f))
        text[0] = '\0';
    if (f)
        fclose(f);
    open_bracket = strchr(text, '[');
    close_bracket = open_bracket ? strchr(open_bracket, ']') : NULL;
    if (!close_bracket) {
        add(r, NOTE, "huge pages", "%s cannot be read", path);
        return;
    }
    *close_bracket = '\0';
    bool on = strcmp(open_bracket + 1, "never") && strcmp(open_bracket + 1, "deny");
    add(r, on ? GOOD : NOTE, "huge pages", "for shared memory: %s%s", open_bracket + 1,
        on ? "" : "; `echo advise` into shmem_enabled lets the weights use them");
}

// Of this command and what the same shell starts; the service has its own.
static void check_limits(struct report *r)
{
    static const struct {
        int resource;
        const char *what, *option, *unit;
        uint64_t scale, least;
        const char *why;
    } limits[] = {
        {RLIMIT_NOFILE, "open files", "-n", "", 1, 32,
         "a command has about ten, and one for each channel"},
        {RLIMIT_FSIZE, "file size", "-f", " KiB", 1024, 8 << 20,
         "memory that is shared with the daemon is a file too, and so is what is printed into one"},
        {RLIMIT_AS, "addresses", "-v", " KiB", 1024, 512 << 20,
         "a channel's memory and what a model holds are mapped"},
        {RLIMIT_DATA, "data", "-d", " KiB", 1024, 64 << 20, "a command keeps its texts there"},
        {RLIMIT_MEMLOCK, "locked memory", "-l", " KiB", 1024, 0, ""}, // Nibble locks none
    };
    char all[200] = "";
    int low = 0;
    for (size_t i = 0; i < sizeof(limits) / sizeof(*limits); i++) {
        struct rlimit have = {RLIM_INFINITY, RLIM_INFINITY};
        char text[40] = "unlimited";
        size_t used = strlen(all);
        getrlimit((__rlimit_resource_t)limits[i].resource, &have);
        if (have.rlim_cur != RLIM_INFINITY)
            snprintf(text, sizeof(text), "%llu%s",
                     (unsigned long long)(have.rlim_cur / limits[i].scale), limits[i].unit);
        snprintf(all + used, sizeof(all) - used, "%s%s %s", used ? ", " : "", limits[i].what, text);
        if (have.rlim_cur >= limits[i].least)
            continue;
        add(r, NOTE, "shell", "%s: %s, few (ulimit %s): %s", limits[i].what, text, limits[i].option,
            limits[i].why);
        low++;
    }
    if (!low)
        add(r, GOOD, "shell", "limits: %s", all);
}

static void check_socket(struct report *r, const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0) {
        add(r, BAD, "socket",
            "%s: %s; start the daemon: `systemctl start nibble.socket`, or run `nibbled`", path,
            strerror(errno));
        return;
    }
    if (access(path, R_OK | W_OK) == 0) {
        add(r, GOOD, "socket", "%s", path);
        return;
    }
    struct group *g = getgrgid(st.st_gid);
    add(r, BAD, "socket",
        "%s may not be used by you; join its group: `adduser $USER %s`, then log in again", path,
        g ? g->gr_name : "nibble");
}

static void check_models(struct report *r, nibble *connection)
{
    size_t n = 0;
    struct nibble_model *models = cli_models(connection, &n);
    if (models && !n)
        add(r, NOTE, "models", "none loaded; `nibble load FILE.gguf`");
    for (size_t i = 0; models && i < n; i++)
        add(r, strcmp(models[i].state, "ready") ? BAD : GOOD, "model",
            "%s: %s on %s, %s, KV %s, %u worker restarts", models[i].name, models[i].state,
            models[i].device, models[i].precision, models[i].kv_type, models[i].worker_restarts);
    free(models);
}

// What an administrator may have wanted so is a note; a device that was given up is a problem.
static void check_devices(struct report *r, nibble *connection)
{
    size_t n = 0;
    struct nibble_device *devices = cli_devices(connection, &n);
    for (size_t i = 0; devices && i < n; i++) {
        const struct nibble_device *d = &devices[i];
        enum verdict verdict = !strcmp(d->state, "ready")  ? GOOD
                               : !strcmp(d->state, "lost") ? BAD
                                                           : NOTE;
        add(r, verdict, "device", "%s: %s, %s%s%s, %s%s%s", d->name, d->description, d->kind,
            *d->isa ? ", " : "", d->isa, d->state, *d->reason ? ": " : "", d->reason);
    }
    free(devices);
}

// What the daemon sees of the machine, which need not be what its caller sees.
static void show_findings(struct report *r, nibble *connection)
{
    size_t n = 0;
    struct nibble_finding *findings = cli_findings(connection, &n);
    for (size_t i = 0; findings && i < n; i++)
        add(r, verdict_of(findings[i].verdict), findings[i].check, "%s", findings[i].text);
    free(findings);
}

static void check_daemon(struct report *r, const char *path)
{
    nibble *connection = NULL;
    struct nibble_status status = {0};
    int error = nibble_connect(path, &connection);
    if (error == 0)
        error = nibble_get_status(connection, &status);
    if (error < 0) {
        add(r, BAD, "daemon", "does not answer, so devices cannot be looked at: %s",
            nibble_strerror(error));
        nibble_close(connection);
        return;
    }
    add(r, GOOD, "daemon", "version %s, numerics %s, %u clients, %u worker restarts",
        status.version, status.numerics, status.clients, status.worker_restarts);
    show_findings(r, connection);
    check_devices(r, connection);
    check_models(r, connection);
    nibble_close(connection);
}

int verb_doctor(const struct verb *verb, int argc, char **argv)
{
    struct report r = {0};
    const struct option_spec none[] = {{0}};
    char **args;
    int n = cli_parse(verb, none, &r.common, argc, argv, 0, 0, &args);
    if (n < 0)
        return CLI_EXIT(n);
    const char *path = r.common.socket ? r.common.socket : getenv("NIBBLE_SOCKET");
    path = path ? path : "/run/nibble/nibble.sock";
    r.checks = json_array();
    check_kernel(&r);
    check_huge_pages(&r);
    check_limits(&r);
    check_socket(&r, path);
    check_daemon(&r, path);
    int status = CLI_OK;
    if (r.common.json)
        status = cli_print_json(json_pack("{s:O, s:i}", "checks", r.checks, "problems", r.problems),
                                JSON_INDENT(2));
    json_decref(r.checks);
    return r.problems ? CLI_FAILED : status;
}
