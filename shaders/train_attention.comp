// Attention of the float engine: a tile of queries by tiles of keys, with a running maximum and sum
// (Dao and others, FlashAttention, arXiv 2205.14135; backward as its second part, arXiv 2307.08691).
// A workgroup of 16 by 16 invocations has a tile of queries of one head, or, for the gradients of keys and
// values, a tile of keys of one KV head, whose query heads it takes one after the other.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "train.glsl"

layout(constant_id = TRAIN_CHUNKS) const uint CHUNKS = 4;

layout(push_constant) uniform Push { push_train_attention pc; };

const uint SIDE = 16, TILE = TRAIN_QUERIES, BLOCK = TILE / SIDE, DEPTH = TRAIN_ATTEND_DEPTH;
const uint STRIDE = DEPTH + 1, EDGE = TILE + 1;
#define LEAST uintBitsToFloat(0xff800000u) // minus infinity

shared float left[TILE * STRIDE], right[TILE * STRIDE]; // rows of both sides of a product
shared float tile[TILE * EDGE], other_tile[TILE * EDGE]; // [query][key]

// An invocation has the rows down() + i * SIDE of a tile and its columns across() + i * SIDE, or, of a
// head's numbers, every SIDE-th from across() on.
uint down()
{
    return gl_LocalInvocationIndex / SIDE;
}

uint across()
{
    return gl_LocalInvocationIndex % SIDE;
}

// The workgroup's tile: rows of its sequence, and its first and how many of them.
struct Tile {
    uint first, n, at, count;
};

Tile own_tile()
{
    uint at = pc.tiles + gl_WorkGroupID.x * TRAIN_TILE_WORDS;
    uint n = tables[at + 1], from = tables[at + 2];
    return Tile(tables[at], n, from, min(TILE, n - from));
}

// Rows of one head in a buffer.
struct Rows {
    uint at, stride, n;
};

Rows rows_of(uint at, uint stride, uint column, Tile t)
{
    return Rows(at + (t.first + t.at) * stride + column, stride, t.count);
}

float product[BLOCK * BLOCK]; // of the block

// The inner products of all rows of a with all of b, over `dim` numbers; a may be of gradients.
void multiply(bool back, Rows a, Rows b, uint dim)
{
    [[unroll]] for (uint i = 0; i < BLOCK * BLOCK; i++)
        product[i] = 0.0;
    for (uint d0 = 0; d0 < dim; d0 += DEPTH) {
        barrier();
        for (uint e = gl_LocalInvocationIndex; e < TILE * DEPTH; e += SIDE * SIDE) {
            uint row = e / DEPTH, d = d0 + e % DEPTH, at = row * STRIDE + e % DEPTH;
            uint x = a.at + row * a.stride + d, y = b.at + row * b.stride + d;
            left[at] = row < a.n && d < dim ? (back ? gradients[x] : values[x]) : 0.0;
            right[at] = row < b.n && d < dim ? values[y] : 0.0;
        }
        barrier();
        [[dont_unroll]] for (uint d = 0; d < min(DEPTH, dim - d0); d++)
            [[unroll]] for (uint i = 0; i < BLOCK; i++)
                [[unroll]] for (uint j = 0; j < BLOCK; j++)
                    product[i * BLOCK + j] = fma(left[(down() + i * SIDE) * STRIDE + d],
                                                 right[(across() + j * SIDE) * STRIDE + d],
                                                 product[i * BLOCK + j]);
    }
}

// --- Which keys a query sees: [from, end).

uint seen_end(uint n, uint query)
{
    return pc.causal != 0 ? query + 1 : n;
}

uint seen_from(uint n, uint query)
{
    uint end = seen_end(n, query);
    return pc.window != 0 && pc.window < end ? end - pc.window : 0;
}

bool sees(Tile q, Tile k, uint i, uint j)
{
    uint query = q.at + i, key = k.at + j;
    return i < q.count && j < k.count && key < seen_end(q.n, query) && key >= seen_from(q.n, query);
}

Tile tile_at(Tile t, uint at)
{
    return Tile(t.first, t.n, at, min(TILE, t.n - at));
}

// --- Forward

float most[BLOCK], sum[BLOCK];
float result[2 * BLOCK * CHUNKS]; // the second half: gradients of keys, beside those of values
const uint SECOND = BLOCK * CHUNKS;

void clear()
{
    [[unroll]] for (uint i = 0; i < 2 * BLOCK * CHUNKS; i++)
        result[i] = 0.0;
}

float capped(float x)
{
    x *= pc.scale;
    return pc.softcap > 0.0 ? pc.softcap * tanh_f32(x / pc.softcap) : x;
}

// An invocation's numbers of a tile, one after the other: rolled loops, because drivers take long to
// compile what is not.
uint own_at(uint e)
{
    return (down() + e / BLOCK * SIDE) * EDGE + across() + e % BLOCK * SIDE;
}

bool own_sees(Tile q, Tile k, uint e)
{
    return sees(q, k, down() + e / BLOCK * SIDE, across() + e % BLOCK * SIDE);
}

void put_product()
{
    [[unroll]] for (uint e = 0; e < BLOCK * BLOCK; e++)
        tile[own_at(e)] = product[e];
}

// Makes scores of the products in the tile, and exponentials of these; lowers what is summed to the new
// maximum of each row.
void soften(Tile q, Tile k)
{
    put_product();
    [[dont_unroll]] for (uint e = 0; e < BLOCK * BLOCK; e++)
        tile[own_at(e)] = own_sees(q, k, e) ? capped(tile[own_at(e)]) : LEAST;
    barrier();
    [[unroll]] for (uint i = 0; i < BLOCK; i++) {
        const uint row = down() + i * SIDE;
        float now = most[i];
        [[dont_unroll]] for (uint j = 0; j < k.count; j++)
            now = max(now, tile[row * EDGE + j]);
        other_tile[row] = now; // the same by all that have the row
        float keep = most[i] > LEAST ? exp_f32(most[i] - now) : 0.0;
        most[i] = now;
        sum[i] *= keep;
        [[unroll]] for (uint n = 0; n < CHUNKS; n++)
            result[i * CHUNKS + n] *= keep;
    }
    barrier();
    [[dont_unroll]] for (uint e = 0; e < BLOCK * BLOCK; e++)
        tile[own_at(e)] =
            own_sees(q, k, e) ? exp_f32(tile[own_at(e)] - other_tile[down() + e / BLOCK * SIDE]) : 0.0;
    barrier();
}

// To the half of the result that begins at `to`: a tile's numbers of each row, times rows of b. With `turned`
// the tile's columns are the rows; b is of gradients with `back`, and the tile then the other one.
void add_rows(uint to, bool turned, bool back, Rows b, uint dim)
{
    [[dont_unroll]] for (uint j = 0; j < b.n; j++) {
        float p[BLOCK];
        [[unroll]] for (uint i = 0; i < BLOCK; i++) {
            uint at = turned ? j * EDGE + down() + i * SIDE : (down() + i * SIDE) * EDGE + j;
            p[i] = back ? other_tile[at] : tile[at];
        }
        [[unroll]] for (uint n = 0; n < CHUNKS; n++) {
            uint d = across() + n * SIDE, at = b.at + j * b.stride + d;
            float y = d < dim ? (back ? gradients[at] : values[at]) : 0.0;
            [[unroll]] for (uint i = 0; i < BLOCK; i++)
                result[to + i * CHUNKS + n] = fma(p[i], y, result[to + i * CHUNKS + n]);
        }
    }
}

// By one step of Newton's behind the driver's logarithm, which may be rough.
float log_f32(float x)
{
    float y = log(x);
    return y + (x * exp_f32(-y) - 1.0);
}

// The first and the end of the keys that some query of a tile sees.
uint keys_from(Tile q)
{
    return seen_from(q.n, q.at) / TILE * TILE;
}

uint keys_end(Tile q)
{
    return seen_end(q.n, q.at + q.count - 1);
}

void attend()
{
    const Tile q = own_tile();
    const uint head = gl_WorkGroupID.y, kv = head / pc.sharing;
    const Rows queries = rows_of(pc.q, pc.q1, head * pc.k_dim, q);
    [[unroll]] for (uint i = 0; i < BLOCK; i++) {
        most[i] = LEAST;
        sum[i] = 0.0;
    }
    clear();
    for (uint at = keys_from(q); at < keys_end(q); at += TILE) {
        const Tile k = tile_at(q, at);
        multiply(false, queries, rows_of(pc.k, pc.k1, kv * pc.k_dim, k), pc.k_dim);
        soften(q, k);
        [[unroll]] for (uint i = 0; i < BLOCK; i++)
            [[dont_unroll]] for (uint j = 0; j < k.count; j++)
                sum[i] += tile[(down() + i * SIDE) * EDGE + j];
        add_rows(0, false, false, rows_of(pc.v, pc.v1, kv * pc.v_dim, k), pc.v_dim);
    }
    [[unroll]] for (uint i = 0; i < BLOCK; i++) {
        uint row = down() + i * SIDE, at = q.first + q.at + row;
        if (row >= q.count)
            continue;
        [[unroll]] for (uint n = 0; n < CHUNKS; n++)
            if (across() + n * SIDE < pc.v_dim)
                values[pc.made + at * pc.made1 + head * pc.v_dim + across() + n * SIDE] =
                    result[i * CHUNKS + n] / sum[i];
        if (across() == 0)
            values[pc.sum + at * pc.sum1 + head] = most[i] + log_f32(sum[i]);
    }
}

// --- Backward

// Makes of the products in the tile the softmax (other_tile), and this times the slope of scale and cap.
void weigh(Tile q, Tile k, uint head)
{
    put_product();
    [[dont_unroll]] for (uint e = 0; e < BLOCK * BLOCK; e++) {
        const uint row = down() + e / BLOCK * SIDE, at = own_at(e);
        float total = row < q.count ? values[pc.sum + (q.first + q.at + row) * pc.sum1 + head] : 0.0;
        float score = capped(tile[at]), t = pc.softcap > 0.0 ? score / pc.softcap : 0.0;
        float weight = own_sees(q, k, e) ? exp_f32(score - total) : 0.0;
        other_tile[at] = weight;
        tile[at] = weight * (pc.scale * (1.0 - t * t));
    }
}

// Of each row the sum of the result times its gradient.
float inner[BLOCK];

// The gradients of the scores, of the products of values and the result's gradients.
void weigh_back()
{
    [[unroll]] for (uint e = 0; e < BLOCK * BLOCK; e++)
        tile[own_at(e)] *= product[e] - inner[e / BLOCK];
}

// Both; ends where all of the workgroup may read both tiles.
void score(Tile q, Tile k, uint head, uint kv)
{
    [[dont_unroll]] for (uint back = 0; back < 2; back++) {
        Rows left_rows = rows_of(pc.q, pc.q1, head * pc.k_dim, q);
        Rows right_rows = rows_of(pc.k, pc.k1, kv * pc.k_dim, k);
        if (back != 0) {
            left_rows = rows_of(pc.made, pc.made1, head * pc.v_dim, q);
            right_rows = rows_of(pc.v, pc.v1, kv * pc.v_dim, k);
        }
        multiply(back != 0, left_rows, right_rows, back != 0 ? pc.v_dim : pc.k_dim);
        if (back != 0)
            weigh_back();
        else
            weigh(q, k, head);
    }
    barrier();
}

uint inner_at(Tile q, uint head, uint row)
{
    return pc.sum + (q.first + q.at + row) * pc.sum1 + head;
}

// And leaves them where read_inner finds them, in the next dispatch.
void make_inner(Tile q, uint head)
{
    [[unroll]] for (uint i = 0; i < BLOCK; i++) {
        uint row = down() + i * SIDE, at = pc.made + (q.first + q.at + row) * pc.made1 + head * pc.v_dim;
        float mine = 0.0;
        for (uint d = across(); d < pc.v_dim && row < q.count; d += SIDE)
            mine += values[at + d] * gradients[at + d];
        tile[row * EDGE + across()] = mine;
    }
    barrier();
    [[unroll]] for (uint i = 0; i < BLOCK; i++) {
        uint row = down() + i * SIDE;
        inner[i] = 0.0;
        [[dont_unroll]] for (uint j = 0; j < SIDE; j++)
            inner[i] += tile[row * EDGE + j];
        if (across() == 0 && row < q.count)
            gradients[inner_at(q, head, row)] = inner[i];
    }
}

void read_inner(Tile q, uint head)
{
    [[unroll]] for (uint i = 0; i < BLOCK; i++)
        inner[i] = down() + i * SIDE < q.count ? gradients[inner_at(q, head, down() + i * SIDE)] : 0.0;
}

void add_result(uint from, Tile t, uint at, uint stride, uint column, uint dim)
{
    [[unroll]] for (uint i = 0; i < BLOCK; i++) {
        uint row = down() + i * SIDE, to = at + (t.first + t.at + row) * stride + column;
        [[unroll]] for (uint n = 0; n < CHUNKS; n++)
            if (row < t.count && across() + n * SIDE < dim)
                gradients[to + across() + n * SIDE] += result[from + i * CHUNKS + n];
    }
}

void back_queries()
{
    const Tile q = own_tile();
    const uint head = gl_WorkGroupID.y, kv = head / pc.sharing;
    make_inner(q, head);
    clear();
    for (uint at = keys_from(q); at < keys_end(q); at += TILE) {
        const Tile k = tile_at(q, at);
        score(q, k, head, kv);
        add_rows(0, false, false, rows_of(pc.k, pc.k1, kv * pc.k_dim, k), pc.k_dim);
    }
    add_result(0, q, pc.q, pc.q1, head * pc.k_dim, pc.k_dim);
}

// The first and the end of the queries that see some key of a tile.
uint queries_from(Tile k)
{
    return pc.causal != 0 ? k.at : 0;
}

uint queries_end(Tile k)
{
    uint last = k.at + k.count - 1 + pc.window;
    return pc.causal != 0 && pc.window != 0 ? min(k.n, last) : k.n;
}

// What one tile of queries of one head adds.
void back_tile(Tile q, Tile k, uint head)
{
    read_inner(q, head);
    score(q, k, head, gl_WorkGroupID.y);
    add_rows(0, true, true, rows_of(pc.made, pc.made1, head * pc.v_dim, q), pc.v_dim);
    add_rows(SECOND, true, false, rows_of(pc.q, pc.q1, head * pc.k_dim, q), pc.k_dim);
}

void back_keys()
{
    const Tile k = own_tile();
    const uint kv = gl_WorkGroupID.y;
    clear();
    for (uint head = kv * pc.sharing; head < (kv + 1) * pc.sharing; head++)
        for (uint at = queries_from(k); at < queries_end(k); at += TILE)
            back_tile(tile_at(k, at), k, head);
    add_result(0, k, pc.v, pc.v1, kv * pc.v_dim, pc.v_dim);
    add_result(SECOND, k, pc.k, pc.k1, kv * pc.k_dim, pc.k_dim);
}

void main()
{
    if (MODE == TRAIN_ATTEND)
        attend();
    else if (MODE == TRAIN_ATTEND_QUERIES)
        back_queries();
    else
        back_keys();
}
