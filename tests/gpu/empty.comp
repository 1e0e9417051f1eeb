// Nothing: what a dispatch costs by itself.
#version 450
layout(local_size_x = 64) in;
layout(std430, binding = 1) buffer Data { uint words[]; } data;

void main()
{
    if (data.words[0] == 0xdeadbeefu) // never
        data.words[1] = 1;
}
