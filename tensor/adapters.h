// LoRA adapters as part of a model (Hu and others, arXiv 2106.09685): a source whose matrices have
// scale * alpha / rank * B A added to them when they are read, from GGUF adapters as llama.cpp's
// converter writes them: NAME.lora_a [rank][cols] and NAME.lora_b [rows][rank] of a matrix NAME.
#pragma once

#include <stdbool.h>

#include "tensor/source.h"

// An adapter's file comes beside the model's, as "adapter/SCALE/NAME"; libnibble names it so.
#define NB_ADAPTER_FILE "adapter/"
bool nb_is_adapter_file(const struct nb_source_file *file);

// Adds n adapters to a source whose rows are read from files. Each is hostile input: all of it is
// checked, and it is read whole into memory; the fds are needed no longer. Adapted matrices are F32
// from then on. What was asked of the source before (tensors' types) is to be asked again. -EINVAL:
// no adapter, or one of another base; -ENOTSUP: of embeddings or experts; -ENOMEM, or an errno of
// pread; with its line, and `s` is only good for nb_source_close then.
int nb_adapters_add(struct nb_source *s, const struct nb_source_file *files, uint32_t n,
                    struct nb_error *ret_error);
