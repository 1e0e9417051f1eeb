// Chat templates: messages to token ids. A model's Jinja text is never run: it is recognised by its
// marks as one of a table of families, which are data. What a user wrote can never become a control
// token, since templates hand their own words and the messages' over as different parts. Immutable
// after creation.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "engine/tokenizer.h"

#define NB_CHAT_MESSAGES_MAX 4096

struct nb_chat_template;

// Any bytes; the role is "system", "user" or "assistant".
struct nb_chat_message {
    struct nb_str role, content;
};

// -ENOENT when the model has no template; -ENOTSUP when it is none that we know (clients may still
// send raw text or tokens); -ENOMEM. `ret_error` has one line for each.
int nb_chat_template_create(const struct nb_gguf *meta, const struct nb_tokenizer *t,
                            struct nb_chat_template **ret, char *ret_error, size_t error_size);
void nb_chat_template_destroy(struct nb_chat_template *c);
const char *nb_chat_template_family(const struct nb_chat_template *c);

// The messages as parts of one text, in a new array (free it) whose parts point into the messages
// and the template. add_prompt: end with the words that begin the assistant's turn. -EINVAL for a
// role that the family lacks, an order that it cannot render, or more than NB_CHAT_MESSAGES_MAX
// messages; -ENOMEM.
int nb_chat_template_render(const struct nb_chat_template *c,
                            const struct nb_chat_message *messages, size_t n, bool add_prompt,
                            struct nb_text_part **ret, size_t *ret_n, char *ret_error,
                            size_t error_size);
// The same as ids, appended to `out`, after a BOS token where model or template want one. Also
// fails as nb_tokenizer_encode_parts does.
int nb_chat_template_encode(const struct nb_chat_template *c, const struct nb_tokenizer *t,
                            const struct nb_chat_message *messages, size_t n, bool add_prompt,
                            struct nb_tokens *out, char *ret_error, size_t error_size);
