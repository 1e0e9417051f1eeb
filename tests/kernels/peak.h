// What this machine can do at most, measured: the figures beside which a benchmark stands.
#pragma once

#include <stddef.h>

// Operations a second (a multiply and an add are two) of the AVX2 kernels' vpmaddubsw, vpaddw
// chain, on registers alone.
double peak_avx2(void);

// Floating-point operations a second of one thread: of fma, and of vdpbf16ps. The processor must
// have the instructions.
double peak_fma_avx2(void);
double peak_fma_avx512(void);
double peak_bf16(void);

// Bytes a second that one thread reads from memory of `n` bytes.
double peak_read(const void *memory, size_t n);
