// What the float engine's shaders share: the five buffers, and a workgroup's sum. No subgroups: sums
// have one order on every device.
#extension GL_EXT_control_flow_attributes : require
#include "train.h"
#include "functions.glsl"

layout(local_size_x_id = CONST_LOCAL) in;
layout(constant_id = TRAIN_MODE) const uint MODE = 0;

layout(std430, binding = BIND_TABLES) readonly buffer Tables { uint tables[]; };
layout(std430, binding = BIND_VALUES) buffer Values { float values[]; };
layout(std430, binding = BIND_GRADIENTS) buffer Gradients { float gradients[]; };
layout(std430, binding = BIND_SPAN_WEIGHTS) readonly buffer Weights { float weights[]; };
layout(std430, binding = BIND_WEIGHT_GRADIENTS) buffer WeightGradients { float weight_gradients[]; };

// Invocations or workgroups that one dimension would not hold go on in the second.
uint group()
{
    return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
}
