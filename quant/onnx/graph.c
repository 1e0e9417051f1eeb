// Protobuf by hand: a field is its number and wire type, then a varint, four bytes, or a length
// with so many bytes. See graph.h.
#include "quant/onnx/graph.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIMIT ((size_t)0x7fffffff) // of a protobuf
#define IR    8
#define OPSET 17

struct bytes {
    uint8_t *data;
    size_t len, room;
    int error;
};

struct nb_onnx_graph {
    struct bytes nodes, constants, inputs, outputs; // fields of GraphProto
    uint32_t n;                                     // names so far
};

// ---- Bytes

static void append(struct bytes *b, const void *data, size_t n)
{
    if (n > LIMIT - b->len)
        b->error = b->error ? b->error : -EFBIG;
    if (b->error)
        return;
    if (b->len + n > b->room) {
        const size_t room = 2 * b->room > b->len + n ? 2 * b->room : b->len + n + 64;
        uint8_t *grown = realloc(b->data, room);
        if (!grown) {
            b->error = -ENOMEM;
            return;
        }
        b->data = grown;
        b->room = room;
    }
    if (n)
        memcpy(b->data + b->len, data, n);
    b->len += n;
}

static void put_varint(struct bytes *b, uint64_t v)
{
    uint8_t text[10];
    size_t n = 0;
    do {
        text[n++] = (uint8_t)((v & 127) | (v > 127 ? 128 : 0));
        v >>= 7;
    } while (v);
    append(b, text, n);
}

static void put_number(struct bytes *b, uint32_t field, int64_t v)
{
    put_varint(b, (uint64_t)field << 3);
    put_varint(b, (uint64_t)v);
}

static void put_float(struct bytes *b, uint32_t field, float v)
{
    put_varint(b, (uint64_t)field << 3 | 5);
    append(b, &v, sizeof(v));
}

static void put_bytes(struct bytes *b, uint32_t field, const void *data, size_t n)
{
    put_varint(b, (uint64_t)field << 3 | 2);
    put_varint(b, n);
    append(b, data, n);
}

static void put_text(struct bytes *b, uint32_t field, const char *text)
{
    put_bytes(b, field, text, strlen(text));
}

// A message inside another; the inner one is spent.
static void put_message(struct bytes *b, uint32_t field, struct bytes *inner)
{
    if (inner->error)
        b->error = b->error ? b->error : inner->error;
    put_bytes(b, field, inner->data, inner->error ? 0 : inner->len);
    free(inner->data);
    *inner = (struct bytes){0};
}

// ---- The graph

struct nb_onnx_graph *nb_onnx_graph_create(void)
{
    return calloc(1, sizeof(struct nb_onnx_graph));
}

void nb_onnx_graph_destroy(struct nb_onnx_graph *g)
{
    if (!g)
        return;
    free(g->nodes.data);
    free(g->constants.data);
    free(g->inputs.data);
    free(g->outputs.data);
    free(g);
}

static struct nb_ref new_name(struct nb_onnx_graph *g, const char *kind)
{
    struct nb_ref name;
    snprintf(name.text, sizeof(name.text), "%s%u", kind, g->n++);
    return name;
}

static void put_attribute(struct bytes *node, const struct nb_onnx_attribute *a)
{
    static const int64_t types[] = {[NB_ONNX_INT] = 2, [NB_ONNX_INTS] = 7, [NB_ONNX_REAL] = 1};
    struct bytes b = {0};
    put_text(&b, 1, a->name);
    if (a->kind == NB_ONNX_REAL)
        put_float(&b, 2, a->real);
    else if (a->kind == NB_ONNX_INT)
        put_number(&b, 3, a->values[0]);
    for (size_t i = 0; a->kind == NB_ONNX_INTS && i < a->n; i++)
        put_number(&b, 8, a->values[i]);
    put_number(&b, 20, types[a->kind]);
    put_message(node, 5, &b);
}

struct nb_ref nb_onnx_node(struct nb_onnx_graph *g, const char *op, const struct nb_ref *inputs,
                           size_t n_inputs, const struct nb_onnx_attribute *attributes,
                           struct nb_ref *others, size_t n_others)
{
    struct bytes b = {0};
    const struct nb_ref result = new_name(g, "v");
    for (size_t i = 0; i < n_inputs; i++)
        put_text(&b, 1, inputs[i].text);
    put_text(&b, 2, result.text);
    for (size_t i = 0; i < n_others; i++) {
        others[i] = new_name(g, "v");
        put_text(&b, 2, others[i].text);
    }
    put_text(&b, 4, op);
    for (; attributes && attributes->name; attributes++)
        put_attribute(&b, attributes);
    put_message(&g->nodes, 1, &b);
    return result;
}

struct nb_ref nb_onnx_constant(struct nb_onnx_graph *g, enum nb_onnx_type type, const int64_t *dims,
                               size_t n_dims, const void *data, size_t bytes)
{
    struct bytes b = {0};
    const struct nb_ref name = new_name(g, "c");
    for (size_t i = 0; i < n_dims; i++)
        put_number(&b, 1, dims[i]);
    put_number(&b, 2, type);
    put_text(&b, 8, name.text);
    put_bytes(&b, 9, data, bytes);
    put_message(&g->constants, 5, &b);
    return name;
}

// A ValueInfoProto: the first dimension is any number of rows.
static void put_value(struct bytes *to, uint32_t field, const char *name, enum nb_onnx_type type,
                      uint32_t width)
{
    struct bytes rows = {0}, columns = {0}, shape = {0}, tensor = {0}, kind = {0}, value = {0};
    put_text(&rows, 2, "rows");
    put_message(&shape, 1, &rows);
    put_number(&columns, 1, width);
    if (width)
        put_message(&shape, 1, &columns);
    put_number(&tensor, 1, type);
    put_message(&tensor, 2, &shape);
    put_message(&kind, 1, &tensor);
    put_text(&value, 1, name);
    put_message(&value, 2, &kind);
    put_message(to, field, &value);
    free(columns.data);
}

struct nb_ref nb_onnx_input(struct nb_onnx_graph *g, const char *name, enum nb_onnx_type type,
                            uint32_t width)
{
    struct nb_ref value;
    snprintf(value.text, sizeof(value.text), "%s", name);
    put_value(&g->inputs, 11, name, type, width);
    return value;
}

void nb_onnx_output(struct nb_onnx_graph *g, struct nb_ref value, const char *name, uint32_t width)
{
    struct bytes b = {0};
    put_text(&b, 1, value.text);
    put_text(&b, 2, name);
    put_text(&b, 4, "Identity");
    put_message(&g->nodes, 1, &b);
    put_value(&g->outputs, 12, name, NB_ONNX_FLOAT, width);
}

int nb_onnx_graph_finish(struct nb_onnx_graph *g, void **ret, size_t *ret_len)
{
    struct bytes *parts[] = {&g->nodes, &g->constants, &g->inputs, &g->outputs};
    struct bytes graph = {0}, opset = {0}, model = {0};
    for (size_t i = 0; i < 4; i++) {
        if (i == 1)
            put_text(&graph, 2, "model");
        graph.error = graph.error ? graph.error : parts[i]->error;
        append(&graph, parts[i]->data, parts[i]->len);
    }
    put_number(&model, 1, IR);
    put_text(&model, 2, "Nibble");
    put_message(&model, 7, &graph);
    put_text(&opset, 1, "");
    put_number(&opset, 2, OPSET);
    put_message(&model, 8, &opset);
    if (model.error) {
        free(model.data);
        return model.error;
    }
    *ret = model.data;
    *ret_len = model.len;
    return 0;
}
