// Chat templates: a conversation as JSON to the text that a model expects, and to its token ids. A
// model's own template is run (jinja/). What a client wrote, wherever the template moves it, can
// never become a control token: a rendering says of each byte whose it is. Immutable after
// creation: any number of threads may render with one template.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include "engine/text/tokenizer.h"
#include "tensor/fail.h"

// The templates of one model file.
struct nb_chat_template;

// What a conversation becomes. The parts follow each other in `text`; two neighbours differ in
// `literal`, which is false for bytes that come from the client.
struct nb_rendering {
    char *text;
    size_t len;
    struct nb_text_part *part;
    size_t n_parts;
};
void nb_rendering_finish(struct nb_rendering *r);

// -ENOENT when the file has no template, -ENOMEM; `ret_error` has a line for each. A template that
// cannot be parsed is no failure: what is wrong with it is said by nb_chat_template_fault, and by
// every rendering that does not bring its own.
int nb_chat_template_create(const struct nb_gguf *meta, struct nb_chat_template **ret,
                            struct nb_error *ret_error);
void nb_chat_template_destroy(struct nb_chat_template *c);
const char *nb_chat_template_fault(const struct nb_chat_template *c); // or NULL

// Renders a conversation, one JSON object in UTF-8:
//   "messages"  an array of objects; required
//   "tools", "documents"  arrays; absent or null: the template sees none
//   "variables"  an object: more names for the template; none of the others here
//   "template"  a string: takes the place of the model's own template
//   "add_generation_prompt"  a boolean; true when absent: end with what begins the answer
// With tools, a file's template named "tool_use" is taken where there is one. `c` may be NULL: then
// the conversation must bring a template. `now` is what strftime_now tells, in local time.
// -ENOENT no template; -EINVAL a conversation or a template that is wrong, or one that raises;
// -E2BIG a limit, which the line names with its figure; -ENOMEM;
// -ECANCELED once *stop is true, which another thread may set (NULL: nobody does). `ret_error` is
// one line.
int nb_chat_template_render(const struct nb_chat_template *c, const struct nb_tokenizer *t,
                            struct nb_str conversation, time_t now, const atomic_bool *stop,
                            struct nb_rendering *ret, struct nb_error *ret_error);
// The same as ids, appended to `out`: a BOS token stands before them where the model wants one and
// the template wrote none. Also fails as nb_tokenizer_encode_parts does.
int nb_chat_template_encode(const struct nb_chat_template *c, const struct nb_tokenizer *t,
                            struct nb_str conversation, time_t now, const atomic_bool *stop,
                            struct nb_tokens *out, struct nb_error *ret_error);
