// How a block of 32 positions keeps keys and values (docs/numerics.md, Attention). Halves: a word has
// two elements. Floats: a word has one. Codes: bytes, a word has four; behind a head's codes lie the
// scales of its elements, by 32, as halves, 32 positions side by side. Of keys 32 positions' words lie
// side by side, of values a position's. Keys of an odd number of elements are followed by one zero,
// values of no whole blocks of 32 by zeros, which stay so.

const bool CODES = (MODE & MODE_CODES) != 0, FLOATS = (MODE & MODE_FLOATS) != 0; // else halves
const uint TEXEL = CODES ? 16 : FLOATS ? 4 : 8; // elements of a texel

uint head4(uint dim) // uvec4 of a head of so many elements
{
    return CODES ? dim / 32 * 68 : dim * (KV_POSITIONS / TEXEL);
}

uint padded(uint v_dim)
{
    return (v_dim + 31) / 32 * 32;
}

uint even(uint k_dim)
{
    return (k_dim + 1) / 2 * 2;
}

const bool ODD = (MODE & MODE_ODD) != 0;

// Elements `at` and at + 1 of rows of heads, of which the second may be none.
vec2 pair_at(uint at, bool second)
{
    vec4 quad = read_floats(inputs, at / 4);
    if (!ODD)
        return at % 4 != 0 ? quad.zw : quad.xy;
    vec4 four = floats_at(inputs, at);
    return vec2(four.x, second ? four.y : 0.0);
}

vec4 signed_bytes(uint word)
{
    return vec4(ivec4(int(word)) << ivec4(24, 16, 8, 0) >> 24);
}
