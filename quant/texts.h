// Calibration text: files of plain text or of JSON lines, one piece after the other. Hostile input.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/fail.h"
#include "tensor/source.h"

#define NB_TEXTS_BYTES (UINT64_C(64) << 20) // of all files together, at most
#define NB_TEXTS_PIECE (1u << 20)           // bytes that are given at a time, at most

// A piece of text, valid during the call. A negative return ends the reading.
typedef int (*nb_texts_piece)(void *user, const char *text, size_t len);

// A file named *.jsonl or *.ndjson, or whose first line is a JSON object with a string "text", is
// JSON lines: the "text" of each line; any other is plain text. A long text comes in pieces, cut
// behind a newline where there is one, and never within UTF-8. -errno with its line.
int nb_texts_read(const struct nb_source_file *files, uint32_t n, nb_texts_piece piece, void *user,
                  struct nb_error *ret_error);

// An object of a line that is a conversation: it has a list "messages". A negative return ends the
// reading, after its line was said.
typedef int (*nb_texts_chat)(void *user, const json_t *chat);

// Whether the first of the files begins with such a line: then all are to be conversations.
bool nb_texts_are_chats(const struct nb_source_file *files, uint32_t n);
// A conversation a line. -EINVAL: a line is none, by its file and number; errors as above.
int nb_texts_chats(const struct nb_source_file *files, uint32_t n, nb_texts_chat chat, void *user,
                   struct nb_error *ret_error);
