// Two tables: what is run, most telling first; and which files a failure points to.
#include "tests/gpu/parts.h"

#include <stddef.h>
#include <string.h>

#define OPS "ops-check --device {device} --tier {tier} "
// Where a CPU plays the device; all of them: tests/vulkan.
#define SOME "--types Q4_0 --ops embedding,gemm,attention,norms --brief"

#define SPEED_TELLS                                                                                \
    "decode and prefill of 1, 8 and 32 sequences, each tile, depth, time by section of a layer"

#define SPEED(model, type, s)                                                                      \
    {                                                                                              \
        .name = "speed " model " " type, .tells = SPEED_TELLS, .seconds = s,                       \
        .command = "gpu-check speed --device {device} --seconds {seconds} --model " model ":" type \
                   " {models}/" model "-" type ".image",                                           \
        .brief = ""                                                                                \
    }

const struct gpu_part gpu_parts[] = {
    {.name = "facts",
     .tells = "what the device reports, which tier it takes and why",
     .seconds = 5,
     .command = "gpu-check facts"},
    {.name = "ops",
     .tells = "every op and weight type beside the scalar reference",
     .seconds = 30,
     .command = OPS "--every",
     .brief = OPS SOME,
     .each_tier = true},
    {.name = "tiles",
     .tells = "GEMMs of every type with each tile, for 1 to 64 rows",
     .seconds = 15,
     .command = OPS "--tiles",
     .brief = OPS "--tiles --types Q4_0",
     .each_tier = true},
    {.name = "repeats",
     .tells = "steps that workgroups finish for each other: equal bits every time",
     .seconds = 15,
     .command = OPS "--repeat 10000",
     .brief = OPS "--repeat 30 --types Q4_0",
     .each_tier = true},
    {.name = "logits",
     .tells = "a model of each weight type beside the CPU, a row alone and among others",
     .seconds = 10,
     .command = "gpu-check logits --device {device} --tier {tier}",
     .brief = "gpu-check logits --device {device} --tier {tier} --types Q4_0",
     .each_tier = true},
    {.name = "training",
     .tells = "gradients in every tensor beside the CPU, the same bits again; a layer's speed",
     .seconds = 20,
     .command = "gpu-check training --device {device}",
     .brief = "gpu-check training --device {device} --brief"},
    {.name = "limits",
     .tells = "reads over 1 GB by texels, storage buffer and reference; the int8 peaks",
     .seconds = 15,
     .command = "gpu-check limits --device {device}"},
    {.name = "gaps",
     .tells = "200 empty dispatches with barriers: direct, and with sizes from three memories",
     .seconds = 5,
     .command = "gpu-check gaps --device {device}"},
    {.name = "speed tiny Q4_0",
     .tells = SPEED_TELLS,
     .seconds = 12,
     .command = "gpu-check speed --device {device} --seconds 12 --model tiny:Q4_0 --quick "
                "{models}/tiny-Q4_0.image"},
    SPEED("llama-3.2-1b", "Q4_0", 25),
    {.name = "validation",
     .tells = "Khronos' layer (core, synchronisation, best practices) has nothing to say",
     .seconds = 15,
     .command = OPS "--types Q4_0,Q6_K,F16 --brief",
     .brief = OPS SOME,
     .each_tier = true,
     .validated = true},
    {.name = "service",
     .tells = "the README's commands, two devices at once, kill -9 of the worker: the same bytes",
     .seconds = 40,
     .command = "service {device} smollm2-135m {models}",
     .brief = "service {device} tiny {models}"},
    SPEED("llama-3.1-8b", "Q4_0", 40),
    SPEED("smollm2-135m", "Q4_0", 20),
    {.name = "logits llama-3.2-1b Q4_0",
     .tells = "a model of full width beside the CPU",
     .seconds = 15,
     .command = "gpu-check logits --device {device} {models}/llama-3.2-1b-Q4_0.image",
     .brief = ""},
    {.name = "loss",
     .tells = "a device that is lost in a submission and in a wait, or full: the same bytes",
     .seconds = 20,
     .command = "service {device} smollm2-135m {models} loss",
     .brief = "service {device} tiny {models} loss"},
    SPEED("llama-3.1-8b", "Q4_K", 35),
    SPEED("llama-3.2-1b", "Q8_0", 20),
    SPEED("llama-3.2-1b", "Q4_K", 20),
    SPEED("llama-3.1-8b", "Q8_0", 45),
    SPEED("smollm2-135m", "Q8_0", 15),
    SPEED("smollm2-135m", "Q4_K", 15),
    {.name = "engine-bench",
     .tells = "prefill and decode of up to 16 sequences without a service",
     .seconds = 15,
     .command = "engine-bench --device {device} --runs 3 {models}/smollm2-135m-Q4_0.gguf",
     .brief = "engine-bench --device {device} --runs 1 --prompt 16 --gen 2 --clients 1 "
              "{models}/tiny-Q4_0.gguf"},
    {.name = "kernels",
     .tells = "the CPU's kernels, which all answers are held to, beside the scalar reference",
     .seconds = 20,
     .command = "kernels-check",
     .brief = ""},
};
const uint32_t gpu_n_parts = sizeof(gpu_parts) / sizeof(gpu_parts[0]);

// From the particular to the general; a field that is NULL matches anything. `part` is how the
// part's name begins.
static const struct {
    const char *part, *tier, *said, *files;
} sources[] = {
    {NULL, NULL, "VK_ERROR_DEVICE_LOST",
     "engine/vulkan/queue.c, engine/vulkan/record.c; the op in the message names the shader "
     "(engine/vulkan/tier.c); then dmesg"},
    {NULL, NULL, "VK_ERROR_OUT_OF_DEVICE_MEMORY",
     "engine/vulkan/memory.c, engine/vulkan/budget.c (what was counted as free)"},
    {NULL, NULL, " hangs: ", "engine/vulkan/queue.c, engine/vulkan/step.c; then dmesg"},
    {"facts", NULL, NULL, "engine/vulkan/list.c, engine/vulkan/api.c, engine/vulkan/tier.c"},
    {"ops", NULL, " embedding", "shaders/embed.comp, shaders/weights.glsl"},
    {"ops", "registers", " gemm", "shaders/gemm.comp, shaders/weights.glsl"},
    {"ops", "matrices", " gemm",
     "shaders/gemv.glsl (1 to 8 rows), shaders/matrix.glsl (more), shaders/weights.glsl"},
    {"ops", NULL, " gemm",
     "shaders/gemv.glsl (1 to 8 rows), shaders/tile.glsl (more), shaders/weights.glsl"},
    {"ops", "registers", " ffn",
     "shaders/gemm.comp (finish_rows), shaders/quantize.comp, shaders/finish.glsl"},
    {"ops", NULL, " ffn",
     "shaders/gemv.glsl (finish_next), shaders/finish_team.glsl, shaders/quantize_team.glsl"},
    {"ops", "registers", " attention",
     "shaders/attention.comp, shaders/cache.glsl, shaders/rope.comp"},
    {"ops", NULL, " attention",
     "shaders/attention_team.glsl, shaders/cache.glsl, shaders/rope.comp, shaders/team.glsl"},
    {"ops", "registers", " norms", "shaders/norm.comp, shaders/quantize.comp"},
    {"ops", NULL, " norms", "shaders/norm.comp, shaders/fold_team.glsl, shaders/finish_team.glsl"},
    {"ops", NULL, " activations", "shaders/rows.comp, shaders/activate.glsl"},
    {"ops", NULL, " heads", "shaders/rope.comp, shaders/norm.comp, engine/vulkan/heads.c"},
    {"ops", NULL, " texts", "shaders/cache.glsl, engine/vulkan/step.c (the table of ends)"},
    {"ops", NULL, " layers", "engine/vulkan/stages.c, engine/vulkan/gemms.c, shaders/rows.comp"},
    {"ops", NULL, " experts", "shaders/experts.glsl, shaders/rows.comp, engine/vulkan/experts.c"},
    {"ops", NULL, " limits", "engine/vulkan/loops.c"},
    {"ops", NULL, NULL, "tests/vulkan/ops_check.c, engine/vulkan/device.c"},
    {"tiles", "registers", NULL, "shaders/gemm.comp, engine/vulkan/tier.c"},
    {"tiles", "matrices", " tile 3",
     "shaders/matrix.glsl, engine/vulkan/tier.c (best_shape: which fragments)"},
    {"tiles", NULL, " tile 3", "shaders/tile.glsl, shaders/gemm_team.glsl"},
    {"tiles", NULL, NULL, "shaders/gemv.glsl, shaders/gemm_team.glsl"},
    {"repeats", "registers", NULL,
     "shaders/gemm.comp (finish_rows: fences on both sides of the atomic)"},
    {"repeats", NULL, "attention again",
     "shaders/attention_team.glsl, shaders/gemv.glsl (finish_next)"},
    {"repeats", NULL, NULL,
     "shaders/gemv.glsl (finish_next: fences on both sides of the atomic), "
     "shaders/finish_team.glsl"},
    {"logits", NULL, "invariance",
     "engine/vulkan/tier.c (tiles), shaders/gemm_team.glsl (the order of sums)"},
    {"logits", NULL, NULL,
     "the ops' part first; then engine/vulkan/program.c, engine/vulkan/weights.c"},
    {"training", NULL, "attn_",
     "shaders/train_attention.comp, shaders/train_gemm.comp, grad/vulkan/steps.c"},
    {"training", NULL, "norm", "shaders/train_norm.comp, shaders/train_sums.comp"},
    {"training", NULL, NULL,
     "shaders/train_gemm.comp, shaders/train_rows.comp, grad/vulkan/record.c (barriers)"},
    {"validation", NULL, "SYNC-HAZARD",
     "engine/vulkan/record.c (barriers), engine/vulkan/program.c"},
    {"validation", NULL, "is missing", "layer/ of the folder: the loader did not take it"},
    {"validation", NULL, NULL,
     "engine/vulkan/device.c, engine/vulkan/memory.c, engine/vulkan/sets.c"},
    {"limits", NULL, NULL, "tests/gpu/limits.c, tests/gpu/device.c"},
    {"gaps", NULL, NULL, "tests/gpu/limits.c, tests/gpu/device.c"},
    {"speed", NULL, "Vulkan device memory", "engine/vulkan/budget.c"},
    {"speed", NULL, NULL, "tests/gpu/speed.c, engine/vulkan/tune.c, engine/vulkan/prepare.c"},
    {"service", NULL, "kill -9", "daemon/device.c, libclient/ (REBIND), engine/sampler.c"},
    {"service", NULL, NULL,
     "daemon/worker/files.c, daemon/worker/sandbox.c (may the driver do what it wants?), "
     "daemon/worker/serve.c; nibbled's log is in the part's"},
    {"loss", NULL, NULL, "engine/vulkan/fault.c, daemon/device.c, tests/loss/faults.c"},
    {"engine-bench", NULL, NULL, "tests/support/engine_bench.c, engine/vulkan/prepare.c"},
    {"kernels", NULL, "avx512", "engine/cpu/avx512.c"},
    {"kernels", NULL, NULL, "engine/cpu/avx2.c, engine/cpu/vector_tmpl.h"},
    {NULL, NULL, NULL, "tests/gpu/run.c"},
};

const char *gpu_look_at(const char *part, const char *tier, const char *output)
{
    size_t i = 0;
    while ((sources[i].part && strncmp(part, sources[i].part, strlen(sources[i].part)) != 0) ||
           (sources[i].tier && strcmp(tier ? tier : "", sources[i].tier) != 0) ||
           (sources[i].said && !strstr(output, sources[i].said)))
        i++;
    return sources[i].files;
}
