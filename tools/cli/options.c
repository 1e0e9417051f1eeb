// Options of a verb from a table: parsing over getopt_long, and the help that is printed from the
// same table.
#include "tools/cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 32

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
        snprintf(letter, sizeof letter, "-%c, ", o->letter);
    snprintf(left, sizeof left, "%s--%s%s%s", letter, o->name, o->value ? " " : "",
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

// A number with an optional decimal (k, M, G) or binary (Ki, Mi, Gi) suffix.
static int parse_size(const char *text, uint64_t *ret)
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
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        if (strcmp(end, suffixes[i].suffix) || value * suffixes[i].factor > 9e18)
            continue;
        *ret = (uint64_t)(value * suffixes[i].factor);
        return 0;
    }
    return -EINVAL;
}

static int parse_u64(const char *text, uint64_t max, uint64_t *ret)
{
    char *end;
    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*end || errno || value > max)
        return -EINVAL;
    *ret = value;
    return 0;
}

static int set_option(const struct option_spec *o, const char *text)
{
    uint64_t u = 0;
    char *end;
    int r = 0;
    switch (o->kind) {
    case OPTION_FLAG:
        *(bool *)o->target = true;
        return 0;
    case OPTION_STRING:
        *(const char **)o->target = text;
        return 0;
    case OPTION_UINT:
        if ((r = parse_u64(text, UINT32_MAX, &u)) == 0)
            *(uint32_t *)o->target = (uint32_t)u;
        return r;
    case OPTION_U64:
        return parse_u64(text, UINT64_MAX, o->target);
    case OPTION_SIZE:
        return parse_size(text, o->target);
    case OPTION_FLOAT: {
        float f = strtof(text, &end);
        if (end == text || *end || !isfinite(f))
            return -EINVAL;
        *(float *)o->target = f;
        return 0;
    }
    }
    return -EINVAL;
}

// The tables of getopt_long: option i of the verb, then the common ones, has the value 256 + i.
static size_t build_tables(const struct option_spec **all, const struct option_spec *specs,
                           struct common *common, struct option *longs, char *shorts)
{
    size_t n = 0;
    for (const struct option_spec *o = specs; o->name; o++)
        all[n++] = o;
    for (const struct option_spec *o = common_specs(common); o->name; o++)
        all[n++] = o;
    *shorts++ = ':';
    for (size_t i = 0; i < n; i++) {
        longs[i] = (struct option){all[i]->name,
                                   all[i]->kind == OPTION_FLAG ? no_argument : required_argument,
                                   NULL, 256 + (int)i};
        if (!all[i]->letter)
            continue;
        *shorts++ = all[i]->letter;
        if (all[i]->kind != OPTION_FLAG)
            *shorts++ = ':';
    }
    *shorts = '\0';
    longs[n] = (struct option){"help", no_argument, NULL, 'h'};
    longs[n + 1] = (struct option){0};
    return n;
}

static const struct option_spec *find_option(const struct option_spec *const *all, size_t n,
                                             int value)
{
    if (value >= 256)
        return all[value - 256];
    for (size_t i = 0; i < n; i++)
        if (all[i]->letter == value)
            return all[i];
    return NULL;
}

int cli_parse(const struct verb *verb, const struct option_spec *specs, struct common *common,
              int argc, char **argv, int min_args, int max_args, char ***ret_args)
{
    const struct option_spec *all[MAX_OPTIONS];
    struct option longs[MAX_OPTIONS + 2];
    char shorts[2 * MAX_OPTIONS + 2];
    size_t n = build_tables(all, specs, common, longs, shorts);
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
        const struct option_spec *o = find_option(all, n, value);
        if (set_option(o, optarg) < 0)
            return -1 - cli_usage_error("--%s: '%s' is no valid %s", o->name, optarg, o->value);
    }
    if (argc - optind < min_args || argc - optind > max_args)
        return -1 - cli_usage_error("usage: nibble %s %s [options]", verb->name, verb->arguments);
    *ret_args = argv + optind;
    return argc - optind;
}
