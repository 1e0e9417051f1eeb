// Writes the report from what the parts have printed; knows rows by their names, measures nothing.
#include "tests/gpu/report.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "tests/gpu/gpu.h"

static const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static bool is(const json_t *o, const char *key, const char *value)
{
    return !strcmp(text(o, key), value);
}

// Calls `fn` for the rows of this name in all parts; returns how many there are.
static size_t each_row(const json_t *root, const char *name,
                       void (*fn)(FILE *f, const json_t *row, size_t i), FILE *f)
{
    size_t i, j, n = 0;
    json_t *part, *row;
    json_array_foreach(json_object_get(root, "parts"), i, part)
        json_array_foreach(json_object_get(part, "rows"), j, row)
            if (is(row, "row", name))
                fn(f, row, n++);
    return n;
}

bool gpu_report_sum(const json_t *root, FILE *f)
{
    static const char *const results[] = {"passed", "failed", "skipped", "unfinished"};
    int n[4] = {0};
    size_t i;
    json_t *part;
    json_array_foreach(json_object_get(root, "parts"), i, part)
        for (int r = 0; r < 4; r++)
            n[r] += is(part, "result", results[r]);
    fprintf(f, "%d passed, %d failed, %d skipped, %d unfinished, in %.0f s\n", n[0], n[1], n[2],
            n[3], number(root, "seconds"));
    return n[1] == 0 && n[3] == 0 && n[0] > 0;
}

// --- Parts

// A cell: what would end it or its row is left out.
static void put_cell(FILE *f, const char *s, size_t most)
{
    for (size_t i = 0; s[i] && i < most; i++)
        fputc(s[i] == '|' ? '/' : s[i] == '\n' ? ' ' : s[i], f);
}

static void put_parts(FILE *f, const json_t *root)
{
    size_t i;
    json_t *part;
    fprintf(f, "\n## Parts\n| part | tier | result | s | |\n| --- | --- | --- | --- | --- |\n");
    json_array_foreach(json_object_get(root, "parts"), i, part) {
        fprintf(f, "| %s | %s | %s | %.1f | ", text(part, "part"), text(part, "tier"),
                text(part, "result"), number(part, "seconds"));
        put_cell(f, is(part, "result", "passed") ? text(part, "tells") : text(part, "why"), 160);
        fprintf(f, " |\n");
    }
}

static void put_failures(FILE *f, const json_t *root)
{
    size_t i;
    json_t *part;
    bool any = false;
    json_array_foreach(json_object_get(root, "parts"), i, part) {
        if (!is(part, "result", "failed") && !is(part, "result", "unfinished"))
            continue;
        fprintf(f, "%s\n**%s%s%s** (%s). Look at: %s. Log: logs/%s\n```\n%s\n```\n",
                any ? "" : "\n## What failed\n", text(part, "part"),
                *text(part, "tier") ? ", tier " : "", text(part, "tier"), text(part, "result"),
                text(part, "look_at"), text(part, "log"), text(part, "why"));
        any = true;
    }
}

// --- The device

static void put_tier(FILE *f, const json_t *row, size_t i)
{
    if (i == 0)
        fprintf(f, "\n| device | tier | met | taken | why |\n| --- | --- | --- | --- | --- |\n");
    fprintf(f, "| %s | %s | %s | %s | %s |\n", text(row, "device"), text(row, "tier"),
            json_is_true(json_object_get(row, "meets")) ? "yes" : "no",
            json_is_true(json_object_get(row, "taken")) ? "yes" : "no", text(row, "why"));
}

static void put_list(FILE *f, const char *name, const json_t *list)
{
    char *dump = json_dumps(list, JSON_COMPACT);
    if (json_array_size(list) + json_object_size(list) > 0 && dump)
        fprintf(f, "- %s: `%s`\n", name, dump);
    free(dump);
}

static void put_device(FILE *f, const json_t *root)
{
    static const char *const lists[] = {"limits", "memory", "queues", "matrix_shapes"};
    const json_t *d = json_object_get(root, "device");
    if (!d)
        return;
    fprintf(f, "\n## The device\n- %s, PCI %s, Vulkan %s\n", text(d, "driver"),
            *text(d, "pci") ? text(d, "pci") : "unknown", text(d, "vulkan"));
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
        put_list(f, lists[i], json_object_get(d, lists[i]));
    each_row(root, "tier", put_tier, f);
}

// --- Limits

static void put_limits(FILE *f, const json_t *row, size_t i)
{
    if (i > 0)
        return;
    fprintf(f,
            "\n## Limits\n| reads by texels | storage buffer | reference | int8 by dot products "
            "|\n| --- | --- | --- | --- |\n| %.1f GB/s | %.1f GB/s | %.1f GB/s | %.2f Top/s |\n",
            number(row, "texels_gb_s"), number(row, "storage_gb_s"), number(row, "address_gb_s"),
            number(row, "dot_tops"));
}

static void put_shape(FILE *f, const json_t *row, size_t i)
{
    if (i == 0)
        fprintf(f, "\n| int8 by matrices of | |\n| --- | --- |\n");
    fprintf(f, "| %.0f x %.0f x %.0f | %.2f Top/s |\n", number(row, "rows"), number(row, "columns"),
            number(row, "depth"), number(row, "tops"));
}

static void put_gap(FILE *f, const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    if (json_is_number(v))
        fprintf(f, " %.2f us |", json_number_value(v));
    else
        fprintf(f, " no such memory |");
}

static void put_gaps(FILE *f, const json_t *row, size_t i)
{
    static const char *const keys[] = {"direct_us", "indirect_from_system_us",
                                       "indirect_from_device_us", "indirect_from_mapped_device_us"};
    if (i > 0)
        return;
    fprintf(f, "\n## An empty dispatch and its barrier\n| direct | indirect from system memory | "
               "from device memory | from mapped device memory |\n| --- | --- | --- | --- |\n|");
    for (size_t k = 0; k < 4; k++)
        put_gap(f, row, keys[k]);
    fprintf(f, "\n");
}

// --- Answers and speeds

static void put_logits(FILE *f, const json_t *row, size_t i)
{
    if (i == 0)
        fprintf(f,
                "\n## Logits beside the CPU's\n| model | tier | precision | difference | bound | "
                "same best | alone as among others |\n| --- | --- | --- | --- | --- | --- | --- "
                "|\n");
    fprintf(f, "| %s | %s | %s | %.2g | %.2g | %.0f of %.0f | %s |\n", text(row, "model"),
            text(row, "tier"), text(row, "precision"), number(row, "difference"),
            number(row, "bound"), number(row, "same_best"), number(row, "rows"),
            json_is_true(json_object_get(row, "same_alone")) ? "the same bits" : "OTHER BITS");
}

static void put_training(FILE *f, const json_t *row, size_t i)
{
    if (i == 0)
        fprintf(f, "\n## Training beside the CPU\n| model | results | gradients | bound | again |\n"
                   "| --- | --- | --- | --- | --- |\n");
    fprintf(f, "| %s | %.2g | %.2g | %.2g | %s |\n", text(row, "model"), number(row, "results"),
            number(row, "gradients"), number(row, "bound"),
            json_is_true(json_object_get(row, "same_again")) ? "the same bits" : "OTHER BITS");
}

static void put_training_speed(FILE *f, const json_t *row, size_t i)
{
    if (i == 0)
        fprintf(f,
                "\n## Training, a layer\nWith what crosses to the host; products alone are "
                "counted.\n\n| model | rows | forward | TFLOP/s | back | TFLOP/s |\n| --- | --- | "
                "--- | --- | --- | --- |\n");
    fprintf(f, "| %s | %.0f | %.1f ms | %.3f | %.1f ms | %.3f |\n", text(row, "model"),
            number(row, "rows"), number(row, "forward_ms"), number(row, "forward_tflops"),
            number(row, "back_ms"), number(row, "back_tflops"));
}

static void put_decode(FILE *f, const json_t *row, size_t i)
{
    if (i == 0)
        fprintf(f,
                "\n## Decode\n| model | tile | sequences | depth | tokens/s | a step | GB/s | of "
                "the bandwidth |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n");
    fprintf(f, "| %s | %s | %.0f | %.0f | %.1f | %.0f us | %.1f | %.1f %% |\n", text(row, "model"),
            text(row, "tile"), number(row, "sequences"), number(row, "depth"),
            number(row, "tokens_s"), number(row, "step_us"), number(row, "gb_s"),
            100 * number(row, "bandwidth_share"));
}

static void put_prefill(FILE *f, const json_t *row, size_t i)
{
    if (i == 0)
        fprintf(f, "\n## Prefill\n| model | tile | sequences | tokens each | tokens/s | Top/s | of "
                   "the peak by dot | by matrices |\n| --- | --- | --- | --- | --- | --- | --- | "
                   "--- |\n");
    fprintf(f, "| %s | %s | %.0f | %.0f | %.1f | %.3f | %.1f %% | %.1f %% |\n", text(row, "model"),
            text(row, "tile"), number(row, "sequences"), number(row, "prompt"),
            number(row, "tokens_s"), number(row, "tops"), 100 * number(row, "dot_share"),
            100 * number(row, "matrix_share"));
}

// Each section of a layer in a decoding step: its time, its dispatches, and what it reads a second.
static void put_ops(FILE *f, const json_t *row, size_t i)
{
    size_t j;
    json_t *op;
    if (i == 0)
        fprintf(f, "\n## A decoding step by section\nMicroseconds, dispatches, and GB/s of its "
                   "weights, cold.\n\n| model | tile | sequences | depth | embed | qkv | attention "
                   "| out | gate_up | down | head |\n| --- | --- | --- | --- | --- | --- | --- | "
                   "--- | --- | --- | --- |\n");
    fprintf(f, "| %s | %s | %.0f | %.0f |", text(row, "model"), text(row, "tile"),
            number(row, "sequences"), number(row, "depth"));
    json_array_foreach(json_object_get(row, "ops"), j, op) {
        fprintf(f, " %.1f us, %.0f", number(op, "us"), number(op, "dispatches"));
        if (number(op, "gb_s") > 0)
            fprintf(f, ", %.1f", number(op, "gb_s"));
        fprintf(f, " |");
    }
    fprintf(f, "\n");
}

static void put_left_out(FILE *f, const json_t *row, size_t i)
{
    fprintf(f, "%s%s: %s.\n", i == 0 ? "\n## Left out\n" : "", text(row, "model"),
            text(row, "why"));
}

static void put_page(FILE *f, const json_t *root)
{
    const json_t *d = json_object_get(root, "device");
    fprintf(f, "# GPU check: %s\n", d ? text(d, "name") : "no device");
    fprintf(f, "%s, Linux %s, glibc %s, %.0f cores. ", text(root, "made"), text(root, "kernel"),
            text(root, "glibc"), number(root, "cores"));
    gpu_report_sum(root, f);
    put_failures(f, root);
    put_parts(f, root);
    put_device(f, root);
    each_row(root, "limits", put_limits, f);
    each_row(root, "matrix shape", put_shape, f);
    each_row(root, "gaps", put_gaps, f);
    each_row(root, "logits", put_logits, f);
    each_row(root, "training", put_training, f);
    each_row(root, "training speed", put_training_speed, f);
    each_row(root, "decode", put_decode, f);
    each_row(root, "prefill", put_prefill, f);
    each_row(root, "decode", put_ops, f);
    each_row(root, "left out", put_left_out, f);
}

// --- Files

static void replace(const char *folder, const char *name, void (*put)(FILE *f, const json_t *root),
                    const json_t *root)
{
    char path[PATH_MAX], part[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    snprintf(part, sizeof(part), "%s/.%s.part", folder, name);
    FILE *f = fopen(part, "we");
    gpu_check(f ? 0 : -errno, part);
    put(f, root);
    bool good = !ferror(f);
    good = fclose(f) == 0 && good;
    gpu_check(good && rename(part, path) == 0 ? 0 : -errno, path);
}

static void put_json(FILE *f, const json_t *root)
{
    json_dumpf(root, f, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    fputc('\n', f);
}

void gpu_report_write(const json_t *root, const char *folder)
{
    replace(folder, "report.json", put_json, root);
    replace(folder, "report.md", put_page, root);
}
