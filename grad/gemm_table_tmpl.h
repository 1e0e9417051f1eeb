// The tables of a level that multiplies floats: LEVEL(x) is a table's name.
#pragma once

static void pack_f32(const struct nb_gemm_panel *p)
{
    pack(p, OPERAND_F32);
}

static void pack_widened(const struct nb_gemm_panel *p)
{
    pack(p, OPERAND_WIDENED);
}

const struct nb_gemm_kernels LEVEL(sgemm) = {
    LEVEL_NAME, ROWS, COLUMNS, .step = 1, .element = sizeof(float), pack_f32, tile};
const struct nb_gemm_kernels LEVEL(bgemm) = {
    LEVEL_NAME, ROWS, COLUMNS, .step = 1, .element = sizeof(uint16_t), pack_widened, tile};
