// See texts.h.
#include "quant/texts.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct reading {
    nb_texts_piece piece;
    nb_texts_chat chat;
    bool chats; // are read, not texts
    void *user;
    struct nb_error *error;
    const char *name; // the file's
};

// ---- Pieces

// Where to cut: behind the last newline, else before a character that would be torn.
static size_t cut(const char *text, size_t len)
{
    size_t n = NB_TEXTS_PIECE;
    if (len <= n)
        return len;
    const char *newline = memrchr(text, '\n', n);
    if (newline)
        return (size_t)(newline - text) + 1;
    while (n > NB_TEXTS_PIECE - 4 && ((unsigned char)text[n] & 0xc0) == 0x80)
        n--;
    return n;
}

static int give(const struct reading *r, const char *text, size_t len)
{
    int rc = 0;
    for (size_t n; len > 0 && rc == 0; text += n, len -= n) {
        n = cut(text, len);
        rc = r->piece(r->user, text, n);
    }
    return rc;
}

// ---- JSON lines

static const char *end_of_line(const char *at, const char *end)
{
    const char *newline = memchr(at, '\n', (size_t)(end - at));
    return newline ? newline : end;
}

static bool is_blank(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\r'))
        at++;
    return at == end;
}

static bool is_wanted(const json_t *line, bool chat)
{
    return chat ? json_is_array(json_object_get(line, "messages"))
                : json_is_string(json_object_get(line, "text"));
}

// The line's object, which has a string "text" or is a conversation; or NULL.
static json_t *parse_line(const char *at, const char *end, bool chat)
{
    json_t *line = json_loadb(at, (size_t)(end - at), JSON_REJECT_DUPLICATES, NULL);
    if (is_wanted(line, chat))
        return line;
    json_decref(line);
    return NULL;
}

static int give_line(const struct reading *r, const json_t *line, uint64_t number)
{
    const json_t *said = json_object_get(line, "text");
    if (!line)
        return nb_fail(r->error, -EINVAL, "%.200s: line %" PRIu64 " is no JSON object with a %s",
                       r->name, number, r->chats ? "list \"messages\"" : "string \"text\"");
    return r->chats ? r->chat(r->user, line)
                    : give(r, json_string_value(said), json_string_length(said));
}

static int give_lines(const struct reading *r, const char *text, size_t len)
{
    const char *end = text + len;
    uint64_t number = 1;
    int rc = 0;
    for (const char *at = text, *stop; at < end && rc == 0; at = stop + 1, number++) {
        stop = end_of_line(at, end);
        if (is_blank(at, stop))
            continue;
        json_t *line = parse_line(at, stop, r->chats);
        rc = give_line(r, line, number);
        json_decref(line);
    }
    return rc;
}

static bool begins_with_line(const char *text, size_t len, bool chat)
{
    json_t *line = *text == '{' ? parse_line(text, end_of_line(text, text + len), chat) : NULL;
    json_decref(line);
    return line != NULL;
}

static bool are_lines(const char *name, const char *text, size_t len)
{
    const char *dot = strrchr(name, '.');
    if (dot && (!strcmp(dot, ".jsonl") || !strcmp(dot, ".ndjson")))
        return true;
    return begins_with_line(text, len, false);
}

// ---- Files

// Once, to private memory; a NUL follows.
static int read_file(const struct nb_source_file *file, uint64_t most, char **ret, size_t *ret_len,
                     struct nb_error *e)
{
    struct stat st;
    if (fstat(file->fd, &st) < 0)
        return nb_fail(e, -errno, "%.200s cannot be read: %s", file->name, strerror(errno));
    if (st.st_size < 0 || (uint64_t)st.st_size > most)
        return nb_fail(e, -EFBIG,
                       "%.200s: calibration text has %" PRIu64 " MiB at most, all files together: "
                       "give a part of it",
                       file->name, NB_TEXTS_BYTES >> 20);
    char *text = malloc((size_t)st.st_size + 1);
    if (!text)
        return nb_fail(e, -ENOMEM, "no memory for the calibration text");
    size_t len = 0;
    for (ssize_t n; len < (size_t)st.st_size; len += (size_t)n) {
        n = pread(file->fd, text + len, (size_t)st.st_size - len, (off_t)len);
        if (n > 0)
            continue;
        free(text);
        return nb_fail(e, n < 0 ? -errno : -ESTALE, "%.200s cannot be read: %s", file->name,
                       strerror(n < 0 ? errno : ESTALE));
    }
    text[len] = '\0';
    *ret = text;
    *ret_len = len;
    return 0;
}

static int read_files(struct reading r, const struct nb_source_file *files, uint32_t n)
{
    uint64_t left = NB_TEXTS_BYTES;
    int rc = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        char *text = NULL;
        size_t len = 0;
        r.name = files[i].name;
        rc = read_file(&files[i], left, &text, &len, r.error);
        left -= len;
        if (text)
            rc = r.chats || are_lines(r.name, text, len) ? give_lines(&r, text, len)
                                                         : give(&r, text, len);
        free(text);
    }
    return rc;
}

int nb_texts_read(const struct nb_source_file *files, uint32_t n, nb_texts_piece piece, void *user,
                  struct nb_error *ret_error)
{
    return read_files((struct reading){.piece = piece, .user = user, .error = ret_error}, files, n);
}

int nb_texts_chats(const struct nb_source_file *files, uint32_t n, nb_texts_chat chat, void *user,
                   struct nb_error *ret_error)
{
    return read_files(
        (struct reading){.chat = chat, .chats = true, .user = user, .error = ret_error}, files, n);
}

bool nb_texts_are_chats(const struct nb_source_file *files, uint32_t n)
{
    struct nb_error unsaid;
    char *text = NULL;
    size_t len = 0;
    if (!n || read_file(&files[0], NB_TEXTS_BYTES, &text, &len, &unsaid) < 0)
        return false;
    const bool are = text && begins_with_line(text, len, true);
    free(text);
    return are;
}
