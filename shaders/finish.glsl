// A block of 32 outputs as the input of the next op, quantized in the dispatch that makes it.

layout(std430, binding = BIND_OUT2) writeonly buffer Act { uvec4 act[]; };
layout(std430, binding = BIND_FLOATS) writeonly buffer Floats { vec4 floats[]; };

// scale: of the row's norm.
void finish_block(uint row, uint block, float scale, vec4 v[8], Next next)
{
    if (next.norm1 != NONE) {
        [[unroll]] for (uint i = 0; i < 8; i++) {
            precise vec4 y = v[i] * scale;
            y = y * read_floats(vectors, next.norm1 / 4 + block * 8 + i);
            v[i] = y;
        }
    }
    uvec4 record[5];
    quantize_block(v, next.terms, record);
    uint at = row * next.act4 + block * (1 + 2 * next.terms);
    // Rolled, because a driver's time to compile counts as well; the texels go round.
    [[dont_unroll]] for (uint i = 0; i < 1 + 2 * next.terms; i++) {
        act[at + i] = record[0];
        [[unroll]] for (uint j = 0; j < 4; j++)
            record[j] = record[j + 1];
    }
    [[dont_unroll]] for (uint i = 0; i < (next.floats4 != 0 ? 8 : 0); i++) {
        floats[row * next.floats4 + block * 8 + i] = v[0];
        [[unroll]] for (uint j = 0; j < 7; j++)
            v[j] = v[j + 1];
    }
}
