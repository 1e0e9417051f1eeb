// The exponential functions of docs/numerics.md, for every shader.

float exp_f32(float x)
{
    if (isnan(x))
        return x;
    x = clamp(x, -104.0, 89.0);
    precise float n = roundEven(x * uintBitsToFloat(0x3fb8aa3bu));
    precise float r = fma(-n, uintBitsToFloat(0xb102e308u),
                          fma(-n, uintBitsToFloat(0x3f317218u), x));
    precise float p = uintBitsToFloat(0x3ab68885u);
    p = fma(p, r, uintBitsToFloat(0x3c0905b7u));
    p = fma(p, r, uintBitsToFloat(0x3d2aaa8du));
    p = fma(p, r, uintBitsToFloat(0x3e2aaa6eu));
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    int whole = int(n), first = whole >> 1;
    precise float scaled = intBitsToFloat((first + 127) << 23) * p;
    precise float y = scaled * intBitsToFloat((whole - first + 127) << 23);
    return y;
}

float tanh_f32(float x)
{
    precise float y = 1.0 - 2.0 / (exp_f32(x + x) + 1.0);
    return y;
}
