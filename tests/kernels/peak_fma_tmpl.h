// Operations a second of one instruction on registers alone: PEAK is the function's name, VECTOR
// its registers, MULTIPLY(x, y, sum) the instruction, OPS what it does. As many chains as the
// instruction's latency needs.
#include "tests/kernels/clock.h"
#include "tests/kernels/peak.h"

double PEAK(void)
{
    enum { CHAINS = 12, STEPS = 200000 };
    VECTOR x = {0}, y = {0}, sum[CHAINS];
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        sum[i] = x;
    __asm__ volatile("" : "+v"(x), "+v"(y));
    double start = now();
    for (int step = 0; step < STEPS; step++)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) {
            sum[i] = MULTIPLY(x, y, sum[i]);
            __asm__ volatile("" : "+v"(sum[i]));
        }
    return (double)OPS * CHAINS * STEPS / (now() - start);
}
