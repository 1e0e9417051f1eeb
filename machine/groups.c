// Finds control groups as mountinfo and /proc/self/cgroup name them. A container may have given
// both any content, so every line is bounded and every path is checked before it is used.
#include "machine/groups.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_SIZE 8192

// Whole lines alone: a longer one is skipped, never taken for two.
static char *next_line(FILE *file, char line[LINE_SIZE])
{
    int skip = 0;
    while (file && fgets(line, LINE_SIZE, file)) {
        char *end = strchr(line, '\n');
        if (end)
            *end = '\0';
        if (end || feof(file)) {
            if (!skip)
                return line;
            skip = 0;
        } else {
            skip = 1;
        }
    }
    return NULL;
}

static FILE *open_below(const char *root, const char *path)
{
    char whole[PATH_MAX];
    int n = snprintf(whole, sizeof(whole), "%s%s", root, path);
    return n < (int)sizeof(whole) ? fopen(whole, "re") : NULL;
}

// Whether one of a list with commas is the word.
static int has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, word, n) && (!at[n] || at[n] == ','))
            return 1;
    return 0;
}

// A line of /proc/self/cgroup is ID:CONTROLLERS:PATH; version 2 is "0::PATH".
static int find_own(const char *root, const char *controller, int version, char ret[PATH_MAX])
{
    char line[LINE_SIZE], *found = NULL;
    FILE *file = open_below(root, "/proc/self/cgroup");
    while (!found && next_line(file, line)) {
        char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;
        if (!path)
            continue;
        *list = *path = '\0';
        int is_v2 = !strcmp(line, "0") && !list[1];
        if (version == 2 ? is_v2 : has_word(list + 1, controller))
            found = path + 1;
    }
    if (file)
        fclose(file);
    // A path with .. is outside of what this process may see.
    if (!found || *found != '/' || strlen(found) >= PATH_MAX)
        return 0;
    snprintf(ret, PATH_MAX, "%s", strstr(found, "/..") ? "/" : found);
    return 1;
}

// mountinfo writes blanks and backslashes as three octal digits.
static void unescape(char *text)
{
    char *to = text;
    for (const char *at = text; *at; to++) {
        if (at[0] == '\\' && strspn(at + 1, "01234567") >= 3) {
            const char digits[] = {at[1], at[2], at[3], '\0'};
            *to = (char)(unsigned char)strtoul(digits, NULL, 8);
            at += 4;
        } else {
            *to = *at++;
        }
    }
    *to = '\0';
}

struct mount {
    char root[PATH_MAX], point[PATH_MAX];
};

// ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - TYPE SOURCE OPTIONS
static int read_mount(char *line, const char *controller, int version, struct mount *ret)
{
    char *tail = strstr(line, " - "), *rest = NULL, *field[5];
    if (!tail)
        return 0;
    *tail = '\0';
    const char *type = strtok_r(tail + 3, " ", &rest), *source = strtok_r(NULL, " ", &rest);
    const char *options = strtok_r(NULL, " ", &rest);
    if (!source || !options || strcmp(type, version == 2 ? "cgroup2" : "cgroup") != 0 ||
        (version == 1 && !has_word(options, controller)))
        return 0;
    for (int i = 0; i < 5; i++)
        if (!(field[i] = strtok_r(i ? NULL : line, " ", &rest)))
            return 0;
    unescape(field[3]);
    unescape(field[4]);
    if (*field[3] != '/' || *field[4] != '/' || strlen(field[3]) >= PATH_MAX ||
        strlen(field[4]) >= PATH_MAX)
        return 0;
    snprintf(ret->root, sizeof(ret->root), "%s", strcmp(field[3], "/") ? field[3] : "");
    snprintf(ret->point, sizeof(ret->point), "%s", field[4]);
    return 1;
}

static int find_mount(const char *root, const char *controller, int version, struct mount *ret)
{
    char line[LINE_SIZE];
    FILE *file = open_below(root, "/proc/self/mountinfo");
    int found = 0;
    while (!found && next_line(file, line))
        found = read_mount(line, controller, version, ret);
    if (file)
        fclose(file);
    return found;
}

// The end of a long name says more than its beginning.
static void shorten(const char *name, char ret[NB_GROUP_NAME])
{
    size_t n = strlen(name), most = NB_GROUP_NAME - 1;
    if (n <= most)
        snprintf(ret, NB_GROUP_NAME, "%s", *name ? name : "/");
    else
        snprintf(ret, NB_GROUP_NAME, "...%s", name + n - (most - 3));
}

static void visit_all(const char *root, const struct mount *mount, char *path, int version,
                      nb_group_visit *visit, void *user)
{
    char dir[PATH_MAX], name[NB_GROUP_NAME];
    size_t n = strlen(mount->root);
    // A container's mount may begin at its own group, while its path begins at the machine's.
    int below = !strncmp(path, mount->root, n) && (path[n] == '/' || !path[n]);
    char *rest = below ? path + n : path + strlen(path);
    if (!strcmp(rest, "/"))
        *rest = '\0';
    for (;;) {
        shorten(rest, name);
        struct nb_group group = {.dir = dir, .name = name, .version = version};
        if (snprintf(dir, sizeof(dir), "%s%s%s", root, mount->point, rest) < (int)sizeof(dir))
            visit(user, &group);
        char *slash = strrchr(rest, '/');
        if (!slash)
            return;
        *slash = '\0';
    }
}

void nb_groups_each(const char *root, const char *controller, nb_group_visit *visit, void *user)
{
    for (int version = 1; version <= 2; version++) {
        char path[PATH_MAX];
        struct mount mount;
        if (find_own(root, controller, version, path) &&
            find_mount(root, controller, version, &mount))
            visit_all(root, &mount, path, version, visit, user);
    }
}

static uint64_t number_at(const char *text)
{
    while (*text == ' ' || *text == '\t')
        text++;
    if (!isdigit((unsigned char)*text)) // strtoull would take a sign
        return UINT64_MAX;
    errno = 0;
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    return errno || (*end && !isspace((unsigned char)*end)) ? UINT64_MAX : value;
}

uint64_t nb_file_number(const char *path, const char *key)
{
    char line[LINE_SIZE];
    size_t n = strlen(key);
    uint64_t value = UINT64_MAX;
    FILE *file = fopen(path, "re");
    while (next_line(file, line))
        if (!strncmp(line, key, n)) {
            value = number_at(line + n);
            break;
        }
    if (file)
        fclose(file);
    return value;
}

uint64_t nb_group_number(const struct nb_group *group, const char *file, const char *key)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof(path), "%s/%s", group->dir, file);
    return n < (int)sizeof(path) ? nb_file_number(path, key) : UINT64_MAX;
}
