// The writer as a whole: what comes in which order, and where. See write.h.
#include "tensor/hf/write.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/convert.h"
#include "tensor/hf/write_private.h"

#define FAIL(code, ...) nb_fail(ret_error, code, __VA_ARGS__)

// ---- Places

// Parts of wide elements come first, so that each lies at a multiple of its elements' size.
static void place_parts(struct nb_hf_writer *w)
{
    static const uint32_t sizes[] = {4, 2, 1};
    for (size_t i = 0; i < 3; i++)
        for (uint32_t k = 0; k < w->n_outs; k++)
            for (uint32_t p = 0; p < w->outs[k].n_parts; p++) {
                struct nb_hf_part *part = &w->outs[k].parts[p];
                if (part->size != sizes[i])
                    continue;
                part->offset = w->data;
                w->data += part->bytes;
            }
}

static json_t *describe(const struct nb_hf_part *part)
{
    const json_int_t begin = (json_int_t)part->offset, end = begin + (json_int_t)part->bytes;
    json_t *shape = json_array();
    for (uint32_t d = 0; d < part->n_dims; d++)
        json_array_append_new(shape, json_integer((json_int_t)part->shape[d]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", part->dtype, "shape", shape, "data_offsets",
                     begin, end);
}

// The header is a multiple of 8 bytes, filled with spaces.
static int make_header(struct nb_hf_writer *w)
{
    char name[NB_HF_OUT_NAME + 64];
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    for (uint32_t k = 0; k < w->n_outs; k++)
        for (uint32_t p = 0; p < w->outs[k].n_parts; p++) {
            const struct nb_hf_part *part = &w->outs[k].parts[p];
            snprintf(name, sizeof(name), "%s%s", w->outs[k].name, part->suffix);
            json_object_set_new(root, name, describe(part));
        }
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!text)
        return -ENOMEM;
    const uint64_t used = strlen(text), len = (used + 7) / 8 * 8;
    w->header = malloc(sizeof(len) + len);
    if (w->header) {
        memcpy(w->header, &len, sizeof(len));
        memset(w->header + sizeof(len), ' ', len);
        memcpy(w->header + sizeof(len), text, used);
        w->header_len = sizeof(len) + len;
    }
    free(text);
    return w->header ? 0 : -ENOMEM;
}

// ---- The writer

static int plan(struct nb_hf_writer *w, struct nb_error *ret_error)
{
    snprintf(w->name, sizeof(w->name), "model.safetensors");
    int rc = nb_hf_write_is_folder(w->s) ? 0 : nb_hf_write_family(w, ret_error);
    if (rc == 0)
        rc = nb_hf_write_tensors(w, ret_error);
    if (rc == 0)
        rc = nb_hf_write_texts(w, ret_error);
    if (rc < 0)
        return rc;
    for (uint32_t k = 0; k < w->n_outs; k++)
        nb_hf_write_parts(&w->outs[k]);
    place_parts(w);
    rc = make_header(w);
    return rc < 0 ? FAIL(rc, "no memory for the list of tensors") : 0;
}

int nb_hf_writer_create(const struct nb_source *s, uint32_t to, struct nb_hf_writer **ret,
                        struct nb_error *ret_error)
{
    struct nb_hf_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return FAIL(-ENOMEM, "no memory for the list of tensors");
    w->s = s;
    w->to = to;
    int rc = plan(w, ret_error);
    if (rc < 0)
        nb_hf_writer_destroy(w);
    else
        *ret = w;
    return rc;
}

void nb_hf_writer_destroy(struct nb_hf_writer *w)
{
    if (!w)
        return;
    for (uint32_t i = 0; i < w->n_texts; i++)
        free(w->texts[i].text);
    free(w->header);
    free(w->outs);
    free(w);
}

const struct nb_hf_text *nb_hf_writer_texts(const struct nb_hf_writer *w, uint32_t *ret_n)
{
    *ret_n = w->n_texts;
    return w->texts;
}

const char *nb_hf_writer_name(const struct nb_hf_writer *w)
{
    return w->name;
}

uint64_t nb_hf_writer_size(const struct nb_hf_writer *w)
{
    return w->header_len + w->data;
}

// ---- The file

static int write_header(const struct nb_hf_writer *w, int fd, struct nb_error *ret_error)
{
    for (size_t at = 0; at < w->header_len;) {
        ssize_t n = pwrite(fd, w->header + at, w->header_len - at, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return FAIL(n < 0 ? -errno : -EIO, "cannot write: %s", strerror(n < 0 ? errno : EIO));
        at += (size_t)n;
    }
    return 0;
}

int nb_hf_writer_begin(const struct nb_hf_writer *w, int fd, struct nb_error *ret_error)
{
    int rc = nb_convert_check_ends(w->s, ret_error);
    return rc < 0 ? rc : write_header(w, fd, ret_error);
}

int nb_hf_writer_tensor(const struct nb_hf_writer *w, uint32_t tensor, int fd,
                        struct nb_error *ret_error)
{
    return nb_hf_write_data(w, &w->outs[tensor], fd, ret_error);
}

uint32_t nb_hf_writer_extents(const struct nb_hf_writer *w, uint32_t tensor,
                              struct nb_hf_extent ret[NB_HF_WRITER_EXTENTS])
{
    const struct nb_hf_out *out = &w->outs[tensor];
    for (uint32_t p = 0; p < out->n_parts; p++)
        ret[p] = (struct nb_hf_extent){w->header_len + out->parts[p].offset, out->parts[p].bytes};
    return out->n_parts;
}

struct nb_hf_written nb_hf_writer_written(const struct nb_hf_writer *w)
{
    struct nb_hf_written done = w->done;
    done.bytes = w->data;
    done.n_tensors = w->n_outs;
    return done;
}
