// `nibble convert`: a model's files as one GGUF file, in this process and without the daemon. The
// file appears whole or not at all.
#include "tools/cli/cli.h"

#include <errno.h>
#include <stdio.h>

#include "libclient/files.h"
#include "tensor/convert.h"
#include "tensor/fail.h"
#include "tensor/hf/folder.h"
#include "tensor/type.h"

static int on_progress(void *user, uint64_t done, uint64_t total)
{
    cli_progress(user, done, total);
    return 0;
}

static int parse_type(const char *name, uint32_t *ret)
{
    static const uint32_t types[] = {NB_TYPE_F32, NB_TYPE_F16, NB_TYPE_BF16, NB_TYPE_Q8_0};
    const struct nb_type_info *info = name ? nb_type_by_name(name) : NULL;
    *ret = NB_CONVERT_KEEP;
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (info && info->type == types[i])
            *ret = types[i];
    if (!name || *ret != NB_CONVERT_KEEP)
        return CLI_OK;
    return cli_usage_error("--to: '%s' is none of F32, F16, BF16 and Q8_0", name);
}

// ---- The file

static bool is_about_output(int error)
{
    return error == -ENOSPC || error == -EDQUOT || error == -EFBIG;
}

static int write_file(const struct nb_source *s, const struct nb_convert_options *options,
                      const char *path, const char *out, bool force, struct nb_converted *ret)
{
    struct nb_error error;
    int fd = -1, status = cli_output_open(out, force, &fd);
    if (status != CLI_OK)
        return status;
    int rc = nb_convert(s, options, fd, ret, &error);
    if (rc < 0)
        status = cli_error("%s: %s", is_about_output(rc) ? out : path, error.text);
    return cli_output_close(out, force, fd, status);
}

// ---- The verb

static int print_converted(const char *out, const char *type, const struct nb_converted *c,
                           bool json)
{
    if (json)
        return cli_print_json(json_pack("{s:s, s:s?, s:I, s:i, s:i}", "file", out, "type", type,
                                        "tensor_bytes", (json_int_t)c->bytes, "tensors",
                                        (int)c->n_tensors, "unfit", (int)c->n_unfit),
                              0);
    printf("wrote %s: %u tensors, %s\n", out, c->n_tensors, cli_bytes(c->bytes));
    if (c->n_unfit)
        printf("%u of them are F16, as %s takes rows of whole blocks alone: %s%s\n", c->n_unfit,
               type, c->unfit, c->n_unfit > 1 ? " and others" : "");
    return CLI_OK;
}

static int convert(const char *path, const char *out, const char *type, bool force, bool json)
{
    struct nb_model_files files = {0};
    struct nb_source_file list[NB_WIRE_FILES];
    struct nb_source *source = NULL;
    struct nb_converted done;
    struct nb_error error;
    struct nb_convert_options options = {.progress = on_progress, .user = (void *)(uintptr_t)path};
    int status = parse_type(type, &options.to);
    if (status == CLI_OK && nb_model_files_open(path, &files, error.text, sizeof(error.text)) < 0)
        status = cli_error("%s: %s", path, error.text);
    for (size_t i = 0; i < files.n; i++)
        list[i] = (struct nb_source_file){files.items[i].name, files.items[i].fd};
    if (status == CLI_OK && nb_source_open(list, (uint32_t)files.n, &source, &error) < 0)
        status = cli_error("%s: %s", path, error.text);
    if (status == CLI_OK)
        status = write_file(source, &options, path, out, force, &done);
    if (status == CLI_OK)
        status = print_converted(out, type, &done, json);
    nb_source_close(source);
    nb_model_files_close(&files);
    return status;
}

int verb_convert(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    const char *out = NULL, *type = NULL;
    bool force = false;
    const struct option_spec specs[] = {
        {"output", 'o', OPTION_STRING, &out, "F.gguf", "the file to write (required)"},
        {"to", 0, OPTION_STRING, &type, "T",
         "the type of its matrices: F32, F16, BF16 or Q8_0 (default: as they are)"},
        {"force", 'f', OPTION_FLAG, &force, NULL, "replace a file that is there"},
        {0},
    };
    char **args;
    int n = cli_parse(verb, specs, &common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if (!out)
        return cli_usage_error("convert needs -o F.gguf, the file to write");
    return convert(args[0], out, type, force, common.json);
}
