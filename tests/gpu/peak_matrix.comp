// Chains of products of int8 fragments, on registers alone: the peak by cooperative matrices. Four
// sums of a subgroup; made a module of VK_KHR_cooperative_matrix by shaders/coopmat.py.
#version 450
#extension GL_NV_cooperative_matrix : require
#extension GL_NV_integer_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#extension GL_GOOGLE_include_directive : require
#pragma use_vulkan_memory_model
#include "../../shaders/abi.h"
layout(local_size_x = 128) in;
layout(constant_id = CONST_FRAGMENT_M) const uint ROWS = 16;
layout(constant_id = CONST_FRAGMENT_N) const uint COLUMNS = 16;
layout(constant_id = CONST_FRAGMENT_K) const uint DEPTH = 16;
layout(push_constant) uniform Push { uvec2 address; uint count; } pc;
layout(std430, binding = 1) buffer Data { uint words[]; } data;

#define CODES  icoopmatNV<8, gl_ScopeSubgroup, ROWS, DEPTH>
#define INPUTS icoopmatNV<8, gl_ScopeSubgroup, DEPTH, COLUMNS>
#define SUMS   icoopmatNV<32, gl_ScopeSubgroup, ROWS, COLUMNS>

void main()
{
    CODES c;
    INPUTS x;
    coopMatLoadNV(c, data.words, 0, DEPTH / 4, false);
    coopMatLoadNV(x, data.words, 0, DEPTH / 4, true);
    SUMS s0 = SUMS(0), s1 = SUMS(1), s2 = SUMS(2), s3 = SUMS(3);
    for (uint i = 0; i < pc.count; i++) {
        s0 = coopMatMulAddNV(c, x, s0);
        s1 = coopMatMulAddNV(c, x, s1);
        s2 = coopMatMulAddNV(c, x, s2);
        s3 = coopMatMulAddNV(c, x, s3);
    }
    s0 = s0 + s1 + s2 + s3;
    if (pc.address.x == 1) // never, but no compiler knows
        coopMatStoreNV(s0, data.words, 0, COLUMNS, false);
}
