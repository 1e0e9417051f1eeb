// Lessons: what a teacher makes of a text, written once (tensor/lessons.h), so that students learn
// from it without the teacher. Hostile, like any file.
#pragma once

#include "engine/text/tokenizer.h"
#include "quant/windows.h"
#include "tensor/lessons.h"

struct nb_lessons;
// The first of the files begins like one.
bool nb_lessons_are(const struct nb_source_file *files, uint32_t n);
// Reads all but the rows; the file's descriptor is borrowed. One thread at a time. -EINVAL: it is
// not what its header says, or its tokens are not those of `t`; -ENOMEM, -errno; with its line.
int nb_lessons_open(const struct nb_source_file *file, const struct nb_tokenizer *t,
                    struct nb_lessons **ret, struct nb_error *ret_error);
void nb_lessons_close(struct nb_lessons *l); // NULL is fine
const struct nb_lessons_header *nb_lessons_header(const struct nb_lessons *l);
// A copy of its windows. -ENOMEM.
int nb_lessons_windows(const struct nb_lessons *l, struct nb_windows *ret);

// The rows of the window with these `length` tokens: ret_sums [length], ret_kept
// [length][header.kept]. -ENOENT: there is no such window; -EBADMSG: its rows are none, as where
// somebody has changed the file; -errno.
int nb_lessons_read(const struct nb_lessons *l, const int32_t *tokens, struct nb_lesson *ret_sums,
                    struct nb_kept_logit *ret_kept);
