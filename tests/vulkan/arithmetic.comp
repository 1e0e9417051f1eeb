// What the driver's fma, division, square root and denormals are: for each three floats of the input
// four of the output.
#version 450
layout(local_size_x = 8) in;
layout(std430, binding = 0) buffer Data { uint n; uint pad[3]; vec4 value[]; } data;

void main()
{
    uint i = gl_GlobalInvocationID.x;
    if (i >= data.n)
        return;
    vec4 v = data.value[i];
    precise float f = fma(v.x, v.y, v.z);
    precise float q = v.x / v.y;
    precise float r = sqrt(abs(v.x));
    precise float d = v.z * v.w;
    data.value[data.n + i] = vec4(f, q, r, d);
}
