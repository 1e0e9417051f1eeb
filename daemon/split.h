// Devices made of several.
#pragma once

#include "daemon/lists.h"

int nb_device_is_split(const struct nb_device *device);
// The device of that name, made now where the name is that of several; with NULL, whether there is
// one or can be. Until it has a model, the next one made takes its place. Negative: the refusal's
// status.
int nb_device_named(struct nb_broker *broker, const char *name, struct nb_device **ret,
                    struct nb_refusal *refusal);
int nb_split_locate(struct nb_device *split); // what workers call its parts now
void nb_splits_leave(struct nb_device *part); // it is gone, and with it those it is a part of
