// What a compression makes of each tensor, as JSON: for `nibble compress`, and for whoever wants to
// know what is in the file.
#pragma once

#include "quant/fold.h"
#include "quant/recipe.h"
#include "tensor/source.h"

// Writes to `fd`, from its start: the type, bits a weight and bytes of each tensor and of all, and
// what the user is to be warned of. `choices` has one for each tensor; `fold` is what was folded
// before, or NULL. -errno.
int nb_report_write(const struct nb_source *s, const struct nb_recipe *recipe,
                    const struct nb_choice *choices, const struct nb_fold *fold, int fd);
