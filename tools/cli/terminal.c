// Lines from the terminal, by libedit. It reads keys and pastes alone; what a message means is the
// chat's.
#include "tools/cli/terminal.h"

#include <errno.h>
#include <histedit.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#include "tools/cli/cli.h"

#define HISTORY_MAX 1000
#define PASTE_MAX   (1 << 20) // characters of one paste
// A paste without marks comes in pieces at once, a finger on a key does not.
#define PASTE_MS 10

struct terminal {
    EditLine *editor;
    HistoryW *history;
    struct history_file *file;
    FILE *out;
    bool cleared; // Ctrl-C: the line is gone, not the chat
    bool ended;   // Ctrl-D came with the last line
};

bool terminal_is_there(void)
{
    return isatty(STDIN_FILENO);
}

static wchar_t *prompt(EditLine *editor)
{
    static wchar_t text[] = L"> ";
    return text;
}

static struct terminal *of(EditLine *editor)
{
    struct terminal *t = NULL;
    el_wget(editor, EL_CLIENTDATA, &t);
    return t;
}

// Tells the terminal to mark pastes, or not to.
static void mark_pastes(struct terminal *t, bool on)
{
    const char *kind = getenv("TERM");
    if (kind && *kind && strcmp(kind, "dumb") != 0)
        fputs(on ? "\033[?2004h" : "\033[?2004l", t->out);
    fflush(t->out);
}

// --- Keys. Each is a function of libedit: it returns what is to be done.

static bool more_waits(void)
{
    struct pollfd in = {STDIN_FILENO, POLLIN, 0};
    return poll(&in, 1, PASTE_MS) == 1 && (in.revents & POLLIN);
}

static unsigned char end_line(EditLine *editor)
{
    el_wpush(editor, L"\036"); // bound to libedit's own end of a line
    return CC_NORM;
}

static unsigned char on_enter(EditLine *editor, int key)
{
    if (!more_waits())
        return end_line(editor);
    return el_winsertstr(editor, L"\n") < 0 ? CC_ERROR : CC_REFRESH;
}

static unsigned char on_interrupt(EditLine *editor, int key)
{
    of(editor)->cleared = true;
    return CC_EOF;
}

// The shell's again, until it says go on.
static unsigned char on_suspend(EditLine *editor, int key)
{
    el_wset(editor, EL_PREP_TERM, 0);
    mark_pastes(of(editor), false);
    kill(0, SIGTSTP);
    mark_pastes(of(editor), true);
    el_wset(editor, EL_PREP_TERM, 1);
    el_wset(editor, EL_REFRESH);
    return CC_NORM;
}

// Ctrl-D: the end on an empty line. After a newline that came with more, it is the end of both.
static unsigned char on_end(EditLine *editor, int key)
{
    const LineInfoW *line = el_wline(editor);
    if (line->lastchar == line->buffer)
        return CC_EOF;
    if (line->lastchar[-1] != L'\n')
        return CC_ERROR;
    of(editor)->ended = true;
    return end_line(editor);
}

// What counts of a paste: text, tabs, and newlines.
static wchar_t pasted(wchar_t c)
{
    if (c == L'\r')
        return L'\n';
    return (c < L' ' && c != L'\n' && c != L'\t') || c == 0x7f ? 0 : c;
}

// A paste between marks, all in one: no key in it is a command.
static unsigned char on_paste(EditLine *editor, int key)
{
    static const wchar_t end[] = L"\033[201~";
    wchar_t *text = cli_alloc(PASTE_MAX + 1, sizeof(*text)), c;
    size_t n = 0, matched = 0;
    while (end[matched] && el_wgetc(editor, &c) == 1) {
        matched = c == end[matched] ? matched + 1 : c == end[0];
        if (matched != 1 && n < PASTE_MAX && pasted(c))
            text[n++] = pasted(c);
    }
    // The mark's own characters, but the first one, are in the text.
    n -= !end[matched] && n >= matched - 1 ? matched - 1 : 0;
    text[n] = L'\0';
    int rc = el_winsertstr(editor, text);
    free(text);
    return rc < 0 ? CC_ERROR : CC_REFRESH;
}

static void bind_keys(EditLine *editor)
{
    static const struct {
        const wchar_t *name, *help;
        unsigned char (*run)(EditLine *, int);
        const wchar_t *keys[2];
    } functions[] = {
        {L"nibble-enter", L"send the message", on_enter, {L"^M", L"^J"}},
        {L"nibble-interrupt", L"clear the line", on_interrupt, {L"^C"}},
        {L"nibble-suspend", L"suspend the chat", on_suspend, {L"^Z"}},
        {L"nibble-end", L"end the chat", on_end, {L"^D"}},
        {L"nibble-paste", L"insert a paste", on_paste, {L"\\e[200~"}},
    };
    el_wset(editor, EL_BIND, L"^^", L"ed-newline", NULL);
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        el_wset(editor, EL_ADDFN, functions[i].name, functions[i].help, functions[i].run);
        for (size_t k = 0; k < 2 && functions[i].keys[k]; k++)
            el_wset(editor, EL_BIND, functions[i].keys[k], functions[i].name, NULL);
    }
    // Ctrl-C is a key while a line is read, and a signal while an answer comes.
    el_wset(editor, EL_SETTY, L"-d", L"-isig", NULL);
}

// --- Messages

static void remember(void *user, const char *message)
{
    struct terminal *t = user;
    HistEventW event;
    size_t n = strlen(message) + 1;
    wchar_t *wide = cli_alloc(n, sizeof(*wide));
    if (mbstowcs(wide, message, n) != (size_t)-1)
        history_w(t->history, &event, H_ENTER, wide);
    free(wide);
}

struct terminal *terminal_create(void)
{
    struct terminal *t = cli_alloc(1, sizeof(*t));
    HistEventW event;
    // Standard output carries the answers alone where it is no terminal.
    t->out = isatty(STDOUT_FILENO) ? stdout : stderr;
    t->editor = el_init("nibble", stdin, t->out, stderr);
    t->history = history_winit();
    if (!t->editor || !t->history) {
        terminal_destroy(t);
        cli_error("the terminal's line editor does not start");
        return NULL;
    }
    history_w(t->history, &event, H_SETSIZE, HISTORY_MAX);
    el_wset(t->editor, EL_CLIENTDATA, t);
    el_wset(t->editor, EL_PROMPT, prompt);
    el_wset(t->editor, EL_SIGNAL, 1);
    el_wset(t->editor, EL_HIST, history_w, t->history);
    el_wset(t->editor, EL_EDITOR, L"emacs");
    el_source(t->editor, NULL);
    bind_keys(t->editor);
    t->file = history_open();
    history_read(t->file, remember, t);
    return t;
}

void terminal_destroy(struct terminal *t)
{
    if (!t)
        return;
    if (t->editor)
        el_end(t->editor);
    if (t->history)
        history_wend(t->history);
    history_close(t->file);
    free(t);
}

static char *to_utf8(const wchar_t *wide, size_t n)
{
    char *text = cli_alloc(4 * n + 1, 1);
    size_t len = 0;
    mbstate_t state = {0};
    for (size_t i = 0; i < n; i++) {
        size_t bytes = wcrtomb(text + len, wide[i], &state);
        len += bytes != (size_t)-1 ? bytes : 0;
    }
    while (len && text[len - 1] == '\n')
        len--;
    text[len] = '\0';
    return text;
}

char *terminal_read(struct terminal *t)
{
    const wchar_t *line = NULL;
    int n = 0;
    while (!line && !t->ended) {
        t->cleared = false;
        mark_pastes(t, true);
        line = el_wgets(t->editor, &n);
        mark_pastes(t, false);
        if (line && n > 0)
            break;
        line = NULL;
        // A signal from elsewhere (kill -INT) is as Ctrl-C is.
        t->cleared |= n < 0 && errno == EINTR;
        fputs(t->cleared ? "^C\n" : "\n", t->out);
        if (!t->cleared)
            return NULL;
    }
    char *message = line ? to_utf8(line, (size_t)n) : NULL;
    if (message && *message) {
        remember(t, message);
        history_add(t->file, message);
    }
    return message;
}
