// `nibble convert`: a model's files as one GGUF file or as a Hugging Face folder, in this process
// and without the daemon. What is written appears whole or not at all.
#include "tools/cli/cli.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "libclient/files.h"
#include "tensor/convert.h"
#include "tensor/fail.h"
#include "tensor/hf/folder.h"
#include "tensor/hf/write.h"
#include "tensor/type.h"
#include "tools/cli/folder.h"

static int on_progress(void *user, uint64_t done, uint64_t total)
{
    cli_progress(user, done, total);
    return 0;
}

// What the command was given.
struct convert {
    const char *path, *out, *type, *format;
    bool force, json;
    uint32_t to;
};

static const uint32_t gguf_types[] = {NB_TYPE_F32, NB_TYPE_F16, NB_TYPE_BF16, NB_TYPE_Q8_0, 0};
static const uint32_t folder_types[] = {NB_TYPE_F32, NB_TYPE_F16, NB_TYPE_BF16, NB_TYPE_INT8,
                                        NB_TYPE_NF4};

static int parse_type(struct convert *c, bool folder)
{
    const struct nb_type_info *info = c->type ? nb_type_by_name(c->type) : NULL;
    const uint32_t *types = folder ? folder_types : gguf_types;
    c->to = NB_CONVERT_KEEP;
    for (size_t i = 0; i < 5; i++)
        if (info && info->type == types[i])
            c->to = types[i];
    if (!c->type || c->to != NB_CONVERT_KEEP)
        return CLI_OK;
    return cli_usage_error(folder ? "--to: '%s' is none of F32, F16, BF16, INT8 and NF4"
                                  : "--to: '%s' is none of F32, F16, BF16 and Q8_0",
                           c->type);
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

// ---- The folder

static int write_texts(struct folder *f, const struct nb_hf_writer *w)
{
    uint32_t n = 0;
    const struct nb_hf_text *texts = nb_hf_writer_texts(w, &n);
    int status = CLI_OK;
    for (uint32_t i = 0; i < n && status == CLI_OK; i++)
        status = folder_put(f, texts[i].name, texts[i].text, texts[i].len);
    return status;
}

static int write_tensors(struct folder *f, struct nb_hf_writer *w, const struct convert *c,
                         struct nb_hf_written *ret)
{
    const char *name = nb_hf_writer_name(w);
    struct nb_error error;
    int fd = -1, status = folder_create(f, name, &fd);
    if (status != CLI_OK)
        return status;
    const struct nb_hf_written all = nb_hf_writer_written(w);
    int rc = nb_hf_writer_begin(w, fd, &error);
    for (uint32_t i = 0; i < all.n_tensors && rc == 0; i++) {
        rc = nb_hf_writer_tensor(w, i, fd, &error);
        cli_progress(c->path, i + 1, all.n_tensors);
    }
    *ret = all;
    if (rc < 0)
        status = cli_error("%s: %s", is_about_output(rc) ? c->out : c->path, error.text);
    return folder_end(f, name, fd, status);
}

static int write_folder(const struct nb_source *s, const struct convert *c,
                        struct nb_hf_written *ret)
{
    struct nb_hf_writer *w = NULL;
    struct folder *f = NULL;
    struct nb_error error;
    const uint32_t to = c->to == NB_CONVERT_KEEP ? NB_HF_WRITE_KEEP : c->to;
    if (nb_hf_writer_create(s, to, &w, &error) < 0)
        return cli_error("%s: %s", c->path, error.text);
    int status = folder_open(c->out, &f);
    if (status == CLI_OK) {
        status = write_texts(f, w);
        if (status == CLI_OK)
            status = write_tensors(f, w, c, ret);
        status = folder_close(f, c->out, status);
    }
    nb_hf_writer_destroy(w);
    return status;
}

// ---- The verb

static int print_converted(const struct convert *c, const struct nb_converted *done)
{
    if (c->json)
        return cli_print_json(json_pack("{s:s, s:s?, s:I, s:i, s:i}", "file", c->out, "type",
                                        c->type, "tensor_bytes", (json_int_t)done->bytes, "tensors",
                                        (int)done->n_tensors, "unfit", (int)done->n_unfit),
                              0);
    printf("wrote %s: %u tensors, %s\n", c->out, done->n_tensors, cli_bytes(done->bytes));
    if (done->n_unfit)
        printf("%u of them are F16, as %s takes rows of whole blocks alone: %s%s\n", done->n_unfit,
               c->type, done->unfit, done->n_unfit > 1 ? " and others" : "");
    return CLI_OK;
}

static int write_either(const struct nb_source *s, const struct convert *c, bool folder)
{
    struct nb_converted done;
    struct nb_hf_written written = {0};
    const struct nb_convert_options options = {
        .to = c->to, .progress = on_progress, .user = (void *)(uintptr_t)c->path};
    int status = folder ? write_folder(s, c, &written)
                        : write_file(s, &options, c->path, c->out, c->force, &done);
    if (status == CLI_OK && folder) {
        done = (struct nb_converted){written.bytes, written.n_tensors, written.n_unfit, ""};
        memcpy(done.unfit, written.unfit, sizeof(done.unfit));
    }
    return status == CLI_OK ? print_converted(c, &done) : status;
}

static int convert(struct convert *c)
{
    struct nb_model_files files = {0};
    struct nb_source_file list[NB_WIRE_FILES];
    struct nb_source *source = NULL;
    struct nb_error error;
    bool folder = false;
    int status = folder_wanted(c->format, c->type, c->out, &folder);
    if (status == CLI_OK)
        status = parse_type(c, folder);
    if (status == CLI_OK &&
        nb_model_files_open(c->path, &files, error.text, sizeof(error.text)) < 0)
        status = cli_error("%s: %s", c->path, error.text);
    for (size_t i = 0; i < files.n; i++)
        list[i] = (struct nb_source_file){files.items[i].name, files.items[i].fd};
    if (status == CLI_OK && nb_source_open(list, (uint32_t)files.n, &source, &error) < 0)
        status = cli_error("%s: %s", c->path, error.text);
    if (status == CLI_OK)
        status = write_either(source, c, folder);
    nb_source_close(source);
    nb_model_files_close(&files);
    return status;
}

int verb_convert(const struct verb *verb, int argc, char **argv)
{
    struct common common = {0};
    struct convert c = {0};
    const struct option_spec specs[] = {
        {"output", 'o', OPTION_STRING, &c.out, "F.gguf", "the file or folder to write (required)"},
        {"to", 0, OPTION_STRING, &c.type, "T",
         "the type of its matrices: F32, F16, BF16 or Q8_0, of a folder INT8 or NF4 (default: as "
         "they are)"},
        {"format", 0, OPTION_STRING, &c.format, "F",
         "gguf or safetensors, a Hugging Face folder (gguf; safetensors of INT8 and NF4)"},
        {"force", 'f', OPTION_FLAG, &c.force, NULL, "replace a file that is there"},
        {0},
    };
    char **args;
    int n = cli_parse(verb, specs, &common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if (!c.out)
        return cli_usage_error("convert needs -o F.gguf, the file to write");
    c.path = args[0];
    c.json = common.json;
    return convert(&c);
}
