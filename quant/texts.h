// Calibration text: files of plain text or of JSON lines, one piece after the other. Hostile input.
#pragma once

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
