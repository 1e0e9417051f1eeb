// A row is a workgroup's: it leaves for the host the row's best candidates in their order, or all of
// its logits where it wants no candidates, so that logits need not lie in memory that the host sees.
layout(std430, binding = BIND_OUT) writeonly buffer Output { uvec2 result[]; };

shared uvec2 found[LANES];

// The best of what each lane has.
uvec2 best_of(uvec2 mine)
{
    uint me = gl_LocalInvocationID.x;
    found[me] = mine;
    for (uint half_lanes = LANES / 2; half_lanes > 0; half_lanes /= 2) {
        barrier();
        if (me < half_lanes && precedes(found[me + half_lanes], mine)) {
            mine = found[me + half_lanes];
            found[me] = mine;
        }
    }
    barrier();
    mine = found[0];
    barrier(); // before it is written again
    return mine;
}

// What the row holds: -0 and NaN stay what they are.
uvec2 candidate_of(uvec2 best, uint row4)
{
    return uvec2(texelFetch(inputs, int(row4 + best.y / 4))[best.y % 4], best.y);
}

void copy(uint row4)
{
    for (uint t = gl_LocalInvocationID.x; t * 4 < pc.vocab; t += LANES) {
        uvec4 bits = texelFetch(inputs, int(row4 + t));
        result[(row4 + t) * 2] = bits.xy;
        result[(row4 + t) * 2 + 1] = bits.zw;
    }
}

void main()
{
    uint row = gl_WorkGroupID.y, me = gl_LocalInvocationID.x;
    if (row >= step_words[STEP_WANTED])
        return;
    uint row4 = row * pc.in4, wanted = step_words[pc.wanted1 + row];
    if (wanted == 0) {
        copy(row4);
        return;
    }
    uvec2 mine = best_after(FIRST, row4, me, LANES);
    for (uint i = 0; i < wanted; i++) {
        uvec2 best = best_of(mine);
        if (me == 0)
            result[row4 * 2 + i] = candidate_of(best, row4);
        if (i + 1 == wanted)
            break;
        // The stripe that had it goes on with its next, which all lanes look for.
        uint owner = best.y / 4 % LANES;
        uvec2 next = best_of(best_after(best, row4, owner + me * LANES, LANES * LANES));
        if (me == owner)
            mine = next;
    }
}
