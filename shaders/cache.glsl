// How a block of 32 positions keeps keys and values (docs/numerics.md, Attention). Halves: a word has
// two elements. Codes: bytes, a word has four; behind a head's codes lie the scales of its elements,
// by 32, as halves, 32 positions side by side. Of keys 32 positions' words lie side by side, of values
// a position's.

const bool CODES = (MODE & 16) != 0; // else halves

uint head4(uint dim) // uvec4 of a head of so many elements
{
    return CODES ? dim / 32 * 68 : dim * 4;
}

vec4 signed_bytes(uint word)
{
    return vec4(ivec4(int(word)) << ivec4(24, 16, 8, 0) >> 24);
}
