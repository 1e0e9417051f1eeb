// What a writer makes, as JSON: see write.h.
#include <string.h>

#include "tensor/hf/write_private.h"

static uint64_t bytes_of(const struct nb_hf_out *out)
{
    uint64_t bytes = 0;
    for (uint32_t p = 0; p < out->n_parts; p++)
        bytes += out->parts[p].bytes;
    return bytes;
}

json_t *nb_hf_writer_report(const struct nb_hf_writer *w)
{
    json_t *tensors = json_array(), *warnings = json_array();
    uint64_t elements = 0;
    bool coded = false;
    for (uint32_t i = 0; i < w->n_outs; i++) {
        const struct nb_hf_out *out = &w->outs[i];
        const uint64_t n = out->rows * out->t->dims[0], bytes = bytes_of(out);
        json_t *t = json_pack("{s:s, s:I, s:I, s:s, s:s, s:f, s:I}", "name", out->name, "rows",
                              (json_int_t)out->rows, "columns", (json_int_t)out->t->dims[0], "from",
                              nb_type_name(out->t->stored), "type", nb_type_name(out->type), "bits",
                              8 * (double)bytes / (double)n, "bytes", (json_int_t)bytes);
        if (out->linear && w->to != NB_HF_WRITE_KEEP && out->type != w->to)
            json_object_set_new(t, "instead_of", json_string(nb_type_name(w->to)));
        json_array_append_new(tensors, t);
        elements += n;
        coded = coded || nb_type_info(out->t->stored)->block > 1;
    }
    if (coded)
        json_array_append_new(
            warnings, json_string("the source is quantized already: what it has lost stays lost"));
    return json_pack("{s:s, s:I, s:f, s:o, s:o}", "type",
                     w->to == NB_HF_WRITE_KEEP ? "as they are" : nb_type_name(w->to), "bytes",
                     (json_int_t)w->data, "bits", 8 * (double)w->data / (double)elements,
                     "warnings", warnings, "tensors", tensors);
}

json_t *nb_hf_writer_list(const struct nb_hf_writer *w)
{
    json_t *texts = json_object();
    for (uint32_t i = 0; i < w->n_texts; i++)
        json_object_set_new(texts, w->texts[i].name,
                            json_stringn(w->texts[i].text, w->texts[i].len));
    return json_pack("{s:s, s:o}", "tensors", w->name, "texts", texts);
}
