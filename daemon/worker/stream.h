// From tokens to the text a client sees: the token's bytes, then whole UTF-8 alone, then no text
// that is or may become a stop string, then without what the client has already. The same tokens
// always give the same text.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/gguf.h"

struct nb_stream;
struct nb_tokenizer;

// `stops`: n_stops times u32 length and bytes, of `stops_len` bytes in all, private memory. -EINVAL
// for another shape. `skip`: bytes of text that the client has from before.
int nb_stream_create(const struct nb_tokenizer *tokenizer, const char *stops, uint64_t stops_len,
                     uint32_t n_stops, uint64_t skip, struct nb_stream **ret);
void nb_stream_destroy(struct nb_stream *s); // NULL is fine

// The text that is certain with this token, perhaps none; valid until the next call. True: a stop
// string is complete, and all that comes before it has been told.
bool nb_stream_token(struct nb_stream *s, int32_t token, struct nb_str *ret_text);
// At the end: what was held back.
struct nb_str nb_stream_end(struct nb_stream *s);
