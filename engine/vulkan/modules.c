// Shader modules as a device gets them: what the build embedded, and the promise that halves keep
// their subnormals where the device can give it.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/device.h"

// Of the SPIR-V specification.
enum {
    HEADER = 5, // words
    OP_ENTRY_POINT = 15,
    OP_EXECUTION_MODE = 16,
    OP_CAPABILITY = 17,
    CAPABILITY_DENORM_PRESERVE = 4464,
    MODE_DENORM_PRESERVE = 4459,
};

static uint32_t head(uint32_t words, uint32_t op)
{
    return words << 16 | op;
}

size_t nb_vulkan_preserve_halves(const uint32_t *code, size_t words, uint32_t *ret)
{
    size_t out = HEADER;
    memcpy(ret, code, HEADER * sizeof(*ret));
    ret[out++] = head(2, OP_CAPABILITY);
    ret[out++] = CAPABILITY_DENORM_PRESERVE;
    for (size_t at = HEADER, n; at < words; at += n) {
        n = code[at] >> 16;
        memcpy(ret + out, code + at, n * sizeof(*ret));
        out += n;
        if ((code[at] & 0xffff) != OP_ENTRY_POINT)
            continue;
        const uint32_t mode[] = {head(4, OP_EXECUTION_MODE), code[at + 2], MODE_DENORM_PRESERVE,
                                 16};
        memcpy(ret + out, mode, sizeof(mode));
        out += 4;
    }
    return out;
}

int nb_vulkan_module(struct nb_vulkan_device *d, const struct nb_shader_code *code,
                     VkShaderModule *ret)
{
    VkShaderModuleCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                     .codeSize = code->bytes,
                                     .pCode = code->words};
    uint32_t *more = NULL;
    if (d->facts.preserves) {
        more = malloc(code->bytes + NB_VULKAN_PRESERVE_BYTES);
        if (!more)
            return -ENOMEM;
        info.codeSize = sizeof(*more) *
                        nb_vulkan_preserve_halves(code->words, code->bytes / sizeof(*more), more);
        info.pCode = more;
    }
    VkResult r = d->vk.CreateShaderModule(d->device, &info, NULL, ret);
    free(more);
    return nb_vk_errno(r);
}
