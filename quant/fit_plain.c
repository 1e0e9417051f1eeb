// The searches on any processor.
#include "quant/lanes.h"

#define LEVEL      nb_fit_plain
#define LEVEL_NAME "scalar"
#include "quant/fit_tmpl.h"
