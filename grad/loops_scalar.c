// The float engine's loops without any extension of the architecture.
#define LEVEL nb_loops_scalar
#include "grad/loops_tmpl.h"
