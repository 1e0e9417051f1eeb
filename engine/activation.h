// The activation functions of a feed-forward network, as docs/numerics.md defines them.
#pragma once

enum nb_activation {
    NB_ACT_SILU,     // x / (1 + exp(-x))
    NB_ACT_GELU,     // with tanh: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    NB_ACT_GELU_ERF, // 0.5 x (1 + erf(x / sqrt(2)))
    NB_ACT_RELU2,    // max(x, 0)^2
    NB_ACT_RELU,     // max(x, 0)
    NB_ACT_COUNT
};
