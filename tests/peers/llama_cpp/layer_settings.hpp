// What llama.cpp's Vulkan backend takes from headers newer than Debian 12's: VK_EXT_layer_settings,
// as the Vulkan specification lays it out. Included before each of its files (tools/setup).
#pragma once
#include <vulkan/vulkan_core.h>

#if defined(VK_HEADER_VERSION) && !defined(VK_EXT_layer_settings)
#include <vector>

namespace vk {
enum class LayerSettingTypeEXT : int32_t { eBool32 = 0 };

struct LayerSettingEXT {
    const char *pLayerName, *pSettingName;
    LayerSettingTypeEXT type;
    uint32_t valueCount;
    const void *pValues;
};

struct LayerSettingsCreateInfoEXT {
    int32_t sType = 1000496000;
    const void *pNext = nullptr;
    uint32_t settingCount;
    const LayerSettingEXT *pSettings;

    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> &all)
        : settingCount(static_cast<uint32_t>(all.size())), pSettings(all.data()) {}
};
} // namespace vk
#endif
