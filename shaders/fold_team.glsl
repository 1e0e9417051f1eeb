// A workgroup's sum of what its lanes have: 4 * LANES partial sums, folded in halves.

shared vec4 partial[LANES];

float fold_team(vec4 p)
{
    uint me = lane();
    barrier(); // the sums of a row before have been read
    partial[me] = p;
    for (uint half_lanes = LANES / 2; half_lanes > 0; half_lanes /= 2) {
        barrier();
        if (me < half_lanes) {
            precise vec4 sum = p + partial[me + half_lanes];
            p = sum;
            partial[me] = p;
        }
    }
    barrier();
    p = partial[0];
    precise vec2 half_sum = p.xy + p.zw;
    precise float all = half_sum.x + half_sum.y;
    return all;
}
