// Where a GEMM finds its inputs and weights. With EXPERTS a row is one of those that a token has, one
// for each expert that it takes, and the weights are that expert's: row groups [EXPERTS_BEGIN,
// EXPERTS_END) of all experts lie in the window, and rows of others are left to other dispatches. A
// tile has rows in the order of experts, and takes those of one expert after those of another.

#ifdef EXPERTS
uint expert;     // of the rows under way,
uint begin, end; // which of the tile's these are

uint count_rows()
{
    return step_words[pc.count] * pc.more[EXPERTS_CHOSEN];
}

// The i-th row in the order of experts; alone, rows need none. Past the last it is any.
uint row_at(uint i)
{
    return TOKENS == 1 ? i : word_at(cache, pc.more[EXPERTS_ORDER1] + min(i, count_rows() - 1));
}

uint expert_of(uint row)
{
    return word_at(cache, row * 2);
}

// Takes the rows from `first` on that have one expert, of a tile of so many.
void begin_rows(uint token, uint first, uint tokens)
{
    expert = expert_of(row_at(token + first));
    begin = first;
    for (end = first + 1; end < tokens; end++)
        if (expert_of(row_at(token + end)) != expert)
            break;
}

bool is_here(uint group)
{
    uint at = expert * pc.more[EXPERTS_EACH] + group;
    return at >= pc.more[EXPERTS_BEGIN] && at < pc.more[EXPERTS_END];
}

uint input_row(uint i)
{
    return row_at(i) / pc.more[EXPERTS_SHARED];
}

// The first word of matrix i's first row group, as if the window held it.
uint first_word(uint i)
{
    uint groups = expert * pc.more[EXPERTS_EACH] - pc.more[EXPERTS_BEGIN];
    return pc.weight1[i] + groups * pc.planes.stride1;
}

// Each expert's begins at a multiple of 32 floats.
uint first_bias(uint i)
{
    return pc.bias1[i] == NONE ? NONE : pc.bias1[i] + expert * ((pc.rows[i] + 31) / 32 * 32);
}
#else
uint count_rows()
{
    return step_words[pc.count];
}

uint row_at(uint i)
{
    return i;
}

uint input_row(uint i)
{
    return i;
}

uint first_word(uint i)
{
    return pc.weight1[i];
}

uint first_bias(uint i)
{
    return pc.bias1[i];
}
#endif
