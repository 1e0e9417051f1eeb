// Ops on rows of floats that no other shader does on its way: an invocation takes every lanes-th quad
// of a row, or chooses a token's experts.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(std430, binding = BIND_OUT) buffer Output { float result[]; };
// Of each row of experts which one it is, and its weight; and all of these rows by expert.
layout(std430, binding = BIND_OUT2) buffer Choices { uvec2 choices[]; };
layout(std430, binding = BIND_FLOATS) writeonly buffer Order { uint order[]; };

layout(push_constant) uniform Push { push_rows pc; };

#include "activate.glsl"

const uint GATING_SOFTMAX = 0, GATING_SIGMOID = 1; // enum nb_gating

vec4 old(uint at)
{
    return vec4(result[at], result[at + 1], result[at + 2], result[at + 3]);
}

// Four numbers of a row, from k on.
vec4 compute(uint row, uint k)
{
    precise vec4 y = floats_at(inputs, row * pc.in1 + pc.in_at + k);
    if (MODE == MODE_ACTIVATE) {
        y = activate(pc.function, y);
        if (pc.other1 != 0)
            y = y * floats_at(records, row * pc.other1 + pc.other_at + k);
    } else if (MODE == MODE_SUM) {
        y = fma(vec4(pc.scale), y, old(row * pc.out1 + pc.out_at + k));
    } else if (MODE == MODE_SCALE) {
        y = y * pc.scale;
        if (pc.cap > 0.0) {
            [[unroll]] for (int i = 0; i < 4; i++)
                y[i] = pc.cap * tanh_f32(y[i] / pc.cap);
        }
    } else {
        y = old(row * pc.out1 + pc.out_at + k);
        for (uint c = row * pc.chosen; c < (row + 1) * pc.chosen; c++) {
            precise float weight = uintBitsToFloat(word_at(cache, c * 2 + 1)) * pc.scale;
            y = fma(vec4(weight), floats_at(inputs, c * pc.in1 + pc.in_at + k), y);
        }
    }
    return y;
}

// --- Experts

#define LEAST     uintBitsToFloat(0xff800000u) // minus infinity
#define LEAST_SUM uintBitsToFloat(0x38800000u) // of weights: 2^-14, as numerics.md says

// From an expert's score, for it alone.
float probability(float score, float most, float total)
{
    precise float y = score;
    if (pc.function == GATING_SOFTMAX)
        y = exp_f32(score - most) / total;
    else if (pc.function == GATING_SIGMOID)
        y = 1.0 / (1.0 + exp_f32(-score));
    return y;
}

// What a row is softened by: its largest score, and the sum of the exponentials.
vec2 soften(uint at, uint n)
{
    float most = LEAST;
    for (uint i = 0; i < n; i++)
        most = result[at + i] > most ? result[at + i] : most;
    precise float total = 0.0;
    for (uint i = 0; i < n; i++)
        total += exp_f32(result[at + i] - most);
    return vec2(most, total);
}

// The best expert after `last`, of equals the first; one whose score is no number comes last.
uint best_after(uint at, bool first, uint last, float last_score, out float ret_score)
{
    uint best = NONE;
    ret_score = LEAST;
    for (uint i = 0; i < pc.width; i++) {
        precise float s = result[at + i];
        if (pc.bias1 != NONE)
            s += uintBitsToFloat(word_at(vectors, pc.bias1 + i));
        s = isnan(s) ? LEAST : s;
        bool after = first || s < last_score || (s == last_score && i > last);
        if (after && (best == NONE || s > ret_score)) {
            best = i;
            ret_score = s;
        }
    }
    return best;
}

void choose(uint row)
{
    const uint at = row * pc.out1 + pc.out_at, to = row * pc.chosen, k = pc.chosen;
    vec2 soft = soften(at, pc.width);
    for (uint i = 0; i < pc.width; i++)
        result[at + i] = probability(result[at + i], soft.x, soft.y);
    uint last = 0;
    float score = LEAST, most = LEAST;
    for (uint c = 0; c < k; c++) {
        last = best_after(at, c == 0, last, score, score);
        choices[to + c] = uvec2(last, floatBitsToUint(result[at + last]));
        most = result[at + last] > most ? result[at + last] : most;
    }
    const bool soften_chosen = pc.function != GATING_SOFTMAX && pc.function != GATING_SIGMOID;
    precise float total = 0.0, sum = 0.0;
    for (uint c = to; c < to + k; c++)
        total += exp_f32(uintBitsToFloat(choices[c].y) - most);
    for (uint c = to; c < to + k; c++) {
        precise float weight = uintBitsToFloat(choices[c].y);
        if (soften_chosen)
            weight = exp_f32(weight - most) / total;
        choices[c].y = floatBitsToUint(weight);
        sum += weight;
    }
    sum = sum < LEAST_SUM ? LEAST_SUM : sum;
    for (uint c = to; c < to + k; c++) {
        precise float weight = uintBitsToFloat(choices[c].y);
        if (pc.normalizes != 0)
            weight = weight / sum;
        weight = weight * pc.scale;
        choices[c].y = floatBitsToUint(weight);
    }
}

// Where row i stands among all rows, by expert and then by row.
void put_in_order(uint i)
{
    uint n = step_words[pc.count] * pc.chosen, mine = word_at(cache, i * 2), at = 0;
    for (uint j = 0; j < n; j += 2) {
        uvec4 two = texelFetch(cache, int(j / 2)); // an expert and its weight, and again
        at += two.x < mine || (two.x == mine && j < i) ? 1 : 0;
        at += j + 1 < n && (two.z < mine || (two.z == mine && j + 1 < i)) ? 1 : 0;
    }
    order[pc.order1 + at] = i;
}

void main()
{
    uint row = invocation() / pc.lanes, lane = invocation() % pc.lanes;
    if (row / pc.each >= step_words[pc.count])
        return;
    if (MODE == MODE_CHOOSE || MODE == MODE_ORDER) {
        if (MODE == MODE_CHOOSE)
            choose(row);
        else
            put_in_order(row);
        return;
    }
    for (uint k = lane * 4; k < pc.width; k += pc.lanes * 4) {
        vec4 y = compute(row, k);
        uint at = row * pc.out1 + pc.out_at + k;
        [[unroll]] for (uint i = 0; i < 4; i++)
            if (k + i < pc.width)
                result[at + i] = y[i];
    }
}
