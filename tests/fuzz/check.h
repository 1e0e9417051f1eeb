// What every input must keep to: a target that finds otherwise ends with a sentence.
#pragma once

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static inline void check(bool good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}
