// How far loops run: lavapipe of Mesa 22.3 lets an invocation's loops iterate 65,535 times, all of
// them together, then leaves them and says nothing.
#version 450
layout(local_size_x = 8) in;
layout(std430, binding = 0) buffer Data { uint outer; uint inner; uint step; uint most; } data;

void main()
{
    uint count = 0;
    for (uint i = 0; i < data.outer; i++)
        for (uint j = 0; j < data.inner; j++)
            count = count * data.step + data.step; // nothing that a compiler could know
    atomicMax(data.most, count);
}
