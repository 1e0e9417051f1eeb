// gpu-check PART ...: the parts of the GPU check that are programs of ours, in one. `gpu-check run`
// runs them all, each as a process of its own (run.c); tests/gpu/README.md says how.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/gpu/gpu.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *usage;
} parts[] = {
    {"run", gpu_run, "[MINUTES] [--device vulkanN] [--report DIR]"},
    {"facts", gpu_facts, "[--device vulkanN]"},
    {"limits", gpu_limits, "--device vulkanN"},
    {"gaps", gpu_gaps, "--device vulkanN"},
    {"logits", gpu_logits, "--device vulkanN --tier TIER [IMAGE]"},
    {"speed", gpu_speed, "--device vulkanN --seconds S [--model SHAPE:TYPE] [--quick] IMAGE"},
    {"training", gpu_training, "--device vulkanN [--brief]"},
    {"model", gpu_model, "SHAPE:TYPE FILE.gguf|FILE.image"},
    {"order", gpu_order, "FILE none|lost|full submit|wait|allocate COUNTDOWN"},
    {"loader", gpu_loader, ""},
};

void gpu_row(json_t *row)
{
    if (!row || json_dumpf(row, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6)) < 0)
        gpu_fail("a row cannot be written");
    putchar('\n');
    fflush(stdout);
    json_decref(row);
}

static __attribute__((noreturn)) void end(const char *line, int status)
{
    fprintf(stderr, "gpu-check: %s\n", line);
    exit(status);
}

void gpu_fail(const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    end(line, EXIT_FAILURE);
}

void gpu_skip(const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    end(line, GPU_SKIP);
}

void gpu_check(int rc, const char *what)
{
    if (rc < 0)
        gpu_fail("%s: %s", what, strerror(-rc));
}

double gpu_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

uint32_t gpu_index(const char *device)
{
    char *end = NULL;
    const size_t n = strlen("vulkan");
    unsigned long index =
        device && !strncmp(device, "vulkan", n) ? strtoul(device + n, &end, 10) : 0;
    if (!end || end == device + n || *end || index > 99)
        gpu_fail("--device is vulkan0, vulkan1 ..., not \"%s\"", device ? device : "");
    return (uint32_t)index;
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof(parts) / sizeof(parts[0]); i++)
        if (!strcmp(argv[1], parts[i].name))
            return parts[i].run(argc - 1, argv + 1);
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        fprintf(stderr, "%s gpu-check %-6s %s\n", i ? "      " : "usage:", parts[i].name,
                parts[i].usage);
    return 2;
}
