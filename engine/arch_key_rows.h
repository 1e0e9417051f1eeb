// How the tables of keys are written.
#pragma once

#include "engine/arch.h"

#define READ(name)                                                                                 \
    {                                                                                              \
        name, NB_KEY_READ, NULL, {0},                                                              \
        {                                                                                          \
            NULL                                                                                   \
        }                                                                                          \
    }
#define HARMLESS(name)                                                                             \
    {                                                                                              \
        name, NB_KEY_HARMLESS, NULL, {0},                                                          \
        {                                                                                          \
            NULL                                                                                   \
        }                                                                                          \
    }
// A value, or one of two, with which the key changes nothing. An engine that leaves 0 out of a
// product means 1 by it.
#define NEUTRAL(name, value, what)                                                                 \
    {                                                                                              \
        name, NB_KEY_NEUTRAL, what, {value, value},                                                \
        {                                                                                          \
            NULL                                                                                   \
        }                                                                                          \
    }
#define NEUTRAL_2(name, value, other, what)                                                        \
    {                                                                                              \
        name, NB_KEY_NEUTRAL, what, {value, other},                                                \
        {                                                                                          \
            NULL                                                                                   \
        }                                                                                          \
    }
#define NEUTRAL_TEXT(name, text, other, what)                                                      \
    {                                                                                              \
        name, NB_KEY_NEUTRAL, what, {0},                                                           \
        {                                                                                          \
            text, other                                                                            \
        }                                                                                          \
    }

// Of families with experts.
#define EXPERT_KEYS                                                                                \
    READ("expert_count"), READ("expert_used_count"), READ("expert_feed_forward_length"),           \
        READ("expert_shared_feed_forward_length"), READ("expert_weights_norm"),                    \
        READ("expert_weights_scale"), READ("expert_gating_func"),                                  \
        NEUTRAL_2("expert_group_count", 0, 1, "experts that are chosen by groups")
