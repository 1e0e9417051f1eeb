// The families of chat templates, as data. For chat_template.c alone.
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum nb_chat_role { NB_CHAT_SYSTEM, NB_CHAT_USER, NB_CHAT_ASSISTANT, NB_CHAT_ROLES };

// What stands around a message. \1 is the model's EOS token, \2 its BOS token.
struct nb_chat_turn {
    const char *before, *after;
};

struct nb_chat_family {
    const char *name;
    const char *marks[3];  // all stand in the template's text
    const char *absent[2]; // none does
    const char *start;     // before the first message, after BOS
    struct nb_chat_turn turn[NB_CHAT_ROLES];
    unsigned trim;         // bits of roles: white space at such a message's ends goes
    const char *prompt;    // begins the assistant's turn
    const char *next_user; // stands before every user turn but the first
    // The system message stands inside the next user's turn, in its own turn's words.
    bool system_in_user;
    bool empty_system; // without a system message there is an empty one
};

extern const struct nb_chat_family nb_chat_families[]; // ends with one without a name
