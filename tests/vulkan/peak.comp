// Chains of multiplications and additions on registers alone: the limit beside which a product's
// speed stands. One 32-bit multiplication carries two products of a quantized weight and an input,
// as in shaders/gemm.comp.
#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint WHOLE = 0;
layout(std430, binding = 0) buffer Data { uint rounds; uint pad[3]; uvec4 value[2]; } data;

#define FOUR(x)                                                                                    \
    a = a * x + x;                                                                                 \
    b = b * x + x;                                                                                 \
    a = a * x + x;                                                                                 \
    b = b * x + x;

void whole(uvec4 x, uvec4 a, inout uvec4 b)
{
    for (uint r = 0; r < data.rounds; r++) {
        FOUR(x) FOUR(x) FOUR(x) FOUR(x)
        FOUR(x) FOUR(x) FOUR(x) FOUR(x)
    }
    b += a;
}

void floats(vec4 x, vec4 a, inout vec4 b)
{
    for (uint r = 0; r < data.rounds; r++) {
        FOUR(x) FOUR(x) FOUR(x) FOUR(x)
        FOUR(x) FOUR(x) FOUR(x) FOUR(x)
    }
    b += a;
}

void main()
{
    uvec4 a = data.value[1] + gl_GlobalInvocationID.x, b = a + data.value[0];
    vec4 f = vec4(b);
    if (WHOLE != 0)
        whole(data.value[0], a, b);
    else
        floats(vec4(data.value[0]), vec4(a), f);
    if ((WHOLE != 0 ? b : floatBitsToUint(f)) == uvec4(0xdeadbeefu)) // never, but who knows
        data.value[0] = b;
}
