// The adapters that a model's sequences may have (engine/adapter.h), on a Vulkan device. Their
// factors lie in the device's memory, those of a layer side by side in one buffer. A step with rows
// that have one takes another form of the model: the same ops recorded apart, with two dispatches
// more behind those that adapters change (shaders/adapter.comp). Steps without such rows take the
// model as it is.
#pragma once

#include "engine/device.h"

struct nb_vulkan_adapters;

// nb_device_ops. Between steps.
int nb_vulkan_adapter_open(struct nb_device_model *m, const struct nb_adapter *adapter,
                           struct nb_error *ret_error);
void nb_vulkan_adapter_close(struct nb_device_model *m, const struct nb_adapter *adapter);

// With the model.
void nb_vulkan_adapters_finish(struct nb_device_model *m);
// The form that a step of these rows takes, whose adapters then stand in the step buffer. -ENOMEM.
int nb_vulkan_adapters_form(struct nb_device_model *m, const struct nb_rows *rows,
                            struct nb_device_model **ret);
// The form with adapters, where there is one; else NULL.
struct nb_device_model *nb_vulkan_adapted(const struct nb_device_model *m);
// Adds what steps of that form have taken.
void nb_vulkan_adapters_times(const struct nb_device_model *m, struct nb_op_time *ret);
