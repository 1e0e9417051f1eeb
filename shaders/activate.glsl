// The functions between a feed-forward's matrices (docs/numerics.md).

// enum nb_activation
const uint ACT_SILU = 0, ACT_GELU = 1, ACT_GELU_ERF = 2, ACT_RELU2 = 3, ACT_RELU = 4;

// By its coefficients, from that of the highest power on, as float bits.
const uint CDF[10] = uint[10](0x314e576fu, 0xb41a3107u, 0x36370500u, 0xb7d6a6dfu, 0x38e043ccu,
                              0x3926b8b8u, 0xbba33271u, 0x3d154360u, 0x3ea2f61cu, 0x3f4c424du);

float normal_cdf(float x)
{
    float a = abs(x);
    precise float p = uintBitsToFloat(CDF[0]);
    [[unroll]] for (int i = 1; i < 10; i++)
        p = fma(p, a, uintBitsToFloat(CDF[i]));
    precise float product = a * p;
    precise float tail = 0.5 * exp_f32(-product), other = 1.0 - tail;
    return floatBitsToUint(x) >> 31 != 0 ? tail : other;
}

float silu(float x)
{
    precise float below = 1.0 + exp_f32(-x);
    precise float y = x / below;
    return y;
}

// With tanh, as one division: 2 sqrt(2 / pi), and that times 0.044715.
float gelu(float x)
{
    precise float square = x * x;
    precise float inner = x * fma(square, uintBitsToFloat(0x3d922279u), uintBitsToFloat(0x3fcc422au));
    precise float below = 1.0 + exp_f32(-inner);
    precise float y = x / below;
    return y;
}

float gelu_erf(float x)
{
    precise float y = x * normal_cdf(x);
    return y;
}

float relu(float x)
{
    return 0.0 > x ? 0.0 : x;
}

float relu2(float x)
{
    precise float y = relu(x) * relu(x);
    return y;
}

float activate(uint kind, float x)
{
    if (kind == ACT_SILU)
        return silu(x);
    if (kind == ACT_GELU)
        return gelu(x);
    if (kind == ACT_GELU_ERF)
        return gelu_erf(x);
    return kind == ACT_RELU2 ? relu2(x) : relu(x);
}

vec4 activate(uint kind, vec4 x)
{
    return vec4(activate(kind, x.x), activate(kind, x.y), activate(kind, x.z), activate(kind, x.w));
}
