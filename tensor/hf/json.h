// The JSON files of a Hugging Face folder, which may be hostile: bounded before they are parsed.
#pragma once

#include <jansson.h>

#include "tensor/gguf.h"
#include "tensor/fail.h"

#define NB_HF_SHOWN_MAX 160

// Parses `text`, the whole of `file` (its name, for the error line), which must be one object
// without duplicate keys. -EFBIG over a limit, -EINVAL for what is malformed, -ENOMEM. The caller
// owns *ret.
int nb_hf_json(struct nb_str text, const char *file, json_t **ret, struct nb_error *ret_error);

// The same of a list.
int nb_hf_json_list(struct nb_str text, const char *file, json_t **ret, struct nb_error *ret_error);

// A member that is a string, or {NULL, 0}. It lives as long as the object. No string of such a file
// holds a NUL.
struct nb_str nb_hf_str(const json_t *object, const char *key);
bool nb_hf_bool(const json_t *object, const char *key, bool absent);
// A member that is an integer, or -1 for none and for a negative one.
int64_t nb_hf_id(const json_t *object, const char *key);
bool nb_hf_is(struct nb_str s, const char *text);
// The text as it may stand in an error line: without control characters, cut to the buffer.
const char *nb_hf_shown(struct nb_str text, char buffer[NB_HF_SHOWN_MAX]);
