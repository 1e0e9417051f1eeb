// The shaders as the build embeds them (shaders/meson.build).
#pragma once

#include <stddef.h>
#include <stdint.h>

// What a shader computes. Which module does that depends on the device's tier (tier.h).
enum nb_shader {
    NB_SHADER_DEQUANTIZE,
    NB_SHADER_EMBED,
    NB_SHADER_QUANTIZE,
    NB_SHADER_GEMM,
    NB_SHADER_GEMM_FLOATS, // by weights that are floats
    NB_SHADER_GEMM_EXPERTS,
    NB_SHADER_GEMM_FLOATS_EXPERTS,
    NB_SHADER_ROPE,
    NB_SHADER_ATTENTION,
    NB_SHADER_NORM,
    NB_SHADER_ROWS,
    NB_SHADER_TOP,
    NB_SHADER_THIN, // of adapters: A x,
    NB_SHADER_WIDE, // and what B makes of it
    NB_SHADERS,
};

enum nb_module {
    NB_MODULE_DEQUANTIZE,
    NB_MODULE_EMBED,
    NB_MODULE_QUANTIZE,
    NB_MODULE_QUANTIZE_TEAM,
    NB_MODULE_GEMM,
    NB_MODULE_GEMM_ROTATE,
    NB_MODULE_GEMM_FINISH,
    NB_MODULE_GEMM_EXPERTS,
    NB_MODULE_GEMV,
    NB_MODULE_GEMV_FINISH,
    NB_MODULE_GEMV_EXPERTS,
    NB_MODULE_GEMV_DOT,
    NB_MODULE_GEMV_DOT_FINISH,
    NB_MODULE_GEMV_DOT_EXPERTS,
    NB_MODULE_TILE,
    NB_MODULE_TILE_DOT,
    NB_MODULE_MATRIX,
    NB_MODULE_ROPE,
    NB_MODULE_ATTENTION,
    NB_MODULE_ATTENTION_TEAM,
    NB_MODULE_NORM,
    NB_MODULE_NORM_TEAM,
    NB_MODULE_ROWS,
    NB_MODULE_TOP,
    NB_MODULE_TOP_TEAM,
    NB_MODULE_ADAPTER,
    NB_MODULE_ADAPTER_TEAM,
    NB_MODULE_TRAIN_ATTENTION, // of the float engine (grad/vulkan/)
    NB_MODULE_TRAIN_GEMM,
    NB_MODULE_TRAIN_NORM,
    NB_MODULE_TRAIN_ROWS,
    NB_MODULE_TRAIN_SUMS,
    NB_MODULES,
};

struct nb_shader_code {
    const uint32_t *words;
    size_t bytes;
};

extern const struct nb_shader_code nb_shader_code[NB_MODULES];
