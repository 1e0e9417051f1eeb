// Cooperative matrices: what we use of VK_KHR_cooperative_matrix, by its specification, because the
// headers of Debian 12 are older.
#pragma once

#include "engine/vulkan/api.h"

#define NB_COOPMAT_EXTENSION "VK_KHR_cooperative_matrix"

enum { // VkStructureType
    NB_COOPMAT_FEATURES = 1000506000,
    NB_COOPMAT_SHAPE = 1000506001,
    NB_COOPMAT_PROPERTIES = 1000506002,
};
enum { NB_COOPMAT_FLOAT32 = 1, NB_COOPMAT_SINT8 = 3, NB_COOPMAT_SINT32 = 5 }; // VkComponentTypeKHR
enum { NB_COOPMAT_SUBGROUP = 3 };                                             // VkScopeKHR

struct nb_coopmat_features {
    VkStructureType sType;
    void *pNext;
    VkBool32 cooperativeMatrix, cooperativeMatrixRobustBufferAccess;
};

struct nb_coopmat_properties {
    VkStructureType sType;
    void *pNext;
    VkShaderStageFlags cooperativeMatrixSupportedStages;
};

// A product that the device has: M by K, K by N, and M by N.
struct nb_coopmat_shape {
    VkStructureType sType;
    void *pNext;
    uint32_t m, n, k;
    uint32_t a, b, c, result; // types of components
    VkBool32 saturates;
    uint32_t scope;
};

typedef VkResult (*nb_coopmat_shapes)(VkPhysicalDevice p, uint32_t *count,
                                      struct nb_coopmat_shape *ret);
#define NB_COOPMAT_SHAPES "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
