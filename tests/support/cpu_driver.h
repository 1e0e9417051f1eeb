// Mesa's CPU driver, which a machine without a GPU has too.
#pragma once

// Its device's name ("vulkan0"), found once; where it is missing, NULL and a line to stderr.
const char *test_cpu_driver(void);
