// Mixtures of experts on the CPU: the rows of all tokens sorted by expert, so that each expert's
// matrices are read once.
#include "engine/cpu/device.h"

void nb_cpu_group(const struct nb_device_model *m, uint32_t n, struct nb_cpu_groups *ret)
{
    const uint32_t experts = m->plan->hp.n_experts, k = m->plan->hp.n_chosen, rows = n * k;
    for (uint32_t e = 0; e <= experts; e++)
        ret->first[e] = 0;
    for (uint32_t i = 0; i < rows; i++)
        ret->first[m->expert[i] + 1]++;
    for (uint32_t e = 0; e < experts; e++)
        ret->first[e + 1] += ret->first[e];
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t row = ret->first[m->expert[i]]++;
        ret->place[i] = row;
        ret->token[row] = i / k;
        ret->expert[row] = m->expert[i];
    }
    // Each has moved to where the next began.
    for (uint32_t e = experts; e > 0; e--)
        ret->first[e] = ret->first[e - 1];
    ret->first[0] = 0;
    ret->n_tiles = 0;
    for (uint32_t e = 0; e < experts; e++)
        for (uint32_t row = ret->first[e]; row < ret->first[e + 1]; row += NB_CPU_TOKEN_TILE)
            ret->tile[ret->n_tiles++] = (struct nb_cpu_tile){
                row, nb_cpu_min(ret->first[e + 1] - row, NB_CPU_TOKEN_TILE), e};
}
