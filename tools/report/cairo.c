// See cairo.h.
#include "tools/report/cairo.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

static int find(void *library, const char *name, void *ret)
{
    void *call = dlsym(library, name);
    memcpy(ret, &call, sizeof(call));
    return call ? 0 : -1;
}

const struct cairo_calls *cairo_open(void)
{
    static struct cairo_calls calls;
    static void *library;
    if (library)
        return &calls;
    void *opened = dlopen("libcairo.so.2", RTLD_NOW | RTLD_LOCAL);
    int missing = opened ? 0 : -1;
#define FIND(name) missing |= opened ? find(opened, "cairo_" #name, &calls.name) : -1;
    CAIRO_CALLS(FIND)
#undef FIND
    if (missing && opened)
        dlclose(opened);
    else
        library = opened;
    return missing ? NULL : &calls;
}
