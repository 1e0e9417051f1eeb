// A line editor on the terminal, and what was typed there before.
#pragma once

#include <stdbool.h>

struct terminal;

// Whether standard input is a terminal that somebody types at.
bool terminal_is_there(void);
// NULL after saying why not.
struct terminal *terminal_create(void);
void terminal_destroy(struct terminal *t);
// The next message, malloc'ed, without the newline at its end; NULL at the end (Ctrl-D). Lines that
// are pasted together, or that wait already when Enter is read, are one message.
char *terminal_read(struct terminal *t);

// The messages of earlier chats, in a file of the user's alone. Where it cannot be kept, there are
// none.
struct history_file;
struct history_file *history_open(void); // NULL: it cannot be kept
void history_close(struct history_file *h);
// Calls `each` with every message, the oldest first; they are its to read during the call.
void history_read(struct history_file *h, void (*each)(void *user, const char *message),
                  void *user);
void history_add(struct history_file *h, const char *message);
