// gpu-check run: every part of the table within the minutes given, each in a process of its own,
// and the report anew after each, so that whatever ends the check leaves what was found.
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>
#include <gnu/libc-version.h>

#include "tests/gpu/gpu.h"
#include "tests/gpu/parts.h"
#include "tests/gpu/process.h"
#include "tests/gpu/report.h"

#define MINUTES  8.0 // that the table's seconds add up to
#define LEAST    3.0 // seconds that are worth beginning a part with
#define TIERS    8
#define WORDS    24
#define SHORTEST 10.0 // that a part may take, where the minutes have it: a driver's start
#define PATIENCE 2.0  // a part's time over the table's: a GPU may be slower than was thought
#define PATIENT  6.0  // and a CPU's driver is

struct check {
    char folder[PATH_MAX - 64], report[PATH_MAX - 64], models[PATH_MAX]; // room for a name
    char device[32];
    double minutes, until;
    bool is_cpu, has_device;
    const char *tier[TIERS]; // that the device meets, the best first
    uint32_t n_tiers;
    json_t *root, *parts;
};

static void on_signal(int signal)
{
    (void)signal;
    gpu_stopped = 1;
}

// --- A part's command

// The word with the names in braces filled in.
static void fill(const struct check *c, const char *word, const char *tier, double seconds,
                 char *to, size_t size)
{
    char number[16];
    const struct {
        const char *name, *value;
    } names[] = {
        {"{device}", c->device}, {"{tier}", tier}, {"{models}", c->models}, {"{seconds}", number}};
    size_t n = 0;
    snprintf(number, sizeof(number), "%.0f", seconds);
    while (*word && n + 1 < size) {
        size_t i = 0;
        while (i < 4 && strncmp(word, names[i].name, strlen(names[i].name)) != 0)
            i++;
        if (i == 4) {
            to[n++] = *word++;
            continue;
        }
        size_t more = (size_t)snprintf(to + n, size - n, "%s", names[i].value);
        n += more < size - n ? more : size - n - 1;
        word += strlen(names[i].name);
    }
    to[n] = '\0';
}

// A command line of the table, whose first word is a program of the folder's. The folder's name may
// have any character.
struct command {
    char word[WORDS][PATH_MAX];
    const char *argv[WORDS + 1];
    uint32_t n;
};

// Room for one more.
static char *add_word(struct command *to)
{
    if (to->n == WORDS)
        gpu_fail("a command of the table has more than %d words", WORDS);
    to->argv[to->n] = to->word[to->n];
    return to->word[to->n++];
}

static void split(const struct check *c, const struct gpu_part *p, const char *tier, double seconds,
                  struct command *ret)
{
    char text[512], *rest = NULL;
    snprintf(text, sizeof(text), "%s", c->is_cpu && p->brief ? p->brief : p->command);
    *ret = (struct command){.n = 0};
    if (p->validated)
        snprintf(add_word(ret), PATH_MAX, "%s/bin/validated", c->folder);
    const char *word = strtok_r(text, " ", &rest);
    snprintf(add_word(ret), PATH_MAX, "%s/bin/%s", c->folder, word);
    while ((word = strtok_r(NULL, " ", &rest)))
        fill(c, word, tier ? tier : "", seconds, add_word(ret), PATH_MAX);
}

// --- What became of it

static void end_of(const struct gpu_outcome *o, double limit, const char **ret_result,
                   char *ret_why, size_t size)
{
    const char *last = o->failed[0] ? o->failed : o->last;
    *ret_result = "failed";
    if (o->end == GPU_EXITED && o->status == 0)
        *ret_result = "passed";
    else if (o->end == GPU_EXITED && o->status == GPU_SKIP)
        *ret_result = "skipped";
    else if (o->end == GPU_STOPPED || o->end == GPU_TIMED_OUT)
        *ret_result = "unfinished";
    if (o->end == GPU_TIMED_OUT)
        snprintf(ret_why, size, "it did not end within %.0f s; at last: %.1500s", limit, last);
    else if (o->end == GPU_STOPPED)
        snprintf(ret_why, size, "the check was ended meanwhile");
    else if (o->end == GPU_KILLED)
        snprintf(ret_why, size, "it was killed by signal %d (%s); at last: %.1500s", o->status,
                 sigabbrev_np(o->status) ? sigabbrev_np(o->status) : "?", last);
    else
        snprintf(ret_why, size, "%.1500s", o->status ? last : "");
    size_t n = strlen(ret_why);
    if (n > 0 && ret_why[n - 1] == '\n')
        ret_why[n - 1] = '\0';
}

static void note(struct check *c, const struct gpu_part *p, const char *tier, const char *result,
                 const char *why, json_t *more)
{
    json_t *part = json_pack("{s:s, s:s*, s:s, s:s, s:s}", "part", p->name, "tier", tier, "tells",
                             p->tells, "result", result, "why", why);
    if (part && more)
        json_object_update(part, more);
    json_decref(more);
    gpu_check(part ? 0 : -ENOMEM, "the report");
    json_array_append_new(c->parts, part);
    json_object_set_new(c->root, "seconds", json_real(gpu_now() - (c->until - c->minutes * 60)));
    gpu_report_write(c->root, c->report);
    printf("%-26s %-14s %-10s %s\n", p->name, tier ? tier : "", result,
           strcmp(result, "passed") != 0 ? why : "");
    fflush(stdout);
}

// Why a part cannot be run at all, or NULL.
static const char *excuse(const struct check *c, const struct gpu_part *p, const char *tier)
{
    if (gpu_stopped)
        return "the check was ended before";
    if (c->until - gpu_now() < LEAST)
        return "no time was left: give run more minutes";
    if (!c->has_device && p != gpu_parts)
        return c->device[0] ? "this machine has no such device" : "there is no Vulkan device";
    if (c->is_cpu && p->brief && !p->brief[0])
        return "a CPU plays this device, and would take too long";
    if (c->is_cpu && tier && strcmp(tier, c->tier[0]) != 0)
        return "a CPU plays this device: one tier of it tries the folder";
    if (p->validated && tier && !strcmp(tier, "matrices"))
        return "the folder's layer is older than VK_KHR_cooperative_matrix";
    return NULL;
}

static void run_part(struct check *c, const struct gpu_part *p, const char *tier)
{
    const char *why_not = excuse(c, p, tier), *result;
    if (why_not) {
        note(c, p, tier, "skipped", why_not, NULL);
        return;
    }
    static struct command command;
    char log[PATH_MAX], why[2048];
    const double left = c->until - gpu_now(), share = p->seconds * c->minutes / MINUTES;
    double limit = share * (c->is_cpu ? PATIENT : PATIENCE);
    limit = limit > SHORTEST ? limit : SHORTEST;
    limit = limit < left ? limit : left;
    split(c, p, tier, share < left ? share : left, &command);
    snprintf(log, sizeof(log), "%s/logs/%s%s%s.log", c->report, p->name, tier ? "-" : "",
             tier ? tier : "");
    for (char *at = strchr(strrchr(log, '/'), ' '); at; at = strchr(at, ' '))
        *at = '-';
    struct gpu_outcome o;
    gpu_process(command.argv, limit, log, &o);
    end_of(&o, limit, &result, why, sizeof(why));
    const bool bad = strcmp(result, "passed") != 0 && strcmp(result, "skipped") != 0;
    note(c, p, tier, result, why,
         json_pack("{s:f, s:s, s:s*, s:o}", "seconds", o.seconds, "log", strrchr(log, '/') + 1,
                   "look_at",
                   bad ? gpu_look_at(p->name, tier, o.failed[0] ? o.failed : o.last) : NULL, "rows",
                   o.rows));
}

// --- The device

static const char *text_of(const json_t *row, const char *key)
{
    const char *s = json_string_value(json_object_get(row, key));
    return s ? s : "";
}

// A GPU before a CPU that plays one, unless one was named; then what it meets.
static void choose_device(struct check *c)
{
    json_t *rows = json_object_get(json_array_get(c->parts, 0), "rows"), *row, *chosen = NULL;
    size_t i;
    json_array_foreach(rows, i, row) {
        if (strcmp(text_of(row, "row"), "device") != 0)
            continue;
        const bool named = !strcmp(text_of(row, "device"), c->device);
        const bool better = !c->device[0] && !*text_of(row, "fault") &&
                            (!chosen || (json_is_true(json_object_get(chosen, "is_cpu")) &&
                                         json_is_false(json_object_get(row, "is_cpu"))));
        chosen = named || better ? row : chosen;
    }
    c->has_device = chosen != NULL;
    if (!chosen)
        return;
    snprintf(c->device, sizeof(c->device), "%s", text_of(chosen, "device"));
    c->is_cpu = json_is_true(json_object_get(chosen, "is_cpu"));
    json_object_set(c->root, "device", chosen);
    printf("%s: %s, %s\n", c->device, text_of(chosen, "name"), text_of(chosen, "driver"));
    json_array_foreach(rows, i, row)
        if (!strcmp(text_of(row, "row"), "tier") && !strcmp(text_of(row, "device"), c->device) &&
            json_is_true(json_object_get(row, "meets")) && c->n_tiers < TIERS) {
            memmove(c->tier + 1, c->tier, c->n_tiers * sizeof(c->tier[0]));
            c->tier[0] = text_of(row, "tier");
            c->n_tiers++;
        }
}

// For the tiers that are not met, each part that would need them says so once.
static void skip_tiers(struct check *c, const struct gpu_part *p)
{
    json_t *rows = json_object_get(json_array_get(c->parts, 0), "rows"), *row;
    size_t i;
    json_array_foreach(rows, i, row)
        if (!strcmp(text_of(row, "row"), "tier") && !strcmp(text_of(row, "device"), c->device) &&
            json_is_false(json_object_get(row, "meets")))
            note(c, p, text_of(row, "tier"), "skipped", text_of(row, "why"), NULL);
}

static void run_all(struct check *c)
{
    for (uint32_t i = 0; i < gpu_n_parts; i++) {
        const struct gpu_part *p = &gpu_parts[i];
        for (uint32_t t = 0; p->each_tier && t < c->n_tiers; t++)
            run_part(c, p, c->tier[t]);
        if (p->each_tier && c->has_device)
            skip_tiers(c, p);
        if (!p->each_tier || !c->has_device)
            run_part(c, p, NULL);
        if (i == 0)
            choose_device(c);
    }
}

// --- Before and after

static void make_folder(const struct check *c, const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", c->report, name);
    gpu_check(mkdir(path, 0755) < 0 && errno != EEXIST ? -errno : 0, path);
}

// What drivers compile stays in the report's folder, unless somebody names another, and the layer
// is the folder's own.
static void set_environment(const struct check *c)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/cache", c->report);
    setenv("MESA_SHADER_CACHE_DIR", path, 0);
    setenv("__GL_SHADER_DISK_CACHE_PATH", path, 0);
    snprintf(path, sizeof(path), "%s/layer", c->folder);
    setenv("VK_LAYER_PATH", path, 1);
}

static void describe(struct check *c)
{
    struct utsname u;
    char when[32] = "";
    time_t now = time(NULL);
    struct tm t;
    uname(&u);
    strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &t));
    c->parts = json_array();
    c->root = json_pack("{s:s, s:f, s:s, s:s, s:s, s:i, s:O}", "made", when, "minutes", c->minutes,
                        "kernel", u.release, "machine", u.machine, "glibc", gnu_get_libc_version(),
                        "cores", (int)sysconf(_SC_NPROCESSORS_ONLN), "parts", c->parts);
    gpu_check(c->root ? 0 : -ENOMEM, "the report");
}

static bool read_arguments(int argc, char **argv, struct check *c)
{
    static const struct option longs[] = {
        {"device", required_argument, NULL, 'd'}, {"report", required_argument, NULL, 'r'}, {0}};
    char self[PATH_MAX] = "", *end = NULL;
    gpu_check(readlink("/proc/self/exe", self, sizeof(self) - 1) < 0 ? -errno : 0,
              "/proc/self/exe");
    for (int i = 0; i < 2 && strrchr(self, '/'); i++) // bin, and the folder
        *strrchr(self, '/') = '\0';
    *c = (struct check){.minutes = MINUTES};
    snprintf(c->folder, sizeof(c->folder), "%.*s", (int)sizeof(c->folder) - 1, self);
    const char *report = c->folder;
    for (int o; (o = getopt_long(argc, argv, "", longs, NULL)) >= 0;)
        if (o == 'd')
            snprintf(c->device, sizeof(c->device), "vulkan%u", gpu_index(optarg));
        else if (o == 'r')
            report = optarg;
        else
            return false;
    if (optind < argc)
        c->minutes = strtod(argv[optind], &end);
    if (!realpath(report, self))
        gpu_fail("%s: %s", report, strerror(errno));
    snprintf(c->report, sizeof(c->report), "%.*s", (int)sizeof(c->report) - 1, self);
    snprintf(c->models, sizeof(c->models), "%s/models", c->report);
    return optind + 1 >= argc && (!end || !*end) && c->minutes > 0 && c->minutes <= 24 * 60;
}

int gpu_run(int argc, char **argv)
{
    struct check c;
    if (!read_arguments(argc, argv, &c)) {
        fprintf(stderr, "usage: run [MINUTES] [--device vulkanN] [--report DIR]\n");
        return 2;
    }
    c.until = gpu_now() + c.minutes * 60;
    const struct sigaction stop = {.sa_handler = on_signal};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGHUP, &stop, NULL);
    make_folder(&c, "logs");
    make_folder(&c, "models");
    make_folder(&c, "cache");
    set_environment(&c);
    describe(&c);
    run_all(&c);
    bool good = gpu_report_sum(c.root, stdout);
    printf("%s/report.md and report.json have it all\n", c.report);
    json_decref(c.parts);
    json_decref(c.root);
    return good && c.has_device && !gpu_stopped ? 0 : 1;
}
