// A Vulkan driver that ends the process it is loaded into: what probes must expect.
#include <stdlib.h>

static void __attribute__((constructor)) crash(void)
{
    abort();
}
