// llama.cpp's importance matrices as GGUF files: of each matrix NAME the F32 tensors NAME.in_sum2,
// [experts][columns], and NAME.counts, [experts][1]. What llama-imatrix writes is read, and what is
// written llama-quantize reads.
#pragma once

#include "quant/importance.h"

// Reads a file, hostile input. -EINVAL: it is none, or damaged; -EFBIG over a limit; with its line.
int nb_imatrix_read(int fd, struct nb_importance *ret, struct nb_error *ret_error);
// Writes to `fd`, from its start. `samples` windows of `length` tokens; 0: unknown. -errno.
int nb_imatrix_write(const struct nb_importance *s, uint32_t samples, uint32_t length, int fd);
