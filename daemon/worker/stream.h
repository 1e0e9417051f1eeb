// From tokens to the text a client sees: the token's bytes, then whole UTF-8 alone, then no text
// that is or may become a stop string, told as reasoning or not, then without what the client has
// already. The same tokens after the same prompt always give the same text.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/gguf.h"
#include "tensor/fail.h"

struct nb_stream;
struct nb_tokenizer;

struct nb_stream_options {
    const char *stops; // n_stops times u32 length and bytes, of `stops_len` bytes in all: private
    uint64_t stops_len;
    uint32_t n_stops;
    uint32_t think_pairs; // of the model (engine/text/think.h)
    uint64_t skip;        // bytes of text that the client has from before
};

// -EINVAL for stop strings of another shape, `ret_error` says which; -ENOMEM.
int nb_stream_create(const struct nb_tokenizer *tokenizer, const struct nb_stream_options *options,
                     struct nb_stream **ret, struct nb_error *ret_error);
void nb_stream_destroy(struct nb_stream *s); // NULL is fine

// What the stream goes on from; before its first token. -ENOMEM.
int nb_stream_begin(struct nb_stream *s, const int32_t *prompt, size_t n);
// True: a stop string is complete; what comes before it is certain now.
bool nb_stream_token(struct nb_stream *s, int32_t token);
void nb_stream_end(struct nb_stream *s); // what was held back is certain now

// The next piece of text that is certain and of one kind; valid until the next call on the stream.
// False: there is none. What nobody asks for before the next token is dropped.
bool nb_stream_next(struct nb_stream *s, struct nb_str *ret_text, bool *ret_reasoning);
// Whether the last token belongs to reasoning, also where no text came with it.
bool nb_stream_reasons(const struct nb_stream *s);
