// The table of one ISA level, from the functions defined before it.
const struct nb_kernels LEVEL = {
    .name = LEVEL_NAME,
    .quantize = quantize,
    .rmsnorm = rmsnorm,
    .layernorm = layernorm,
    .gemm = gemm,
    .gemm_scratch = gemm_scratch,
    .activate = activate,
    .add = add,
    .cap = cap,
    .rope = rope,
    .kv_write = kv_write,
    .attention = attention,
    .attn_scratch = attn_scratch,
    .decode_row = decode_row,
};
