// Writing a folder beside its place, and giving it its name at the end.
#include "tools/cli/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES     256
#define NAME_SIZE 256

static bool ends_in(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

int folder_wanted(const char *format, const char *to, const char *out, bool *ret)
{
    const bool coded = to && (!strcasecmp(to, "NF4") || !strcasecmp(to, "INT8"));
    *ret = format ? !strcmp(format, "safetensors") : coded;
    if (format && !*ret && strcmp(format, "gguf") != 0)
        return cli_usage_error("--format: '%s' is none of gguf and safetensors", format);
    if (coded && (!*ret || (out && ends_in(out, ".gguf"))))
        return cli_usage_error("no GGUF has %s: it is written as a Hugging Face folder, which -o "
                               "names, with --format safetensors",
                               to);
    return CLI_OK;
}

struct folder {
    char part[PATH_MAX];
    int dir;
    char made[FILES][NAME_SIZE]; // files, in their order
    unsigned n;
};

// The folder that a name within the folder has before it; "" without one.
static const char *parent_of(const char *name, char ret[NAME_SIZE])
{
    const char *slash = strrchr(name, '/');
    snprintf(ret, NAME_SIZE, "%.*s", slash ? (int)(slash - name) : 0, name);
    return ret;
}

int folder_check(const char *out)
{
    struct stat st;
    return lstat(out, &st) == 0
               ? cli_error("%s exists: a folder is never written over, name another", out)
               : CLI_OK;
}

int folder_open(const char *out, struct folder **ret)
{
    int status = folder_check(out);
    if (status != CLI_OK)
        return status;
    struct folder *f = cli_alloc(1, sizeof(*f));
    f->dir = -1;
    if (snprintf(f->part, sizeof(f->part), "%s.%ld.part", out, (long)getpid()) >= PATH_MAX)
        errno = ENAMETOOLONG;
    else if (mkdir(f->part, 0777) == 0)
        f->dir = open(f->part, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f->dir < 0) {
        free(f);
        return cli_error("%s: %s", out, strerror(errno));
    }
    *ret = f;
    return CLI_OK;
}

int folder_create(struct folder *f, const char *name, int *ret_fd)
{
    char parent[NAME_SIZE];
    if (f->n == FILES || strlen(name) >= NAME_SIZE)
        return cli_error("%s: a folder has %d files at most", name, FILES);
    if (*parent_of(name, parent) && mkdirat(f->dir, parent, 0777) < 0 && errno != EEXIST)
        return cli_error("%s/%s: %s", f->part, parent, strerror(errno));
    int fd = openat(f->dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return cli_error("%s/%s: %s", f->part, name, strerror(errno));
    snprintf(f->made[f->n++], NAME_SIZE, "%s", name);
    *ret_fd = fd;
    return CLI_OK;
}

int folder_end(const struct folder *f, const char *name, int fd, int status)
{
    if (status == CLI_OK && fsync(fd) < 0)
        status = cli_error("%s/%s: %s", f->part, name, strerror(errno));
    close(fd);
    return status;
}

int folder_put(struct folder *f, const char *name, const char *text, size_t len)
{
    int fd = -1, status = folder_create(f, name, &fd);
    if (status != CLI_OK)
        return status;
    for (size_t at = 0; at < len && status == CLI_OK;) {
        ssize_t n = write(fd, text + at, len - at);
        if (n < 0)
            status = cli_error("%s/%s: %s", f->part, name, strerror(errno));
        at += n < 0 ? 0 : (size_t)n;
    }
    return folder_end(f, name, fd, status);
}

// What was made, and nothing else.
static void drop(const struct folder *f)
{
    char parent[NAME_SIZE];
    for (unsigned i = f->n; i-- > 0;) {
        unlinkat(f->dir, f->made[i], 0);
        if (*parent_of(f->made[i], parent))
            unlinkat(f->dir, parent, AT_REMOVEDIR);
    }
    rmdir(f->part);
}

int folder_close(struct folder *f, const char *out, int status)
{
    if (status == CLI_OK && fsync(f->dir) < 0)
        status = cli_error("%s: %s", out, strerror(errno));
    if (status == CLI_OK && renameat2(AT_FDCWD, f->part, AT_FDCWD, out, RENAME_NOREPLACE) < 0)
        status = cli_error("%s: %s", out, strerror(errno));
    if (status != CLI_OK)
        drop(f);
    close(f->dir);
    free(f);
    return status;
}
