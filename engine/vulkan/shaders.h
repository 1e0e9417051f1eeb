// The shaders as the build embeds them (shaders/meson.build).
#pragma once

#include <stddef.h>
#include <stdint.h>

enum nb_shader {
    NB_SHADER_EMBED,
    NB_SHADER_QUANTIZE,
    NB_SHADER_GEMM,
    NB_SHADER_ROPE,
    NB_SHADER_ATTENTION,
    NB_SHADERS,
};

struct nb_shader_code {
    const uint32_t *words;
    size_t bytes;
};

extern const struct nb_shader_code nb_shader_code[NB_SHADERS];
