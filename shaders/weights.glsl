// Reading packed weights (tensor/layout.h): four rows of a row group at a time, because their words
// lie side by side.

const bool WIDE = PLANES == PLANES_8 || PLANES == PLANES_4_1 || PLANES == PLANES_4_2 ||
                  CODEBOOK != 0; // codes of more than 4 bits
const bool FLOAT_WEIGHTS = PLANES <= PLANES_BF16 || CODEBOOK == CODEBOOK_NF4; // computed with in floats
const uint ZERO = CODEBOOK != 0 ? 128 : OFFSET; // the code that means 0

uvec4 read4(uint at)
{
    return texelFetch(weights, int(at));
}

uvec2 read2(uint at)
{
    uvec4 v = read4(at / 2);
    return at % 2 != 0 ? v.zw : v.xy;
}

uint read1(uint at)
{
    return word_at(weights, at);
}

uvec4 table_bytes(uvec4 nibbles) // four codes a word to IQ4's values + 128
{
    const uvec4 words = uvec4(0x3f2d1801u, 0x766a5d4fu, 0xa6998d81u, 0xf1d9c5b5u);
    uvec4 bytes = uvec4(0);
    for (int i = 0; i < 32; i += 8) {
        uvec4 n = nibbles >> i & 15;
        uvec4 low = mix(uvec4(words.x), uvec4(words.y), greaterThan(n & 4, uvec4(0)));
        uvec4 high = mix(uvec4(words.z), uvec4(words.w), greaterThan(n & 4, uvec4(0)));
        uvec4 word = mix(low, high, greaterThan(n & 8, uvec4(0)));
        bytes |= (word >> (n & 3) * 8 & 255) << i;
    }
    return bytes;
}

// The codes of 32 weights from block `b` on, as bytes: word q holds 4q .. 4q + 3. `at`: the rows'
// first uvec4 of the group.
void load_codes(uint at, uint high, uint b, out uvec4 c[8])
{
    if (PLANES == PLANES_8) {
        [[unroll]] for (uint q = 0; q < 8; q++)
            c[q] = read4(at + b * 32 + q * 4);
    } else if (PLANES <= PLANES_4_2) {
        [[unroll]] for (uint j = 0; j < 4; j++) {
            uvec4 v = read4(at + b * 16 + j * 4);
            c[j] = v & 0x0f0f0f0f;
            c[4 + j] = v >> 4 & 0x0f0f0f0f;
        }
    } else {
        [[unroll]] for (uint j = 0; j < 2; j++) {
            uvec4 v = read4(at + b * 8 + j * 4);
            [[unroll]] for (uint p = 0; p < 4; p++)
                c[2 * p + j] = v >> 2 * p & 0x03030303;
        }
    }
    if (PLANES == PLANES_4_1 || PLANES == PLANES_2_1) {
        uvec4 v = read4(at + high + b * 4);
        [[unroll]] for (uint q = 0; q < 8; q++)
            c[q] |= (v >> q & 0x01010101) << (PLANES == PLANES_4_1 ? 4 : 2);
    }
    if (PLANES == PLANES_4_2) {
        [[unroll]] for (uint j = 0; j < 2; j++) {
            uvec4 v = read4(at + high + b * 8 + j * 4);
            [[unroll]] for (uint p = 0; p < 4; p++)
                c[2 * p + j] |= (v >> 2 * p & 0x03030303) << 4;
        }
    }
    if (CODEBOOK != 0) {
        [[dont_unroll]] for (uint q = 0; q < 8; q++) { // rolled: the words go round
            uvec4 bytes = table_bytes(c[0]);
            [[unroll]] for (uint i = 0; i < 7; i++)
                c[i] = c[i + 1];
            c[7] = bytes;
        }
    }
}

uvec4 bytes_of(uint word)
{
    return uvec4(word, word >> 8, word >> 16, word >> 24) & 255;
}

uvec4 bytes_of(uint word, uint shift, uint mask)
{
    return bytes_of(word) >> shift & mask;
}

// Sub-scales and minima of group `g` of a super-block whose texels begin at `at`, for two quads.
void load_subs(uint at, uint pair, uint g, out ivec4 scale[2], out ivec4 least[2])
{
    uint second = SUB == SUB_SM8 ? 8 + g : SUB == SUB_S6 ? 8 + g % 4 : 0;
    uvec4 a = read4(at + (SUB == SUB_S6 ? g % 8 : g)), b = uvec4(0);
    if (SUB == SUB_SM8 || SUB == SUB_S6)
        b = read4(at + second);
    uvec2 first = pair != 0 ? a.zw : a.xy, other = pair != 0 ? b.zw : b.xy;
    [[unroll]] for (int q = 0; q < 2; q++) {
        least[q] = ivec4(0);
        if (SUB == SUB_SM8) {
            scale[q] = ivec4(bytes_of(first[q]));
            least[q] = ivec4(bytes_of(other[q]));
        } else if (SUB == SUB_SM4) {
            scale[q] = ivec4(bytes_of(first[q], 0, 15));
            least[q] = ivec4(bytes_of(first[q], 4, 15));
        } else if (SUB == SUB_S6) {
            uvec4 low = bytes_of(first[q], g / 8 * 4, 15), high = bytes_of(other[q], g / 4 * 2, 3);
            scale[q] = ivec4(low | high << 4) - 32;
        } else {
            scale[q] = ivec4(bytes_of(first[q]) << 24) >> 24;
        }
    }
}

// Effective scale and minimum of the group that holds weight k, for the four rows of `quad`.
// `group1`: the row group's first word.
void load_scales(uint group1, push_planes p, uint quad, uint k, out vec4 ws, out vec4 wm)
{
    uint block = k / SCALE_BLOCK;
    if (SUB == SUB_F32) {
        ws = uintBitsToFloat(read4(group1 / 4 + p.scale2 / 2 + block * 4 + quad));
        wm = vec4(0.0);
        if (HAS_MIN != 0)
            wm = uintBitsToFloat(read4(group1 / 4 + p.min2 / 2 + block * 4 + quad));
        return;
    }
    ws = halves_of(read2(group1 / 2 + p.scale2 + block * 4 + quad));
    wm = vec4(0.0);
    if (HAS_MIN != 0)
        wm = halves_of(read2(group1 / 2 + p.min2 + block * 4 + quad));
    if (SUB == SUB_NONE)
        return;
    uint g = k % SCALE_BLOCK / GROUP;
    uint sub = group1 + p.sub1 + block * SUB_BYTES * 4 + quad;
    ivec4 scale, least = ivec4(0);
    if (SUB == SUB_SM8) {
        scale = ivec4(bytes_of(read1(sub + g * 4)));
        least = ivec4(bytes_of(read1(sub + (8 + g) * 4)));
    } else if (SUB == SUB_SM4) {
        uvec4 both = bytes_of(read1(sub + g * 4));
        scale = ivec4(both & 15);
        least = ivec4(both >> 4);
    } else if (SUB == SUB_S6) {
        uvec4 low = bytes_of(read1(sub + g % 8 * 4)) >> g / 8 * 4 & 15;
        uvec4 high = bytes_of(read1(sub + (8 + g % 4) * 4)) >> g / 4 * 2 & 3;
        scale = ivec4(low | high << 4) - 32;
    } else {
        scale = ivec4(bytes_of(read1(sub + g * 4)) << 24) >> 24;
    }
    ws *= vec4(scale);
    wm = -(wm * vec4(least));
}

// The same for the 8 rows of the quads 2 * pair and 2 * pair + 1, which share each texel.
void load_scale_pair(uint group1, push_planes p, uint pair, uint k, out vec4 ws[2], out vec4 wm[2])
{
    uint block = k / SCALE_BLOCK, g = k % SCALE_BLOCK / GROUP;
    if (SUB == SUB_F32) {
        uint at = group1 / 4 + block * 4 + 2 * pair;
        [[unroll]] for (uint q = 0; q < 2; q++) {
            ws[q] = uintBitsToFloat(read4(at + p.scale2 / 2 + q));
            wm[q] = vec4(0.0);
            if (HAS_MIN != 0)
                wm[q] = uintBitsToFloat(read4(at + p.min2 / 2 + q));
        }
        return;
    }
    uvec4 d = read4((group1 / 2 + p.scale2) / 2 + block * 2 + pair);
    ws = vec4[2](halves_of(d.xy), halves_of(d.zw));
    wm = vec4[2](vec4(0.0), vec4(0.0));
    if (HAS_MIN != 0) {
        uvec4 m = read4((group1 / 2 + p.min2) / 2 + block * 2 + pair);
        wm = vec4[2](halves_of(m.xy), halves_of(m.zw));
    }
    if (SUB == SUB_NONE)
        return;
    ivec4 scale[2], least[2];
    load_subs((group1 + p.sub1) / 4 + block * SUB_BYTES, pair, g, scale, least);
    [[unroll]] for (int q = 0; q < 2; q++) {
        ws[q] *= vec4(scale[q]);
        wm[q] = -(wm[q] * vec4(least[q]));
    }
}

// The 16 values of NF4, as bits: bitsandbytes' documentation.
const uint nf4_values[16] = uint[16](
    0xbf800000u, 0xbf3239b1u, 0xbf066b30u, 0xbeca32a0u, 0xbe91a24du, 0xbe3d353fu,
    0xbdba7871u, 0x00000000u, 0x3da2faffu, 0x3e24cae3u, 0x3e7c04ddu, 0x3ead033au,
    0x3ee1a4b8u, 0x3f1007abu, 0x3f3913b3u, 0x3f800000u);

// The codes of 4 rows at column k: a cell of 32 columns has four texels, whose low nibbles come first.
vec4 load_nf4(uint group1, push_planes p, uint quad, uint k)
{
    vec4 ws, wm;
    uvec4 codes = read4(group1 / 4 + k / 32 * 16 + k % 16 / 4 * 4 + quad) >> k % 4 * 8 + k % 32 / 16 * 4 & 15;
    load_scales(group1, p, quad, k, ws, wm);
    precise vec4 w = ws * uintBitsToFloat(uvec4(nf4_values[codes.x], nf4_values[codes.y],
                                                nf4_values[codes.z], nf4_values[codes.w]));
    return w;
}

// Elements of a matrix of F32, F16 or BF16: row quad `quad` at column k.
vec4 load_elements(uint planes, uint group1, uint quad, uint k)
{
    if (planes == PLANES_F32)
        return uintBitsToFloat(read4(group1 / 4 + k * 4 + quad));
    uvec2 w = read2(group1 / 2 + k * 4 + quad);
    if (planes == PLANES_F16)
        return halves_of(w);
    return uintBitsToFloat(uvec4(w.x << 16, w.x & 0xffff0000u, w.y << 16, w.y & 0xffff0000u));
}

// The same of any matrix of the float class.
vec4 load_floats(uint group1, push_planes p, uint quad, uint k)
{
    if (CODEBOOK == CODEBOOK_NF4)
        return load_nf4(group1, p, quad, k);
    return load_elements(PLANES, group1, quad, k);
}
