// Options of a verb from a table: parsing over getopt_long, and the help that is printed from the
// same table.
#include "tools/cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS  64
#define SIZE_LARGEST 8e18

static const struct option_spec *common_specs(struct common *common)
{
    static struct option_spec specs[3];
    specs[0] = (struct option_spec){"socket",        0,      OPTION_STRING,
                                    &common->socket, "PATH", "the daemon's socket"};
    specs[1] = (struct option_spec){"json", 0, OPTION_FLAG, &common->json, NULL, "print JSON"};
    return specs;
}

static void print_option(FILE *out, const struct option_spec *o)
{
    char left[64], letter[8] = "    ";
    if (o->letter)
        snprintf(letter, sizeof(letter), "-%c, ", o->letter);
    snprintf(left, sizeof(left), "%s--%s%s%s", letter, o->name, o->value ? " " : "",
             o->value ? o->value : "");
    fprintf(out, "  %-28s %s\n", left, o->help);
}

static void print_verb_help(const struct verb *verb, const struct option_spec *specs,
                            struct common *common)
{
    printf("usage: nibble %s %s [options]\n%s\n\n", verb->name, verb->arguments, verb->summary);
    for (const struct option_spec *o = specs; o->name; o++)
        print_option(stdout, o);
    for (const struct option_spec *o = common_specs(common); o->name; o++)
        print_option(stdout, o);
}

int cli_parse_size(const char *text, uint64_t *ret)
{
    static const struct {
        const char *suffix;
        double factor;
    } suffixes[] = {{"", 1},        {"k", 1e3},        {"M", 1e6},          {"G", 1e9},
                    {"Ki", 1024.0}, {"Mi", 1048576.0}, {"Gi", 1073741824.0}};
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || errno || !(value >= 0))
        return -EINVAL;
    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        if (strcmp(end, suffixes[i].suffix) || value * suffixes[i].factor > SIZE_LARGEST)
            continue;
        *ret = (uint64_t)(value * suffixes[i].factor);
        return 0;
    }
    return -EINVAL;
}

static int parse_whole(const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
    char *end;
    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*end || errno || value < min || value > max)
        return -EINVAL;
    *ret = value;
    return 0;
}

static int set_flag(const struct option_spec *o, const char *text)
{
    (void)text;
    *(bool *)o->target = true;
    return 0;
}

static int set_string(const struct option_spec *o, const char *text)
{
    *(const char **)o->target = text;
    return 0;
}

static int set_list(const struct option_spec *o, const char *text)
{
    struct option_list *list = o->target;
    if (list->n >= (size_t)o->kind.max)
        return cli_usage_error("--%s: %g of them at most", o->name, o->kind.max);
    list->items[list->n++] = text;
    return 0;
}

static int set_uint(const struct option_spec *o, const char *text)
{
    uint64_t u, min = (uint64_t)o->kind.min, max = (uint64_t)o->kind.max;
    if (parse_whole(text, min, max, &u) < 0)
        return cli_usage_error("--%s: '%s' is no whole number from %" PRIu64 " to %" PRIu64,
                               o->name, text, min, max);
    *(uint32_t *)o->target = (uint32_t)u;
    return 0;
}

static int set_u64(const struct option_spec *o, const char *text)
{
    if (parse_whole(text, 0, UINT64_MAX, o->target) < 0)
        return cli_usage_error("--%s: '%s' is no whole number from 0 to %" PRIu64, o->name, text,
                               UINT64_MAX);
    return 0;
}

static int set_size(const struct option_spec *o, const char *text)
{
    if (cli_parse_size(text, o->target) < 0 || !*(const uint64_t *)o->target)
        return cli_usage_error(
            "--%s: '%s' is no size above 0, as 512Mi (k, M, G, Ki, Mi, Gi; 8e18 bytes at most)",
            o->name, text);
    return 0;
}

static int set_float(const struct option_spec *o, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= o->kind.min && value <= o->kind.max))
        return cli_usage_error("--%s: '%s' is no number from %g to %g", o->name, text, o->kind.min,
                               o->kind.max);
    *(float *)o->target = (float)value;
    return 0;
}

// Sets the target, or says what the option takes and returns CLI_USAGE. What a second one says
// would be lost, unless it is a list's; flags say the same again.
static int set_option(const struct option_spec *o, const char *text, bool *given)
{
    static int (*const set[])(const struct option_spec *, const char *) = {
        [FLAG] = set_flag, [STRING] = set_string, [LIST] = set_list,  [UINT] = set_uint,
        [U64] = set_u64,   [SIZE] = set_size,     [FLOAT] = set_float};
    if (*given && o->kind.type != LIST && o->kind.type != FLAG)
        return cli_usage_error("--%s is given twice", o->name);
    *given = true;
    return set[o->kind.type](o, text);
}

// The tables of getopt_long: option i of the verb, then the common ones, has the value 256 + i.
static void build_tables(const struct option_spec **all, const struct option_spec *specs,
                         struct common *common, struct option *longs, char *shorts)
{
    size_t n = 0;
    const struct option_spec *const from[] = {specs, common_specs(common)};
    for (size_t i = 0; i < 2; i++)
        for (const struct option_spec *o = from[i]; o->name; o++) {
            if (n == MAX_OPTIONS)
                abort(); // the verb has more, whatever is said
            all[n++] = o;
        }
    *shorts++ = ':';
    for (size_t i = 0; i < n; i++) {
        longs[i] = (struct option){all[i]->name,
                                   all[i]->kind.type == FLAG ? no_argument : required_argument,
                                   NULL, 256 + (int)i};
        if (!all[i]->letter)
            continue;
        *shorts++ = all[i]->letter;
        if (all[i]->kind.type != FLAG)
            *shorts++ = ':';
    }
    *shorts = '\0';
    longs[n] = (struct option){"help", no_argument, NULL, 'h'};
    longs[n + 1] = (struct option){0};
}

// The index of the option that getopt_long has found; it finds none that is not in the tables.
static size_t find_option(const struct option_spec *const *all, int value)
{
    size_t i = 0;
    if (value >= 256)
        return (size_t)value - 256;
    while (all[i]->letter != value)
        i++;
    return i;
}

int cli_parse(const struct verb *verb, const struct option_spec *specs, struct common *common,
              int argc, char **argv, int min_args, int max_args, char ***ret_args)
{
    const struct option_spec *all[MAX_OPTIONS];
    struct option longs[MAX_OPTIONS + 2];
    char shorts[2 * MAX_OPTIONS + 2];
    build_tables(all, specs, common, longs, shorts);
    bool given[MAX_OPTIONS] = {false};
    int value;

    optind = 1;
    while ((value = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        if (value == 'h') {
            print_verb_help(verb, specs, common);
            return -1 - CLI_OK;
        }
        if (value == '?' || value == ':')
            return -1 - cli_usage_error("%s %s; see `nibble %s --help`", argv[optind - 1],
                                        value == ':' ? "needs a value" : "is no option",
                                        verb->name);
        size_t i = find_option(all, value);
        if (set_option(all[i], optarg, &given[i]) != 0)
            return -1 - CLI_USAGE;
    }
    if (argc - optind < min_args || argc - optind > max_args)
        return -1 - cli_usage_error("usage: nibble %s %s [options]", verb->name, verb->arguments);
    *ret_args = argv + optind;
    return argc - optind;
}
